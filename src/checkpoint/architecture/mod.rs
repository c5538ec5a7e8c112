//! What a checkpoint says of its model: shape, rotary embedding, names of tensors, and where a drafter hangs on its target.

mod attachment;
mod config;
mod design;
mod rope;
mod rotary;
mod tensor_names;

pub use attachment::{Attachment, AttachmentError, PROJECTIONS};
pub use config::{Family, ModelConfig, SlidingWindow};
pub use design::Design;
pub use rope::{RopeTables, rope_divisors, yarn_attention};
pub use rotary::{RopeConfig, RopeScaling};
pub use tensor_names::{MATRICES, layer_tensor_names, tensor_names};
