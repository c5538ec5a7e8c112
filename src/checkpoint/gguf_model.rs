//! What GGUF metadata and tensor names say about a model.

use std::borrow::Cow;

use super::gguf::{Gguf, Value};
use super::{CheckpointError, RawTensor};
use crate::model::{
    Attachment, Family, ModelConfig, PROJECTIONS, RopeConfig, RopeScaling, SlidingWindow,
};

struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn error(&self, name: &str, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::field(self.gguf.path(), &self.key(name), reason)
    }

    fn optional_usize(&self, name: &str) -> Result<Option<usize>, CheckpointError> {
        self.gguf
            .get(&self.key(name))
            .map(|v| {
                v.as_u64()
                    .and_then(|v| u32::try_from(v).ok())
                    .map(|v| v as usize)
                    .ok_or_else(|| self.error(name, format!("{v:?} is no number of this kind")))
            })
            .transpose()
    }

    fn usize(&self, name: &str) -> Result<usize, CheckpointError> {
        self.optional_usize(name)?.ok_or_else(|| self.error(name, "is missing"))
    }

    fn optional_f64(&self, name: &str) -> Result<Option<f64>, CheckpointError> {
        self.gguf
            .get(&self.key(name))
            .map(|v| v.as_f64().ok_or_else(|| self.error(name, format!("{v:?} is no number"))))
            .transpose()
    }
}

/// The architecture, from the metadata.
pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, CheckpointError> {
    let arch = gguf.get("general.architecture").and_then(Value::as_str).unwrap_or_default();
    let family = match arch {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => {
            return Err(CheckpointError::field(
                gguf.path(),
                "general.architecture",
                format!("`{other}` is not supported; llama, qwen2 and qwen3 are"),
            ));
        }
    };
    let keys = Keys { gguf, arch };
    if keys.optional_usize("expert_count")?.unwrap_or(0) > 0 {
        return Err(keys.error("expert_count", "mixtures of experts are not supported"));
    }
    let hidden_size = keys.usize("embedding_length")?;
    let heads = keys.usize("attention.head_count")?;
    let head_dim = match keys.optional_usize("attention.key_length")? {
        Some(dim) => dim,
        None => hidden_size.checked_div(heads).unwrap_or(0),
    };
    let tied = !gguf.tensors.contains_key("output.weight");
    let vocab_size = match keys.optional_usize("vocab_size")? {
        Some(size) => size,
        None => ["token_embd.weight", "output.weight"]
            .iter()
            .find_map(|name| gguf.tensors.get(*name).and_then(|t| t.shape.first().copied()))
            .ok_or_else(|| keys.error("vocab_size", "is missing"))?,
    };
    let max_position_embeddings = keys.usize("context_length")?;
    let original = keys.optional_usize("rope.scaling.original_context_length")?;
    let factor = keys.optional_f64("rope.scaling.factor")?;
    let kind = gguf.get(&keys.key("rope.scaling.type")).and_then(Value::as_str).unwrap_or("none");
    let scaling = match (kind, factor) {
        _ if gguf.tensors.contains_key("rope_freqs.weight") => RopeScaling::Factors(factors(gguf)?),
        ("none", _) => RopeScaling::None,
        ("linear", Some(factor)) => RopeScaling::Linear { factor },
        ("yarn", Some(factor)) => RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original.unwrap_or(max_position_embeddings),
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: keys.optional_f64("rope.scaling.attn_factor")?,
        },
        _ => return Err(keys.error("rope.scaling.type", format!("`{kind}` is not supported"))),
    };
    let token =
        |key: &str| gguf.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let mut eos_token_ids: Vec<u32> = ["eos_token_id", "eot_token_id", "eom_token_id"]
        .iter()
        .filter_map(|name| token(&format!("tokenizer.ggml.{name}")))
        .collect();
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.usize("feed_forward_length")?,
        num_hidden_layers: keys.usize("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_usize("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings,
        rms_norm_eps: keys
            .optional_f64("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", "is missing"))?,
        rope: RopeConfig {
            theta: keys.optional_f64("rope.freq_base")?.unwrap_or(10_000.0),
            scaling,
        },
        sliding_window: keys
            .optional_usize("attention.sliding_window")?
            .filter(|window| *window > 0)
            .map(|window| SlidingWindow { window, first_layer: 0 }),
        tie_word_embeddings: tied,
        bos_token_id: token("tokenizer.ggml.bos_token_id"),
        eos_token_ids,
    };
    config.check().map_err(|(field, reason)| CheckpointError::field(gguf.path(), field, reason))?;
    Ok(config)
}

