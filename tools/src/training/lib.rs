//! Training a pruned model on what the unpruned one wrote.
//!
//! [`Network`] is the decoder of [`pleach::model`] once more, as a graph of candle operations with our
//! own kernels inside, or of candle's alone on a device, over packed sequences; [`Dataset`] packs answers and the target's distribution
//! into it; [`Parameters`] holds what is trained; [`Trainer`] runs the steps on several threads. Before that,
//! [`NeuronActivity`] says which neurons of a block should stay.

mod adapted;
mod attached;
mod attention;
mod backend;
mod chain_attention;
mod composed;
mod dataset;
mod decoder;
mod distill_loss;
mod frozen;
mod gemm;
mod graph_ops;
mod lesson;
mod lora;
mod neurons;
mod ops;
mod options;
mod parameters;
mod row_pieces;
mod slerp;
mod target_states;
mod top_k;
mod trainer;
mod weights;

pub use attached::{AttachedLesson, AttachedNetwork};
pub use backend::Backend;
pub use dataset::{Dataset, Example, Origin};
pub use decoder::{Network, TrainingBatch};
pub use distill_loss::Tally;
pub use lesson::{Distillation, Lesson};
pub use lora::TrainedAdapter;
pub use neurons::NeuronActivity;
pub use options::{Budget, Options};
pub use parameters::{Adapt, Parameters, Weight, block_weights, weight};
pub use slerp::slerp;
pub use target_states::{TargetStates, TargetStatesWriter};
pub use top_k::TopKWriter;
pub use trainer::{Point, Trainer};
pub use weights::Weights;

use std::path::PathBuf;

/// Why a model cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The model to start from cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] pleach::checkpoint::CheckpointError),
    /// A file of examples or of the run's state is unreadable or wrong.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The options do not fit the model or the data.
    #[error("{0}")]
    Options(String),
    /// The loss or its gradient is no number any more.
    #[error("the {what} became {value} at step {step}; try a lower learning rate")]
    Diverged {
        /// The step.
        step: u32,
        /// Which of them.
        what: &'static str,
        /// What it is.
        value: f64,
    },
}

impl TrainError {
    fn file(path: &std::path::Path, reason: impl ToString) -> Self {
        Self::File { path: path.into(), reason: reason.to_string() }
    }
}
