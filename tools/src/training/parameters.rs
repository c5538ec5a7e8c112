//! What is trained: all block weights, or low-rank additions to the matrices.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result as CandleResult, Tensor, Var};
use rayon::prelude::*;

use super::adapted::Adapted;
use super::backend::Backend;
use super::frozen::Frozen;
use super::gemm::product;
use super::lora::TrainedAdapter;
use super::weights::{AdaptedModules, FUSED, Weights};
use pleach::checkpoint::{Checkpoint, CheckpointError};
use pleach::model::tensor_names;
use pleach_kernels::training::AdamW;
use pleach_kernels::{DType, MatRef};

/// A weight array: Hugging Face name, shape, values.
pub type Weight = (String, Vec<usize>, Vec<f32>);

/// A weight of a model, decoded.
///
/// # Errors
/// What the file says, or that the tensor is missing.
pub fn weight(checkpoint: &mut Checkpoint, name: &str) -> Result<Weight, CheckpointError> {
    let tensor = checkpoint.tensor(name)?;
    Ok((name.to_owned(), tensor.shape.clone(), tensor.to_f32()))
}

/// The weights of the blocks and the last norm of a model, decoded.
///
/// # Errors
/// What the file says, or a tensor that is missing.
pub fn block_weights(checkpoint: &mut Checkpoint) -> Result<Vec<Weight>, CheckpointError> {
    let names = tensor_names(&checkpoint.config, |name| checkpoint.has(name));
    names.iter().map(|name| weight(checkpoint, name)).collect()
}

/// Which numbers move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Adapt {
    /// Every weight of the blocks and the last norm.
    Full,
    /// `W + alpha / rank * B A` for every matrix (LoRA: Hu et al., arXiv 2106.09685).
    Lora {
        /// Columns of B and rows of A.
        rank: usize,
        /// Strength of the addition.
        alpha: f32,
    },
}

/// A trained array with its moments.
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) value: Vec<f32>,
    pub(super) moments: [Vec<f32>; 2],
}

/// The weights of the blocks and what is trained of them.
pub struct Parameters {
    /// Weights to start from; those of [`Adapt::Full`] move in their slots.
    base: BTreeMap<String, Tensor>,
    /// The matrices of `base` as products with low-rank additions take them.
    adapted: OnceLock<Arc<AdaptedModules>>,
    adapt: Adapt,
    rounding: Option<DType>,
    backend: Backend,
    pub(super) slots: Vec<Slot>,
}

/// Gradients of the leaves, by name.
pub(super) type Gradients = BTreeMap<String, Vec<f32>>;

impl Parameters {
    /// Parameters that start at the given weights: name, shape (one or two dimensions), values.
    /// `seed` draws the A matrices of LoRA; `backend` computes with them.
    ///
    /// # Errors
    /// If the values do not fill a shape.
    pub fn new(
        weights: impl IntoIterator<Item = Weight>,
        adapt: Adapt,
        seed: u64,
        backend: Backend,
    ) -> CandleResult<Self> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut parameters = Self {
            base: BTreeMap::new(),
            adapted: OnceLock::new(),
            adapt,
            rounding: None,
            backend,
            slots: Vec::new(),
        };
        for (name, shape, values) in weights {
            match (adapt, &shape[..]) {
                (Adapt::Full, _) => parameters.slot(name.clone(), values.clone()),
                (Adapt::Lora { rank, .. }, &[out, inner]) => {
                    // Kaiming-uniform A and zero B, so that training starts at the base weights.
                    let bound = (3.0 / inner as f32).sqrt();
                    let a = (0..rank * inner).map(|_| (random.f32() * 2.0 - 1.0) * bound).collect();
                    parameters.slot(format!("{name}.lora_a"), a);
                    parameters.slot(format!("{name}.lora_b"), vec![0.0; out * rank]);
                }
                (Adapt::Lora { .. }, _) => {}
            }
            parameters.base.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(parameters)
    }

    /// From now on the network sees its matrices as they will be once they are packed in this format,
    /// while gradients move the exact ones (straight-through estimator, Bengio et al., arXiv 1308.3432).
    pub fn round_to(&mut self, format: Option<DType>) {
        self.rounding = format;
    }

    /// What computes with them.
    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    fn slot(&mut self, name: String, value: Vec<f32>) {
        let moments = [vec![0.0; value.len()], vec![0.0; value.len()]];
        self.slots.push(Slot { name, value, moments });
    }

    /// Numbers that move.
    #[must_use]
    pub fn num_trained(&self) -> usize {
        self.slots.iter().map(|slot| slot.value.len()).sum()
    }

