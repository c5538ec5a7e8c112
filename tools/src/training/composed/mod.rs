//! The operations of training as candle composes them, on any of its devices: the same functions as our kernels have on the
//! processor, which tests hold against them, value and gradient.

mod attention;
mod frozen;
mod loss;
mod rows;

pub(super) use attention::{attention, chain_attention};
pub(super) use loss::distill_loss;
pub(super) use rows::{adapted, bounded, gate_mul, rms_norm};
