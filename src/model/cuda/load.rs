//! From a checkpoint to a decoder or a draft in a device's memory.

use std::sync::Arc;

use super::adapters::CudaAdapters;
use super::attached::{CudaAttached, Parts, Projection};
use super::decoder::CudaDecoder;
use super::draft::CudaDraft;
use super::layer::{Layer, Stack};
use super::lender::CudaLender;
use crate::checkpoint::architecture::MATRICES;
use crate::checkpoint::{Checkpoint, RawTensor, TensorInfo};
use crate::model::decoder::{check_draft, check_shape};
use crate::model::{AdapterShapes, ModelConfig, ModelError, PROJECTIONS, tensor_names};
use pleach_kernels::DType;
use pleach_kernels::cuda::{Device, HEAD_DIMS, KvFormat, Table, Tensor, Weights};

/// Reads tensors, checks their shapes, and copies them to the device.
struct Loader<'a> {
    checkpoint: &'a mut Checkpoint,
    device: &'a Arc<Device>,
    dtype: DType,
}

/// The format of activations and of float weights: that of the file's float matrices; BF16, whose range no model
/// leaves, where they are F32 or quantised, where the cache holds codes, or the model norms what its blocks add: Gemma's
/// leaves the range of F16.
fn activation_dtype(checkpoint: &Checkpoint, kv_format: KvFormat) -> Result<DType, ModelError> {
    let mut found = Vec::new();
    for name in
        ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "model.embed_tokens.weight"]
    {
        if checkpoint.has(name) {
            found.push(checkpoint.info(name)?.dtype);
        }
    }
    let f16 = found.contains(&DType::F16) && !found.contains(&DType::BF16);
    let wide = checkpoint.config.design.output_norms || kv_format == KvFormat::Int8;
    Ok(if f16 && !wide { DType::F16 } else { DType::BF16 })
}

/// Checks that matrices of this format can be written in one that kernels take.
fn check_format(name: &str, stored: DType) -> Result<(), ModelError> {
    if stored == DType::Q5_1 {
        let reason = format!("CUDA devices take no {stored:?} weights");
        return Err(ModelError::Unsupported { what: format!("tensor {name}"), reason });
    }
    Ok(())
}

