//! Low-rank additions to products: `low_rank.cu`.

use super::{Address, Launch, MAX_GRID_X, Plan, WARP, div_up, fit, float, kernel, rows_fit};
use crate::DType;

/// Matrices that one call adds to, at most.
pub(crate) const MATRICES: usize = 3;

/// Ranks of which sums are kept at a time: further ones are added after them.
pub(crate) const RANKS: usize = 128;

/// `PleachFactors`
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Factors {
    pub(crate) a: Address,
    pub(crate) b: Address,
    pub(crate) rank: i32,
    pub(crate) scale: f32,
}

/// `PleachLowRank`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct LowRank {
    pub(crate) adapters: Address,
    pub(crate) x: Address,
    pub(crate) sums: Address,
    pub(crate) out: Address,
    pub(crate) rows: i64,
    pub(crate) inputs: i64,
    pub(crate) outputs: [i64; MATRICES],
    pub(crate) matrix: i32,
    pub(crate) matrices: i32,
    rank: i32,
    ranks: i32,
}

impl LowRank {
    /// Additions to matrices of so many `outputs`, from the model's `matrix` on; [`add_low_rank`] chooses the ranks.
    ///
    /// # Panics
    /// If there are more matrices than a call takes.
    pub(crate) fn new(
        [adapters, x, sums, out]: [Address; 4],
        [rows, inputs]: [i64; 2],
        matrix: i32,
        outputs: &[i64],
    ) -> Self {
        let mut all = [0; MATRICES];
        all[..outputs.len()].copy_from_slice(outputs);
        let matrices = outputs.len() as i32;
        Self {
            adapters,
            x,
            sums,
            out,
            rows,
            inputs,
            outputs: all,
            matrix,
            matrices,
            rank: 0,
            ranks: 0,
        }
    }
}

/// `ranks` bounds those of the adapters of all rows. `sums` has room for [`RANKS`] of them, or all.
pub(crate) fn add_low_rank(arguments: LowRank, ranks: i64, dtype: DType) -> Plan<LowRank> {
    const EXPAND_THREADS: i64 = 256;
    const MOST_ROWS: i64 = 4096;
    let LowRank { rows, inputs, outputs, matrix, matrices, .. } = arguments;
    fit((1..=MATRICES as i32).contains(&matrices) && matrix >= 0)?;
    let (own, none) = outputs.split_at(matrices as usize);
    fit(own.iter().all(|outputs| (1..=MAX_GRID_X).contains(outputs))
        && none.iter().all(|&n| n == 0))?;
    rows_fit(rows, inputs)?;
    fit(inputs % 4 == 0 && (0..=i64::from(i32::MAX)).contains(&ranks))?;
    if rows == 0 {
        return Ok(Vec::new());
    }
    let format = float(dtype)?;
    let columns = div_up(outputs.iter().sum(), EXPAND_THREADS) as u32;
    let mut launches = Vec::new();
    for rank in (0..ranks).step_by(RANKS) {
        let count = (ranks - rank).min(RANKS as i64);
        let arguments = LowRank { rank: rank as i32, ranks: count as i32, ..arguments };
        let mut launch = |family, grid, block: i64| {
            let kernel = kernel(family, format, 0);
            launches.push(Launch { kernel, grid, block: block as u32, arguments });
        };
        launch("shrink", [rows as u32, count as u32, matrices as u32], 4 * WARP);
        launch("expand", [columns, rows.min(MOST_ROWS) as u32, 1], EXPAND_THREADS);
    }
    Ok(launches)
}
