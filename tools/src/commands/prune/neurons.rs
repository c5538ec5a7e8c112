//! Which neurons of the kept blocks' feed-forward parts stay.

use anyhow::{Context, Result};
use pleach::checkpoint::Checkpoint;
use pleach::model::layer_tensor_names;
use pleach_train::NeuronActivity;
use rayon::prelude::*;

/// The kept blocks, whose neurons are watched while the model reads text.
pub(super) struct Neurons {
    /// The model's block, and the same in the file that its weights come from.
    blocks: Vec<(usize, NeuronActivity)>,
}

impl Neurons {
    /// Watches blocks of the model, whose weights are those of the blocks `own` of a file.
    pub(super) fn new(source: &mut Checkpoint, kept: &[usize], own: &[usize]) -> Result<Self> {
        let config = source.config.clone();
        let mut watch = |(&block, &own): (&usize, &usize)| {
            let mut weights = Vec::new();
            for name in layer_tensor_names(&config, own, |name| source.has(name)) {
                let (name, shape, values) = pleach_train::weight(source, &name)?;
                weights.push((name.replacen(&format!(".{own}."), ".0.", 1), shape, values));
            }
            let activity = NeuronActivity::new(config.with_blocks(&[own]), weights);
            Ok((block, activity.with_context(|| format!("block {own}"))?))
        };
        Ok(Self { blocks: kept.iter().zip(own).map(&mut watch).collect::<Result<_>>()? })
    }

    /// Takes the model's states of some text into account.
    pub(super) fn observe(&mut self, states: &[Vec<f32>]) -> Result<()> {
        let one =
            |(block, activity): &mut (usize, NeuronActivity)| activity.observe(&states[*block]);
        Ok(self.blocks.par_iter_mut().try_for_each(one)?)
    }

    /// Of each block the `count` neurons that add most to what it computes.
    pub(super) fn strongest(&self, count: usize) -> Vec<Vec<usize>> {
        self.blocks.iter().map(|(_, activity)| activity.strongest(count)).collect()
    }
}
