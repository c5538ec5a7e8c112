//! What serving asks of a model.

use std::sync::Arc;

use super::{AdapterShapes, DraftInput, Drafter, RoundResult, Rows, VerifyTask};
use crate::checkpoint::architecture::ModelConfig;

/// A pass that was not computed for want of memory. Keys and values of its rows are undefined; all others stand, and
/// smaller passes may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OutOfMemory(pub String);

/// A model with its own K/V cache, as the engine sees it.
pub trait Forward: Send {
    /// The model's shape.
    fn config(&self) -> &ModelConfig;

    /// Rows of the output head.
    fn head_rows(&self) -> usize;

    /// Token ids of the head's rows, where the head is trimmed.
    fn draft_vocab(&self) -> Option<&Arc<[u32]>>;

    /// What adapters that rows go through must fit; `None` where rows can go through none.
    fn adapter_shapes(&self) -> Option<&Arc<AdapterShapes>> {
        None
    }

    /// Computes all rows, writes their keys and values, and returns the logits of `logit_rows`.
    /// Shape `[logit_rows, head_rows]`.
    ///
    /// # Errors
    /// [`OutOfMemory`] where the pass is too large.
    fn forward(&mut self, rows: &Rows) -> Result<&[f32], OutOfMemory>;

    /// Whether the model verifies draft tokens itself.
    fn verifies(&self) -> bool {
        false
    }

    /// A pass in which the model decides the rounds of some sequences itself. Returns the logits of the rows
    /// that `tasks` do not name, in order, and the outcome of each task.
    ///
    /// # Errors
    /// [`OutOfMemory`] where the pass is too large.
    ///
    /// # Panics
    /// If there are tasks for a model that does not [verify](Self::verifies).
    fn forward_and_verify(
        &mut self,
        rows: &Rows,
        tasks: &[VerifyTask<'_>],
    ) -> Result<(&[f32], Vec<RoundResult>), OutOfMemory> {
        assert!(tasks.is_empty(), "the model does not verify");
        Ok((self.forward(rows)?, Vec::new()))
    }

    /// Writes the hidden state of a row of the last pass, behind the final norm. Shape `[hidden_size]`.
    fn hidden_state(&self, row: usize, out: &mut [f32]);

    /// The drafter that is attached to the model, where one is.
    fn attached(&mut self) -> Option<&mut dyn AttachedForward> {
        None
    }

    /// Attaches a drafter that was loaded for the model, or none, and gives back the one that was attached.
    ///
    /// # Panics
    /// If the model takes no drafter, or none of this kind.
    fn attach(&mut self, drafter: Option<Drafter>) -> Option<Drafter> {
        assert!(drafter.is_none(), "the model takes no drafter");
        None
    }
}

/// A drafter that reads what the model it is attached to has computed, and shares its K/V cache.
pub trait AttachedForward {
    /// The drafter's shape.
    fn config(&self) -> &ModelConfig;

    /// Rows of its output head.
    fn head_rows(&self) -> usize;

    /// Token ids of the head's rows, where the head is trimmed.
    fn draft_vocab(&self) -> Option<&Arc<[u32]>>;

    /// Floating-point operations of a step behind `context` positions.
    fn flops_per_token(&self, context: usize) -> u64;

    /// Puts the states that the drafter reads of some rows of the model's last pass into `out`, in the form in which its
    /// own steps take them. Shape `[rows, states, hidden_size]`.
    ///
    /// # Panics
    /// If a row's logits were not asked for.
    fn read_states(&mut self, rows: &[u32], out: &mut Vec<f32>);

    /// One step of several chains, a row each. Returns the logits, `[rows, head_rows]`.
    ///
    /// # Errors
    /// [`OutOfMemory`] where the step is too large.
    fn step(&mut self, rows: &Rows, input: DraftInput<'_>) -> Result<&[f32], OutOfMemory>;
}
