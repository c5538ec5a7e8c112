//! What a model's files say of it as a whole, without reading a weight.

use std::collections::BTreeMap;

use super::architecture::ModelConfig;

/// A model as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Tokens of the longest context that its positions are trained (or scaled) for.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Values of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors in the files.
    pub bytes: u64,
    /// The format of the weights: what a GGUF file calls its mixture of formats, else the one that most weights have.
    pub quantization: String,
}

/// What tensors take in the files.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    parameters: u64,
    bytes: u64,
    /// Values in each format.
    formats: BTreeMap<String, u64>,
}

impl Sizes {
    /// Adds a tensor.
    pub(super) fn add(&mut self, format: &str, shape: &[usize], bytes: usize) {
        let values: u64 = shape.iter().map(|size| *size as u64).product();
        self.parameters += values;
        self.bytes += bytes as u64;
        *self.formats.entry(format.to_owned()).or_default() += values;
    }

    /// The summary of a model that has these tensors.
    pub(super) fn summary(self, config: &ModelConfig, mixture: Option<&str>) -> Summary {
        let most = self.formats.into_iter().max_by_key(|(_, values)| *values);
        let most = most.map_or_else(String::new, |(format, _)| format);
        Summary {
            context: config.max_position_embeddings,
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            parameters: self.parameters,
            bytes: self.bytes,
            quantization: mixture.map_or(most, str::to_owned),
        }
    }
}
