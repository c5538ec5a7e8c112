//! The model: its architecture, the decoder that serves it, and the forward pass as the engine sees it.

mod adapters;
mod attached;
mod cuda;
mod decoder;
mod draft;
mod forward;
mod rows;
mod runner;
mod text_reader;
mod verify;

pub use adapters::{AdapterLayout, AdapterShapes, AdapterWeights};
pub use attached::{AttachedDrafter, DraftWorkspace};
pub use cuda::{
    CudaAdapters, CudaAttached, CudaDecoder, CudaDraft, CudaLender, CudaRunner, PassBounds,
};
pub use decoder::{Decoder, KvCache, Lender, ModelError, Precision, Workspace, check_draft};
pub use draft::{Draft, Drafter};
pub use forward::{AttachedForward, Forward, OutOfMemory};
pub use rows::{DraftInput, Rows};
pub use runner::Runner;
pub use text_reader::TextReader;
pub use verify::{RoundResult, Verified, VerifyTask};

pub use crate::checkpoint::architecture::{
    Attachment, Design, Family, ModelConfig, PROJECTIONS, RopeConfig, RopeScaling, RopeTables,
    SlidingWindow, layer_tensor_names, rope_divisors, tensor_names, yarn_attention,
};
