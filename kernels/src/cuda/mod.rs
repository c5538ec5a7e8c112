//! The kernels of `kernels/cuda/*.cu` as safe functions on tensors that live on a CUDA device.
//!
//! A [`Device`] speaks to NVIDIA's driver through `cudarc`, which looks for it when the first device is asked for: a
//! program without a driver runs, and says that there is none. The kernels travel in the program, as PTX that the
//! driver compiles. What the driver is told to start (names, grids, arguments) is made in `calls`, which touches no
//! device. The tests put `kernels/cuda/emulator` in the driver's place, so that all of this runs without a GPU.
//!
//! A function checks number formats, shapes and devices before it launches. Launches are asynchronous, in order,
//! on the device's one stream.

mod batch;
mod calls;
mod device;
pub mod foreign;
mod graph;
mod kv_layer;
mod launch;
mod low_rank;
mod memory;
mod staging;
mod tensor;
mod verify;

use std::path::PathBuf;

pub use batch::{Batch, BatchRows};
pub use calls::HEAD_DIMS;
pub use device::Device;
pub use graph::{Graphs, PassKey};
pub use kv_layer::{KvFormat, KvLayer};
pub use launch::{AttentionInputs, Delta, QkvInputs};
pub use low_rank::{AdaptedRows, LowRankAdapter, LowRankFactors, LowRankLayout};
pub use staging::Staging;
pub use tensor::{HostBuffer, Table, Tensor, Weights};
pub use verify::{Draw, VerifiedRow, Verifier, VerifySequence};

/// Why something cannot be done on a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No driver, or none that works.
    #[error("no CUDA device can be used: {0}")]
    NoDriver(String),
    /// No device of this number.
    #[error("there is no CUDA device {index}: the driver has {count}, counted from 0")]
    NoDevice {
        /// The wanted device.
        index: usize,
        /// Devices there are.
        count: usize,
    },
    /// A shared library cannot be used.
    #[error("{}: {reason}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Memory ran out. A buffer that was to grow is empty then; all else is as it was.
    #[error("no memory is left on the CUDA device for {what}{}", amounts(*.bytes, *.free))]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked for, where it is known.
        bytes: Option<usize>,
        /// Bytes that nothing used, where it is known.
        free: Option<usize>,
    },
    /// The device or its driver failed.
    #[error("{what} failed on the CUDA device: {reason}")]
    Failed {
        /// The function.
        what: &'static str,
        /// CUDA's text.
        reason: String,
    },
    /// A function was given what it does not take.
    #[error("{what}: {reason}")]
    Argument {
        /// The function.
        what: &'static str,
        /// What does not fit.
        reason: String,
    },
}

/// How much was asked for, and how much there was.
fn amounts(bytes: Option<usize>, free: Option<usize>) -> String {
    let asked = bytes.map(|bytes| format!(": {bytes} bytes were asked for")).unwrap_or_default();
    let there = free.map(|free| format!(", and {free} bytes are free")).unwrap_or_default();
    asked + &there
}
