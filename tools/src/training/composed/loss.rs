//! The loss of distillation, a chunk of rows at a time, so that no more logits are kept.

use candle_core::{D, Result, Tensor, Var};

use super::super::distill_loss::{Head, Tally, Targets};
use super::rows::{bounded, softmax};
use pleach_kernels::training::{ADAPTIVE_RATE, Divergence, Mixture, log_unseen};

/// Logits of one chunk: 256 MB of them, of which a few copies are there at a time.
const LOGITS: usize = 1 << 26;

/// Sum of the losses of `hidden`, `[rows, hidden]`, as a tensor to differentiate, and what it is made of.
pub(in super::super) fn distill_loss(
    hidden: &Tensor,
    head: Head<'_>,
    targets: &Targets,
    divergence: Divergence,
    training: bool,
) -> Result<(Tensor, Tally)> {
    let weight = head.rows.tensor()?;
    let columns = weight.dim(0)?;
    let detached = hidden.detach();
    let mut tally = Tally { rows: targets.rows.len() as u64, ..Tally::default() };
    let mut gradient = detached.zeros_like()?;
    let chunk = (LOGITS / columns).max(1);
    for first in (0..targets.rows.len()).step_by(chunk) {
        let count = chunk.min(targets.rows.len() - first);
        let rows = Tensor::from_slice(&targets.rows[first..first + count], count, hidden.device())?;
        let x = detached.index_select(&rows, 0)?;
        // The graph begins behind the product, of whose matrix no gradient is wanted.
        let products = x.matmul(&weight.t()?)?;
        let products = if training { Var::from_tensor(&products)?.into_inner() } else { products };
        let logits = bounded(products.clone(), head.cap)?;
        let listed = Listed::of(targets, first..first + count, columns, &logits)?;
        let loss = listed.loss(&logits, divergence)?;
        tally.loss += f64::from(loss.to_scalar::<f32>()?);
        let best = logits.detach().argmax(D::Minus1)?.to_vec1::<u32>()?;
        tally.agree +=
            best.iter().zip(&listed.top).filter(|(best, top)| Some(**best) == **top).count() as u64;
        if training && let Some(part) = loss.backward()?.get(&products) {
            gradient = gradient.index_add(&rows, &part.matmul(weight)?, 0)?;
        }
    }
    // A tensor of this value and this gradient.
    let linear = (hidden * gradient)?.sum_all()?;
    let value = ((&linear - linear.detach())? + tally.loss)?;
    Ok((value, tally))
}

/// What the target says of some rows: as many columns for each, of which those that fill up have no weight.
struct Listed {
    /// `[rows, k]`
    columns: Tensor,
    weights: Tensor,
    /// `ln(unseen / weight)`, and 0 where there is no weight: `[rows, k]`.
    over_unseen: Tensor,
    /// The logarithm of what the target has left for every other column, `[rows, 1]`.
    unseen: Tensor,
    /// The target's most likely column.
    top: Vec<Option<u32>>,
}

impl Listed {
    fn of(
        targets: &Targets,
        rows: std::ops::Range<usize>,
        columns: usize,
        like: &Tensor,
    ) -> Result<Self> {
        let device = like.device();
        let count = rows.len();
        let most = rows.clone().map(|row| targets.of(row).len()).max().unwrap_or(0).max(1);
        let (mut at, mut weights) = (vec![0; count * most], vec![0.0; count * most]);
        let (mut over, mut unseen) = (vec![0.0; count * most], Vec::with_capacity(count));
        let mut top = Vec::with_capacity(count);
        for (i, row) in rows.enumerate() {
            let entries = targets.of(row);
            let weight: f32 = entries.iter().map(|entry| entry.1).sum();
            let left = log_unseen(weight, entries.len(), columns);
            unseen.push(left);
            top.push(entries.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|entry| entry.0));
            for (k, (column, p)) in entries.iter().enumerate() {
                (at[i * most + k], weights[i * most + k]) = (*column, *p);
                over[i * most + k] = left - p.ln();
            }
        }
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, (count, ()), device);
        Ok(Self {
            columns: Tensor::from_vec(at, (count, most), device)?,
            weights: tensor(weights)?,
            over_unseen: tensor(over)?,
            unseen: tensor(unseen)?,
            top,
        })
    }

    /// Sum over the rows of their divergences.
    fn loss(&self, logits: &Tensor, divergence: Divergence) -> Result<Tensor> {
        let own = softmax(logits)?;
        let log_own = log_softmax(logits)?;
        match divergence {
            Divergence::Mixture(Mixture { forward_kl, reverse_kl, total_variation }) => {
                let mut sum = Tensor::zeros((), logits.dtype(), logits.device())?;
                if forward_kl > 0.0 {
                    let forward = self.forward_kl(&log_own)?.sum_all()?;
                    sum = (sum + (forward * f64::from(forward_kl))?)?;
                }
                if reverse_kl > 0.0 {
                    let all = (&own * log_own.broadcast_sub(&self.unseen)?)?.sum_all()?;
                    let listed = (own.gather(&self.columns, 1)? * &self.over_unseen)?.sum_all()?;
                    sum = (sum + ((all + listed)? * f64::from(reverse_kl))?)?;
                }
                if total_variation > 0.0 {
                    let rejected = self.rejected(&own)?.sum_all()?;
                    sum = (sum + (rejected * f64::from(total_variation))?)?;
                }
                Ok(sum)
            }
            Divergence::Adaptive => {
                let rejected = self.rejected(&own)?;
                let rate = f64::from(ADAPTIVE_RATE);
                let share = rejected.detach().affine(rate, -rate)?.exp()?;
                let variation = (rejected * share.affine(-1.0, 1.0)?)?;
                ((self.forward_kl(&log_own)? * share)? + variation)?.sum_all()
            }
        }
    }

    /// Cross-entropy of each row, `[rows]`.
    fn forward_kl(&self, log_own: &Tensor) -> Result<Tensor> {
        (log_own.gather(&self.columns, 1)? * &self.weights)?.sum(1)?.neg()
    }

    /// Total variation of each row, `[rows]`.
    fn rejected(&self, own: &Tensor) -> Result<Tensor> {
        own.gather(&self.columns, 1)?.minimum(&self.weights)?.sum(1)?.affine(-1.0, 1.0)
    }
}

/// Logarithms of [`softmax`].
fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let top = x.max_keepdim(D::Minus1)?.detach();
    let x = x.broadcast_sub(&top)?;
    x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
