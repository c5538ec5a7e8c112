//! `out = x w^T` for a few to a few thousand rows, weights unpacked once for up to eight of them.
//!
//! Integer path: for each block of 32 inputs the codes are multiplied and summed exactly in integers,
//! then `sum += scale_w * scale_x * dot (+ min_w * scaled_sum_x)` in f32, block after block. That order
//! is the same for every number of rows, thread count and instruction set, so a row's bits depend on
//! that row alone.

use std::ops::Range;

use super::ThreadPool;
use super::activations::{Activations, BLOCK};
use super::isa::{Isa, per_isa};
use super::packed::{FloatPanels, IntPanels, PANEL, PackedMatrix, Panels, Scales};
use super::shared_mut::SharedMut;

/// Most rows and panels computed side by side. Sums of 4 rows and 2 panels, in two planes, fill the vector
/// registers, and so do those of 8 rows and one panel, which read the weights in one pass.
const ROWS: usize = 8;
const SIDE: usize = 2;
/// Rows that stay in the cache nearest to the core while all panels of a task pass by.
const CHUNK: usize = 64;

/// Multiplies rows with one or several matrices, whose outputs stand side by side: for every row of `x`,
/// `out[r * out_stride + n] = sum over k of x[r, k] w[n, k]`, where n counts the outputs of all of `ws`.
/// One job of the pool, whatever the number of matrices. The rest of `out` stays.
///
/// # Panics
/// If the widths differ or `out` is too short.
pub fn matmul(
    pool: &ThreadPool,
    ws: &[&PackedMatrix],
    x: &Activations,
    out: &mut [f32],
    out_stride: usize,
) {
    matmul_on(Isa::best(), pool, ws, x, out, out_stride, false);
}

/// As [`matmul`] with one matrix, adding to `out`: a residual.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_add(
    pool: &ThreadPool,
    w: &PackedMatrix,
    x: &Activations,
    out: &mut [f32],
    out_stride: usize,
) {
    matmul_on(Isa::best(), pool, &[w], x, out, out_stride, true);
}

fn matmul_on(
    isa: Isa,
    pool: &ThreadPool,
    ws: &[&PackedMatrix],
    x: &Activations,
    out: &mut [f32],
    out_stride: usize,
    add: bool,
) {
    let outputs: usize = ws.iter().map(|w| w.out_features).sum();
    assert!(ws.iter().all(|w| w.in_features == x.cols), "width of weights and activations");
    assert!(outputs <= out_stride, "{outputs} outputs do not fit a row of {out_stride}");
    assert!(out.len() >= x.rows * out_stride, "output for {} rows of {out_stride}", x.rows);
    let panels = |w: &PackedMatrix| w.out_features.div_ceil(PANEL);
    let total: usize = ws.iter().map(|w| panels(w)).sum();
    let tasks = total.div_ceil(2).min(pool.threads() * 6);
    let out = SharedMut::new(out);
    pool.run(tasks, &|task| {
        let wanted = total * task / tasks..total * (task + 1) / tasks;
        let (mut before, mut out_offset) = (0, 0);
        for w in ws {
            let count = panels(w);
            let local = |at: usize| at.clamp(before, before + count) - before;
            let store = |panel: usize, first: usize, sums: &[[f32; PANEL]]| {
                let width = (w.out_features - panel * PANEL).min(PANEL);
                for (r, sums) in sums.iter().enumerate() {
                    let at = (first + r) * out_stride + out_offset + panel * PANEL;
                    // SAFETY: no other task has this panel, and no other row of it is alive.
                    let out = unsafe { out.slice(at, width) };
                    if add {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..width]);
                    }
                }
            };
            panels_of(isa, w, local(wanted.start)..local(wanted.end), x, store);
            before += count;
            out_offset += w.out_features;
        }
    });
}

