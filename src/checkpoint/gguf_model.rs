//! What GGUF metadata and tensor names say about a model.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::fields::Fields;
use super::gguf::{Gguf, Value};
use super::hf_config::layer_types;
use super::{CheckpointError, RawTensor, TensorInfo, rope};
use crate::checkpoint::architecture::{
    Attachment, Family, ModelConfig, PROJECTIONS, RopeConfig, RopeScaling, SlidingWindow,
    yarn_attention,
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

impl Keys<'_> {
    /// Says which keys of the architecture are not read.
    fn warn_of_unknown(&self) {
        let prefix = self.key("");
        let mut unknown: Vec<&str> = self
            .gguf
            .keys()
            .filter_map(|key| key.strip_prefix(&prefix))
            .filter(|name| !KNOWN.contains(name))
            .collect();
        unknown.sort_unstable();
        if !unknown.is_empty() {
            let file = self.gguf.path().display();
            tracing::warn!(%file, keys = unknown.join(", "), "keys that are not known are ignored");
        }
    }
}

/// Keys of an architecture that are read, or that change nothing.
const KNOWN: [&str; 28] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];

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
    let parts = gguf.get("split.count").and_then(Value::as_u64).unwrap_or(1);
    if parts > 1 {
        let part = gguf.get("split.no").and_then(Value::as_u64).unwrap_or(0) + 1;
        let reason =
            format!("this is part {part} of {parts}; join them with `llama-gguf-split --merge`");
        return Err(CheckpointError::field(gguf.path(), "split.count", reason));
    }
    if keys.optional_usize("attention.causal")? == Some(0) {
        return Err(keys.error("attention.causal", "false is not supported"));
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
    for (name, means) in [
        ("rope.dimension_count", "partial rotation"),
        ("attention.value_length", "values of another width"),
    ] {
        if let Some(size) = keys.optional_usize(name)?.filter(|size| *size != head_dim) {
            let reason = format!("{size} beside heads of {head_dim}: {means} is not supported");
            return Err(keys.error(name, reason));
        }
    }
    let num_hidden_layers = keys.usize("block_count")?;
    let positions = keys.usize("context_length")?;
    let extension = extension(gguf)?;
    let scaling = match &extension {
        Some(extension) => extension.scaling(positions)?,
        None => None,
    };
    let scaling = match scaling {
        Some(scaling) => scaling,
        None => scaling_by_keys(&keys, positions)?,
    };
    let original = keys.optional_usize("rope.scaling.original_context_length")?;
    let window = keys.optional_usize("attention.sliding_window")?.filter(|window| *window > 0);
    let layers = extension.as_ref().map_or(Ok(None), Extension::layers)?;
    let sliding_window = window.map(|window| match layers {
        Some(layers) => SlidingWindow { window, layers },
        None => SlidingWindow::from_layer(window, 0, num_hidden_layers.min(1 << 20)),
    });
    keys.warn_of_unknown();
    let token =
        |key: &str| gguf.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let eos_token_ids = ["eos_token_id", "eot_token_id", "eom_token_id"]
        .iter()
        .filter_map(|name| token(&format!("tokenizer.ggml.{name}")));
    let mut config = ModelConfig {
        family,
        vocab_size,
        hidden_size,
        intermediate_size: keys.usize("feed_forward_length")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_usize("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        // Without the original context, the length is that of the scaled one.
        max_position_embeddings: original
            .map_or(positions, |original| scaling.reach(positions, original)),
        rms_norm_eps: keys
            .optional_f64("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.error("attention.layer_norm_rms_epsilon", "is missing"))?,
        rope: RopeConfig {
            theta: keys.optional_f64("rope.freq_base")?.unwrap_or(10_000.0),
            scaling,
        },
        sliding_window,
        tie_word_embeddings: tied,
        bos_token_id: token("tokenizer.ggml.bos_token_id"),
        eos_token_ids: Vec::new(),
    };
    config.end_at(eos_token_ids);
    config.check().map_err(|(field, reason)| CheckpointError::field(gguf.path(), field, reason))?;
    Ok(config)
}

/// The key of what Hugging Face's `config.json` can say and GGUF has no keys for: `rope_scaling` and
/// `layer_types`, as JSON.
pub(super) const EXTENSION: &str = "pleach.config";

/// What stands under [`EXTENSION`].
struct Extension<'a> {
    path: &'a Path,
    map: Map<String, Json>,
}

fn extension(gguf: &Gguf) -> Result<Option<Extension<'_>>, CheckpointError> {
    let Some(value) = gguf.get(EXTENSION) else { return Ok(None) };
    let map = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    let map = map.ok_or_else(|| {
        CheckpointError::field(gguf.path(), EXTENSION, "is no JSON object".to_owned())
    })?;
    Ok(Some(Extension { path: gguf.path(), map }))
}

