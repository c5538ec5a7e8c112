//! How kernels are started: their arguments, as `kernels/cuda/pleach_kernels.h` lays them out, and for sizes that a kernel
//! takes its name, its grid and its blocks. Nothing here touches a device.

mod attention;
mod fused;
mod low_rank;
mod matmul;
mod verify;

pub use attention::HEAD_DIMS;
pub(super) use attention::{Attention, Shape, attention_workspace, paged_attention};
pub(super) use fused::{
    Bias, Cap, Embed, GELU_TANH, Gate, Norm, Qkv, Rope, SILU, add_bias, add_rms_norm, embed,
    gate_mul, qkv_rope_write, soft_cap,
};
pub(super) use low_rank::{Factors, LowRank, MATRICES, RANKS, add_low_rank};
pub(super) use matmul::{Pack, Product, matmul, pack, packed_bytes};
pub(super) use verify::{Scatter, Verify, scatter, verify};

use crate::DType;

/// An address on a device, or 0: nothing.
pub(super) type Address = u64;

/// A kernel, by the parts of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kernel {
    family: &'static str,
    formats: [&'static str; 2],
    size: u32,
}

impl Kernel {
    /// `family_format_format_size`, without what is empty.
    pub(super) fn name(&self) -> String {
        let mut name = self.family.to_owned();
        for format in self.formats.into_iter().filter(|format| !format.is_empty()) {
            name = name + "_" + format;
        }
        if self.size > 0 { format!("{name}_{}", self.size) } else { name }
    }
}

const fn kernel(family: &'static str, format: &'static str, size: u32) -> Kernel {
    Kernel { family, formats: [format, ""], size }
}

/// One start of a kernel.
#[derive(Debug)]
pub(super) struct Launch<A> {
    pub(super) kernel: Kernel,
    pub(super) grid: [u32; 3],
    pub(super) block: u32,
    pub(super) arguments: A,
}

/// Sizes that a kernel does not take.
#[derive(Debug)]
pub(super) struct Unfit;

/// What is to be started, in order; nothing where there is nothing to do.
pub(super) type Plan<A> = Result<Vec<Launch<A>>, Unfit>;

const WARP: i64 = 32;
/// Blocks of a grid.
const MAX_GRID_X: i64 = 0x7fff_ffff;
const MAX_GRID_YZ: i64 = 65_535;

fn fit(holds: bool) -> Result<(), Unfit> {
    if holds { Ok(()) } else { Err(Unfit) }
}

fn rows_fit(rows: i64, width: i64) -> Result<(), Unfit> {
    fit((0..=MAX_GRID_X).contains(&rows) && (1..=MAX_GRID_X).contains(&width))
}

/// A format of activations.
fn float(dtype: DType) -> Result<&'static str, Unfit> {
    match dtype {
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        _ => Err(Unfit),
    }
}

/// A kernel over the cache for rows of a format. Where there are scales, of keys and of values, those are codes of 8 bits.
fn cached(
    family: &'static str,
    [keys, values]: [Address; 2],
    rows: DType,
    size: u32,
) -> Result<Kernel, Unfit> {
    let coded = keys != 0;
    fit(coded == (values != 0) && (!coded || rows == DType::BF16))?;
    let formats = if coded { ["int8", float(rows)?] } else { [float(rows)?, ""] };
    Ok(Kernel { family, formats, size })
}

/// A format of weights.
fn format(dtype: DType) -> Result<&'static str, Unfit> {
    match dtype {
        DType::BF16 | DType::F16 => float(dtype),
        DType::Q4_0 => Ok("q4_0"),
        DType::Q4_1 => Ok("q4_1"),
        DType::Q8_0 => Ok("q8_0"),
        DType::Q4_K => Ok("q4_k"),
        DType::Q5_K => Ok("q5_k"),
        DType::Q6_K => Ok("q6_k"),
        DType::F32 | DType::Q5_0 | DType::Q5_1 => Err(Unfit),
    }
}

fn div_up(a: i64, b: i64) -> i64 {
    (a + b - 1) / b
}

/// One launch in one dimension; none where there is nothing to do.
fn line<A>(kernel: Kernel, blocks: i64, block: i64, arguments: A) -> Plan<A> {
    fit((0..=MAX_GRID_X).contains(&blocks))?;
    if blocks == 0 {
        return Ok(Vec::new());
    }
    Ok(vec![Launch { kernel, grid: [blocks as u32, 1, 1], block: block as u32, arguments }])
}
