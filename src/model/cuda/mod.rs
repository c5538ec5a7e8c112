//! The decoder on a CUDA device: the same architecture as [`Decoder`](super::Decoder), in 16-bit activations and a
//! cache of as many bits or 8, over the kernels of `kernels/`; and drafters that are attached to it.
//!
//! Its logits differ from the CPU's by rounding, but a row's bits depend on its own context alone here too.

mod adapters;
mod attached;
mod decoder;
mod draft;
mod layer;
mod lender;
mod load;
mod rotations;
mod runner;
mod states;
mod verify;
mod workspace;

pub(super) use adapters::CudaAdapter;
pub use adapters::CudaAdapters;
pub use attached::CudaAttached;
pub use decoder::CudaDecoder;
pub use draft::CudaDraft;
pub use lender::CudaLender;
pub use runner::CudaRunner;
pub use workspace::PassBounds;