/// Computes some panels for all rows and hands them to `store`: panel, first row, sums.
fn panels_of(
    isa: Isa,
    w: &PackedMatrix,
    panels: Range<usize>,
    x: &Activations,
    store: impl Fn(usize, usize, &[[f32; PANEL]]),
) {
    if panels.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let (Isa::AmxInt8, Panels::Int(w)) = (isa, &w.panels)
        && x.rows >= TILE_ROWS
        && !w.half_blocks
    {
        // SAFETY: `Isa::AmxInt8` was detected; the panels are `w`'s, without half blocks, and `x` is as
        // wide as `w`, asserted by the caller, and padded to whole tiles.
        unsafe { super::matmul_amx::panels(w, panels, x, store) };
        return;
    }
    let (most_rows, most_panels) = if (5..=8).contains(&x.rows) { (8, 1) } else { (4, SIDE) };
    for start in (0..x.rows).step_by(CHUNK) {
        let end = x.rows.min(start + CHUNK);
        for panel in panels.clone().step_by(most_panels) {
            let side = (panels.end - panel).min(most_panels);
            for first in (start..end).step_by(most_rows) {
                let rows = (end - first).min(most_rows);
                let mut sums = [[[0f32; PANEL]; ROWS]; SIDE];
                match &w.panels {
                    Panels::Int(w) => int_rows(isa, w, panel, side, x, first, rows, &mut sums),
                    Panels::Float(w) => {
                        for (i, sums) in sums[..side].iter_mut().enumerate() {
                            float_rows(isa, w, panel + i, x, first, &mut sums[..rows]);
                        }
                    }
                }
                for (i, sums) in sums[..side].iter().enumerate() {
                    store(panel + i, first, &sums[..rows]);
                }
            }
        }
    }
}

/// Rows from which tiles pay.
#[cfg(target_arch = "x86_64")]
const TILE_ROWS: usize = 9;

/// `side` panels from `panel` on for `rows` rows from `first` on.
#[expect(clippy::too_many_arguments, reason = "the operands of one kernel")]
fn int_rows(
    isa: Isa,
    w: &IntPanels,
    panel: usize,
    side: usize,
    x: &Activations,
    first: usize,
    rows: usize,
    sums: &mut [[[f32; PANEL]; ROWS]; SIDE],
) {
    macro_rules! rows {
        ($($n:literal x $side:literal)*) => {
            match rows {
                $($n => match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::AmxInt8 | Isa::Avx512Vnni => {
                        // SAFETY: the set was detected; the panels are `w`'s and the rows are `x`'s,
                        // whose width is that of `w`, as `matmul_on` asserts.
                        unsafe {
                            if side == 1 {
                                vnni::panels::<$n, 1>(w, panel, x, first, sums);
                            } else {
                                vnni::panels::<$n, $side>(w, panel, x, first, sums);
                            }
                        }
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => {
                        for (i, sums) in sums[..side].iter_mut().enumerate() {
                            let sums: &mut [_; $n] =
                                (&mut sums[..$n]).try_into().expect("the length just matched");
                            // SAFETY: as above.
                            unsafe { avx2::panel::<$n>(w, panel + i, x, first, sums) }
                        }
                    }
                    _ => {
                        for (i, sums) in sums[..side].iter_mut().enumerate() {
                            plain(w, panel + i, x, first, &mut sums[..$n]);
                        }
                    }
                },)*
                n => unreachable!("{n} rows"),
            }
        };
    }
    rows!(1 x 2 2 x 2 3 x 2 4 x 2 5 x 1 6 x 1 7 x 1 8 x 1);
}

/// The reference: what every path computes, one step at a time.
fn plain(w: &IntPanels, panel: usize, x: &Activations, first: usize, sums: &mut [[f32; PANEL]]) {
    let blocks = x.cols / BLOCK;
    let halves = 1 + usize::from(w.half_blocks);
    for (r, sums) in sums.iter_mut().enumerate() {
        let row = first + r;
        for b in 0..blocks {
            let block = panel * blocks + b;
            let at = row * blocks + b;
            let lines = &w.codes[block * w.lines()..][..w.lines()];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut dots = if w.half_blocks {
                    x.sums[at].map(|s| -w.offset * s)
                } else {
                    [-w.offset * (x.sums[at][0] + x.sums[at][1]), 0]
                };
                for k in 0..BLOCK {
                    let (group, byte) = (k / 4, lane * 4 + k % 4);
                    let code = if w.eight_bit {
                        lines[group].0[byte]
                    } else {
                        lines[group % 4].0[byte] >> (4 * (group / 4)) & 15
                    };
                    dots[k * halves / BLOCK] +=
                        i32::from(code) * x.steps(row * x.cols + b * BLOCK + k);
                }
                for (half, dot) in dots[..halves].iter().enumerate() {
                    let scale = lane_of(&w.scales, (block * halves + half) * PANEL + lane);
                    *sum = (scale * x.scales[at]).mul_add(*dot as f32, *sum);
                }
                if let Some(mins) = &w.mins {
                    *sum = lane_of(mins, block * PANEL + lane).mul_add(x.scaled_sums[at], *sum);
                }
            }
        }
    }
}

