//! The decoder as a differentiable graph over packed sequences.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::attention::{Attention, HeadShape};
use super::backend::Backend;
use super::composed;
use super::distill_loss::{Head, Tally, Targets};
use super::frozen::Frozen;
use super::ops;
use super::weights::{FUSED, Weights};
use pleach::model::{ModelConfig, RopeTables};
use pleach_kernels::scale;
use pleach_kernels::training::Divergence;

/// Several sequences side by side, and what is to be learnt from them.
#[derive(Debug, Default, Clone)]
pub struct TrainingBatch {
    /// Tokens of all sequences.
    pub tokens: Vec<u32>,
    /// Rows of each sequence.
    pub sequences: Vec<Range<usize>>,
    pub(super) targets: Targets,
}

/// What is frozen: the architecture, the embedding table and the head's rows.
pub struct Network {
    config: ModelConfig,
    /// `[vocab_size, hidden]`
    embedding: Vec<f32>,
    /// `[head_rows, hidden]`
    head: Arc<Frozen>,
    ropes: RopeTables,
}

impl Network {
    /// A network over a frozen embedding, `[vocab_size, hidden]`, and head, `[head_rows, hidden]`, which `backend` computes.
    ///
    /// # Errors
    /// If the head is not made of whole rows.
    pub fn new(
        config: ModelConfig,
        embedding: Vec<f32>,
        head: Vec<f32>,
        backend: &Backend,
    ) -> Result<Self> {
        let head = frozen_head(&head, config.hidden_size, backend)?;
        let ropes = RopeTables::new(&config);
        Ok(Self { config, embedding, head, ropes })
    }

    /// The architecture.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sum of the losses of a batch, as a tensor to differentiate, and what it is made of.
    pub(super) fn loss(
        &self,
        weights: &Weights,
        batch: &TrainingBatch,
        divergence: Divergence,
        training: bool,
    ) -> Result<(Tensor, Tally)> {
        let hidden = self.hidden_states(weights, batch)?;
        let head = Head { rows: &self.head, cap: self.config.design.logit_cap };
        let targets = batch.targets.clone();
        ops::distill_loss(weights.backend(), &hidden, head, targets, divergence, training)
    }

    /// Sum of the forward KL of a batch, as a scalar to differentiate.
    ///
    /// # Errors
    /// What candle says, for instance about a missing weight.
    pub fn loss_sum(&self, weights: &Weights, batch: &TrainingBatch) -> Result<Tensor> {
        Ok(self.loss(weights, batch, Divergence::FORWARD_KL, true)?.0)
    }

    /// Logits of all rows, `[rows, head_rows]`.
    ///
    /// # Errors
    /// What candle says, for instance about a missing weight.
    pub fn logits(&self, weights: &Weights, batch: &TrainingBatch) -> Result<Tensor> {
        let hidden = self.hidden_states(weights, batch)?;
        composed::bounded(self.head.product(&hidden)?, self.config.design.logit_cap)
    }

    /// Normed output of the last block, `[rows, hidden]`.
    fn hidden_states(&self, weights: &Weights, batch: &TrainingBatch) -> Result<Tensor> {
        let config = &self.config;
        let width = config.hidden_size;
        let weights = &weights.fused(config)?;
        let mut ropes = self.ropes.clone();
        let positions: Vec<u32> =
            batch.sequences.iter().flat_map(|rows| 0..rows.len() as u32).collect();
        ropes.set_positions(&positions);
        let ropes = Arc::new(ropes);
        let sequences: Arc<[Range<usize>]> = batch.sequences.clone().into();

        let mut hidden = Vec::with_capacity(batch.tokens.len() * width);
        for token in &batch.tokens {
            hidden.extend_from_slice(&self.embedding[*token as usize * width..][..width]);
        }
        if let Some(by) = config.design.embedding_scale {
            scale(&mut hidden, by);
        }
        let mut hidden =
            Tensor::from_vec(hidden, (batch.tokens.len(), width), weights.backend().device())?;
        for index in 0..config.num_hidden_layers {
            let layer = Layer { config, weights, index };
            let attention = Attention {
                shape: HeadShape::of(config, index),
                sequences: Arc::clone(&sequences),
                ropes: Arc::clone(&ropes),
                block: index,
            };
            hidden =
                layer.forward(&hidden, |qkv| ops::attention(weights.backend(), attention, &qkv))?;
        }
        norm(weights.backend(), &hidden, weights.wanted("model.norm.weight")?, config)
    }
}

