//! Rotary frequencies of a model, scaled as its configuration says.

use std::f64::consts::PI;

use super::{ModelConfig, RopeConfig, RopeScaling};
use pleach_kernels::RopeTable;

/// The rotations of all blocks of a model: one table for all that rotate, or one more for those with a window.
#[derive(Debug, Clone)]
pub struct RopeTables {
    tables: Vec<RopeTable>,
    /// The table of each block; `None` where it does not rotate.
    of_block: Vec<Option<usize>>,
}

impl RopeTables {
    /// The tables of a model.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let table = |rope: &RopeConfig| rope_table(config, rope);
        let tables: Vec<RopeTable> =
            [&config.rope].into_iter().chain(&config.design.local_rope).map(table).collect();
        let of_block = |block: usize| {
            let rotates = config.design.unrotated.get(block) != Some(&true);
            let local = tables.len() > 1 && config.window(block).is_some();
            rotates.then_some(usize::from(local))
        };
        Self { of_block: (0..config.num_hidden_layers).map(of_block).collect(), tables }
    }

    /// Computes the rotations of rows at `positions`, kept until the next call.
    pub fn set_positions(&mut self, positions: &[u32]) {
        self.tables.iter_mut().for_each(|table| table.set_positions(positions));
    }

    /// The rotation of a block, where it has one.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn of(&self, block: usize) -> Option<&RopeTable> {
        self.place(block).map(|table| &self.tables[table])
    }

    /// All tables.
    #[must_use]
    pub fn tables(&self) -> &[RopeTable] {
        &self.tables
    }

    /// Which of the tables a block has, where it rotates.
    ///
    /// # Panics
    /// If there is no such block.
    #[must_use]
    pub fn place(&self, block: usize) -> Option<usize> {
        self.of_block[block]
    }
}

/// The table of one rotary embedding of a model.
fn rope_table(config: &ModelConfig, rope: &RopeConfig) -> RopeTable {
    let (scaled, attention_factor) = scaled_frequencies(config, rope);
    let frequencies = scaled.iter().map(|f| *f as f32).collect();
    RopeTable::new(frequencies, attention_factor as f32, config.head_dim)
}

/// YaRN's multiplier of cosine and sine where none is given.
#[must_use]
pub fn yarn_attention(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

/// What the scaling divides every frequency by.
#[must_use]
pub fn rope_divisors(config: &ModelConfig) -> Vec<f32> {
    match &config.rope.scaling {
        RopeScaling::Factors(factors) => factors.clone(),
        _ => {
            let plain = frequencies(config.rope.theta, rotated(config));
            let (scaled, _) = scaled_frequencies(config, &config.rope);
            plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect()
        }
    }
}

/// Values of a head that turn.
fn rotated(config: &ModelConfig) -> usize {
    config.design.rotated.unwrap_or(config.head_dim)
}

/// The geometric series of frequencies of a base for `dim` values.
fn frequencies(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2)
        .map(|i| 1.0 / f64::from((theta as f32).powf((2 * i) as f32 / dim as f32)))
        .collect()
}

/// Frequencies and the multiplier of cosine and sine. Formulas follow the models' reference
/// implementations; YaRN is Peng et al., arXiv 2309.00071.
fn scaled_frequencies(config: &ModelConfig, rope: &RopeConfig) -> (Vec<f64>, f64) {
    let rotated = rotated(config);
    let dim = rotated as f64;
    let plain = frequencies(rope.theta, rotated);
    let mut attention_factor = 1.0;
    let scaled: Vec<f64> = match &rope.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
        RopeScaling::LongRope {
            short,
            long,
            original_max_position_embeddings,
            attention_factor: given,
        } => {
            attention_factor = *given;
            // As with dynamic scaling, a fixed table takes the longest sequence that is served.
            let longer = config.max_position_embeddings > *original_max_position_embeddings;
            let factors = if longer { long } else { short };
            plain.iter().zip(factors).map(|(f, by)| f / f64::from(*by)).collect()
        }
        RopeScaling::Factors(factors) => {
            plain.iter().zip(factors).map(|(f, by)| f / f64::from(*by)).collect()
        }
        RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
            // The base grows once a sequence is longer than the trained context; a fixed table takes
            // the longest sequence that is served, so that a position's rotation never changes.
            let (longest, trained) =
                (config.max_position_embeddings as f64, *original_max_position_embeddings as f64);
            let stretch = factor * longest.max(trained) / trained - (factor - 1.0);
            frequencies(rope.theta * stretch.powf(dim / (dim - 2.0)), rotated)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => plain
            .iter()
            .map(|f| {
                let turns = *original_max_position_embeddings as f64 * f / (2.0 * PI);
                if turns > *high_freq_factor {
                    *f
                } else if turns < *low_freq_factor {
                    f / factor
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            })
            .collect(),
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor: given,
        } => {
            attention_factor = given.unwrap_or_else(|| yarn_attention(*factor));
            let trained = *original_max_position_embeddings as f64;
            let index =
                |turns: f64| dim * (trained / (turns * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
            let low = index(*beta_fast).floor().max(0.0);
            let high = index(*beta_slow).ceil().min(dim - 1.0);
            let high = if high == low { high + 0.001 } else { high };
            plain
                .iter()
                .enumerate()
                .map(|(i, f)| {
                    let interpolate = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * interpolate + f * (1.0 - interpolate)
                })
                .collect()
        }
    };
    (scaled, attention_factor)
}