fn lane_of(scales: &Scales, index: usize) -> f32 {
    match scales {
        Scales::F16(v) => half::f16::from_bits(v[index]).to_f32(),
        Scales::F32(v) => v[index],
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod vnni {
    use std::arch::x86_64::*;

    use super::{Activations, BLOCK, IntPanels, PANEL, ROWS, SIDE, Scales};

    /// Lines fetched ahead of the one in use.
    const AHEAD: usize = 32;

    /// `R` rows from `first` on and `P` panels from `panel` on.
    ///
    /// # Safety
    /// Needs AVX-512 F, BW, VL and VNNI; the panels must be `w`'s and the rows `x`'s, quantised and as
    /// wide as `w`.
    pub(super) unsafe fn panels<const R: usize, const P: usize>(
        w: &IntPanels,
        panel: usize,
        x: &Activations,
        first: usize,
        sums: &mut [[[f32; PANEL]; ROWS]; SIDE],
    ) {
        // SAFETY: by the caller's promise.
        unsafe {
            match (w.eight_bit, w.half_blocks, x.precise) {
                (false, _, false) => kernel::<R, P, false, false, false>(w, panel, x, first, sums),
                (false, _, true) => kernel::<R, P, false, false, true>(w, panel, x, first, sums),
                (true, false, false) => {
                    kernel::<R, P, true, false, false>(w, panel, x, first, sums)
                }
                (true, false, true) => kernel::<R, P, true, false, true>(w, panel, x, first, sums),
                (true, true, false) => kernel::<R, P, true, true, false>(w, panel, x, first, sums),
                (true, true, true) => kernel::<R, P, true, true, true>(w, panel, x, first, sums),
            }
        }
    }

    /// # Safety
    /// As [`panels`], and the constants must be those of `w` and `x`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma")]
    unsafe fn kernel<
        const R: usize,
        const P: usize,
        const EIGHT: bool,
        const HALVES: bool,
        const PRECISE: bool,
    >(
        w: &IntPanels,
        panel: usize,
        x: &Activations,
        first: usize,
        out: &mut [[[f32; PANEL]; ROWS]; SIDE],
    ) {
        let blocks = x.cols / BLOCK;
        let halves = 1 + usize::from(HALVES);
        let lines = if EIGHT { 8 } else { 4 };
        let low = _mm512_set1_epi8(15);
        // SAFETY, for all pointers: a panel has `blocks` blocks of `lines` lines, 16 scales (twice 16 with
        // half blocks) and 16 minima each; a row has `blocks` blocks of 32 codes, a scale and two sums.
        let codes: [*const i8; R] =
            std::array::from_fn(|r| x.codes.as_ptr().wrapping_add((first + r) * x.cols));
        let rests: [*const i8; R] =
            std::array::from_fn(|r| x.low.as_ptr().wrapping_add((first + r) * x.cols));
        let mut acc = [[_mm512_setzero_ps(); P]; R];
        for b in 0..blocks {
            let block: [usize; P] = std::array::from_fn(|p| (panel + p) * blocks + b);
            let line: [*const __m512i; P] =
                std::array::from_fn(|p| w.codes.as_ptr().wrapping_add(block[p] * lines).cast());
            if first == 0 {
                // The processor's own prefetch ends at every page.
                for line in line {
                    for g in 0..lines {
                        _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD + g).cast());
                    }
                }
            }
            for half in 0..halves {
                // Sums of the two planes; the second one carries the offset.
                let mut dots = [[_mm512_setzero_si512(); P]; R];
                let mut rest = [[_mm512_setzero_si512(); P]; R];
                if w.offset != 0 {
                    for (r, rest) in rest.iter_mut().enumerate() {
                        // SAFETY: see above.
                        let sums = unsafe { *x.sums.get_unchecked((first + r) * blocks + b) };
                        let sum = if HALVES { sums[half] } else { sums[0] + sums[1] };
                        *rest = [_mm512_set1_epi32(-w.offset * sum); P];
                    }
                }
                for g in half * 8 / halves..(half + 1) * 8 / halves {
                    // SAFETY: see above.
                    unsafe {
                        let weights: [__m512i; P] = std::array::from_fn(|p| {
                            if EIGHT {
                                _mm512_load_si512(line[p].add(g))
                            } else {
                                let line = _mm512_load_si512(line[p].add(g % 4));
                                let line = if g < 4 { line } else { _mm512_srli_epi16::<4>(line) };
                                _mm512_and_si512(line, low)
                            }
                        });
                        let at = b * (BLOCK / 4) + g;
                        for r in 0..R {
                            let x = codes[r].cast::<i32>().add(at).read_unaligned();
                            let x = _mm512_set1_epi32(x);
                            for p in 0..P {
                                dots[r][p] = _mm512_dpbusd_epi32(dots[r][p], weights[p], x);
                            }
                            if PRECISE {
                                let x = rests[r].cast::<i32>().add(at).read_unaligned();
                                let x = _mm512_set1_epi32(x);
                                for p in 0..P {
                                    rest[r][p] = _mm512_dpbusd_epi32(rest[r][p], weights[p], x);
                                }
                            }
                        }
                    }
                }
                // SAFETY: see above.
                unsafe {
                    let scale: [__m512; P] = std::array::from_fn(|p| {
                        lanes(&w.scales, (block[p] * halves + half) * PANEL)
                    });
                    for r in 0..R {
                        let x_scale = *x.scales.get_unchecked((first + r) * blocks + b);
                        let x_scale = _mm512_set1_ps(x_scale);
                        for p in 0..P {
                            let dot = dots[r][p];
                            let dot = if PRECISE { _mm512_slli_epi32::<8>(dot) } else { dot };
                            let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, rest[r][p]));
                            let scale = _mm512_mul_ps(scale[p], x_scale);
                            acc[r][p] = _mm512_fmadd_ps(scale, dot, acc[r][p]);
                        }
                    }
                }
            }
            if let Some(mins) = &w.mins {
                // SAFETY: see above.
                unsafe {
                    let min: [__m512; P] = std::array::from_fn(|p| lanes(mins, block[p] * PANEL));
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let sum = *x.scaled_sums.get_unchecked((first + r) * blocks + b);
                        let sum = _mm512_set1_ps(sum);
                        for p in 0..P {
                            acc[p] = _mm512_fmadd_ps(min[p], sum, acc[p]);
                        }
                    }
                }
            }
        }
        for p in 0..P {
            for r in 0..R {
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(out[p][r].as_mut_ptr(), acc[r][p]) };
            }
        }
    }

    /// # Safety
    /// Needs AVX-512 F; `at .. at + 16` must exist.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in crate::ops) unsafe fn lanes(scales: &Scales, at: usize) -> __m512 {
        // SAFETY: by the caller's promise.
        unsafe {
            match scales {
                Scales::F16(v) => _mm512_cvtph_ps(_mm256_loadu_si256(v.as_ptr().add(at).cast())),
                Scales::F32(v) => _mm512_loadu_ps(v.as_ptr().add(at)),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Activations, BLOCK, IntPanels, PANEL, Scales};

    /// # Safety
    /// Needs AVX2, FMA and F16C; otherwise as `vnni::panel`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn panel<const R: usize>(
        w: &IntPanels,
        panel: usize,
        x: &Activations,
        first: usize,
        sums: &mut [[f32; PANEL]; R],
    ) {
        let blocks = x.cols / BLOCK;
        let halves = 1 + usize::from(w.half_blocks);
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        // Codes centred on 128 are multiplied as signed bytes, so that pairs of products fit 16 bits.
        let signed = w.offset == 128;
        for side in 0..2 {
            let mut acc = [_mm256_setzero_ps(); R];
            for b in 0..blocks {
                let block = panel * blocks + b;
                let mut groups = [_mm256_setzero_si256(); 8];
                // SAFETY: a block has 8 or 4 lines of 64 bytes, of which this takes one half each.
                unsafe {
                    let lines = w.codes.as_ptr().add(block * w.lines()).cast::<__m256i>().add(side);
                    if w.eight_bit {
                        for (g, group) in groups.iter_mut().enumerate() {
                            *group = _mm256_load_si256(lines.add(2 * g));
                            if signed {
                                *group = _mm256_xor_si256(*group, _mm256_set1_epi8(-128));
                            }
                        }
                    } else {
                        for g in 0..4 {
                            let line = _mm256_load_si256(lines.add(2 * g));
                            groups[g] = _mm256_and_si256(line, low);
                            groups[g + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low);
                        }
                    }
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let at = (first + r) * blocks + b;
                    let from = (first + r) * x.cols + b * BLOCK;
                    let planes = [&x.codes[from..][..BLOCK], &x.low[from..][..BLOCK]];
                    let x_scale = _mm256_set1_ps(x.scales[at]);
                    for half in 0..halves {
                        let sum = match halves {
                            1 => x.sums[at][0] + x.sums[at][1],
                            _ => x.sums[at][half],
                        };
                        let per_half = 8 / halves;
                        let mut dot = _mm256_setzero_si256();
                        for codes in &planes[..1 + usize::from(x.precise)] {
                            dot = _mm256_slli_epi32::<8>(dot);
                            for (g, group) in
                                groups.iter().enumerate().skip(half * per_half).take(per_half)
                            {
                                // SAFETY: 8 groups of 4 codes, read without alignment.
                                let x = unsafe {
                                    _mm256_set1_epi32(
                                        codes.as_ptr().cast::<i32>().add(g).read_unaligned(),
                                    )
                                };
                                let pairs = if signed {
                                    let magnitude = _mm256_abs_epi8(*group);
                                    _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, *group))
                                } else {
                                    _mm256_maddubs_epi16(*group, x)
                                };
                                dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                            }
                        }
                        if !signed {
                            dot = _mm256_add_epi32(dot, _mm256_set1_epi32(-w.offset * sum));
                        }
                        // SAFETY: 16 scales per half block.
                        let scale =
                            unsafe { lanes(&w.scales, (block * halves + half) * PANEL + side * 8) };
                        let scale = _mm256_mul_ps(scale, x_scale);
                        *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), *acc);
                    }
                    if let Some(mins) = &w.mins {
                        // SAFETY: 16 minima per block.
                        let min = unsafe { lanes(mins, block * PANEL + side * 8) };
                        *acc = _mm256_fmadd_ps(min, _mm256_set1_ps(x.scaled_sums[at]), *acc);
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                // SAFETY: 8 of 16 floats.
                unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(side * 8), acc) };
            }
        }
    }

    /// # Safety
    /// Needs AVX and F16C; `at .. at + 8` must exist.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn lanes(scales: &Scales, at: usize) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe {
            match scales {
                Scales::F16(v) => _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().add(at).cast())),
                Scales::F32(v) => _mm256_loadu_ps(v.as_ptr().add(at)),
            }
        }
    }
}