/// The RMS norm of rows as long as the weight, as the architecture has it.
pub(super) fn norm(
    backend: &Backend,
    x: &Tensor,
    weight: &Tensor,
    config: &ModelConfig,
) -> Result<Tensor> {
    let eps = config.rms_norm_eps as f32;
    if config.design.norms_from_one {
        ops::rms_norm(backend, x, &(weight + 1.0)?, eps)
    } else {
        ops::rms_norm(backend, x, weight, eps)
    }
}

/// A head, `[columns, width]`, as losses take it.
///
/// # Errors
/// If it is not made of whole rows.
pub(super) fn frozen_head(head: &[f32], width: usize, backend: &Backend) -> Result<Arc<Frozen>> {
    if !head.len().is_multiple_of(width) {
        candle_core::bail!("the head is not made of whole rows");
    }
    Ok(Arc::new(Frozen::new(head, width, backend)?))
}

/// The weights of one block, [fused](Weights::fused).
pub(super) struct Layer<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights,
    pub(super) index: usize,
}

impl Layer<'_> {
    /// The block's output, `[rows, hidden]`; `attend` makes the heads' values of their queries, keys and values.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        attend: impl FnOnce(Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let hidden = self.attended(hidden, attend)?;
        let fed = self.linear(&self.neurons(&hidden)?, "mlp.down_proj")?;
        if self.config.design.output_norms {
            hidden + self.norm(&fed, "post_feedforward_layernorm")?
        } else {
            hidden + fed
        }
    }

    /// The block's input and what its attention adds, `[rows, hidden]`.
    pub(super) fn attended(
        &self,
        hidden: &Tensor,
        attend: impl FnOnce(Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let x = self.norm(hidden, "input_layernorm")?;
        let attended = attend(self.qkv(&x)?)?;
        let attended = self.linear(&attended, "self_attn.o_proj")?;
        if self.config.design.output_norms {
            hidden + self.norm(&attended, "post_attention_layernorm")?
        } else {
            hidden + attended
        }
    }

    /// Activations of the feed-forward part's neurons, `[rows, intermediate]`, behind attention.
    pub(super) fn neurons(&self, attended: &Tensor) -> Result<Tensor> {
        let design = &self.config.design;
        let before = if design.output_norms {
            "pre_feedforward_layernorm"
        } else {
            "post_attention_layernorm"
        };
        let fed = self.linear(&self.norm(attended, before)?, FUSED[1].0)?;
        ops::gate_mul(self.weights.backend(), &fed, design.activation)
    }

    fn name(&self, module: &str, kind: &str) -> String {
        format!("model.layers.{}.{module}.{kind}", self.index)
    }

    fn norm(&self, x: &Tensor, module: &str) -> Result<Tensor> {
        let weight = self.weights.wanted(&self.name(module, "weight"))?;
        norm(self.weights.backend(), x, weight, self.config)
    }

    fn linear(&self, x: &Tensor, module: &str) -> Result<Tensor> {
        let y = self.weights.linear(x, &format!("model.layers.{}.{module}", self.index))?;
        match self.weights.get(&self.name(module, "bias")) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn qkv(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = self.linear(x, FUSED[0].0)?;
        if self.weights.get(&self.name("self_attn.q_norm", "weight")).is_none() {
            return Ok(qkv);
        }
        let (config, rows) = (self.config, x.dim(0)?);
        let dim = config.head_dim;
        let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
        let head_norm = |start: usize, width: usize, module: &str| {
            let heads = qkv.narrow(1, start, width)?.contiguous()?.reshape(((), dim))?;
            self.norm(&heads, module)?.reshape((rows, width))
        };
        let q_normed = head_norm(0, q, "self_attn.q_norm")?;
        let k_normed = head_norm(q, kv, "self_attn.k_norm")?;
        Tensor::cat(&[&q_normed, &k_normed, &qkv.narrow(1, q + kv, kv)?], 1)
    }
}
