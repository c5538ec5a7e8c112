//! Which neurons of a block's feed-forward part add most to its output.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::attention::{Attention, HeadShape};
use super::backend::Backend;
use super::decoder::Layer;
use super::ops;
use super::parameters::Weight;
use super::weights::Weights;
use pleach::model::{ModelConfig, RopeTables};

/// A block whose feed-forward neurons are watched while it reads texts.
///
/// A neuron adds its activation, times its column of the down projection, to what the block's feed-forward part computes.
/// What it adds, squared and summed over the tokens of the texts, is its energy.
pub struct NeuronActivity {
    config: ModelConfig,
    weights: Weights,
    ropes: RopeTables,
    /// Sums of squared activations.
    squares: Vec<f64>,
    /// Squared norms of the columns of the down projection.
    columns: Vec<f64>,
}

impl NeuronActivity {
    /// Watches the only block of a model of this shape with these weights.
    ///
    /// # Errors
    /// If a weight is missing, or its values do not fill its shape.
    pub fn new(config: ModelConfig, weights: Vec<Weight>) -> Result<Self> {
        let backend = Backend::processor();
        let tensor =
            |(name, shape, values)| Ok((name, Tensor::from_vec(values, shape, backend.device())?));
        let tensors = weights.into_iter().map(tensor).collect::<Result<_>>()?;
        let weights = Weights::new(tensors, Arc::default(), backend).fused(&config)?;
        let down = weights.wanted("model.layers.0.mlp.down_proj.weight")?;
        let columns: Vec<f32> = down.sqr()?.sum(0)?.to_vec1()?;
        let ropes = RopeTables::new(&config);
        Ok(Self {
            squares: vec![0.0; columns.len()],
            columns: columns.into_iter().map(f64::from).collect(),
            config,
            weights,
            ropes,
        })
    }

    /// Reads a text, given by the states before the block, `[tokens, hidden]`.
    ///
    /// # Errors
    /// If there is no token, or a weight is missing.
    pub fn observe(&mut self, states: &[f32]) -> Result<()> {
        let (states, attention) = self.text(states)?;
        let layer = self.layer();
        let backend = self.weights.backend();
        let attended = layer.attended(&states, |qkv| ops::attention(backend, attention, &qkv))?;
        let squares: Vec<f32> = layer.neurons(&attended)?.sqr()?.sum(0)?.to_vec1()?;
        for (sum, square) in self.squares.iter_mut().zip(squares) {
            *sum += f64::from(square);
        }
        Ok(())
    }

    fn layer(&self) -> Layer<'_> {
        Layer { config: &self.config, weights: &self.weights, index: 0 }
    }

    /// A text's states, `[tokens, hidden]`, and the block's attention over it.
    fn text(&self, states: &[f32]) -> Result<(Tensor, Attention)> {
        let width = self.config.hidden_size;
        let tokens = states.len() / width;
        let mut ropes = self.ropes.clone();
        ropes.set_positions(&(0..tokens as u32).collect::<Vec<_>>());
        let attention = Attention {
            shape: HeadShape::of(&self.config, 0),
            sequences: std::iter::once(0..tokens).collect(),
            ropes: ropes.into(),
            block: 0,
        };
        let device = self.weights.backend().device();
        Ok((Tensor::from_slice(states, (tokens, width), device)?, attention))
    }

    /// The `count` neurons of the most energy, rising.
    #[must_use]
    pub fn strongest(&self, count: usize) -> Vec<usize> {
        let energy = |&neuron: &usize| self.squares[neuron] * self.columns[neuron];
        let mut neurons: Vec<usize> = (0..self.squares.len()).collect();
        neurons.sort_by(|a, b| energy(b).total_cmp(&energy(a)));
        neurons.truncate(count);
        neurons.sort_unstable();
        neurons
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach::model::{
        Design, Family, RopeConfig, RopeScaling, SlidingWindow, layer_tensor_names,
    };

    const WIDTH: usize = 24;
    const NEURONS: usize = 32;
    const TOKENS: usize = 11;

    /// A block without what a neuron adds computes something else, by the neuron's energy.
    #[test]
    fn energy_is_what_a_missing_neuron_takes_away() {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let config = ModelConfig {
            hidden_size: WIDTH,
            intermediate_size: NEURONS,
            num_hidden_layers: 1,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 6,
            sliding_window: Some(SlidingWindow::from_layer(5, 0, 1)),
            family: Family::Llama,
            vocab_size: 8,
            max_position_embeddings: 512,
            rms_norm_eps: 1e-5,
            rope: RopeConfig { theta: 10_000.0, scaling: RopeScaling::None },
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            design: Design::default(),
        };
        let mut value = || random.f32() - 0.5;
        let shape = |name: &str| match name {
            _ if name.contains("q_proj") || name.contains("o_proj") => vec![WIDTH, WIDTH],
            _ if name.contains("k_proj") || name.contains("v_proj") => vec![12, WIDTH],
            _ if name.contains("gate_proj") || name.contains("up_proj") => vec![NEURONS, WIDTH],
            _ if name.contains("down_proj") => vec![WIDTH, NEURONS],
            _ => vec![WIDTH],
        };
        let weight = |name: String| {
            let shape = shape(&name);
            let values = (0..shape.iter().product()).map(|_| value()).collect();
            (name, shape, values)
        };
        let weights: Vec<Weight> =
            layer_tensor_names(&config, 0, |_| false).into_iter().map(weight).collect();
        let mut states =
            |scale: f32| -> Vec<f32> { (0..TOKENS * WIDTH).map(|_| scale * value()).collect() };
        let texts = [states(1.0), states(3.0)];

        let mut watched = NeuronActivity::new(config.clone(), weights.clone()).unwrap();
        texts.iter().for_each(|text| watched.observe(text).unwrap());
        let whole: Vec<_> = texts.iter().map(|text| block(&config, &weights, text)).collect();
        let mut energies = Vec::new();
        for missing in 0..NEURONS {
            let mut without = weights.clone();
            let (.., down) =
                without.iter_mut().find(|(name, ..)| name.contains("down_proj")).unwrap();
            down.chunks_exact_mut(NEURONS).for_each(|row| row[missing] = 0.0);
            let mut energy = 0.0;
            for (text, whole) in texts.iter().zip(&whole) {
                let apart = block(&config, &without, text).into_iter().zip(whole);
                energy += apart.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            }
            let said = watched.squares[missing] * watched.columns[missing];
            // Products round to bf16.
            let near = (said - energy).abs() <= 0.03 * energy + 1e-6;
            assert!(near, "seed {seed}, neuron {missing}: {said}, {energy} was taken away");
            energies.push(said);
        }
        let kept = watched.strongest(10);
        assert!(kept.len() == 10 && kept.is_sorted_by(|a, b| a < b), "{kept:?}");
        let least = kept.iter().map(|&neuron| energies[neuron]).fold(f64::INFINITY, f64::min);
        assert_eq!(energies.iter().filter(|&&energy| energy >= least).count(), 10);
    }

    /// What a block computes.
    fn block(config: &ModelConfig, weights: &[Weight], states: &[f32]) -> Vec<f32> {
        let block = NeuronActivity::new(config.clone(), weights.to_vec()).unwrap();
        let (states, attention) = block.text(states).unwrap();
        let backend = block.weights.backend();
        let output =
            block.layer().forward(&states, |qkv| ops::attention(backend, attention, &qkv)).unwrap();
        output.flatten_all().unwrap().to_vec1().unwrap()
    }
}