/// Float weights: four interleaved partial sums over k, added in a fixed order at the end.
fn float_rows(
    isa: Isa,
    w: &FloatPanels,
    panel: usize,
    x: &Activations,
    first: usize,
    sums: &mut [[f32; PANEL]],
) {
    let cols = x.cols;
    for (r, sums) in sums.iter_mut().enumerate() {
        let x = &x.values[(first + r) * cols..][..cols];
        match w {
            FloatPanels::F32(w) => float_panel_f32(isa, &w[panel * cols..][..cols], x, sums),
            FloatPanels::F16(w) => float_panel_f16(isa, &w[panel * cols..][..cols], x, sums),
            FloatPanels::BF16(w) => float_panel_bf16(isa, &w[panel * cols..][..cols], x, sums),
        }
    }
}

macro_rules! float_panel {
    ($name:ident, $ty:ty, $widen:expr) => {
        per_isa! {
            fn $name(w: &[[$ty; PANEL]], x: &[f32], sums: &mut [f32; PANEL]) {
                let mut parts = [[0f32; PANEL]; 4];
                for (w, x) in w.chunks(4).zip(x.chunks(4)) {
                    for ((w, x), part) in w.iter().zip(x).zip(&mut parts) {
                        for (part, w) in part.iter_mut().zip(w) {
                            *part = x.mul_add($widen(*w), *part);
                        }
                    }
                }
                for (lane, sum) in sums.iter_mut().enumerate() {
                    *sum = (parts[0][lane] + parts[1][lane]) + (parts[2][lane] + parts[3][lane]);
                }
            }
        }
    };
}

