//! What sets the blocks of one model apart from those of another.

use super::RopeConfig;
use pleach_kernels::Activation;

/// What a decoder does beyond Llama's, in numbers and choices; the default is Llama's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Design {
    /// What the gate of the feed-forward layer passes through.
    pub activation: Activation,
    /// Whether the outputs of attention and of the feed-forward layer are normed before they are added to the
    /// residual stream (Gemma 2 and 3).
    pub output_norms: bool,
    /// Whether norms multiply by 1 more than the weights that Hugging Face's files hold (Gemma).
    pub norms_from_one: bool,
    /// Multiplier of embeddings, 1 where there is none.
    pub embedding_scale: Option<f32>,
    /// The number whose square root attention scores are divided by (`query_pre_attn_scalar`); the width of a head
    /// where there is none.
    pub query_scalar: Option<f64>,
    /// Bound of attention scores: `cap * tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// Bound of logits, likewise.
    pub logit_cap: Option<f32>,
    /// Rotary embedding of the blocks with a window, where it is not that of the others.
    pub local_rope: Option<RopeConfig>,
    /// Whether each block leaves queries and keys as they are (NoPE, SmolLM3); empty where none does.
    pub unrotated: Vec<bool>,
    /// Values of a head that are rotated, the first ones; all where there is none.
    pub rotated: Option<usize>,
}

impl Design {
    /// Whether the numbers make sense beside blocks and heads of these numbers and widths.
    ///
    /// # Errors
    /// The field (by its Hugging Face name) and what is wrong with it.
    pub(super) fn check(
        &self,
        blocks: usize,
        head_dim: usize,
    ) -> Result<(), (&'static str, String)> {
        let numbers = [
            ("embedding_multiplier", self.embedding_scale.map(f64::from)),
            ("query_pre_attn_scalar", self.query_scalar),
            ("attn_logit_softcapping", self.score_cap.map(f64::from)),
            ("final_logit_softcapping", self.logit_cap.map(f64::from)),
        ];
        for (field, number) in numbers {
            if let Some(number) = number.filter(|number| !(*number > 0.0 && number.is_finite())) {
                return Err((field, format!("{number} is not positive")));
            }
        }
        if let Some(rope) = &self.local_rope {
            rope.check(head_dim).map_err(|(_, reason)| ("rope_local_base_freq", reason))?;
        }
        if !self.unrotated.is_empty() && self.unrotated.len() != blocks {
            let reason = format!("{} entries for {blocks} blocks", self.unrotated.len());
            return Err(("no_rope_layers", reason));
        }
        match self.rotated {
            Some(rotated) if rotated == 0 || rotated > head_dim || !rotated.is_multiple_of(2) => {
                Err(("partial_rotary_factor", format!("turns {rotated} of {head_dim} values")))
            }
            _ => Ok(()),
        }
    }

    /// The design of the model that has the blocks `kept` alone.
    pub(super) fn with_blocks(&self, kept: &[usize]) -> Self {
        let unrotated = match self.unrotated[..] {
            [] => Vec::new(),
            ref blocks => kept.iter().map(|&block| blocks.get(block) == Some(&true)).collect(),
        };
        Self { unrotated, ..self.clone() }
    }
}
