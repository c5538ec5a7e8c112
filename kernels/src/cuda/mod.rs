//! The kernels of `kernels/cuda/*.cu` as safe functions on tensors that live on a CUDA device.
//!
//! Launch code, device memory and streams are C++ behind `kernels/cuda/pleach_kernels.h`; a [`Device`] holds those
//! functions as a table. With the feature `cuda` they are linked in, built by nvcc, with CUDA's runtime, which
//! finds the driver when the program runs. The tests load the same sources built for the CPU over
//! `kernels/cuda/emulator`, so that every caller of this module runs without a GPU.
//!
//! A function checks number formats, shapes and devices before it launches. Launches are asynchronous, in order,
//! on the device's one stream.

mod batch;
mod device;
mod ffi;
mod graph;
mod launch;
mod tensor;
mod verify;

use std::path::PathBuf;

pub use batch::{Batch, BatchRows};
pub use device::Device;
pub use graph::{Graphs, PassKey};
pub use launch::{AttentionInputs, KvLayer, QkvInputs};
pub use tensor::{HostBuffer, Table, Tensor, Weights};
pub use verify::{Draw, VerifiedRow, Verifier, VerifySequence};

/// Why something cannot be done on a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The program has no kernels.
    #[error(
        "this build has no CUDA kernels; build with `cargo build --release --features cuda`, which needs nvcc, \
         or use `--device cpu`"
    )]
    NotBuilt,
    /// No driver, or none that works.
    #[error(
        "no CUDA device can be used: {0}; is NVIDIA's driver installed? `--device cpu` needs none"
    )]
    NoDriver(String),
    /// No device of this number.
    #[error("there is no CUDA device {index}: the driver has {count}, counted from 0")]
    NoDevice {
        /// The wanted device.
        index: usize,
        /// Devices there are.
        count: usize,
    },
    /// A shared library holds no kernels that fit.
    #[error("{}: {reason}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What is wrong.
        reason: String,
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