impl Loader<'_> {
    /// A matrix as the file stores it. Float matrices of another format than the activations' are rounded to that; codes of
    /// 5 bits without minima are written in 8.
    fn stored(&mut self, name: &str, shape: [usize; 2]) -> Result<RawTensor, ModelError> {
        let mut tensor = self.checkpoint.tensor(name)?;
        check_shape(name, &tensor.shape, &shape)?;
        check_format(name, tensor.dtype)?;
        if tensor.dtype == DType::Q5_0 {
            tensor.data = DType::q5_0_as_q8_0(&tensor.data);
            tensor.dtype = DType::Q8_0;
        }
        if !tensor.dtype.is_quantized() && tensor.dtype != self.dtype {
            tensor.data = self.dtype.quantize(&tensor.to_f32()).expect("invariant: a float format");
            tensor.dtype = self.dtype;
        }
        Ok(tensor)
    }

    /// The weights of a norm, as it multiplies by them, in f32.
    fn norm(&mut self, name: &str, len: usize) -> Result<Tensor, ModelError> {
        let tensor = self.checkpoint.tensor(name)?;
        check_shape(name, &tensor.shape, &[len])?;
        let mut weights = tensor.to_f32();
        if self.checkpoint.config.design.norms_from_one {
            weights.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(Tensor::from_f32(self.device, DType::F32, [1, len], &weights)?)
    }

    fn table(&mut self, name: &str, shape: [usize; 2]) -> Result<Table, ModelError> {
        let stored = self.stored(name, shape)?;
        Ok(Table::new(self.device, stored.dtype, shape[0], shape[1], &stored.data)?)
    }

    /// The matrices of these names (less `.weight`) and outputs, side by side.
    fn stack(&mut self, names: &[(String, usize)], inputs: usize) -> Result<Stack, ModelError> {
        let mut parts: Vec<(usize, RawTensor)> = Vec::new();
        let mut outputs = 0;
        for (name, rows) in names {
            let stored = self.stored(&format!("{name}.weight"), [*rows, inputs])?;
            match parts.last_mut() {
                Some((_, last)) if last.dtype == stored.dtype => {
                    last.data.extend(stored.data);
                    last.shape[0] += rows;
                }
                _ => parts.push((outputs, stored)),
            }
            outputs += rows;
        }
        let pack = |(column, stored): (usize, RawTensor)| {
            let weights =
                Weights::pack(self.device, stored.dtype, stored.shape[0], inputs, &stored.data)?;
            Ok((column, weights))
        };
        Ok(Stack {
            parts: parts.into_iter().map(pack).collect::<Result<_, ModelError>>()?,
            outputs,
            bias: None,
        })
    }

    /// [`stack`](Self::stack) with the biases there are.
    fn biased(&mut self, names: &[(String, usize)], inputs: usize) -> Result<Stack, ModelError> {
        Ok(Stack { bias: self.bias(names)?, ..self.stack(names, inputs)? })
    }

    /// The biases of projections side by side; zeros where only some have one.
    fn bias(&mut self, names: &[(String, usize)]) -> Result<Option<Tensor>, ModelError> {
        let (mut values, mut any) = (Vec::new(), false);
        for (name, len) in names {
            let name = format!("{name}.bias");
            if self.checkpoint.has(&name) {
                let tensor = self.checkpoint.tensor(&name)?;
                check_shape(&name, &tensor.shape, &[*len])?;
                values.extend(tensor.to_f32());
                any = true;
            } else {
                values.resize(values.len() + len, 0.0);
            }
        }
        let tensor = || Tensor::from_f32(self.device, self.dtype, [1, values.len()], &values);
        Ok(any.then(tensor).transpose()?)
    }

    fn layer(&mut self, config: &ModelConfig, index: usize) -> Result<Layer, ModelError> {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let (hidden, dim) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
        let inner = config.intermediate_size;
        let qkv = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)]
            .map(|(part, n)| (name(&format!("self_attn.{part}")), n));
        let gate_up = ["gate_proj", "up_proj"].map(|part| (name(&format!("mlp.{part}")), inner));
        let q_norm = name("self_attn.q_norm.weight");
        let qk_norm = if self.checkpoint.has(&q_norm) {
            Some([self.norm(&q_norm, dim)?, self.norm(&name("self_attn.k_norm.weight"), dim)?])
        } else {
            None
        };
        let behind_attention = self.norm(&name("post_attention_layernorm.weight"), hidden)?;
        let (attention_norm, post_norm, feed_forward_norm) = if config.design.output_norms {
            let [before, behind] =
                ["pre", "post"].map(|place| name(&format!("{place}_feedforward_layernorm.weight")));
            let behind = self.norm(&behind, hidden)?;
            (Some(behind_attention), self.norm(&before, hidden)?, Some(behind))
        } else {
            (None, behind_attention, None)
        };
        Ok(Layer {
            input_norm: self.norm(&name("input_layernorm.weight"), hidden)?,
            qkv_bias: self.bias(&qkv)?,
            qkv: self.stack(&qkv, hidden)?,
            qk_norm,
            output: self.biased(&[(name("self_attn.o_proj"), hidden)], q)?,
            attention_norm,
            post_norm,
            gate_up: self.biased(&gate_up, hidden)?,
            activation: config.design.activation,
            down: self.biased(&[(name("mlp.down_proj"), hidden)], inner)?,
            feed_forward_norm,
            attention: config.attention(index),
        })
    }

    /// A projection of `hidden_size` outputs, of the token and so many states.
    fn projection(&mut self, name: &str, states: usize) -> Result<Projection, ModelError> {
        let width = self.checkpoint.config.hidden_size;
        let RawTensor { dtype, data, .. } = self.stored(name, [width, (1 + states) * width])?;
        let (Some(token), Some(row)) =
            (dtype.bytes_for(width), dtype.bytes_for((1 + states) * width))
        else {
            let reason =
                format!("blocks of {dtype:?} do not end where each state's {width} inputs do");
            return Err(ModelError::Unsupported { what: format!("tensor {name}"), reason });
        };
        let (mut of_token, mut of_states) = (Vec::new(), Vec::new());
        for row in data.chunks_exact(row) {
            let (token, states) = row.split_at(token);
            of_token.extend_from_slice(token);
            of_states.extend_from_slice(states);
        }
        let pack = |inputs, data: &[u8]| Weights::pack(self.device, dtype, width, inputs, data);
        Ok(Projection { token: pack(width, &of_token)?, states: pack(states * width, &of_states)? })
    }

    /// All blocks and the last norm of a model that devices compute.
    fn blocks(&mut self) -> Result<(Vec<Layer>, Tensor), ModelError> {
        let config = self.checkpoint.config.clone();
        self.checkpoint.check_tensors()?;
        CudaDecoder::check(self.checkpoint)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| self.layer(&config, index))
            .collect::<Result<_, _>>()?;
        Ok((layers, self.norm("model.norm.weight", config.hidden_size)?))
    }

    fn assemble(
        mut self,
        kv_format: KvFormat,
        embedding: Arc<Table>,
        head: Arc<Stack>,
        draft_vocab: Option<Arc<[u32]>>,
    ) -> Result<CudaDecoder, ModelError> {
        let (layers, norm) = self.blocks()?;
        let (device, dtype) = (Arc::clone(self.device), self.dtype);
        let config = self.checkpoint.config.clone();
        let shapes = vec![matrix_shapes(&config); config.num_hidden_layers];
        Ok(CudaDecoder {
            adapters: CudaAdapters::new(&device),
            adapter_shapes: Arc::new(AdapterShapes::new(shapes)),
            device,
            config,
            dtype,
            kv_format,
            embedding,
            layers,
            norm,
            head,
            draft_vocab,
        })
    }
}

