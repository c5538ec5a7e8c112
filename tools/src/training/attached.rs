//! An attached drafter as a differentiable graph: its chains are unrolled over several steps, on its own states.

use std::sync::Arc;

use candle_core::{Error, Result, Tensor};

use super::attention::HeadShape;
use super::backend::Backend;
use super::chain_attention::{ChainAttention, Chains};
use super::dataset::Sequence;
use super::decoder::{Layer, frozen_head, norm};
use super::distill_loss::{Head, Tally, Targets};
use super::frozen::Frozen;
use super::graph_ops::normed;
use super::lesson::Lesson;
use super::ops;
use super::weights::Weights;
use super::{Dataset, TargetStates};
use pleach::model::{Attachment, ModelConfig, PROJECTIONS, RopeTables};
use pleach_kernels::training::Divergence;

/// Weight of a step's loss over that of the step before.
const FURTHER: f64 = 0.8;

/// What an attached drafter learns: at every position of an answer a chain begins, and each of its steps learns the
/// target's distribution there.
pub struct AttachedLesson {
    config: ModelConfig,
    attachment: Attachment,
    /// `[vocab_size, hidden]`
    embedding: Vec<f32>,
    /// `[head_rows, hidden]`
    head: Arc<Frozen>,
    head_row: Vec<Option<u32>>,
    ropes: RopeTables,
    data: Dataset,
    /// Where each answer begins in `states`.
    starts: Vec<usize>,
    states: TargetStates,
    steps: usize,
    divergence: Divergence,
}

/// The frozen part of an attached drafter.
pub struct AttachedNetwork {
    /// Its shape: the kept blocks alone.
    pub config: ModelConfig,
    /// Where it hangs on its target.
    pub attachment: Attachment,
    /// `[vocab_size, hidden]`
    pub embedding: Vec<f32>,
    /// `[head_rows, hidden]`
    pub head: Vec<f32>,
    /// The head's row of every token.
    pub head_row: Vec<Option<u32>>,
    /// What computes it.
    pub backend: Backend,
}

impl AttachedNetwork {
    /// Values that [`TargetStates`] hold of a position: hidden states, normed without weights, then keys and values of each
    /// block.
    #[must_use]
    pub fn state_width(config: &ModelConfig, attachment: &Attachment) -> usize {
        let cells = 2 * config.num_key_value_heads * config.head_dim;
        attachment.states.len() * config.hidden_size + attachment.blocks.len() * cells
    }
}

/// The chains of a batch.
struct ChainBatch {
    /// Chains of each sequence, for each kept block.
    chains: Vec<Arc<[Chains]>>,
    /// `[steps][rows]`
    tokens: Vec<Vec<u32>>,
    positions: Vec<Vec<u32>>,
    /// Normed, `[rows, states, hidden]`.
    states: Vec<f32>,
    targets: Vec<Targets>,
}

impl AttachedLesson {
    /// What there is to learn from `data`, whose positions `states` holds, in chains of `steps` steps.
    ///
    /// # Errors
    /// If the head is not made of whole rows.
    pub fn new(
        network: AttachedNetwork,
        data: Dataset,
        states: TargetStates,
        steps: usize,
        divergence: Divergence,
    ) -> Result<Self> {
        let AttachedNetwork { config, attachment, embedding, head, head_row, backend } = network;
        let width = config.hidden_size;
        let head = frozen_head(&head, width, &backend)?;
        let mut starts = vec![0];
        starts.extend(data.sequences().scan(0, |end, tokens| {
            *end += tokens.len();
            Some(*end)
        }));
        let ropes = RopeTables::new(&config);
        Ok(Self {
            config,
            attachment,
            embedding,
            head,
            head_row,
            ropes,
            data,
            starts,
            states,
            steps,
            divergence,
        })
    }

    /// Chains begin behind the prompt's last token and every token of the answer but the last two: the first draft
    /// token is known then.
    fn num_chains(sequence: &Sequence) -> usize {
        (sequence.tokens.len() - 1).saturating_sub(sequence.prompt)
    }

