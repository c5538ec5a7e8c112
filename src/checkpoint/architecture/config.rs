//! The architecture of a decoder-only model, whatever file it came from.

use super::{Design, RopeConfig, RopeScaling};
use pleach_kernels::AttentionShape;

/// The model families that files name. They differ in the tensors that every model of them has and in how files say
/// what it is; what the decoder computes is all in [`ModelConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1 to 3, SmolLM, Mistral.
    Llama,
    /// Qwen2 and Qwen2.5: bias on the query, key and value projections.
    Qwen2,
    /// Qwen3: RMS norm on every query and key head.
    Qwen3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text alone: RMS norm on every query and key head.
    Gemma3,
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

    /// A window in every block but the last of each `period` (Gemma).
    #[must_use]
    pub fn but_every(period: usize, window: usize, total: usize) -> Self {
        Self { window, layers: (0..total).map(|index| (index + 1) % period != 0).collect() }
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
    /// What else sets the model's blocks apart from Llama's.
    pub design: Design,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation, in the order of the files that name them; no duplicates.
    pub eos_token_ids: Vec<u32>,
}

/// Blocks that a model has at most: no file that exists comes near it, and the names of their tensors fit the memory.
const MOST_BLOCKS: usize = 1 << 16;

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
        if self.num_hidden_layers > MOST_BLOCKS {
            let reason = format!("{} is above {MOST_BLOCKS}", self.num_hidden_layers);
            return Err(("num_hidden_layers", reason));
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
        self.design.check(self.num_hidden_layers, self.head_dim)?;
        self.rope.check(self.design.rotated.unwrap_or(self.head_dim))?;
        if let Some(SlidingWindow { window, layers }) = &self.sliding_window {
            if *window == 0 {
                return Err(("sliding_window", "is 0".into()));
            }
            if layers.len() != self.num_hidden_layers {
                let (given, blocks) = (layers.len(), self.num_hidden_layers);
                return Err(("layer_types", format!("{given} entries for {blocks} blocks")));
            }
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

    /// The attention of block `index`, as kernels take it.
    #[must_use]
    pub fn attention(&self, index: usize) -> AttentionShape {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let shape = AttentionShape::new(heads, kv_heads, self.head_dim);
        AttentionShape {
            window: self.window(index),
            scale: self.design.query_scalar.map_or(shape.scale, |by| (1.0 / by.sqrt()) as f32),
            cap: self.design.score_cap,
            ..shape
        }
    }

    /// The configuration of the model that has the blocks `kept` alone.
    #[must_use]
    pub fn with_blocks(&self, kept: &[usize]) -> Self {
        let mut config = self.clone();
        config.num_hidden_layers = kept.len();
        config.design = self.design.with_blocks(kept);
        let layers: Vec<bool> = kept.iter().map(|index| self.window(*index).is_some()).collect();
        config.sliding_window = self
            .sliding_window
            .as_ref()
            .filter(|_| layers.contains(&true))
            .map(|window| SlidingWindow { window: window.window, layers });
        config
    }

    /// Lets dynamically scaled positions go on up to `wanted`, where the scaling reaches that far, and LongRoPE's end
    /// where the model was trained, where `wanted` is no more: the frequencies depend on the longest context that is
    /// served.
    pub fn stretch_positions(&mut self, wanted: usize) {
        if let RopeScaling::LongRope { original_max_position_embeddings: original, .. } =
            self.rope.scaling
            && wanted <= original
        {
            self.max_position_embeddings = self.max_position_embeddings.min(original);
        }
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
