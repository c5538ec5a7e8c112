//! Tensors of a checkpoint, packed for the kernels.

use super::error::{ModelError, check_shape};
use super::layer::{Layer, Projection};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::architecture::{MATRICES, ModelConfig};
use pleach_kernels::{DType, PackedMatrix, ThreadPool};

/// How the weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// As in the file: quantised weights multiply int8 activations. Keys and values are kept as f16.
    AsStored,
    /// Every matrix rounded to Q8_0, whatever the file stores: one arithmetic for models of several formats.
    Q8_0,
    /// Decoded to f32, keys and values too: slow and large, for reference.
    F32,
}

/// Reads and packs tensors, checking their shapes.
pub(in crate::model) struct Loader<'a> {
    pub(in crate::model) checkpoint: &'a mut Checkpoint,
    pub(in crate::model) precision: Precision,
    /// Packs matrices.
    pub(in crate::model) pool: &'a ThreadPool,
}

impl Loader<'_> {
    pub(in crate::model) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<PackedMatrix, ModelError> {
        let tensor = self.checkpoint.tensor(name)?;
        check_shape(name, &tensor.shape, &[rows, cols])?;
        let pack = |error| ModelError::Pack { name: name.into(), error };
        match self.precision {
            Precision::AsStored => {
                PackedMatrix::pack_on(self.pool, tensor.dtype, rows, cols, &tensor.data)
                    .map_err(pack)
            }
            Precision::Q8_0 => {
                // Rows that are no whole blocks leave nothing, which `pack` refuses.
                let rounded = DType::Q8_0.quantize(&tensor.to_f32()).unwrap_or_default();
                PackedMatrix::pack_on(self.pool, DType::Q8_0, rows, cols, &rounded).map_err(pack)
            }
            Precision::F32 => PackedMatrix::from_f32(rows, cols, &tensor.to_f32()).map_err(pack),
        }
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.checkpoint.tensor(name)?;
        check_shape(name, &tensor.shape, &[len])?;
        Ok(tensor.to_f32())
    }

    /// The weights of a norm, as it multiplies by them.
    pub(in crate::model) fn norm(
        &mut self,
        name: &str,
        config: &ModelConfig,
        len: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let mut weights = self.vector(name, len)?;
        if config.design.norms_from_one {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(weights)
    }

    /// The matrix of a block that has this place in [`MATRICES`].
    fn projection(
        &mut self,
        place: (usize, usize),
        rows: usize,
        cols: usize,
    ) -> Result<Projection, ModelError> {
        let (block, module) = place;
        let name = format!("model.layers.{block}.{}", MATRICES[module]);
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = format!("{name}.bias");
        let bias = if self.checkpoint.has(&bias) { Some(self.vector(&bias, rows)?) } else { None };
        Ok(Projection { weight, bias, place })
    }

    pub(in crate::model) fn layer(
        &mut self,
        config: &ModelConfig,
        index: usize,
    ) -> Result<Layer, ModelError> {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let (hidden, dim) = (config.hidden_size, config.head_dim);
        let q = config.num_attention_heads * dim;
        let kv = config.num_key_value_heads * dim;
        let inner = config.intermediate_size;
        let q_norm = name("self_attn.q_norm.weight");
        let qk_norm = if self.checkpoint.has(&q_norm) {
            let k_norm = self.norm(&name("self_attn.k_norm.weight"), config, dim)?;
            Some([self.norm(&q_norm, config, dim)?, k_norm])
        } else {
            None
        };
        let behind_attention = name("post_attention_layernorm.weight");
        let (attention_norm, before_gate, feed_forward_norm) = if config.design.output_norms {
            let behind_gate = name("post_feedforward_layernorm.weight");
            let attention = self.norm(&behind_attention, config, hidden)?;
            let feed_forward = self.norm(&behind_gate, config, hidden)?;
            (Some(attention), name("pre_feedforward_layernorm.weight"), Some(feed_forward))
        } else {
            (None, behind_attention, None)
        };
        Ok(Layer {
            index,
            input_norm: self.norm(&name("input_layernorm.weight"), config, hidden)?,
            qkv: [
                self.projection((index, 0), q, hidden)?,
                self.projection((index, 1), kv, hidden)?,
                self.projection((index, 2), kv, hidden)?,
            ],
            qk_norm,
            output: self.projection((index, 3), hidden, q)?,
            attention_norm,
            post_norm: self.norm(&before_gate, config, hidden)?,
            gate_up: [
                self.projection((index, 4), inner, hidden)?,
                self.projection((index, 5), inner, hidden)?,
            ],
            down: self.projection((index, 6), hidden, inner)?,
            feed_forward_norm,
            activation: config.design.activation,
            attention: config.attention(index),
        })
    }
}
