//! The model: its architecture, the decoder that serves it, and the forward pass as the engine sees it.

mod attached;
mod config;
mod cuda;
mod decoder;
mod draft;
mod forward;
mod names;
mod rope;
mod runner;
mod verify;

pub use attached::{AttachedDrafter, Attachment, DraftInput, DraftWorkspace, PROJECTIONS};
pub use config::{Family, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
pub use cuda::{CudaDecoder, CudaRunner};
pub use decoder::{Decoder, KvCache, Lender, ModelError, Precision, Workspace};
pub use draft::Draft;
pub use forward::{AttachedForward, Forward, Rows};
pub use names::{layer_tensor_names, tensor_names};
pub use rope::{rope_divisors, rope_table, yarn_attention};
pub use runner::Runner;
pub use verify::{Verified, VerifyTask};
