//! Projections that files hold side by side in one matrix (Phi-3).

use std::borrow::Cow;
use std::ops::Range;

use super::architecture::ModelConfig;
use super::{CheckpointError, RawTensor, TensorInfo};

/// The name of the matrix or bias that has a projection's rows among others', and which rows they are.
pub(super) fn source(config: &ModelConfig, name: &str) -> Option<(String, Range<usize>)> {
    let (module, kind) = name.rsplit_once('.')?;
    let (place, projection) = module.rsplit_once('.')?;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let inner = config.intermediate_size;
    let (whole, rows) = match projection {
        "q_proj" => ("qkv_proj", 0..q),
        "k_proj" => ("qkv_proj", q..q + kv),
        "v_proj" => ("qkv_proj", q + kv..q + 2 * kv),
        "gate_proj" => ("gate_up_proj", 0..inner),
        "up_proj" => ("gate_up_proj", inner..2 * inner),
        _ => return None,
    };
    Some((format!("{place}.{whole}.{kind}"), rows))
}

/// Tensors as files hold them that have projections side by side, which stand in the place of the first of them.
///
/// # Errors
/// The tensor that has no such place beside those before it, or that lacks some that follow it.
pub(super) fn joined<'a>(
    config: &ModelConfig,
    tensors: &'a [(String, RawTensor)],
) -> Result<Vec<(String, Cow<'a, RawTensor>)>, String> {
    let mut all: Vec<(String, Cow<'a, RawTensor>)> = Vec::new();
    for (name, tensor) in tensors {
        let Some((whole, rows)) = source(config, name) else {
            all.push((name.clone(), Cow::Borrowed(tensor)));
            continue;
        };
        let there = all.iter_mut().find(|(other, _)| *other == whole).map(|(_, it)| it.to_mut());
        match there {
            None if rows.start == 0 => all.push((whole, Cow::Owned(tensor.clone()))),
            Some(it) if it.shape[0] == rows.start && tensor.shape[0] == rows.len() => {
                if it.dtype != tensor.dtype || it.shape[1..] != tensor.shape[1..] {
                    let (dtype, beside) = (tensor.dtype, it.dtype);
                    return Err(format!(
                        "{name} is {dtype:?} and stored in one matrix with tensors in {beside:?}; write them in one format"
                    ));
                }
                it.shape[0] += tensor.shape[0];
                it.data.extend_from_slice(&tensor.data);
            }
            _ => return Err(format!("{name} does not follow the tensors that it is stored with")),
        }
    }
    let lacks = |(name, tensor): &&(String, Cow<'_, RawTensor>)| {
        let rows = [("qkv_proj", "v_proj"), ("gate_up_proj", "up_proj")].into_iter();
        let mut last = rows.filter(|(whole, _)| name.contains(whole));
        let part = last.next().map(|(whole, last)| name.replace(whole, last));
        let source = part.and_then(|part| source(config, &part));
        source.is_some_and(|(_, rows)| tensor.shape[0] != rows.end)
    };
    match all.iter().find(lacks) {
        Some((name, _)) => Err(format!("{name} lacks some of the tensors that it stores")),
        None => Ok(all),
    }
}

/// What a file says of the rows alone.
pub(super) fn info(whole: TensorInfo, rows: &Range<usize>) -> TensorInfo {
    let mut shape = whole.shape;
    if let Some(count) = shape.first_mut() {
        *count = (*count).min(rows.end).saturating_sub(rows.start);
    }
    TensorInfo { dtype: whole.dtype, shape }
}

/// The rows alone.
///
/// # Errors
/// If the tensor does not have them; `error` makes the error of a reason.
pub(super) fn cut(
    whole: &RawTensor,
    rows: &Range<usize>,
    error: impl FnOnce(String) -> CheckpointError,
) -> Result<RawTensor, CheckpointError> {
    let count = whole.shape.first().copied().unwrap_or(0);
    if rows.end > count {
        return Err(error(format!("has {count} rows, not at least {}", rows.end)));
    }
    let row_bytes = whole.data.len() / count.max(1);
    let mut shape = whole.shape.clone();
    shape[0] = rows.len();
    let data = whole.data[rows.start * row_bytes..rows.end * row_bytes].to_vec();
    Ok(RawTensor { dtype: whole.dtype, shape, data })
}
