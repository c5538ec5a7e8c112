//! From the target's raw logits to a token: penalties, bias, temperature, truncation, and draws
//! that depend on nothing but the request's seed and the token's position.

mod defaults;
mod distribution;
mod draw;
mod logprobs;
mod params;
mod processor;
mod restrictions;

pub use defaults::{SamplingDefaults, top_k};
pub use distribution::Distribution;
pub use draw::{Draws, Purpose};
pub use logprobs::{log_sum_exp, top_logprobs};
pub use params::{ParamError, SamplingParams};
pub use processor::{History, LogitsError, Processor, greedy_token};
pub use restrictions::Restrictions;