    /// The weights as they are now: name, shape, values.
    ///
    /// # Errors
    /// What candle says.
    pub fn weights(&self) -> CandleResult<Vec<Weight>> {
        let weights = self.base.iter().map(|(name, base)| {
            let values = match (self.adapt, base.dims()) {
                (Adapt::Full, _) => self.find(name).value.clone(),
                (Adapt::Lora { rank, alpha }, &[out, inner]) => {
                    let [a, b] = self.factors(name, rank, inner, out);
                    let mut added = vec![0.0; out * inner];
                    product(b, a, &mut added)?;
                    let scale = alpha / rank as f32;
                    let base = base.flatten_all()?.to_vec1::<f32>()?;
                    base.iter().zip(added).map(|(base, added)| base + scale * added).collect()
                }
                (Adapt::Lora { .. }, _) => base.flatten_all()?.to_vec1()?,
            };
            Ok((name.clone(), base.dims().to_vec(), values))
        });
        weights.collect()
    }

    /// The low-rank additions as they are now, `None` where all weights are trained.
    #[must_use]
    pub fn adapter(&self) -> Option<TrainedAdapter> {
        let Adapt::Lora { rank, alpha } = self.adapt else { return None };
        let mut adapter = TrainedAdapter::new(rank, alpha);
        for (name, base) in &self.base {
            if let &[out, inner] = base.dims() {
                let [a, b] = ["lora_a", "lora_b"]
                    .map(|factor| self.find(&format!("{name}.{factor}")).value.clone());
                adapter.insert(name, [out, inner], a, b);
            }
        }
        Some(adapter)
    }

    /// The weights as leaves of a graph; only those that move collect gradients. Low-rank additions are leaves
    /// themselves, unless their sum with the matrix is to be rounded.
    ///
    /// # Errors
    /// What candle says.
    pub fn leaves(&self) -> CandleResult<Weights> {
        if let (Adapt::Lora { rank, alpha }, None) = (self.adapt, self.rounding) {
            return self.factors_as_leaves(rank, alpha / rank as f32);
        }
        let leaves = self.weights()?.into_par_iter().map(|(name, shape, mut values)| {
            // A matrix whose rows do not fill the format's blocks is packed in another one.
            let fills = |format: &DType| match shape[..] {
                [_, inputs] => inputs.is_multiple_of(format.block_size()),
                _ => false,
            };
            if let Some(format) = self.rounding.filter(fills)
                && let Some(bytes) = format.quantize(&values)
            {
                format.dequantize(&bytes, &mut values);
            }
            let tensor = Tensor::from_vec(values, shape, self.backend.device())?;
            let moves = self.adapt == Adapt::Full || tensor.rank() == 2;
            let leaf = if moves { Var::from_tensor(&tensor)?.as_tensor().clone() } else { tensor };
            Ok((name, leaf))
        });
        let leaves = leaves.collect::<CandleResult<_>>()?;
        Ok(Weights::new(leaves, Arc::default(), self.backend.clone()))
    }

    fn factors_as_leaves(&self, rank: usize, scale: f32) -> CandleResult<Weights> {
        let mut leaves = BTreeMap::new();
        for (name, base) in &self.base {
            if let &[out, inner] = base.dims() {
                for (factor, shape) in [("lora_a", (rank, inner)), ("lora_b", (out, rank))] {
                    let name = format!("{name}.{factor}");
                    let value = self.find(&name).value.clone();
                    let leaf =
                        Var::from_vec(value, shape, self.backend.device())?.as_tensor().clone();
                    leaves.insert(name, leaf);
                }
            } else {
                leaves.insert(name.clone(), base.to_device(self.backend.device())?);
            }
        }
        let adapted = match self.adapted.get() {
            Some(adapted) => Arc::clone(adapted),
            None => {
                let adapted = Arc::new(self.adapted_modules(rank, scale)?);
                Arc::clone(self.adapted.get_or_init(|| adapted))
            }
        };
        Ok(Weights::new(leaves, adapted, self.backend.clone()))
    }

    /// The matrices, those of one input side by side, by the name of their module.
    fn adapted_modules(&self, rank: usize, scale: f32) -> CandleResult<AdaptedModules> {
        let mut groups = BTreeMap::<String, Vec<String>>::new();
        for (name, _) in self.base.iter().filter(|(_, base)| base.rank() == 2) {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let (group, parts) =
                self.side_by_side(module).unwrap_or((module.into(), vec![name.clone()]));
            groups.insert(group, parts);
        }
        let one = |(module, names): (String, Vec<String>)| {
            let matrices: Vec<&Tensor> = names.iter().map(|name| &self.base[name]).collect();
            let (_, inner) = matrices[0].dims2()?;
            let parts = matrices.iter().map(|matrix| matrix.dim(0)).collect::<CandleResult<_>>()?;
            let values = Tensor::cat(&matrices, 0)?.flatten_all()?.to_vec1::<f32>()?;
            let frozen = Arc::new(Frozen::new(&values, inner, &self.backend)?);
            Ok((module, Adapted { frozen, parts, rank, scale }))
        };
        groups.into_par_iter().map(one).collect()
    }

    /// The projections that a module's input goes to, where it is one of several: the name of all, and their weights'.
    fn side_by_side(&self, module: &str) -> Option<(String, Vec<String>)> {
        FUSED.iter().find_map(|(fused, modules)| {
            let prefix = modules.iter().find_map(|own| module.strip_suffix(own))?;
            let weights: Vec<String> =
                modules.iter().map(|own| format!("{prefix}{own}.weight")).collect();
            let all = weights.iter().all(|name| self.base.contains_key(name));
            all.then(|| (format!("{prefix}{fused}"), weights))
        })
    }

