//! The kernels: one safe function each, on plain slices, chosen for the processor at run time, and their
//! counterparts for CUDA.
//!
//! This is the only package with `unsafe` code. Every kernel has a plain version that the tests hold the fast ones
//! against, and gives the same bits on every path, for any number of threads and rows.

mod cpu;
pub mod cuda;
mod dtype;

pub use cpu::*;
pub use dtype::DType;
