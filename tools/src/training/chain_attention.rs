//! Attention of an attached drafter's chains: fixed keys and values of the target, and the chain's own.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::attention::HeadShape;
use super::gemm::product_alone;
use super::graph_ops::{dense, result, values, with_values};
use pleach::model::RopeTables;
use pleach_kernels::MatRef;
use pleach_kernels::training::softmax;

/// The chains of one sequence: one begins behind each of its positions from `first` on.
#[derive(Debug, Clone)]
pub(super) struct Chains {
    /// Their rows in every step.
    pub(super) rows: Range<usize>,
    /// Last position of the target that the first chain sees.
    pub(super) first: usize,
    /// The target's keys, rotated, and values: `[positions, kv_heads, head_dim]`.
    pub(super) keys: Arc<Vec<f32>>,
    pub(super) values: Arc<Vec<f32>>,
}

/// The last of `steps` steps of all chains: rows of `[query | key | value]` heads, `[steps, rows]` of them, to
/// rows of query heads. A row sees the target's positions up to where its chain begins, and its chain's own.
pub(super) struct ChainAttention {
    pub(super) shape: HeadShape,
    pub(super) steps: usize,
    pub(super) chains: Arc<[Chains]>,
    /// Set to the positions of all rows of all steps.
    pub(super) ropes: Arc<RopeTables>,
    /// Which of the drafter's blocks it is.
    pub(super) block: usize,
}

/// One sequence and query head: where its query, key and value lie in a row, and its key in the target's.
struct Head<'a> {
    chains: &'a Chains,
    query: usize,
    key: usize,
    value: usize,
    target: usize,
}

/// Attention weights of one head: `[chains, positions]` and `[chains, steps]`, and the bounded scores that they are
/// made of, of one chain after the other.
#[derive(Default)]
struct Scores {
    target: Vec<f32>,
    own: Vec<f32>,
    row: Vec<f32>,
    bounded: Vec<f32>,
}

impl ChainAttention {
    fn num_rows(&self) -> usize {
        self.chains.last().map_or(0, |chains| chains.rows.end)
    }

    fn heads(&self) -> Vec<Head<'_>> {
        let HeadShape { heads, kv_heads, head_dim, .. } = self.shape;
        let of_sequence = |chains| {
            (0..heads).map(move |head| {
                let [query, key, value] = self.shape.columns(head);
                Head { chains, query, key, value, target: head / (heads / kv_heads) * head_dim }
            })
        };
        self.chains.iter().flat_map(of_sequence).collect()
    }

    /// Where one head of a chain's row of a step lies.
    fn at(&self, head: &Head<'_>, step: usize, chain: usize, column: usize) -> Range<usize> {
        let row = step * self.num_rows() + head.chains.rows.start + chain;
        let start = row * self.shape.stride() + column;
        start..start + self.shape.head_dim
    }

    fn queries<'a>(&self, qkv: &'a [f32], head: &Head<'_>) -> MatRef<'a> {
        let start = self.at(head, self.steps - 1, 0, head.query).start;
        MatRef::new(&qkv[start..], head.chains.rows.len(), self.shape.head_dim, self.shape.stride())
    }

    /// One head of the target's keys or values.
    fn target<'a>(&self, cells: &'a [f32], head: &Head<'_>) -> MatRef<'a> {
        let width = self.shape.kv_heads * self.shape.head_dim;
        let positions = cells.len() / width;
        MatRef::new(&cells[head.target..], positions, self.shape.head_dim, width)
    }

    /// The target's positions that a chain's row sees in this step.
    fn seen(&self, chains: &Chains, chain: usize) -> Range<usize> {
        let end = chains.first + chain + 1;
        let past = |window: usize| (end + self.steps).saturating_sub(window).min(end);
        self.shape.window.map_or(0, past)..end
    }

    fn weights(&self, qkv: &[f32], head: &Head<'_>, scores: &mut Scores) -> Result<()> {
        let Scores { target, own, row, bounded } = scores;
        bounded.clear();
        let keys = self.target(&head.chains.keys, head);
        let (count, positions, steps) = (head.chains.rows.len(), keys.rows(), self.steps);
        target.resize(count * positions, 0.0);
        own.resize(count * steps, 0.0);
        product_alone(self.queries(qkv, head), keys.t(), target)?;
        for chain in 0..count {
            let query = &qkv[self.at(head, steps - 1, chain, head.query)];
            let own = &mut own[chain * steps..][..steps];
            for (step, own) in own.iter_mut().enumerate() {
                *own = dot(query, &qkv[self.at(head, step, chain, head.key)]);
            }
            let seen = self.seen(head.chains, chain);
            let target = &mut target[chain * positions..][..positions];
            row.clear();
            row.extend_from_slice(&target[seen.clone()]);
            row.extend_from_slice(own);
            let scale = self.shape.bound(row);
            bounded.extend_from_slice(row);
            softmax(row, scale);
            target.fill(0.0);
            let (of_target, of_own) = row.split_at(seen.len());
            target[seen].copy_from_slice(of_target);
            own.copy_from_slice(of_own);
        }
        Ok(())
    }
}

/// What one head gets back: `[chains, head_dim]` for the step's queries, `[chains, steps, head_dim]` for the chains' keys
/// and values.
struct Gradients {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

/// Room that one head after the other uses.
#[derive(Default)]
struct Room {
    scores: Scores,
    dtarget: Vec<f32>,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    down: Vec<f32>,
}

impl ChainAttention {
    /// One head's values of all chains of a sequence, `[chains, head_dim]`.
    fn forward(&self, qkv: &[f32], head: &Head<'_>, scores: &mut Scores) -> Result<Vec<f32>> {
        self.weights(qkv, head, scores)?;
        let (count, dim) = (head.chains.rows.len(), self.shape.head_dim);
        let cells = self.target(&head.chains.values, head);
        let mut out = vec![0.0; count * dim];
        let weights = MatRef::new(&scores.target, count, cells.rows(), cells.rows());
        product_alone(weights, cells, &mut out)?;
        for (chain, out) in out.chunks_exact_mut(dim).enumerate() {
            for step in 0..self.steps {
                let value = &qkv[self.at(head, step, chain, head.value)];
                add_scaled(out, scores.own[chain * self.steps + step], value);
            }
        }
        Ok(out)
    }

