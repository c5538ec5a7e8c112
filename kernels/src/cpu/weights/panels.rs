//! Panels of 16 outputs, the layout of weights.
//!
//! Quantised: for each block of 32 inputs, groups of 4 inputs x 16 outputs, so that one 64-byte register feeds an integer
//! dot product of 4 inputs for 16 outputs; codes take as many bits as in files (`codes.rs`). Scales and minima stand
//! beside, 16 a block or half block (`scales.rs`). Float: 16 outputs a row of k.

use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};

use super::codes;
use super::scales::Scales;
use crate::cpu::pool::ThreadPool;
use crate::cpu::quantize::BLOCK;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::store::Store;
use crate::dtype::DType;

/// Outputs per panel.
pub(crate) const PANEL: usize = 16;

/// 64 bytes, aligned to a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

// SAFETY: 64 plain bytes without padding.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Line {}

/// Integer panels: `w = scale * (code - offset) + min`.
#[derive(Debug, Clone)]
pub(crate) struct IntPanels {
    /// `[panels, blocks, bits]` lines.
    pub(crate) codes: Store<Line>,
    /// Bits of a code: 4, 5, 6 or 8.
    pub(crate) bits: usize,
    /// Scales per half block (16 inputs) instead of per block.
    pub(crate) half_blocks: bool,
    pub(crate) offset: i32,
    pub(crate) scales: Scales,
    pub(crate) mins: Option<Scales>,
}

/// Float panels, `[panels, in_features, 16]`.
#[derive(Debug, Clone)]
pub(crate) enum FloatPanels {
    F32(Store<[f32; PANEL]>),
    F16(Store<[f16; PANEL]>),
    BF16(Store<[bf16; PANEL]>),
}

#[derive(Debug, Clone)]
pub(crate) enum Panels {
    Int(IntPanels),
    Float(FloatPanels),
}

/// Panels of `out_features` rows and `in_features` columns, whose values `get` gives by row and column.
pub(super) fn float_panels<T: Pod + Send>(
    pool: &ThreadPool,
    out_features: usize,
    in_features: usize,
    get: impl Fn(usize, usize) -> T + Sync,
) -> Store<[T; PANEL]> {
    let count = out_features.div_ceil(PANEL);
    let mut panels: Store<[T; PANEL]> = Store::zeroed(count * in_features);
    let shared = SharedMut::new(&mut panels);
    pool.run(count, &|panel| {
        // SAFETY: each task has its own panel.
        let rows = unsafe { shared.slice(panel * in_features, in_features) };
        let outputs = outputs(panel, out_features);
        for (k, row) in rows.iter_mut().enumerate() {
            for (value, n) in row.iter_mut().zip(outputs.clone()) {
                *value = get(n, k);
            }
        }
    });
    panels
}

/// The outputs of a panel.
fn outputs(panel: usize, out_features: usize) -> Range<usize> {
    panel * PANEL..out_features.min((panel + 1) * PANEL)
}

impl IntPanels {
    /// Panels of a format, of `blocks` blocks of zeros.
    pub(super) fn zeroed(dtype: DType, blocks: usize) -> Self {
        let (bits, has_min) = match dtype {
            DType::Q8_0 => (8, false),
            DType::Q4_0 => (4, false),
            DType::Q4_1 | DType::Q4_K => (4, true),
            DType::Q5_0 => (5, false),
            DType::Q5_1 | DType::Q5_K => (5, true),
            DType::Q6_K => (6, false),
            DType::F32 | DType::F16 | DType::BF16 => unreachable!("float formats have no codes"),
        };
        let half_blocks = dtype == DType::Q6_K;
        let entries = 1 + usize::from(half_blocks);
        // Those of a block of the format share its unit.
        let sharing = dtype.block_size() / BLOCK * entries;
        Self {
            codes: Store::zeroed(blocks * bits),
            bits,
            half_blocks,
            offset: dtype.offset().into(),
            scales: Scales::zeroed(blocks * entries, sharing),
            mins: has_min.then(|| Scales::zeroed(blocks, sharing)),
        }
    }

