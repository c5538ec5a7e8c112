//! What an attention layer looks like.

/// Shape and constants of one attention layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Positions a row attends to, itself included; all where `None`.
    pub window: Option<usize>,
    /// Multiplier of scores.
    pub scale: f32,
    /// Bound of scores, `cap * tanh(score / cap)`; none where `None`.
    pub cap: Option<f32>,
}

impl AttentionShape {
    /// Heads that see all positions, with scores over the square root of their width.
    #[must_use]
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { heads, kv_heads, head_dim, window: None, scale, cap: None }
    }
}
