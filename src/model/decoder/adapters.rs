//! LoRA adapters of a decoder: each adds to the matrices that it has factors for, in the rows that go through it.

use super::Decoder;
use super::error::ModelError;
use super::layer::{Layer, Projection};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::adapter::{Adapter, Factors};
use crate::checkpoint::architecture::MATRICES;
use pleach_kernels::LowRank;

impl Decoder {
    /// Adds an adapter, whose number is that of those before it: [`Rows`](crate::model::Rows) name it by that.
    ///
    /// # Errors
    /// [`ModelError`] naming the matrix that the model does not have, or has in another shape.
    pub fn add_adapter(&mut self, adapter: &Adapter) -> Result<(), ModelError> {
        for (name, factors) in adapter.factors() {
            self.check_factors(name, factors)
                .map_err(|reason| CheckpointError::field(adapter.path(), name, reason))?;
        }
        for layer in &mut self.layers {
            let block = layer.index;
            for (module, projection) in layer.projections_mut() {
                let name = format!("model.layers.{block}.{module}.weight");
                let low_rank = |it: &Factors| LowRank::new(it.rank, it.scale, &it.a, &it.b);
                projection.low_rank.push(adapter.get(&name).map(low_rank));
            }
        }
        self.adapters += 1;
        Ok(())
    }

    /// Adapters that were added.
    #[must_use]
    pub fn adapters(&self) -> usize {
        self.adapters
    }

    /// Whether there is such a matrix and the factors have its shape.
    fn check_factors(&self, name: &str, factors: &Factors) -> Result<(), String> {
        let foreign = || {
            format!(
                "is no matrix that adapters are served for, which are those of attention and of the feed-forward \
                 layer ({}): train without it, or merge the adapter into its model",
                MATRICES.join(", ")
            )
        };
        let place = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let (block, rest) = place.ok_or_else(foreign)?;
        let block: usize = block.parse().map_err(|_| foreign())?;
        let module = rest
            .strip_suffix(".weight")
            .and_then(|name| MATRICES.iter().position(|module| *module == name));
        let module = module.ok_or_else(foreign)?;
        let layer = self.layers.get(block).ok_or_else(|| {
            format!(
                "the model has {} blocks; take an adapter that was trained on this model",
                self.layers.len()
            )
        })?;
        let weight = &layer.projections()[module].weight;
        let (found, expected) = (factors.shape(), [weight.out_features(), weight.in_features()]);
        if found == expected {
            return Ok(());
        }
        Err(format!(
            "the factors are for a matrix of shape {found:?}, the model's is {expected:?}; take an adapter that was \
             trained on this model"
        ))
    }
}

impl Layer {
    /// The matrices that adapters add to, in the order of [`MATRICES`].
    fn projections_mut(&mut self) -> [(&'static str, &mut Projection); 7] {
        let [q, k, v] = &mut self.qkv;
        let [gate, up] = &mut self.gate_up;
        let all = [q, k, v, &mut self.output, gate, up, &mut self.down];
        let mut modules = MATRICES.into_iter();
        all.map(|projection| (modules.next().expect("as many modules"), projection))
    }
}
