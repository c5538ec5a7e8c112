//! The matrix product and its packed weights: `matmul.cu`.

use super::{
    Address, Kernel, Launch, MAX_GRID_X, MAX_GRID_YZ, Plan, Unfit, WARP, div_up, fit, float,
    format, kernel, line,
};
use crate::DType;

/// A packed matrix: tiles of 16 outputs, two to a block; groups of 32 inputs, two to a chunk.
const TILE: i64 = 16;
const GROUP: i64 = 32;

fn matrix_fits(outputs: i64, inputs: i64, weights: DType) -> Result<&'static str, Unfit> {
    let sizes = 1..=MAX_GRID_X;
    fit(sizes.contains(&outputs) && sizes.contains(&inputs))?;
    fit(inputs % GROUP == 0 && inputs % weights.block_size() as i64 == 0)?;
    format(weights)
}

fn tiles(outputs: i64) -> i64 {
    div_up(outputs, 2 * TILE) * 2
}

fn groups(inputs: i64) -> i64 {
    div_up(inputs, 2 * GROUP) * 2
}

/// Bytes of a packed matrix: inputs must be whole blocks of the format, and a multiple of 32.
pub(crate) fn packed_bytes(outputs: i64, inputs: i64, weights: DType) -> Result<i64, Unfit> {
    matrix_fits(outputs, inputs, weights)?;
    let (tiles, groups, supers) = (tiles(outputs), groups(inputs), div_up(inputs, 256));
    // Bits of a code, bytes of a scale with its minimum, how many of those, bytes of a group's scales in a super-block.
    let (bits, scale, scales, small) = match weights {
        DType::Q4_0 => (4, 2, groups, 0),
        DType::Q4_1 => (4, 4, groups, 0),
        DType::Q8_0 => (8, 2, groups, 0),
        DType::Q4_K => (4, 4, supers, 2),
        DType::Q5_K => (8, 4, supers, 2),
        DType::Q6_K => (8, 2, supers, 2),
        _ => (16, 0, 0, 0),
    };
    Ok(tiles * TILE * (groups * GROUP * bits / 8 + scales * scale + groups * small))
}

/// `PleachPack`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Pack {
    pub(crate) weights: Address,
    pub(crate) packed: Address,
    pub(crate) outputs: i64,
    pub(crate) inputs: i64,
}

pub(crate) fn pack(arguments: Pack, weights: DType) -> Plan<Pack> {
    const THREADS: i64 = 128;
    let format = matrix_fits(arguments.outputs, arguments.inputs, weights)?;
    let tasks = tiles(arguments.outputs) * TILE * groups(arguments.inputs);
    line(kernel("pack", format, 0), div_up(tasks, THREADS), THREADS, arguments)
}

/// `PleachProduct`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Product {
    pub(crate) packed: Address,
    pub(crate) x: Address,
    pub(crate) out: Address,
    pub(crate) rows: i64,
    pub(crate) outputs: i64,
    pub(crate) inputs: i64,
    pub(crate) x_stride: i64,
    pub(crate) out_stride: i64,
    out_f32: u32,
}

impl Product {
    /// A product whose results have a format that [`matmul`] is told.
    pub(crate) fn new(
        [packed, x, out]: [Address; 3],
        [rows, outputs, inputs]: [i64; 3],
        [x_stride, out_stride]: [i64; 2],
    ) -> Self {
        Self { packed, x, out, rows, outputs, inputs, x_stride, out_stride, out_f32: 0 }
    }
}

/// Float weights must have the format of x, and the results that or f32.
pub(crate) fn matmul(product: Product, weights: DType, x: DType, out: DType) -> Plan<Product> {
    let Product { rows, outputs, inputs, x_stride, out_stride, .. } = product;
    let formats = [matrix_fits(outputs, inputs, weights)?, float(x)?];
    fit((0..=MAX_GRID_YZ * 32).contains(&rows) && x_stride >= inputs && x_stride % 8 == 0)?;
    fit(out_stride >= outputs && (out == DType::F32 || out == x))?;
    fit(weights.is_quantized() || weights == x)?;
    if rows == 0 {
        return Ok(Vec::new());
    }
    // Rows that a block takes.
    let size = match rows {
        ..=8 => 8,
        9..=16 => 16,
        _ => 32,
    };
    Ok(vec![Launch {
        kernel: Kernel { family: "matmul", formats, size: size as u32 },
        grid: [div_up(outputs, 2 * TILE) as u32, div_up(rows, size) as u32, 1],
        block: 8 * WARP as u32,
        arguments: Product { out_f32: u32::from(out == DType::F32), ..product },
    }])
}
