//! The kernels: one safe function each, on plain slices, chosen for the processor at run time.
//!
//! This is the only place with `unsafe` code. Every kernel has a plain version that the tests hold the
//! fast ones against, and gives the same bits on every path, for any number of threads and rows.

#![expect(
    unsafe_code,
    reason = "kernels use processor intrinsics and split slices between threads"
)]

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod ceilings;
pub mod cuda;
mod dtype;
mod elementwise;
#[cfg(target_arch = "x86_64")]
pub mod gemm_bf16;
mod isa;
mod mat_ref;
mod matmul;
mod packed;
mod reduce;
mod rope;
mod shared_mut;
#[cfg(test)]
mod testing;
mod threads;
pub mod training;

pub use activations::Activations;
pub use attention::{AttentionShape, CacheFormat, LayerCache, paged_attention};
pub use ceilings::Ceilings;
pub use dtype::{DType, Group};
pub use elementwise::{
    add_assign, add_bias, rms_norm, rms_norm_heads, rms_norm_quantized, silu_mul,
    silu_mul_quantized,
};
pub use mat_ref::MatRef;
pub use matmul::{matmul, matmul_add};
pub use packed::{OpsError, PackedMatrix, embed};
pub use reduce::{arg_max, scaled_exp, sum_exp};
pub use rope::RopeTable;
pub use threads::{ThreadPool, available_threads};
