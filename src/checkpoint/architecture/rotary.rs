//! Rotary position embedding as configurations have it.

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Divisor of every frequency.
        factor: f64,
    },
    /// NTK-aware scaling of the base with the sequence length, as `transformers` computes it.
    Dynamic {
        /// Stretch of the context.
        factor: f64,
        /// Context length the model was trained with.
        original_max_position_embeddings: usize,
    },
    /// Llama 3.1's frequency-dependent scaling.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths longer than `original / low_freq_factor` are divided by `factor`.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length the model was trained with.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., arXiv 2309.00071).
    Yarn {
        /// Stretch of the context.
        factor: f64,
        /// Context length the model was trained with.
        original_max_position_embeddings: usize,
        /// Extrapolation boundary (rotations), usually 32.
        beta_fast: f64,
        /// Interpolation boundary (rotations), usually 1.
        beta_slow: f64,
        /// Multiplier of cosine and sine; `None` means `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753): divisors of every frequency, other ones beyond the trained context.
    LongRope {
        /// Divisors where the longest context served is no longer than the trained one.
        short: Vec<f32>,
        /// Divisors where it is longer.
        long: Vec<f32>,
        /// Context length the model was trained with.
        original_max_position_embeddings: usize,
        /// Multiplier of cosine and sine.
        attention_factor: f64,
    },
    /// Per-frequency divisors given by the file itself (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeScaling {
    /// LongRoPE, as plain divisors where they are the same for short and long contexts and nothing else is scaled.
    #[must_use]
    pub fn long_rope(
        short: Vec<f32>,
        long: Vec<f32>,
        original_max_position_embeddings: usize,
        attention_factor: f64,
    ) -> Self {
        if long == short && attention_factor == 1.0 {
            return Self::Factors(long);
        }
        Self::LongRope { short, long, original_max_position_embeddings, attention_factor }
    }

    /// Positions that a model with `positions` of its own reaches by scaling from `original` ones.
    #[must_use]
    pub fn reach(&self, positions: usize, original: usize) -> usize {
        match self {
            Self::Linear { factor } | Self::Yarn { factor, .. } => {
                positions.max((original as f64 * factor) as usize)
            }
            _ => positions,
        }
    }

    /// Every number of the scaling that must be positive, by its name.
    fn numbers(&self) -> Vec<(&'static str, f64)> {
        match self {
            Self::None | Self::Factors(_) => Vec::new(),
            Self::LongRope { original_max_position_embeddings, attention_factor, .. } => vec![
                (
                    "rope_scaling.original_max_position_embeddings",
                    *original_max_position_embeddings as f64,
                ),
                ("rope_scaling.attention_factor", *attention_factor),
            ],
            Self::Linear { factor } => vec![("rope_scaling.factor", *factor)],
            Self::Dynamic { factor, original_max_position_embeddings } => vec![
                ("rope_scaling.factor", *factor),
                (
                    "rope_scaling.original_max_position_embeddings",
                    *original_max_position_embeddings as f64,
                ),
            ],
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => vec![
                ("rope_scaling.factor", *factor),
                ("rope_scaling.low_freq_factor", *low_freq_factor),
                ("rope_scaling.high_freq_factor", *high_freq_factor),
                (
                    "rope_scaling.original_max_position_embeddings",
                    *original_max_position_embeddings as f64,
                ),
            ],
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
            } => vec![
                ("rope_scaling.factor", *factor),
                (
                    "rope_scaling.original_max_position_embeddings",
                    *original_max_position_embeddings as f64,
                ),
                ("rope_scaling.beta_fast", *beta_fast),
                ("rope_scaling.beta_slow", *beta_slow),
                ("rope_scaling.attention_factor", attention_factor.unwrap_or(1.0)),
            ],
        }
    }
}

/// Rotary position embedding: base and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// Context extension.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Whether base and scaling fit heads of `head_dim` values of which `head_dim` turn.
    ///
    /// # Errors
    /// The field (by its Hugging Face name) and what is wrong with it.
    pub(super) fn check(&self, head_dim: usize) -> Result<(), (&'static str, String)> {
        let positive = |v: f64| v > 0.0 && v.is_finite();
        if !positive(self.theta) {
            return Err(("rope_theta", format!("{} is not positive", self.theta)));
        }
        for (field, number) in self.scaling.numbers() {
            if !positive(number) {
                return Err((field, format!("{number} is not positive")));
            }
        }
        let lists = match &self.scaling {
            RopeScaling::Factors(factors) => vec![("rope_freqs", factors)],
            RopeScaling::LongRope { short, long, .. } => {
                vec![("rope_scaling.short_factor", short), ("rope_scaling.long_factor", long)]
            }
            _ => Vec::new(),
        };
        for (field, factors) in lists {
            if factors.len() != head_dim / 2 || factors.iter().any(|f| !positive((*f).into())) {
                return Err((field, format!("{} factors do not fit", factors.len())));
            }
        }
        Ok(())
    }
}
