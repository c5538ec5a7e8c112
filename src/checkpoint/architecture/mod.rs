//! What a checkpoint says of its model: shape, rotary embedding, names of tensors, and where a drafter hangs on its target.

mod attachment;
mod config;
mod rope;
mod tensor_names;

pub use attachment::{Attachment, AttachmentError, PROJECTIONS};
pub use config::{Family, ModelConfig, RopeConfig, RopeScaling, SlidingWindow};
pub use rope::{rope_divisors, rope_table, yarn_attention};
pub use tensor_names::{layer_tensor_names, tensor_names};
