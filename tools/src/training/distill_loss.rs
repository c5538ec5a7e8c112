//! The loss of distillation, differentiable, which never keeps logits.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::frozen::Frozen;
use super::graph_ops::{dense, result, values};
use super::row_pieces::{ROWS, alone};
use pleach_kernels::training::{Divergence, distill_row, soft_cap_backward};
use pleach_kernels::{MatRef, soft_cap};

/// Target weights on columns of the head for every row that has a loss.
#[derive(Debug, Default, Clone)]
pub(super) struct Targets {
    /// Row of the hidden states, rising.
    pub(super) rows: Vec<u32>,
    /// End of each row's entries.
    pub(super) ends: Vec<usize>,
    /// Column of the head and weight.
    pub(super) entries: Vec<(u32, f32)>,
}

impl Targets {
    pub(super) fn of(&self, index: usize) -> &[(u32, f32)] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.entries[start..self.ends[index]]
    }
}

/// What a loss was made of.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Tally {
    /// Sum of the losses.
    pub loss: f64,
    /// Rows.
    pub rows: u64,
    /// Rows whose most likely column is the target's.
    pub agree: u64,
}

impl Tally {
    /// Adds other rows.
    pub(super) fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.rows += other.rows;
        self.agree += other.agree;
    }
}

/// The frozen head of a loss.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    /// `[columns, hidden]`
    pub(super) rows: &'a Arc<Frozen>,
    /// Bound of logits, `cap * tanh(logit / cap)`.
    pub(super) cap: Option<f32>,
}

/// Sum over rows of the divergence of `softmax(hidden head^T)` from the target's probabilities.
///
/// The logits of a chunk of rows live only inside the forward pass, which computes the gradient along
/// with the loss; the head is frozen.
pub(super) struct DistillLoss {
    divergence: Divergence,
    targets: Arc<Targets>,
    /// `[columns, hidden]`
    head: Arc<Frozen>,
    cap: Option<f32>,
    tally: Arc<Mutex<Tally>>,
    /// `[rows, hidden]`, left by the forward pass.
    gradient: Mutex<Option<Vec<f32>>>,
    /// Whether a backward pass follows.
    training: bool,
}

impl DistillLoss {
    /// Sum of the losses of `hidden`, as a tensor to differentiate, and what it is made of.
    pub(super) fn apply(
        hidden: &Tensor,
        head: Head<'_>,
        targets: Targets,
        divergence: Divergence,
        training: bool,
    ) -> Result<(Tensor, Tally)> {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let loss = hidden.apply_op1(Self {
            divergence,
            targets: Arc::new(targets),
            head: Arc::clone(head.rows),
            cap: head.cap,
            tally: Arc::clone(&tally),
            gradient: Mutex::new(None),
            training,
        })?;
        let tally = *tally.lock().map_err(|_| Error::Msg("another thread panicked".into()))?;
        Ok((loss, tally))
    }
}

/// What some rows have part in the loss, and their gradient.
struct Piece {
    tally: Tally,
    gradient: Vec<f32>,
}

impl DistillLoss {
    /// The part of `rows` of `x`, whose targets are the `index`th [`ROWS`]; `logits` is room for theirs.
    fn piece(
        &self,
        x: &[f32],
        hidden: usize,
        index: usize,
        rows: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<Piece> {
        let [columns, _] = self.head.shape();
        let of_rows = |row: &u32| &x[*row as usize * hidden..][..hidden];
        let input: Vec<f32> = rows.iter().flat_map(of_rows).copied().collect();
        logits.resize(rows.len() * columns, 0.0);
        self.head.forward(MatRef::new(&input, rows.len(), hidden, hidden), logits)?;
        if let Some(cap) = self.cap {
            soft_cap(alone(), logits, 1.0, cap);
        }
        let mut tally = Tally { rows: rows.len() as u64, ..Tally::default() };
        for (i, logits) in logits.chunks_exact_mut(columns).enumerate() {
            let wanted = self.targets.of(index * ROWS + i);
            let bounded = if self.cap.is_some() { logits.to_vec() } else { Vec::new() };
            let (loss, best) = distill_row(logits, wanted, self.divergence);
            if let Some(cap) = self.cap {
                soft_cap_backward(&bounded, 1.0, cap, logits);
            }
            let top = wanted.iter().max_by(|a, b| a.1.total_cmp(&b.1));
            tally.loss += f64::from(loss);
            tally.agree += u64::from(top.is_some_and(|top| top.0 == best));
        }
        let mut gradient = Vec::new();
        if self.training {
            gradient.resize(rows.len() * hidden, 0.0);
            self.head.backward(MatRef::new(logits, rows.len(), columns, columns), &mut gradient)?;
        }
        Ok(Piece { tally, gradient })
    }
}

impl CustomOp1 for DistillLoss {
    fn name(&self) -> &'static str {
        "distill-loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, hidden) = layout.shape().dims2()?;
        let x = values(x, layout)?;
        let targets = &self.targets;
        let pieces: Vec<Piece> = targets
            .rows
            .par_chunks(ROWS)
            .enumerate()
            .map_init(Vec::new, |logits, (index, rows)| self.piece(x, hidden, index, rows, logits))
            .collect::<Result<_>>()?;
        let mut gradient = vec![0.0; if self.training { rows * hidden } else { 0 }];
        let mut tally = Tally::default();
        for (piece, rows) in pieces.iter().zip(targets.rows.chunks(ROWS)) {
            tally.add(&piece.tally);
            for (row, part) in rows.iter().zip(piece.gradient.chunks_exact(hidden)) {
                gradient[*row as usize * hidden..][..hidden].copy_from_slice(part);
            }
        }
        let poisoned = |_| Error::Msg("another thread panicked".into());
        *self.tally.lock().map_err(poisoned)? = tally;
        *self.gradient.lock().map_err(|_| Error::Msg("another thread panicked".into()))? =
            Some(gradient);
        result(vec![tally.loss as f32], ())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let poisoned = |_| Error::Msg("another thread panicked".into());
        let gradient = self.gradient.lock().map_err(poisoned)?.take();
        let gradient = gradient.ok_or_else(|| Error::Msg("one backward pass only".into()))?;
        let factor = f64::from(dloss.to_scalar::<f32>()?);
        let gradient = dense(gradient, x.shape())?;
        Ok(Some(if factor == 1.0 { gradient } else { (gradient * factor)? }))
    }
}