/// Shapes of the matrices of a block, `[out, in]`, in the order of [`MATRICES`].
fn matrix_shapes(config: &ModelConfig) -> [[usize; 2]; MATRICES.len()] {
    let (hidden, inner, dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * dim, config.num_key_value_heads * dim);
    let (narrow, wide) = ([kv, hidden], [inner, hidden]);
    [[q, hidden], narrow, narrow, [hidden, q], wide, wide, [hidden, inner]]
}

/// The name of the output head's matrix, less `.weight`.
fn head_name(checkpoint: &Checkpoint) -> String {
    let own = !checkpoint.config.tie_word_embeddings && checkpoint.has("lm_head.weight");
    if own { "lm_head" } else { "model.embed_tokens" }.into()
}

impl CudaDecoder {
    /// Whether devices compute a model of this shape and these formats, of which no weight is read.
    ///
    /// # Errors
    /// [`ModelError`] naming the field or tensor that they do not.
    pub fn check(checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let config = &checkpoint.config;
        if !HEAD_DIMS.contains(&config.head_dim) {
            let reason =
                format!("heads of {} values; CUDA kernels take {HEAD_DIMS:?}", config.head_dim);
            return Err(ModelError::Unsupported { what: "head_dim".into(), reason });
        }
        let outside = ["model.embed_tokens.weight".to_owned(), head_name(checkpoint) + ".weight"];
        let names = tensor_names(config, |name| checkpoint.has(name)).into_iter().chain(outside);
        for name in names.filter(|name| checkpoint.has(name)) {
            let TensorInfo { dtype, shape } = checkpoint.info(&name)?;
            // Norms and biases are read as floats.
            if shape.len() == 2 {
                check_format(&name, dtype)?;
            }
        }
        Ok(())
    }

    /// Loads a model into a device's memory; quantised weights keep their values.
    ///
    /// # Errors
    /// [`ModelError`] naming the tensor or field, or what the device says.
    pub fn load(checkpoint: &mut Checkpoint, device: &Arc<Device>) -> Result<Self, ModelError> {
        Self::load_with(checkpoint, device, KvFormat::Float)
    }

