//! The weights of a network as leaves of a graph.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Error, Result, Tensor};

use super::adapted::Adapted;
use super::backend::Backend;
use super::ops;
use pleach::model::ModelConfig;

/// Frozen matrices by the name of their module, or of that of projections of one input together.
pub(super) type AdaptedModules = BTreeMap<String, Adapted>;

/// Weights by their Hugging Face names, as leaves of a graph: of a matrix that low-rank factors are added to, these
/// alone, as `NAME.lora_a` and `NAME.lora_b`.
#[derive(Clone)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    adapted: Arc<AdaptedModules>,
    backend: Backend,
}

/// Projections of one input, which are computed side by side: the name of all, and their own.
pub(super) const FUSED: [(&str, &[&str]); 2] = [
    ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
];

impl Weights {
    pub(super) fn new(
        tensors: BTreeMap<String, Tensor>,
        adapted: Arc<AdaptedModules>,
        backend: Backend,
    ) -> Self {
        Self { tensors, adapted, backend }
    }

    /// What computes with them.
    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The leaf of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All leaves.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter()
    }

    /// The same weights, of which none collects gradients.
    pub(super) fn detached(&self) -> Self {
        let tensors = self.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        Self { tensors, adapted: Arc::clone(&self.adapted), backend: self.backend.clone() }
    }

    /// The leaf of this name.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn wanted(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| Error::Msg(format!("no weight {name}")))
    }

    /// A module's product with rows, without its bias.
    pub(super) fn linear(&self, x: &Tensor, module: &str) -> Result<Tensor> {
        let name = format!("{module}.weight");
        let Some(adapted) = self.adapted.get(module) else {
            return ops::linear(&self.backend, x, self.wanted(&name)?);
        };
        let [a, b] = ["lora_a", "lora_b"].map(|factor| self.wanted(&format!("{name}.{factor}")));
        ops::adapted(&self.backend, adapted, x, [a?, b?])
    }

    /// The weights, and those of projections of one input side by side. Made once for all the times that a loss uses a
    /// block.
    pub(super) fn fused(&self, config: &ModelConfig) -> Result<Self> {
        let mut all = self.clone();
        for index in 0..config.num_hidden_layers {
            for (fused, modules) in FUSED {
                for kind in ["weight", "bias", "weight.lora_a", "weight.lora_b"] {
                    let name = |module: &str| format!("model.layers.{index}.{module}.{kind}");
                    let parts: Vec<&Tensor> =
                        modules.iter().filter_map(|module| self.get(&name(module))).collect();
                    if parts.len() == modules.len() {
                        all.tensors.insert(name(fused), Tensor::cat(&parts, 0)?);
                    }
                }
            }
        }
        Ok(all)
    }
}
