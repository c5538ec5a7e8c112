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
}
