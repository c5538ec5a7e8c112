//! Tensors of GGUF files by their Hugging Face names, with rows in Hugging Face order.

use std::borrow::Cow;
use std::ops::Range;

use super::keys::PHI3;
use crate::checkpoint::architecture::{Family, ModelConfig, PROJECTIONS};
use crate::checkpoint::gguf::{Gguf, Value};
use crate::checkpoint::{CheckpointError, RawTensor, TensorInfo, fused};
use pleach_kernels::DType;

/// The GGUF name of a tensor with a Hugging Face name.
pub(in crate::checkpoint) fn tensor_name(config: &ModelConfig, name: &str) -> Option<String> {
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
        // Where outputs are normed too, the name means another norm.
        "post_attention_layernorm" if config.design.output_norms => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

fn is_phi3(gguf: &Gguf) -> bool {
    gguf.get("general.architecture").and_then(Value::as_str) == Some(PHI3)
}

/// Where a file is to have a tensor with a Hugging Face name: the name there, and which rows where others' lie beside.
fn place(gguf: &Gguf, config: &ModelConfig, name: &str) -> Option<(String, Option<Range<usize>>)> {
    let whole = fused::source(config, name).filter(|_| is_phi3(gguf));
    let whole = whole.and_then(|(whole, rows)| Some((tensor_name(config, &whole)?, Some(rows))));
    match whole.filter(|(whole, _)| gguf.has(whole)) {
        None => Some((tensor_name(config, name)?, None)),
        whole => whole,
    }
}

/// The name of the tensor in a file that has the values of a Hugging Face name, alone or among others.
pub(in crate::checkpoint) fn stored_name(
    gguf: &Gguf,
    config: &ModelConfig,
    name: &str,
) -> Option<String> {
    place(gguf, config, name).map(|(name, _)| name)
}

/// Whether a file has a tensor, by its Hugging Face name.
pub(in crate::checkpoint) fn has(gguf: &Gguf, config: &ModelConfig, name: &str) -> bool {
    stored_name(gguf, config, name).is_some_and(|name| gguf.has(&name))
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

/// Format and shape of a tensor, by its Hugging Face name.
pub(in crate::checkpoint) fn info(
    gguf: &Gguf,
    config: &ModelConfig,
    name: &str,
) -> Option<TensorInfo> {
    let (name, rows) = place(gguf, config, name)?;
    let whole = gguf.info(&name)?;
    Some(match rows {
        Some(rows) => fused::info(whole, &rows),
        None => whole,
    })
}

/// Reads a tensor by its Hugging Face name.
///
/// Files of the llama architecture interleave the two halves of every query and key head; the rows
/// are moved back, whole, so that quantised blocks stay as they are. Norms that Hugging Face's files hold less 1 come
/// out likewise.
pub(in crate::checkpoint) fn read(
    gguf: &mut Gguf,
    config: &ModelConfig,
    name: &str,
) -> Result<Option<RawTensor>, CheckpointError> {
    let Some((gguf_name, rows)) = place(gguf, config, name) else { return Ok(None) };
    let Some(mut tensor) = gguf.read(&gguf_name)? else { return Ok(None) };
    if let Some(rows) = rows {
        let wrong = |reason| CheckpointError::field(gguf.path(), &gguf_name, reason);
        tensor = fused::cut(&tensor, &rows, wrong)?;
    }
    if is_norm_from_one(config, name) {
        tensor = add_to(&tensor, -1.0);
    }
    if let Some(heads) = interleaved_heads(config, name).filter(|_| !is_phi3(gguf)) {
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

/// A tensor as GGUF files hold it that have it alone: the inverse of [`read`].
pub(in crate::checkpoint) fn to_gguf<'a>(
    config: &ModelConfig,
    name: &str,
    tensor: &'a RawTensor,
) -> Cow<'a, RawTensor> {
    if is_norm_from_one(config, name) {
        return Cow::Owned(add_to(tensor, 1.0));
    }
    if interleaved_heads(config, name).is_none() {
        return Cow::Borrowed(tensor);
    }
    let (dim, half) = (config.head_dim, config.head_dim / 2);
    let data = move_rows(&tensor.data, dim, tensor.shape[0], |i| i % 2 * half + i / 2);
    Cow::Owned(RawTensor { data, shape: tensor.shape.clone(), ..*tensor })
}

/// Whether GGUF files hold a tensor with 1 added to what Hugging Face's files hold.
fn is_norm_from_one(config: &ModelConfig, name: &str) -> bool {
    config.design.norms_from_one && name.ends_with("norm.weight")
}

/// A tensor's values and `more`, in f32.
fn add_to(tensor: &RawTensor, more: f32) -> RawTensor {
    let data = tensor.to_f32().iter().flat_map(|value| (value + more).to_le_bytes()).collect();
    RawTensor { dtype: DType::F32, shape: tensor.shape.clone(), data }
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
