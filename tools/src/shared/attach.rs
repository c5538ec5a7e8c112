//! What `prune` and `train` need for an attached drafter: projections to start from, and the target's states.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pleach::checkpoint::sha256;
use pleach::cli::DeviceChoice;
use pleach::model::{Attachment, ModelConfig, PROJECTIONS};
use pleach_kernels::{ThreadPool, rms_norm};
use pleach_train::{AttachedNetwork, Dataset, TargetStates, Weight};

use crate::shared::model_args::ModelArgs;
use crate::shared::place::Place;
use crate::shared::progress::Progress;
use crate::shared::ridge::Ridge;
use crate::shared::states::text_reader;

/// The blocks that an attached drafter keeps, rising: the last two, which end what the target computes, and before them
/// some at even distances, whose attention finds in the text what no state of the newest position says.
pub(crate) fn kept_blocks(total: usize, keep: usize) -> Vec<usize> {
    let last = keep.min(2);
    let spread = keep - last;
    // Where many are kept, they make room for those behind them.
    let place = |i: usize| (i * total / (spread + 1)).min(total - last - 1 - (spread - i));
    (1..=spread).map(place).chain(total - last..total).collect()
}

/// States that an attached drafter reads unless told otherwise: after a third, two thirds and all of the blocks.
pub(crate) const STATES: usize = 3;

/// Neurons that the feed-forward parts of an attached drafter's blocks keep unless told otherwise: two fifths, in whole
/// multiples of 64.
pub(crate) fn neurons(config: &ModelConfig) -> usize {
    let all = config.intermediate_size;
    (all * 2).div_ceil(5).next_multiple_of(64).min(all)
}

/// A drafter of the `kept` blocks that reads so many states, at even depths.
pub(crate) fn attachment(config: &ModelConfig, kept: &[usize], states: usize) -> Attachment {
    let total = config.num_hidden_layers;
    let mut states: Vec<usize> = (1..=states).map(|part| (part * total / states).max(1)).collect();
    states.dedup();
    Attachment { blocks: kept.to_vec(), states }
}

/// The projections of a drafter that is not trained yet: linear maps onto what the first kept block reads in the
/// target, from what the drafter will read in its place.
pub(crate) struct Projections<'a> {
    attachment: &'a Attachment,
    depth: usize,
    width: usize,
    norm: Norm,
    ridges: [Ridge; 2],
}

impl<'a> Projections<'a> {
    pub(crate) fn new(target: &ModelConfig, attachment: &'a Attachment) -> Self {
        let (depth, width) = (target.num_hidden_layers, target.hidden_size);
        let ridges = [1 + attachment.states.len(), 2].map(|parts| Ridge::new(parts * width, width));
        Self { attachment, depth, width, norm: Norm::new(target), ridges }
    }

    /// Takes the target's states of some text into account.
    pub(crate) fn observe(&mut self, states: &[Vec<f32>]) -> Result<()> {
        let Self { attachment, depth, width, norm, ridges: [first, next] } = self;
        let row = |state: usize, place: usize| &states[state][place * *width..][..*width];
        let mut norm = |x: &[f32], out: &mut Vec<f32>| out.extend_from_slice(norm.of(x));
        let (mut of_target, mut of_own, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        // The first position's state is like no other.
        for place in 1..states[0].len() / *width - 1 {
            norm(row(0, place + 1), &mut of_target);
            attachment.states.iter().for_each(|&state| norm(row(state, place), &mut of_target));
            norm(row(0, place + 1), &mut of_own);
            norm(row(*depth, place), &mut of_own);
            wanted.extend_from_slice(row(attachment.blocks[0], place + 1));
        }
        first.observe(&of_target, &wanted)?;
        next.observe(&of_own, &wanted)
    }

    pub(crate) fn solve(self) -> Result<Vec<Weight>> {
        let parts = [1 + self.attachment.states.len(), 2];
        let solved =
            self.ridges.into_iter().zip(PROJECTIONS).zip(parts).map(|((ridge, name), parts)| {
                Ok((name.to_owned(), vec![self.width, parts * self.width], ridge.solve()?))
            });
        solved.collect()
    }
}

/// A norm without weights.
struct Norm {
    alone: ThreadPool,
    ones: Vec<f32>,
    eps: f32,
    normed: Vec<f32>,
}

impl Norm {
    fn new(config: &ModelConfig) -> Self {
        let (width, eps) = (config.hidden_size, config.rms_norm_eps as f32);
        Self { alone: ThreadPool::new(1), ones: vec![1.0; width], eps, normed: vec![0.0; width] }
    }

    fn of(&mut self, x: &[f32]) -> &[f32] {
        rms_norm(&self.alone, x, &self.ones, self.eps, &mut self.normed);
        &self.normed
    }
}

/// What the target computed at every position of the answers, from `path`, or computed where `device` says and written
/// there.
pub(crate) fn target_states(
    path: &Path,
    target: &ModelArgs,
    device: DeviceChoice,
    data: &Dataset,
    answers: &[PathBuf],
    config: &ModelConfig,
    attachment: &Attachment,
) -> Result<TargetStates> {
    let mut checkpoint = target.open()?;
    attachment.check(&checkpoint.config, config)?;
    let of_answers = sha256(answers).with_context(|| format!("{answers:?}"))?;
    let identity = format!("{} {of_answers} {attachment:?}", checkpoint.fingerprint()?);
    let width = AttachedNetwork::state_width(config, attachment);
    let positions = data.sequences().map(<[u32]>::len).sum();
    let open = || TargetStates::open(path, &identity, width, positions);
    if let Some(states) = open()? {
        return Ok(states);
    }
    let longest = data.sequences().map(<[u32]>::len).max().unwrap_or(1);
    let mut place = Place::open(device, &checkpoint)?;
    let mut reader = text_reader(target, &mut checkpoint, &mut place, longest)?;
    let cells = config.num_key_value_heads * config.head_dim;
    let hidden = config.hidden_size;
    let mut progress = Progress::new("reading the target's states", positions as u64);
    let mut done = 0;
    TargetStates::write(path, &identity, |writer| {
        let mut norm = Norm::new(config);
        for tokens in data.sequences() {
            let states = reader.read(tokens).map_err(io::Error::other)?;
            let of_block = |&block: &usize| reader.cells(block).map_err(io::Error::other);
            let blocks: Vec<_> =
                attachment.blocks.iter().map(of_block).collect::<Result<_, _>>()?;
            for place in 0..tokens.len() {
                for &state in &attachment.states {
                    writer.push(norm.of(&states[state][place * hidden..][..hidden]))?;
                }
                for part in blocks.iter().flatten() {
                    writer.push(&part[place * cells..][..cells])?;
                }
            }
            done += tokens.len() as u64;
            progress.set(done, String::new());
        }
        Ok(())
    })?;
    progress.finish();
    open()?.with_context(|| format!("{}: was not written whole", path.display()))
}

#[cfg(test)]
mod tests {
    use super::kept_blocks;

    #[test]
    fn blocks_are_kept_at_even_distances_and_at_the_end() {
        assert_eq!(kept_blocks(30, 1), [29]);
        assert_eq!(kept_blocks(30, 2), [28, 29]);
        assert_eq!(kept_blocks(30, 4), [10, 20, 28, 29]);
        for total in 2..40 {
            for keep in 1..total {
                let kept = kept_blocks(total, keep);
                assert!(kept.is_sorted_by(|a, b| a < b), "{keep} of {total}: {kept:?}");
                assert_eq!((kept.len(), kept[keep - 1]), (keep, total - 1));
            }
        }
    }
}