impl Extension<'_> {
    fn scaling(&self, positions: usize) -> Result<Option<RopeScaling>, CheckpointError> {
        let Some(Json::Object(map)) = self.map.get("rope_scaling") else { return Ok(None) };
        let fields = Fields { path: self.path, prefix: "pleach.config: rope_scaling.", map };
        rope::parse(&fields, positions).map(Some)
    }

    fn layers(&self) -> Result<Option<Vec<bool>>, CheckpointError> {
        let Some(types) = self.map.get("layer_types") else { return Ok(None) };
        let wrong = || CheckpointError::field(self.path, EXTENSION, "layer_types is no such list");
        layer_types(types).ok_or_else(wrong).map(Some)
    }
}

/// The rotary scaling by llama.cpp's keys, as llama.cpp reads them.
fn scaling_by_keys(keys: &Keys, positions: usize) -> Result<RopeScaling, CheckpointError> {
    let given = |name| Ok(keys.optional_f64(name)?.filter(|value| *value != 0.0));
    let factor = match given("rope.scaling.factor")? {
        Some(factor) => factor,
        None => given("rope.scale_linear")?.unwrap_or(1.0),
    };
    let kind = keys.gguf.get(&keys.key("rope.scaling.type")).and_then(Value::as_str);
    let scaling = match kind.unwrap_or("linear") {
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => yarn_by_keys(keys, factor, positions)?,
        kind => {
            return Err(keys.error("rope.scaling.type", format!("`{kind}` is not supported")));
        }
    };
    if !keys.gguf.tensors.contains_key(FACTORS) {
        return Ok(scaling);
    }
    let divisors = factors(keys.gguf)?;
    match scaling {
        RopeScaling::Linear { factor } => {
            let scaled = divisors.iter().map(|by| (f64::from(*by) * factor) as f32);
            Ok(RopeScaling::Factors(scaled.collect()))
        }
        RopeScaling::Yarn { .. } => {
            let reason = format!("yarn beside a tensor {FACTORS} is not supported");
            Err(keys.error("rope.scaling.type", reason))
        }
        _ => Ok(RopeScaling::Factors(divisors)),
    }
}

fn yarn_by_keys(
    keys: &Keys,
    factor: f64,
    positions: usize,
) -> Result<RopeScaling, CheckpointError> {
    for (name, neutral) in
        [("rope.scaling.yarn_ext_factor", 1.0), ("rope.scaling.yarn_log_multiplier", 0.0)]
    {
        if let Some(value) = keys.optional_f64(name)?.filter(|value| *value != neutral) {
            return Err(keys.error(name, format!("{value} is not supported")));
        }
    }
    let mut attention_factor = None;
    for name in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
        if let Some(by) = keys.optional_f64(name)? {
            // What YaRN itself multiplies by comes on top.
            attention_factor = Some(by * yarn_attention(factor));
        }
    }
    let original = keys.optional_usize("rope.scaling.original_context_length")?;
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original.unwrap_or(positions),
        beta_fast: keys.optional_f64("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.optional_f64("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor,
    })
}

/// The tensor of per-frequency divisors.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// Per-frequency divisors of the rotary embedding.
fn factors(gguf: &Gguf) -> Result<Vec<f32>, CheckpointError> {
    // The directory is shared, the file handle is not: open it anew for this one small tensor.
    let mut copy = Gguf::open(gguf.path())?;
    let tensor = copy.read(FACTORS)?.expect("the caller has seen it");
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

/// Format and shape of a tensor, by its Hugging Face name.
pub(super) fn info(gguf: &Gguf, name: &str) -> Option<TensorInfo> {
    gguf.info(&tensor_name(name)?)
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
