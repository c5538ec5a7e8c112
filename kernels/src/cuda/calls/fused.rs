//! The small steps between the matrix products: `fused.cu`.

use super::{
    Address, Kernel, Launch, MAX_GRID_X, Plan, Shape, WARP, cached, div_up, fit, float, format,
    kernel, line, rows_fit,
};
use crate::DType;

/// `PleachNorm`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Norm {
    pub(crate) residual: Address,
    pub(crate) delta: Address,
    pub(crate) delta_weight: Address,
    pub(crate) weight: Address,
    pub(crate) wanted: Address,
    pub(crate) out: Address,
    pub(crate) width: i64,
    pub(crate) eps: f32,
}

pub(crate) fn add_rms_norm(arguments: Norm, rows: i64, dtype: DType) -> Plan<Norm> {
    rows_fit(rows, arguments.width)?;
    line(kernel("add_rms_norm", float(dtype)?, 0), rows, 8 * WARP, arguments)
}

/// `PleachActivation`
pub(crate) const SILU: u32 = 0;
pub(crate) const GELU_TANH: u32 = 1;

/// `PleachGate`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Gate {
    pub(crate) gate_up: Address,
    pub(crate) out: Address,
    pub(crate) rows: i64,
    pub(crate) width: i64,
    pub(crate) activation: u32,
}

/// `PleachCap`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Cap {
    pub(crate) x: Address,
    pub(crate) count: i64,
    pub(crate) cap: f32,
}

/// Threads of a block that each have a value or a column.
const THREADS: i64 = 256;

pub(crate) fn soft_cap(arguments: Cap) -> Plan<Cap> {
    fit(arguments.count >= 0 && arguments.cap > 0.0)?;
    line(kernel("soft_cap", "", 0), div_up(arguments.count, THREADS), THREADS, arguments)
}

/// `PleachBias`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Bias {
    pub(crate) x: Address,
    pub(crate) bias: Address,
    pub(crate) rows: i64,
    pub(crate) width: i64,
}

/// A thread a column; blocks take further rows by turns.
fn columns<A>(kernel: Kernel, rows: i64, width: i64, arguments: A) -> Plan<A> {
    const MOST_ROWS: i64 = 4096;
    rows_fit(rows, width)?;
    if rows == 0 {
        return Ok(Vec::new());
    }
    let grid = [div_up(width, THREADS) as u32, rows.min(MOST_ROWS) as u32, 1];
    Ok(vec![Launch { kernel, grid, block: THREADS as u32, arguments }])
}

pub(crate) fn gate_mul(arguments: Gate, dtype: DType) -> Plan<Gate> {
    let kernel = kernel("gate_mul", float(dtype)?, 0);
    columns(kernel, arguments.rows, arguments.width, arguments)
}

pub(crate) fn add_bias(arguments: Bias, dtype: DType) -> Plan<Bias> {
    let kernel = kernel("add_bias", float(dtype)?, 0);
    columns(kernel, arguments.rows, arguments.width, arguments)
}

/// `PleachQkv`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Qkv {
    pub(crate) qkv: Address,
    pub(crate) bias: Address,
    pub(crate) q_norm: Address,
    pub(crate) k_norm: Address,
    pub(crate) rotations: Address,
    pub(crate) positions: Address,
    pub(crate) slots: Address,
    pub(crate) q: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) key_scales: Address,
    pub(crate) value_scales: Address,
}

/// `PleachRope`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Rope {
    pub(crate) io: Qkv,
    pub(crate) shape: Shape,
    pub(crate) rows: i64,
    pub(crate) turned: i32,
    pub(crate) eps: f32,
}

pub(crate) fn qkv_rope_write(arguments: Rope, dtype: DType) -> Plan<Rope> {
    /// A head's halves lie in so many numbers of each lane.
    const MOST_PAIRS: i64 = 4;
    const WARPS: i64 = 4;
    let Rope { io, shape, rows, turned, .. } = arguments;
    shape.fits()?;
    let dim = i64::from(shape.head_dim);
    let heads = i64::from(shape.heads) + 2 * i64::from(shape.kv_heads);
    rows_fit(rows, dim)?;
    fit(dim % 2 == 0 && dim <= 2 * MOST_PAIRS * WARP && shape.block_size > 0)?;
    fit(rows <= MAX_GRID_X / heads && (0..=dim / 2).contains(&i64::from(turned)))?;
    let kernel = cached("qkv_rope_write", [io.key_scales, io.value_scales], dtype, 0)?;
    line(kernel, div_up(rows * heads, WARPS), WARPS * WARP, arguments)
}

/// `PleachEmbed`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Embed {
    pub(crate) table: Address,
    pub(crate) tokens: Address,
    pub(crate) out: Address,
    pub(crate) width: i64,
    pub(crate) vocab_size: i64,
    pub(crate) scale: f32,
}

pub(crate) fn embed(arguments: Embed, rows: i64, table: DType) -> Plan<Embed> {
    rows_fit(rows, arguments.width)?;
    fit(arguments.vocab_size > 0 && arguments.width % table.block_size() as i64 == 0)?;
    let kernel = kernel("embed", format(table)?, 0);
    line(kernel, rows, 8 * WARP, arguments)
}
