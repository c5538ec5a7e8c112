//! Attention over the paged cache: `attention.cu`.

use std::f32::consts::LOG2_E;

use super::{
    Address, Launch, MAX_GRID_X, MAX_GRID_YZ, Plan, Unfit, WARP, cached, div_up, fit, float, kernel,
};
use crate::DType;

/// Widths of heads that attention takes.
pub const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

/// Positions that one block attends to.
const SPLIT: i64 = 256;

/// `PleachAttentionShape`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Shape {
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) block_size: i32,
    pub(crate) window: i32,
    pub(crate) scale: f32,
    pub(crate) cap: f32,
}

impl Shape {
    pub(super) fn fits(&self) -> Result<(), Unfit> {
        fit(self.heads > 0 && self.kv_heads > 0 && self.heads % self.kv_heads == 0)
    }
}

/// `PleachAttention`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attention {
    pub(crate) q: Address,
    pub(crate) keys: Address,
    pub(crate) values: Address,
    pub(crate) key_scales: Address,
    pub(crate) value_scales: Address,
    pub(crate) cu_seqlens_q: Address,
    pub(crate) context_lens: Address,
    pub(crate) block_tables: Address,
    pub(crate) max_blocks: i64,
    pub(crate) tree_masks: Address,
    pub(crate) workspace: Address,
    pub(crate) out: Address,
}

/// `PleachAttend`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attend {
    io: Attention,
    shape: Shape,
    rows: i64,
    sequences: i64,
    splits: i64,
    scale: f32,
    cap_scale: f32,
}

/// Bytes of work space for `rows` rows of sequences of at most `max_length` positions, rows included. Rows are
/// independent: a caller with little memory may launch a few at a time.
pub(crate) fn attention_workspace(shape: &Shape, rows: i64, max_length: i64) -> i64 {
    if max_length <= SPLIT {
        return 0;
    }
    let splits = div_up(max_length, SPLIT);
    rows * i64::from(shape.heads) * splits * (i64::from(shape.head_dim) + 2) * 4
}

/// `max_length` bounds the length of every sequence, its rows included.
pub(crate) fn paged_attention(
    io: Attention,
    shape: Shape,
    [rows, sequences, max_length]: [i64; 3],
    dtype: DType,
) -> Plan<Attend> {
    shape.fits()?;
    let (heads, kv_heads) = (i64::from(shape.heads), i64::from(shape.kv_heads));
    fit(heads <= MAX_GRID_YZ && matches!(shape.block_size, 16 | 32))?;
    fit((0..=MAX_GRID_X / heads).contains(&rows) && (0..=MAX_GRID_X / 2).contains(&sequences))?;
    fit((0..=MAX_GRID_YZ * SPLIT).contains(&max_length))?;
    fit(shape.window == 0 || (shape.window > 0 && io.tree_masks == 0))?;
    if rows == 0 || sequences == 0 {
        return Ok(Vec::new());
    }
    fit(max_length > 0 && HEAD_DIMS.contains(&(shape.head_dim as usize)))?;
    let (dim, splits) = (shape.head_dim as u32, div_up(max_length, SPLIT));
    let (scale, cap_scale) = if shape.cap > 0.0 {
        (LOG2_E, 2.0 * LOG2_E * shape.scale / shape.cap)
    } else {
        (LOG2_E * shape.scale, 0.0)
    };
    let arguments = Attend { io, shape, rows, sequences, splits, scale, cap_scale };
    // Tiles of 16 pairs of a row and a head; each sequence leaves at most one tile unfilled.
    let tiles = rows * (heads / kv_heads) / 16 + sequences;
    let mut launches = vec![Launch {
        kernel: cached("attention", [io.key_scales, io.value_scales], dtype, dim)?,
        grid: [tiles as u32, kv_heads as u32, splits as u32],
        block: 4 * WARP as u32,
        arguments,
    }];
    if splits > 1 {
        launches.push(Launch {
            kernel: kernel("combine", float(dtype)?, dim),
            grid: [rows as u32, heads as u32, 1],
            block: dim,
            arguments,
        });
    }
    Ok(launches)
}
