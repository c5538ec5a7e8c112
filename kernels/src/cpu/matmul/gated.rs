//! The gated half of a feed-forward layer: two products, whose outputs become the operand of the next one.

use std::cell::RefCell;
use std::ops::Range;

use super::panels_of;
use crate::cpu::activations::{Activations, Parts};
use crate::cpu::gate::{Activation, gate_row};
use crate::cpu::grow::grow;
use crate::cpu::isa::Isa;
use crate::cpu::low_rank::Additions;
use crate::cpu::norm::add_bias;
use crate::cpu::pool::ThreadPool;
use crate::cpu::quantize::BLOCK;
use crate::cpu::shared_mut::SharedMut;
use crate::cpu::weights::{PANEL, PackedMatrix};

/// Most bytes of outputs of one matrix that wait for those of the other: they stay in a core's second cache.
const MOST_BYTES: usize = 128 << 10;

/// A feed-forward layer's gate and up: their matrices, of one shape, and what is added to their outputs.
pub struct Gated<'a> {
    /// What the gate passes through.
    pub activation: Activation,
    /// Gate and up.
    pub weights: [&'a PackedMatrix; 2],
    /// Gate's and up's.
    pub biases: [Option<&'a [f32]>; 2],
    /// Gate's and up's, for rows of the operand.
    pub additions: [Additions<'a>; 2],
}

/// `out = activation(x gate^T) * (x up^T)` for all rows of `x`, with what is added to either: one job, in which every
/// output goes from product to operand on one core.
///
/// # Panics
/// If the matrices differ in shape, a bias or an addition has another length, or the width is not that of `x`.
pub fn gated_product(pool: &ThreadPool, gated: &Gated<'_>, x: &Activations, out: &mut Activations) {
    gated_product_on(Isa::best(), pool, gated, x, out);
}

pub(super) fn gated_product_on(
    isa: Isa,
    pool: &ThreadPool,
    gated: &Gated<'_>,
    x: &Activations,
    out: &mut Activations,
) {
    let [inner, others] = gated.weights.map(PackedMatrix::out_features);
    assert_eq!(inner, others, "outputs of gate and up");
    assert!(gated.weights.iter().all(|w| w.in_features == x.cols), "width of weights and of x");
    assert!(gated.biases.iter().flatten().all(|b| b.len() == inner), "a bias for every output");
    let added = gated.additions.iter().filter_map(Additions::outputs);
    assert!(added.into_iter().all(|outputs| outputs == inner), "an addition for every output");
    let blocks = inner.div_ceil(BLOCK);
    let at_once = (MOST_BYTES / (x.rows.max(1) * BLOCK * size_of::<f32>())).max(1);
    let tasks = blocks.min(pool.threads() * 6);
    out.fill_with(pool, x.rows, inner, 1, |parts| {
        pool.run(tasks, &|task| {
            let end = blocks * (task + 1) / tasks;
            for start in (blocks * task / tasks..end).step_by(at_once) {
                let columns = start * BLOCK..inner.min(end.min(start + at_once) * BLOCK);
                gated.outputs(isa, x, columns, parts);
            }
        });
    });
}

thread_local! {
    /// Outputs of gate and up, `[rows, columns]`.
    static OUTPUTS: RefCell<[Vec<f32>; 2]> = RefCell::default();
}

impl Gated<'_> {
    /// Computes some columns, whole blocks but for the last one, of all rows.
    fn outputs(&self, isa: Isa, x: &Activations, columns: Range<usize>, parts: &Parts<'_>) {
        let first = columns.start / PANEL;
        let panels = first..columns.end.div_ceil(PANEL);
        let stride = panels.len() * PANEL;
        OUTPUTS.with_borrow_mut(|outputs| {
            let added = self.biases.iter().zip(&self.additions);
            for ((out, w), (bias, additions)) in outputs.iter_mut().zip(self.weights).zip(added) {
                // Parts differ in width, and what is there is written over.
                let out = grow(out, x.rows * stride);
                let shared = SharedMut::new(out);
                panels_of(isa, w, panels.clone(), x, |panel, row, sums| {
                    for (row, sums) in (row..).zip(sums) {
                        // SAFETY: nothing else is alive of this thread's own buffer.
                        let out =
                            unsafe { shared.slice(row * stride + (panel - first) * PANEL, PANEL) };
                        out.copy_from_slice(sums);
                    }
                });
                // SAFETY: as above.
                unsafe { additions.add_columns(isa, columns.clone(), &shared, stride, 0) };
                if let Some(bias) = bias {
                    add_bias(out, &bias[columns.clone()], stride, 0);
                }
            }
            let [gate, up] = outputs.each_ref().map(|out| out.chunks_exact(stride));
            for (row, (gate, up)) in gate.zip(up).enumerate().take(x.rows) {
                let [gate, up] = [gate, up].map(|row| &row[..columns.len()]);
                // SAFETY: no other task has these columns.
                unsafe {
                    parts.make_columns(row, columns.clone(), |out| {
                        gate_row(isa, self.activation, gate, up, out);
                    });
                }
            }
        });
    }
}