float_panel!(float_panel_f32, f32, |w: f32| w);
float_panel!(float_panel_f16, half::f16, |w: half::f16| w.to_f32());
float_panel!(float_panel_bf16, half::bf16, |w: half::bf16| w.to_f32());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::DType;
    use crate::ops::testing::Random;

    const QUANTIZED: [DType; 6] =
        [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q4_K, DType::Q5_K, DType::Q6_K];

    /// Random bytes are valid codes; scales are set to small half-precision numbers.
    fn random_matrix(dtype: DType, out: usize, cols: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..dtype.bytes_for(out * cols).expect("whole blocks"))
            .map(|_| random.bits() as u8)
            .collect();
        for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
            let mut put = |at: usize, v: f32| {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
            };
            match dtype {
                DType::Q8_0 | DType::Q4_0 => put(0, random.value() * 0.1),
                DType::Q4_1 | DType::Q4_K | DType::Q5_K => {
                    put(0, random.value() * 0.1);
                    put(2, random.value() * 0.1);
                }
                DType::Q6_K => put(208, random.value() * 0.1),
                _ => {}
            }
        }
        bytes
    }

    fn run(isa: Isa, threads: usize, w: &PackedMatrix, x: &[f32], rows: usize) -> Vec<f32> {
        run_with(isa, threads, w, x, rows, false)
    }

    fn run_with(
        isa: Isa,
        threads: usize,
        w: &PackedMatrix,
        x: &[f32],
        rows: usize,
        precise: bool,
    ) -> Vec<f32> {
        let pool = ThreadPool::new(threads);
        let mut a = Activations::new();
        a.set(&pool, x, rows, w.in_features(), precise);
        // Beside another matrix, in rows with room to spare.
        let before = PackedMatrix::from_f32(3, w.in_features(), &vec![1.0; 3 * w.in_features()]);
        let before = before.expect("fits");
        let stride = w.out_features() + 5;
        let mut out = vec![f32::NAN; rows * stride];
        matmul_on(isa, &pool, &[&before, w], &a, &mut out, stride, false);
        let mut twice = out.clone();
        matmul_on(isa, &pool, &[&before, w], &a, &mut twice, stride, true);
        let doubled = |(twice, once): (&f32, &f32)| *twice == 2.0 * once || once.is_nan();
        assert!(twice.iter().zip(&out).all(doubled), "adding to the output");
        assert!(out.chunks(stride).all(|row| row[stride - 2..].iter().all(|v| v.is_nan())));
        out.chunks(stride).flat_map(|row| row[3..stride - 2].to_vec()).collect()
    }

    #[test]
    fn quantized_weights_agree_with_f64_and_between_paths() {
        let mut random = Random::new();
        for dtype in QUANTIZED {
            let shapes = [
                (1, 256, 1),
                (16, 512, 3),
                (37, 768, 9),
                (50, 256, 21),
                (20, 256, 6),
                (33, 256, 8),
            ];
            for (out, cols, rows) in shapes {
                let cols = if dtype.block_size() == 32 { cols + 32 } else { cols };
                let bytes = random_matrix(dtype, out, cols, &mut random);
                let mut dense = vec![f32::NAN; out * cols];
                dtype.dequantize(&bytes, &mut dense);
                let w = PackedMatrix::pack(dtype, out, cols, &bytes).expect("fits");
                let mut row = vec![f32::NAN; cols];
                for n in 0..out {
                    w.row(n, &mut row);
                    assert_eq!(row, dense[n * cols..][..cols], "{dtype:?} row {n}");
                }
                let x = random.vec(rows * cols);
                for precise in [false, true] {
                    let plain = run_with(Isa::Plain, 1, &w, &x, rows, precise);
                    // The exact product with the rounded activations.
                    let mut a = Activations::new();
                    a.set(&ThreadPool::new(1), &x, rows, cols, precise);
                    for r in 0..rows {
                        for n in 0..out {
                            let terms = (0..cols).map(|k| {
                                let at = r * cols + k;
                                let x = f64::from(a.steps(at)) * f64::from(a.scales[at / 32]);
                                x * f64::from(dense[n * cols + k])
                            });
                            let (sum, size) =
                                terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                            let got = f64::from(plain[r * out + n]);
                            assert!(
                                (got - sum).abs() <= 1e-4 * size + 1e-6,
                                "{dtype:?}: {got} {sum}"
                            );
                        }
                    }
                    for isa in Isa::supported() {
                        for threads in [1, 3] {
                            let got = run_with(isa, threads, &w, &x, rows, precise);
                            assert_eq!(got, plain, "{dtype:?} {isa:?} {precise}");
                        }
                    }
                    // A row alone.
                    let x = &x[(rows - 1) * cols..];
                    let last = run_with(Isa::best(), 1, &w, x, 1, precise);
                    assert_eq!(last, plain[(rows - 1) * out..], "{dtype:?} alone");
                }
            }
        }
    }

    #[test]
    fn float_weights_agree_with_f64_and_between_paths() {
        let mut random = Random::new();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (out, cols, rows) in [(1, 1, 1), (33, 67, 9), (20, 576, 2)] {
                let bytes = dtype.quantize(&random.vec(out * cols)).expect("float");
                let mut dense = vec![f32::NAN; out * cols];
                dtype.dequantize(&bytes, &mut dense);
                let w = PackedMatrix::pack(dtype, out, cols, &bytes).expect("fits");
                let x = random.vec(rows * cols);
                let plain = run(Isa::Plain, 1, &w, &x, rows);
                for (at, got) in plain.iter().enumerate() {
                    let (r, n) = (at / out, at % out);
                    let terms = (0..cols)
                        .map(|k| f64::from(x[r * cols + k]) * f64::from(dense[n * cols + k]));
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
                    assert!(
                        (f64::from(*got) - sum).abs() <= 1e-6 * size + 1e-9,
                        "{dtype:?} {got} {sum}"
                    );
                }
                for isa in Isa::supported() {
                    assert_eq!(run(isa, 2, &w, &x, rows), plain, "{dtype:?} {isa:?}");
                }
            }
        }
    }

    #[test]
    fn selected_rows_keep_their_values() {
        let mut random = Random::new();
        for dtype in QUANTIZED.into_iter().chain([DType::F32, DType::F16, DType::BF16]) {
            let bytes = match dtype.quantize(&random.vec(40 * 256)) {
                Some(bytes) => bytes,
                None => random_matrix(dtype, 40, 256, &mut random),
            };
            let w = PackedMatrix::pack(dtype, 40, 256, &bytes).expect("fits");
            let ids: Vec<u32> = (0..19).map(|_| random.bits() as u32 % 40).collect();
            let s = w.select_rows(&ids);
            let (mut a, mut b) = ([0f32; 256], [1f32; 256]);
            for (i, id) in ids.iter().enumerate() {
                w.row(*id as usize, &mut a);
                s.row(i, &mut b);
                assert_eq!(a, b, "{dtype:?}");
            }
            let x = random.vec(256);
            let (all, some) = (run(Isa::best(), 1, &w, &x, 1), run(Isa::best(), 1, &s, &x, 1));
            assert!(ids.iter().zip(&some).all(|(id, v)| all[*id as usize] == *v), "{dtype:?}");
        }
    }

    #[test]
    fn nan_stays_in_its_row() {
        let mut random = Random::new();
        for dtype in [DType::Q4_1, DType::Q8_0, DType::F32] {
            let w = PackedMatrix::pack(
                dtype,
                16,
                64,
                &dtype.quantize(&random.vec(16 * 64)).expect("ok"),
            )
            .expect("fits");
            let mut x = random.vec(3 * 64);
            x[64 + 7] = f32::NAN;
            let out = run(Isa::best(), 1, &w, &x, 3);
            assert!(out[16..32].iter().all(|v| v.is_nan()), "{dtype:?}");
            assert!(out[..16].iter().chain(&out[32..]).all(|v| v.is_finite()), "{dtype:?}");
        }
    }

    #[test]
    fn wrong_sizes_are_errors() {
        for (dtype, out, cols, bytes) in [
            (DType::Q4_0, 1, 33, 18),
            (DType::Q4_0, 2, 32, 18),
            (DType::F32, 0, 4, 0),
            (DType::F32, usize::MAX, 4, 16),
        ] {
            let error =
                PackedMatrix::pack(dtype, out, cols, &vec![0; bytes]).expect_err("does not fit");
            assert!(error.to_string().contains(&format!("{dtype:?}")));
        }
    }
}
