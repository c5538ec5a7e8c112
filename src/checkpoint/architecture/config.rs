//! The architecture of a decoder-only model, whatever file it came from.

/// The model families the decoder implements. They differ in bias, query/key norm and file layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, SmolLM, Mistral.
    Llama,
    /// Qwen2 and Qwen2.5: bias on the query, key and value projections.
    Qwen2,
    /// Qwen3: RMS norm on every query and key head.
    Qwen3,
}

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
    /// Per-frequency divisors given by the file itself (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeScaling {
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

/// Sliding-window attention: in some blocks a row sees the last `window` positions, itself included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Positions a row attends to, itself included.
    pub window: usize,
    /// Whether each block uses the window.
    pub layers: Vec<bool>,
}

impl SlidingWindow {
    /// A window in the blocks from `first` on (Qwen2's `max_window_layers`; 0 for Mistral) of `total`.
    #[must_use]
    pub fn from_layer(window: usize, first: usize, total: usize) -> Self {
        Self { window, layers: (0..total).map(|index| index >= first).collect() }
    }

    /// The first block with a window, where all blocks behind it have one too.
    #[must_use]
    pub fn first_layer(&self) -> Option<usize> {
        let first = self.layers.iter().position(|uses| *uses).unwrap_or(self.layers.len());
        self.layers[first..].iter().all(|uses| *uses).then_some(first)
    }
}

/// Shape and constants of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Model family.
    pub family: Family,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads (grouped-query attention); divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest context the positions are trained (or scaled) for.
    pub max_position_embeddings: usize,
    /// Epsilon inside every RMS norm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Sliding-window attention, where the model has it.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation, in the order of the files that name them; no duplicates.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Whether the sizes fit each other.
    ///
    /// # Errors
    /// The field (by its Hugging Face name) and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (field, size) in sizes {
            if size == 0 || size > 1 << 28 {
                return Err((field, format!("{size} is out of range")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
            return Err((
                "num_key_value_heads",
                format!("{kv} does not divide {heads} query heads"),
            ));
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > 512 {
            return Err(("head_dim", format!("{} is not even or above 512", self.head_dim)));
        }
        let positive = |v: f64| v > 0.0 && v.is_finite();
        if !positive(self.rms_norm_eps) {
            return Err(("rms_norm_eps", format!("{} is not positive", self.rms_norm_eps)));
        }
        if !positive(self.rope.theta) {
            return Err(("rope_theta", format!("{} is not positive", self.rope.theta)));
        }
        for (field, number) in self.rope.scaling.numbers() {
            if !positive(number) {
                return Err((field, format!("{number} is not positive")));
            }
        }
        if let Some(SlidingWindow { window, layers }) = &self.sliding_window {
            if *window == 0 {
                return Err(("sliding_window", "is 0".into()));
            }
            if layers.len() != self.num_hidden_layers {
                let (given, blocks) = (layers.len(), self.num_hidden_layers);
                return Err(("layer_types", format!("{given} entries for {blocks} blocks")));
            }
        }
        if let RopeScaling::Factors(factors) = &self.rope.scaling
            && (factors.len() != self.head_dim / 2
                || factors.iter().any(|f| !positive((*f).into())))
        {
            return Err(("rope_freqs", format!("{} factors do not fit", factors.len())));
        }
        Ok(())
    }

    /// Lets generation end at these tokens too.
    pub fn end_at(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
    }

    /// Positions that a row of block `index` attends to, where that block has a sliding window.
    #[must_use]
    pub fn window(&self, index: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(index)?.then_some(window.window)
    }

    /// The configuration of the model that has the blocks `kept` alone.
    #[must_use]
    pub fn with_blocks(&self, kept: &[usize]) -> Self {
        let mut config = self.clone();
        config.num_hidden_layers = kept.len();
        let layers: Vec<bool> = kept.iter().map(|index| self.window(*index).is_some()).collect();
        config.sliding_window = self
            .sliding_window
            .as_ref()
            .filter(|_| layers.contains(&true))
            .map(|window| SlidingWindow { window: window.window, layers });
        config
    }

    /// Lets dynamically scaled positions go on up to `wanted`, where the scaling reaches that far: the
    /// frequencies depend on the longest context that is served.
    pub fn stretch_positions(&mut self, wanted: usize) {
        if let RopeScaling::Dynamic { factor, original_max_position_embeddings } = self.rope.scaling
        {
            let reach = (original_max_position_embeddings as f64 * factor) as usize;
            self.max_position_embeddings = self.max_position_embeddings.max(wanted.min(reach));
        }
    }

    /// Parameters of one decoder block's matrices (biases and norms left out).
    #[must_use]
    pub fn block_params(&self) -> usize {
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        self.hidden_size * (2 * q + 2 * kv + 3 * self.intermediate_size)
    }

    /// Floating-point operations (two per multiply-add) of one block for one token that attends to
    /// `context` positions.
    #[must_use]
    pub fn block_flops(&self, context: usize) -> u64 {
        let attention = 2 * self.num_attention_heads * self.head_dim * context;
        2 * (self.block_params() + attention) as u64
    }

    /// Floating-point operations of an output head with `rows` rows for one token.
    #[must_use]
    pub fn head_flops(&self, rows: usize) -> u64 {
        2 * (self.hidden_size * rows) as u64
    }

    /// Floating-point operations of one token through all blocks and a head of `head_rows` rows.
    #[must_use]
    pub fn flops_per_token(&self, context: usize, head_rows: usize) -> u64 {
        self.num_hidden_layers as u64 * self.block_flops(context) + self.head_flops(head_rows)
    }
}
