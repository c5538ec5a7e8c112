//! How an attached drafter hangs on its target.

use super::{ModelConfig, RopeTables};

/// An attached draft names a block or a state that its target does not have, or lacks others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the attached draft does not fit the target: {0}; build a draft from this target with `pleach-tools build`"
)]
pub struct AttachmentError(String);

/// Where an attached drafter hangs on its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Blocks of the target that the drafter keeps, rising.
    pub blocks: Vec<usize>,
    /// Hidden states that it reads, rising; state n follows n blocks.
    pub states: Vec<usize>,
}

impl Attachment {
    /// Checks that a drafter of this shape fits a target.
    ///
    /// # Errors
    /// [`AttachmentError`] naming what does not fit.
    pub fn check(
        &self,
        target: &ModelConfig,
        drafter: &ModelConfig,
    ) -> Result<(), AttachmentError> {
        let rising = |list: &[usize]| list.windows(2).all(|pair| pair[0] < pair[1]);
        let total = target.num_hidden_layers;
        let heads = |config: &ModelConfig| {
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        };
        let problem = if self.blocks.len() != drafter.num_hidden_layers
            || !rising(&self.blocks)
            || self.blocks.last().is_none_or(|&block| block >= total)
        {
            format!("blocks {:?} are not {} of {total}", self.blocks, drafter.num_hidden_layers)
        } else if !rising(&self.states) || self.states.last().is_none_or(|&state| state > total) {
            format!("states {:?} are none of 0 to {total}", self.states)
        } else if heads(target) != heads(drafter) || !turn_alike(target, drafter, &self.blocks) {
            "its attention heads or rotary embedding are not the target's".into()
        } else if !see_alike(target, drafter, &self.blocks) {
            "the windows of its blocks are not those of the target's blocks".into()
        } else {
            return Ok(());
        };
        Err(AttachmentError(problem))
    }
}

/// Whether a drafter's blocks attend to as many positions as the target's `blocks` that they are.
fn see_alike(target: &ModelConfig, drafter: &ModelConfig, blocks: &[usize]) -> bool {
    let window = |config: &ModelConfig, block| config.attention(block).window;
    blocks.iter().enumerate().all(|(own, &block)| window(drafter, own) == window(target, block))
}

/// Whether a drafter's blocks turn queries and keys by the same angles as the target's `blocks` that they are,
/// however their files say so.
fn turn_alike(target: &ModelConfig, drafter: &ModelConfig, blocks: &[usize]) -> bool {
    let [target, drafter] = [target, drafter].map(RopeTables::new);
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * a.abs().max(1e-4);
    blocks.iter().enumerate().all(|(own, &block)| match (target.of(block), drafter.of(own)) {
        (Some(one), Some(other)) => {
            let (one, other) = (one.rotations(2), other.rotations(2));
            one.len() == other.len() && one.iter().zip(&other).all(close)
        }
        (one, other) => one.is_none() && other.is_none(),
    })
}

/// Names of the projections: `[hidden, (1 + states) hidden]` for the first step, `[hidden, 2 hidden]` for further
/// ones.
pub const PROJECTIONS: [&str; 2] = ["attached.first.weight", "attached.next.weight"];
