//! What is learnt, and of what.

use candle_core::Tensor;

use super::distill_loss::Tally;
use super::weights::Weights;
use super::{Dataset, Network};
use pleach_kernels::training::Divergence;

/// What is learnt, and of what.
pub trait Lesson: Send + Sync {
    /// The answers.
    fn data(&self) -> &Dataset;

    /// Whether there is something to learn from an answer.
    fn teaches(&self, _index: usize) -> bool {
        true
    }

    /// Sum of the losses of some answers, as a tensor to differentiate, and what it is made of.
    ///
    /// # Errors
    /// What candle says.
    fn loss(
        &self,
        weights: &Weights,
        pack: &[usize],
        training: bool,
    ) -> candle_core::Result<(Tensor, Tally)>;
}

/// A decoder learns the target's distribution at every token of the answers.
pub struct Distillation {
    /// The frozen part of the decoder.
    pub network: Network,
    /// The answers.
    pub data: Dataset,
    /// The row of the network's head for every token.
    pub head_row: Vec<Option<u32>>,
    /// What is made small.
    pub divergence: Divergence,
}

impl Lesson for Distillation {
    fn data(&self) -> &Dataset {
        &self.data
    }

    fn loss(
        &self,
        weights: &Weights,
        pack: &[usize],
        training: bool,
    ) -> candle_core::Result<(Tensor, Tally)> {
        let batch = self.data.batch(pack, &self.head_row)?;
        self.network.loss(weights, &batch, self.divergence, training)
    }
}