    /// Zeroed panels of `blocks` blocks in the same format.
    pub(super) fn empty(&self, blocks: usize) -> Self {
        Self {
            codes: Store::zeroed(blocks * self.bits),
            scales: self.scales.empty(blocks * self.entries()),
            mins: self.mins.as_ref().map(|mins| mins.empty(blocks)),
            ..*self
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let mins = self.mins.as_ref().map_or(0, |mins| size_of_val(&*mins.rows));
        size_of_val(&*self.codes) + size_of_val(&*self.scales.rows) + mins
    }

    /// Scales of an output per block.
    pub(super) fn entries(&self) -> usize {
        1 + usize::from(self.half_blocks)
    }

    /// The lines of a block's codes.
    pub(crate) fn lines(&self, block: usize) -> &[Line] {
        &self.codes[block * self.bits..][..self.bits]
    }

    pub(super) fn pack<'a>(
        pool: &ThreadPool,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Self {
        let (panels, blocks) = (out_features.div_ceil(PANEL), in_features / BLOCK);
        let mut packed = Self::zeroed(dtype, panels * blocks);
        let (bits, entries) = (packed.bits, packed.entries());
        let codes = SharedMut::new(&mut packed.codes);
        let scales = packed.scales.shared();
        let mins = packed.mins.as_mut().map(Scales::shared);
        pool.run(panels, &|panel| {
            let first = panel * blocks;
            // SAFETY: each task has its own panel, which begins with units of its own.
            let (lines, mut scales, mut mins) = unsafe {
                let lines = codes.slice(first * bits, blocks * bits);
                let mins = mins.as_ref().map(|mins| mins.part(first, blocks));
                (lines, scales.part(first * entries, blocks * entries), mins)
            };
            for (lane, n) in outputs(panel, out_features).enumerate() {
                let mut lines = lines.chunks_exact_mut(bits).enumerate();
                dtype.decode(row(n), |group| {
                    let (block, lines) = lines.next().expect("a row is as many blocks");
                    codes::set(lines, lane, &group.codes);
                    for (half, scale) in group.scale[..entries].iter().enumerate() {
                        scales.set(block * entries + half, lane, *scale);
                    }
                    if let Some(mins) = &mut mins {
                        mins.set(block, lane, group.min);
                    }
                });
            }
        });
        packed
    }

    /// Sets a row of `blocks` blocks, lane and first block given, to a row of `from`, of the same format.
    pub(super) fn copy_row(
        &mut self,
        (to, to_lane): (usize, usize),
        from: &Self,
        (first, lane): (usize, usize),
        blocks: usize,
    ) {
        let entries = self.entries();
        for block in 0..blocks {
            let lines = &mut self.codes[(to + block) * self.bits..][..self.bits];
            codes::copy(lines, to_lane, from.lines(first + block), lane);
        }
        for entry in 0..blocks * entries {
            let value = from.scales.get(first * entries + entry, lane);
            self.scales.set(to * entries + entry, to_lane, value);
        }
        if let (Some(to_mins), Some(from)) = (&mut self.mins, &from.mins) {
            for block in 0..blocks {
                to_mins.set(to + block, to_lane, from.get(first + block, lane));
            }
        }
    }

    /// The values of a row, lane and first block given.
    pub(super) fn row(&self, first: usize, lane: usize, out: &mut [f32]) {
        let entries = self.entries();
        for (block, out) in (first..).zip(out.as_chunks_mut::<BLOCK>().0) {
            let codes = codes::get(self.lines(block), lane);
            let min = self.mins.as_ref().map_or(0.0, |mins| mins.get(block, lane).value());
            let scales: [f32; 2] = std::array::from_fn(|half| {
                self.scales.get(block * entries + half % entries, lane).value()
            });
            for (i, (out, code)) in out.iter_mut().zip(codes).enumerate() {
                let centred = (i32::from(code) - self.offset) as f32;
                *out = scales[i * 2 / BLOCK].mul_add(centred, min);
            }
        }
    }
}