    /// The same with caches, its own and those of its drafts, that hold keys and values so. Beside codes it computes in BF16.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(
        checkpoint: &mut Checkpoint,
        device: &Arc<Device>,
        kv_format: KvFormat,
    ) -> Result<Self, ModelError> {
        Self::check(checkpoint)?;
        let dtype = activation_dtype(checkpoint, kv_format)?;
        let (vocab, hidden) = (checkpoint.config.vocab_size, checkpoint.config.hidden_size);
        let head = head_name(checkpoint);
        let mut loader = Loader { checkpoint, device, dtype };
        let embedding = Arc::new(loader.table("model.embed_tokens.weight", [vocab, hidden])?);
        let head = Arc::new(loader.stack(&[(head, vocab)], hidden)?);
        loader.assemble(kv_format, embedding, head, None)
    }
}

impl CudaLender {
    /// Loads a draft of the target, which was loaded from `target`. The embedding, and the head's rows, are the target's
    /// own where the draft leaves them out. Work on the device must not be recorded meanwhile.
    ///
    /// # Errors
    /// [`ModelError`] naming what does not fit the target, the tensor or the field.
    pub fn load_draft(
        &self,
        checkpoint: &mut Checkpoint,
        target: &mut Checkpoint,
    ) -> Result<CudaDraft, ModelError> {
        let vocab = check_draft(checkpoint, &self.config)?;
        let attachment = checkpoint.attachment.clone();
        if let Some(attachment) = &attachment {
            attachment.check(&self.config, &checkpoint.config)?;
        }
        let (vocab_size, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let (device, dtype) = (&self.device, self.dtype);
        let own_embedding = checkpoint.has("model.embed_tokens.weight");
        let own_head = checkpoint.has("lm_head.weight") && !checkpoint.config.tie_word_embeddings;
        let head = match &vocab {
            None if !own_head && !own_embedding => Arc::clone(&self.head),
            _ => {
                let from = if own_head || own_embedding { &mut *checkpoint } else { target };
                let name = format!("{}.weight", head_name(from));
                let rows = from.info(&name)?.shape[0];
                let mut loader = Loader { checkpoint: from, device, dtype };
                let mut stored = loader.stored(&name, [rows, hidden])?;
                let wanted = vocab.as_ref().map_or(vocab_size, |vocab| vocab.len());
                if let Some(vocab) = vocab.as_ref().filter(|_| rows == vocab_size) {
                    let bytes = stored.data.len() / rows;
                    let row = |&id: &u32| &stored.data[id as usize * bytes..][..bytes];
                    stored.data = vocab.iter().flat_map(row).copied().collect();
                } else if rows != wanted {
                    return Err(ModelError::DraftVocab(format!("the head has {rows} rows")));
                }
                let weights = Weights::pack(device, stored.dtype, wanted, hidden, &stored.data)?;
                Arc::new(Stack { parts: vec![(0, weights)], outputs: wanted, bias: None })
            }
        };
        let mut loader = Loader { checkpoint, device, dtype };
        let embedding = if own_embedding {
            Arc::new(loader.table("model.embed_tokens.weight", [vocab_size, hidden])?)
        } else {
            Arc::clone(&self.embedding)
        };
        let Some(attachment) = attachment else {
            let decoder = loader.assemble(self.kv_format, embedding, head, vocab)?;
            return Ok(CudaDraft::Standalone(decoder.into()));
        };
        let (layers, norm) = loader.blocks()?;
        let [first, next] = PROJECTIONS;
        let projections =
            [loader.projection(first, attachment.states.len())?, loader.projection(next, 1)?];
        let drafter = CudaAttached::new(Parts {
            device: Arc::clone(device),
            config: loader.checkpoint.config.clone(),
            dtype,
            attachment,
            projections,
            layers,
            norm,
            embedding,
            head,
            draft_vocab: vocab,
        })?;
        Ok(CudaDraft::Attached(drafter.into()))
    }
}