    /// Takes one step against the gradients of [`leaves`](Self::leaves). `step` holds the constants;
    /// its gradient scale becomes that which brings the norm down to `max_norm` and is multiplied by
    /// `1 / weight`. Returns the norm before; where it is not finite, nothing moves.
    pub(super) fn update(
        &mut self,
        gradients: &Gradients,
        mut step: AdamW,
        weight: f32,
        max_norm: f32,
    ) -> CandleResult<f32> {
        let own: Vec<Cow<[f32]>> = self
            .slots
            .par_iter()
            .map(|slot| self.gradient(&slot.name, gradients))
            .collect::<CandleResult<_>>()?;
        // One by one, so that the sum does not depend on how threads share the slots.
        let squares: Vec<f64> = own
            .par_iter()
            .map(|g| g.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>())
            .collect();
        let square: f64 = squares.iter().sum();
        let norm = square.sqrt() as f32 / weight;
        if !norm.is_finite() {
            return Ok(norm);
        }
        step.gradient_scale = if norm > max_norm { max_norm / norm } else { 1.0 } / weight;
        self.slots.par_iter_mut().zip(own).for_each(|(slot, gradient)| {
            let [first, second] = &mut slot.moments;
            // Norms and biases are not decayed.
            let matrix = self.adapt != Adapt::Full || self.base[&slot.name].rank() == 2;
            let decay = if matrix { step.weight_decay } else { 0.0 };
            AdamW { weight_decay: decay, ..step }.update(
                &mut slot.value,
                [first, second],
                &gradient,
            );
        });
        Ok(norm)
    }

    /// The gradient of a slot, by the chain rule where it is a factor of a leaf.
    fn gradient<'a>(&self, slot: &str, gradients: &'a Gradients) -> CandleResult<Cow<'a, [f32]>> {
        if let Some(own) = gradients.get(slot) {
            return Ok(Cow::Borrowed(own));
        }
        let (name, is_a) = match (slot.strip_suffix(".lora_a"), slot.strip_suffix(".lora_b")) {
            (Some(name), _) => (name, true),
            (None, Some(name)) => (name, false),
            (None, None) => candle_core::bail!("no gradient of {slot}"),
        };
        let (Adapt::Lora { rank, alpha }, Some(dw)) = (self.adapt, gradients.get(name)) else {
            return Err(candle_core::Error::Msg(format!("no gradient of {name}")));
        };
        let (out, inner) = self.base[name].dims2()?;
        let [a, b] = self.factors(name, rank, inner, out);
        let dw = MatRef::new(dw, out, inner, inner);
        let mut d = vec![0.0; if is_a { rank * inner } else { out * rank }];
        if is_a {
            product(b.t(), dw, &mut d)?;
        } else {
            product(dw, a.t(), &mut d)?;
        }
        let scale = alpha / rank as f32;
        d.iter_mut().for_each(|v| *v *= scale);
        Ok(Cow::Owned(d))
    }

    /// A, `[rank, in]`, and B, `[out, rank]`, of a matrix.
    fn factors(&self, name: &str, rank: usize, inner: usize, out: usize) -> [MatRef<'_>; 2] {
        let a = &self.find(&format!("{name}.lora_a")).value;
        let b = &self.find(&format!("{name}.lora_b")).value;
        [MatRef::new(a, rank, inner, inner), MatRef::new(b, out, rank, rank)]
    }

    fn find(&self, name: &str) -> &Slot {
        let slot = self.slots.iter().find(|slot| slot.name == name);
        slot.expect("invariant: every trained weight has its slots")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One gradient that is no number would make all moments none, and the checkpoint with them.
    #[test]
    fn gradients_that_are_no_numbers_move_nothing() {
        let weight = ("w".to_owned(), vec![2, 2], vec![1.0f32; 4]);
        let mut parameters =
            Parameters::new([weight], Adapt::Full, 0, Backend::processor()).unwrap();
        let constants = AdamW {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            gradient_scale: 1.0,
        };
        let mut step = |gradient: [f32; 4]| {
            let gradients = Gradients::from([("w".to_owned(), gradient.to_vec())]);
            let norm = parameters.update(&gradients, constants, 1.0, 1.0).unwrap();
            let [first, second] = parameters.slots[0].moments.clone();
            (norm.is_finite(), parameters.slots[0].value.clone(), first, second)
        };
        let before = step([1.0, -1.0, 0.5, 0.0]);
        assert!(before.0 && before.1[0] < 1.0);
        for wrong in [f32::NAN, f32::INFINITY] {
            let after = step([1.0, wrong, 0.0, 0.0]);
            assert!(!after.0);
            assert_eq!((&after.1, &after.2, &after.3), (&before.1, &before.2, &before.3));
        }
    }
}