    fn backward(
        &self,
        x: &[f32],
        dout: &[f32],
        head: &Head<'_>,
        room: &mut Room,
    ) -> Result<Gradients> {
        let (dim, steps) = (self.shape.head_dim, self.steps);
        let Room { scores, dtarget, weights, gradient, down } = room;
        self.weights(x, head, scores)?;
        let keys = self.target(&head.chains.keys, head);
        let cells = self.target(&head.chains.values, head);
        let (count, positions) = (head.chains.rows.len(), keys.rows());
        let mut of_head = Gradients {
            query: vec![0.0; count * dim],
            key: vec![0.0; count * steps * dim],
            value: vec![0.0; count * steps * dim],
        };
        let width = self.shape.heads * dim;
        let dout = &dout[head.chains.rows.start * width + head.query..];
        dtarget.resize(count * positions, 0.0);
        product_alone(MatRef::new(dout, count, dim, width), cells.t(), dtarget)?;
        down.clear();
        let mut bounded = &scores.bounded[..];
        let of_chains = of_head.value.chunks_exact_mut(steps * dim).enumerate();
        for (chain, dvalues) in of_chains {
            let dout = &dout[chain * width..][..dim];
            let seen = self.seen(head.chains, chain);
            let dtarget = &mut dtarget[chain * positions..][..positions];
            weights.clear();
            weights.extend_from_slice(&scores.target[chain * positions..][seen.clone()]);
            weights.extend_from_slice(&scores.own[chain * steps..][..steps]);
            gradient.clear();
            gradient.extend_from_slice(&dtarget[seen.clone()]);
            for (step, dvalue) in dvalues.chunks_exact_mut(dim).enumerate() {
                gradient.push(dot(dout, &x[self.at(head, step, chain, head.value)]));
                add_scaled(dvalue, weights[seen.len() + step], dout);
            }
            let (of_chain, further) = bounded.split_at(weights.len());
            bounded = further;
            self.shape.scores_gradient(weights, of_chain, gradient);
            let (of_target, of_own) = gradient.split_at(seen.len());
            dtarget.fill(0.0);
            dtarget[seen].copy_from_slice(of_target);
            down.extend_from_slice(of_own);
        }
        let dscores = MatRef::new(dtarget, count, positions, positions);
        product_alone(dscores, keys, &mut of_head.query)?;
        let parts =
            of_head.query.chunks_exact_mut(dim).zip(of_head.key.chunks_exact_mut(steps * dim));
        for (chain, (dquery, dkeys)) in parts.enumerate() {
            let query = &x[self.at(head, steps - 1, chain, head.query)];
            for (step, dkey) in dkeys.chunks_exact_mut(dim).enumerate() {
                let by = down[chain * steps + step];
                add_scaled(dquery, by, &x[self.at(head, step, chain, head.key)]);
                add_scaled(dkey, by, query);
            }
        }
        Ok(of_head)
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `out += by * x`
fn add_scaled(out: &mut [f32], by: f32, x: &[f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += by * x);
}

impl CustomOp1 for ChainAttention {
    fn name(&self) -> &'static str {
        "chain-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let HeadShape { heads, head_dim: dim, .. } = self.shape;
        let qkv = self.shape.rotated(self.ropes.of(self.block), values(qkv, layout)?);
        let width = heads * dim;
        let heads = self.heads();
        let parts: Vec<Vec<f32>> = heads
            .par_iter()
            .map_init(Scores::default, |scores, head| self.forward(&qkv, head, scores))
            .collect::<Result<_>>()?;
        let mut out = vec![0.0; self.num_rows() * width];
        for (head, part) in heads.iter().zip(parts) {
            for (row, part) in head.chains.rows.clone().zip(part.chunks_exact(dim)) {
                out[row * width + head.query..][..dim].copy_from_slice(part);
            }
        }
        result(out, (self.num_rows(), width))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (dim, steps) = (self.shape.head_dim, self.steps);
        let rope = self.ropes.of(self.block);
        with_values([qkv, &dout.contiguous()?], |[x, dout]| {
            let x = self.shape.rotated(rope, x);
            let heads = self.heads();
            let parts: Vec<Gradients> = heads
                .par_iter()
                .map_init(Room::default, |room, head| self.backward(&x, dout, head, room))
                .collect::<Result<_>>()?;
            let mut dx = vec![0.0; x.len()];
            for (head, parts) in heads.iter().zip(parts) {
                for (chain, part) in parts.query.chunks_exact(dim).enumerate() {
                    add_scaled(&mut dx[self.at(head, steps - 1, chain, head.query)], 1.0, part);
                }
                let own = parts.key.chunks_exact(dim).zip(parts.value.chunks_exact(dim));
                for (at, (key, value)) in own.enumerate() {
                    let (chain, step) = (at / steps, at % steps);
                    add_scaled(&mut dx[self.at(head, step, chain, head.key)], 1.0, key);
                    add_scaled(&mut dx[self.at(head, step, chain, head.value)], 1.0, value);
                }
            }
            self.shape.rotated_backward(rope, &mut dx);
            dense(dx, qkv.shape()).map(Some)
        })
    }
}