/// Per-frequency divisors of the rotary embedding.
fn factors(gguf: &Gguf) -> Result<Vec<f32>, CheckpointError> {
    // The directory is shared, the file handle is not: open it anew for this one small tensor.
    let mut copy = Gguf::open(gguf.path())?;
    let tensor = copy.read("rope_freqs.weight")?.expect("the caller has seen it");
    Ok(tensor.to_f32())
}

/// The token ids of a trimmed head (`pleach.draft_vocab`).
pub(super) fn draft_vocab(gguf: &Gguf) -> Result<Option<Vec<u32>>, CheckpointError> {
    numbers(gguf, "pleach.draft_vocab")
}

/// Keys of the blocks that an attached drafter keeps, and of the states it reads.
pub const ATTACHMENT: [&str; 2] = ["pleach.attached.blocks", "pleach.attached.states"];

/// Where an attached drafter hangs on its target.
pub(super) fn attachment(gguf: &Gguf) -> Result<Option<Attachment>, CheckpointError> {
    let [blocks, states] = ATTACHMENT;
    let sizes = |list: Vec<u32>| list.into_iter().map(|number| number as usize).collect();
    Ok(match (numbers(gguf, blocks)?, numbers(gguf, states)?) {
        (None, None) => None,
        (Some(blocks), Some(states)) => {
            Some(Attachment { blocks: sizes(blocks), states: sizes(states) })
        }
        (None, _) => return Err(CheckpointError::field(gguf.path(), blocks, "is missing")),
        (_, None) => return Err(CheckpointError::field(gguf.path(), states, "is missing")),
    })
}

fn numbers(gguf: &Gguf, key: &str) -> Result<Option<Vec<u32>>, CheckpointError> {
    let Some(value) = gguf.get(key) else { return Ok(None) };
    value
        .as_array()
        .and_then(|ids| {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
        })
        .map(Some)
        .ok_or_else(|| CheckpointError::field(gguf.path(), key, "is not an array of numbers"))
}

/// The GGUF name of a tensor with a Hugging Face name.
pub(super) fn tensor_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ if PROJECTIONS.contains(&name) => return Some(name.into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

/// Heads of a matrix whose rows the llama architecture stores in another order.
fn interleaved_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    let heads = match name.rsplit('.').nth(1) {
        Some("q_proj") => config.num_attention_heads,
        Some("k_proj") => config.num_key_value_heads,
        _ => return None,
    };
    (config.family == Family::Llama).then_some(heads)
}

/// Reads a tensor by its Hugging Face name.
///
/// Files of the llama architecture interleave the two halves of every query and key head; the rows
/// are moved back, whole, so that quantised blocks stay as they are.
pub(super) fn read(
    gguf: &mut Gguf,
    config: &ModelConfig,
    name: &str,
) -> Result<Option<RawTensor>, CheckpointError> {
    let Some(gguf_name) = tensor_name(name) else { return Ok(None) };
    let Some(mut tensor) = gguf.read(&gguf_name)? else { return Ok(None) };
    if let Some(heads) = interleaved_heads(config, name) {
        let (dim, half) = (config.head_dim, config.head_dim / 2);
        let rows = tensor.shape[0];
        if rows != heads * dim {
            return Err(CheckpointError::corrupt(
                gguf.path(),
                format!("tensor {gguf_name} has {rows} rows, not {heads} heads of {dim}"),
            ));
        }
        tensor.data = move_rows(&tensor.data, dim, rows, |i| i % half * 2 + i / half);
    }
    Ok(Some(tensor))
}

/// The bytes of a tensor with rows in the order of GGUF files.
pub(super) fn to_gguf_rows<'a>(
    config: &ModelConfig,
    name: &str,
    tensor: &'a RawTensor,
) -> Cow<'a, [u8]> {
    if interleaved_heads(config, name).is_none() {
        return Cow::Borrowed(&tensor.data);
    }
    let (dim, half) = (config.head_dim, config.head_dim / 2);
    Cow::Owned(move_rows(&tensor.data, dim, tensor.shape[0], |i| i % 2 * half + i / 2))
}

/// The rows of every head of `dim` rows in another order: row i is the old row `from(i)`.
fn move_rows(data: &[u8], dim: usize, rows: usize, from: impl Fn(usize) -> usize) -> Vec<u8> {
    let row_bytes = data.len() / rows;
    let mut moved = Vec::with_capacity(data.len());
    for head in data.chunks_exact(dim * row_bytes) {
        for i in 0..dim {
            moved.extend_from_slice(&head[from(i) * row_bytes..][..row_bytes]);
        }
    }
    moved
}
