//! The kernels for processors.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod ceilings;
mod elementwise;
mod gate;
mod grow;
pub(crate) mod isa;
mod lanes;
mod low_rank;
mod mat_ref;
mod matmul;
mod norm;
mod pool;
mod quantize;
mod race;
mod reduce;
mod rope;
mod shared_mut;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod threads;
pub mod training;
mod weights;

pub use activations::Activations;
pub use attention::{AttentionShape, BLOCK_SIZE, CacheFormat, LayerCache, paged_attention};
pub use ceilings::Ceilings;
pub use elementwise::{scale, soft_cap};
pub use gate::Activation;
pub use low_rank::{Additions, LowRank};
pub use mat_ref::MatRef;
pub use matmul::{Gated, Shortlist, gated_product, matmul, matmul_add};
pub use norm::{
    add_assign, add_bias, add_rms_norm, gate_mul, rms_norm, rms_norm_heads, rms_norm_quantized,
};
pub use pool::ThreadPool;
pub use race::{race, unit};
pub use reduce::{SUMMED, argmax, sum_exp, sum_weights, weigh};
pub use rope::RopeTable;
pub use threads::best_threads;
pub use weights::{OpsError, PackedMatrix, embed};