    fn batch(&self, pack: &[usize]) -> Result<ChainBatch> {
        let width = self.config.hidden_size;
        let cells = self.config.num_key_value_heads * self.config.head_dim;
        let read = self.attachment.states.len() * width;
        let blocks = self.attachment.blocks.len();
        let mut chains: Vec<Vec<Chains>> = vec![Vec::new(); blocks];
        let (mut tokens, mut positions) =
            (vec![Vec::new(); self.steps], vec![Vec::new(); self.steps]);
        let mut targets: Vec<Targets> = (0..self.steps).map(|_| Targets::default()).collect();
        let mut states = Vec::new();
        let mut start = 0;
        for &index in pack {
            let sequence = self.data.sequence(index);
            let count = Self::num_chains(sequence);
            let (first, last) = (sequence.prompt - 1, sequence.tokens.len() - 1);
            let values =
                self.states.read(self.starts[index], first + count).map_err(Error::wrap)?;
            let rows = values.chunks_exact(self.states.width());
            rows.clone().skip(first).for_each(|row| states.extend_from_slice(&row[..read]));
            for (block, chains) in chains.iter_mut().enumerate() {
                let part = |offset: usize| -> Arc<Vec<f32>> {
                    let from = read + 2 * block * cells + offset;
                    Arc::new(
                        rows.clone().flat_map(|row| &row[from..from + cells]).copied().collect(),
                    )
                };
                let rows = start..start + count;
                chains.push(Chains { rows, first, keys: part(0), values: part(cells) });
            }
            for step in 0..self.steps {
                for chain in 0..count {
                    let place = (first + chain + step + 1).min(last);
                    tokens[step].push(sequence.tokens[place]);
                    positions[step].push((first + chain + step + 1) as u32);
                    if place < last {
                        let targets = &mut targets[step];
                        let row = start + chain;
                        self.data.push_target(sequence, place + 1, row, &self.head_row, targets)?;
                    }
                }
            }
            start += count;
        }
        let chains = chains.into_iter().map(Into::into).collect();
        Ok(ChainBatch { chains, tokens, positions, states, targets })
    }

    /// Normed embeddings, `[rows, hidden]`.
    fn embed(&self, tokens: &[u32]) -> Vec<f32> {
        let width = self.config.hidden_size;
        let rows = tokens.iter().map(|token| &self.embedding[*token as usize * width..][..width]);
        let embedded: Vec<f32> = rows.flatten().copied().collect();
        normed(&embedded, &vec![1.0; width], self.config.rms_norm_eps as f32)
    }
}

impl Lesson for AttachedLesson {
    fn data(&self) -> &Dataset {
        &self.data
    }

    /// One of a single token begins no chain.
    fn teaches(&self, index: usize) -> bool {
        Self::num_chains(self.data.sequence(index)) > 0
    }

    fn loss(&self, weights: &Weights, pack: &[usize], training: bool) -> Result<(Tensor, Tally)> {
        let (config, width) = (&self.config, self.config.hidden_size);
        let weights = &weights.fused(config)?;
        let eps = config.rms_norm_eps as f32;
        let batch = self.batch(pack)?;
        let rows = batch.tokens[0].len();
        let read = batch.states.len() / rows.max(1);
        let device = weights.backend().device();
        let ones = Tensor::ones(width, candle_core::DType::F32, device)?;
        let mut own: Vec<Vec<Tensor>> = vec![Vec::new(); batch.chains.len()];
        let mut hidden: Option<Tensor> = None;
        let (mut sum, mut tally) = (None, Tally::default());
        for (step, targets) in batch.targets.into_iter().enumerate() {
            let tokens = Tensor::from_vec(self.embed(&batch.tokens[step]), (rows, width), device)?;
            let (states, projection) = match &hidden {
                None => {
                    let states = batch.states.clone();
                    (Tensor::from_vec(states, (rows, read), device)?, PROJECTIONS[0])
                }
                Some(own) => (ops::rms_norm(weights.backend(), own, &ones, eps)?, PROJECTIONS[1]),
            };
            let module = projection.strip_suffix(".weight").unwrap_or(projection);
            let mut x = weights.linear(&Tensor::cat(&[&tokens, &states], 1)?, module)?;
            let mut ropes = self.ropes.clone();
            ropes.set_positions(&batch.positions[..=step].concat());
            let ropes = Arc::new(ropes);
            for (index, own) in own.iter_mut().enumerate() {
                let layer = Layer { config, weights, index };
                let attention = ChainAttention {
                    shape: HeadShape::of(config, index),
                    steps: step + 1,
                    chains: Arc::clone(&batch.chains[index]),
                    ropes: Arc::clone(&ropes),
                    block: index,
                };
                x = layer.forward(&x, |qkv| {
                    own.push(qkv);
                    ops::chain_attention(weights.backend(), attention, &Tensor::cat(own, 0)?)
                })?;
            }
            let weight = weights.wanted("model.norm.weight")?;
            let normed = norm(weights.backend(), &x, weight, config)?;
            let head = Head { rows: &self.head, cap: config.design.logit_cap };
            let (loss, of_step) = ops::distill_loss(
                weights.backend(),
                &normed,
                head,
                targets,
                self.divergence,
                training,
            )?;
            let weight = FURTHER.powi(step as i32);
            tally.loss += weight * of_step.loss;
            if step == 0 {
                (tally.rows, tally.agree) = (of_step.rows, of_step.agree);
            }
            let loss = (loss * weight)?;
            sum = Some(match sum {
                None => loss,
                Some(sum) => (sum + loss)?,
            });
            hidden = Some(x);
        }
        let sum = sum.ok_or_else(|| Error::Msg("chains have at least one step".into()))?;
        Ok((sum, tally))
    }
}
