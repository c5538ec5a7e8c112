//! What `config.json` says of weights that are quantised: `quantization_config`.

use std::path::Path;

use serde_json::Value;

use super::CheckpointError;
use super::fields::{Fields, object};

/// How the weights of a folder are quantised; those that are not lie beside the others as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantization {
    /// Floats of 8 bits, with a scale for a tensor, for each row, or for each block of this size.
    Fp8 { block: [usize; 2] },
    /// Codes of 4 bits, packed along the inputs, with scales and zeros for groups of inputs.
    Gptq {
        /// Inputs of a group.
        group: Option<usize>,
        /// Whether zeros are written less 1.
        zeros_less_one: bool,
    },
    /// Codes of 4 bits, packed along the outputs, with scales and zeros for groups of inputs.
    Awq {
        /// Inputs of a group.
        group: Option<usize>,
    },
}

/// What is read, in words.
const READ: &str = "fp8 (e4m3), gptq and awq of 4 bits are read; take the folder of the unquantised model or a .gguf \
                    file for others";

impl Quantization {
    /// How a folder's weights are quantised; `None` where they are not.
    ///
    /// # Errors
    /// The method is not read; the error names it.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = folder.join("config.json");
        let Some(map) = object(&path)? else { return Ok(None) };
        let Some(Value::Object(map)) = map.get("quantization_config") else { return Ok(None) };
        parse(&Fields { path: &path, prefix: "quantization_config: ", map }).map(Some)
    }
}

fn text<'a>(fields: &'a Fields, field: &str) -> Option<&'a str> {
    fields.get(field).and_then(Value::as_str)
}

fn parse(fields: &Fields) -> Result<Quantization, CheckpointError> {
    let method = text(fields, "quant_method").unwrap_or("unnamed");
    let unread = |field: &str, value: &dyn std::fmt::Display| {
        fields
            .error(field, format!("`{value}` of quant_method `{method}` is not supported; {READ}"))
    };
    let only = |field: &str, usual: &str| match text(fields, field) {
        Some(value) if !value.eq_ignore_ascii_case(usual) => Err(unread(field, &value)),
        _ => Ok(()),
    };
    match method {
        "fp8" | "fbgemm_fp8" => only("fmt", "e4m3")?,
        "compressed-tensors" => only("format", "float-quantized")?,
        "gptq" | "awq" => {
            let bits = fields.optional_usize("bits")?.or(fields.optional_usize("w_bit")?);
            if let Some(bits) = bits.filter(|bits| *bits != 4) {
                return Err(unread("bits", &bits));
            }
            if method == "awq" {
                only("version", "gemm")?;
            }
        }
        _ => return Err(unread("quant_method", &method)),
    }
    let group = || -> Result<Option<usize>, CheckpointError> {
        let field = if fields.get("group_size").is_some() { "group_size" } else { "q_group_size" };
        match fields.get(field) {
            // All inputs are one group.
            Some(whole) if whole.as_i64() == Some(-1) => Ok(None),
            None => Ok(Some(128)),
            Some(_) => match fields.usize(field)? {
                0 => Err(fields.error(field, "is 0")),
                size => Ok(Some(size)),
            },
        }
    };
    Ok(match method {
        "gptq" => {
            let second = text(fields, "checkpoint_format") == Some("gptq_v2");
            Quantization::Gptq { group: group()?, zeros_less_one: !second }
        }
        "awq" => Quantization::Awq { group: group()? },
        _ => {
            let sizes = fields.get("weight_block_size").map(|sizes| {
                let sizes: Option<Vec<usize>> =
                    sizes.as_array()?.iter().map(|size| size.as_u64()?.try_into().ok()).collect();
                sizes?.try_into().ok().filter(|sizes: &[usize; 2]| !sizes.contains(&0))
            });
            let wrong = || fields.error("weight_block_size", "is no pair of sizes");
            let block = sizes.map_or(Ok([128; 2]), |sizes| sizes.ok_or_else(wrong))?;
            Quantization::Fp8 { block }
        }
    })
}
