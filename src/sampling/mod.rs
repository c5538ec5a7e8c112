//! From the target's raw logits to a token: penalties, bias, temperature, truncation, and draws
//! that depend on nothing but the request's seed and the token's position.

mod defaults;
mod distribution;
mod draw;
mod dry;
mod listed;
mod logprobs;
mod param_error;
mod params;
mod processor;
mod restrictions;
mod truncation;
mod weights;

pub use defaults::{SamplingDefaults, top_k, top_n_sigma};
pub use distribution::Distribution;
pub use draw::{Draws, Purpose};
pub use dry::Dry;
pub use logprobs::{log_sum_exp, top_logprobs};
pub use param_error::ParamError;
pub use params::SamplingParams;
pub use processor::{History, LogitsError, Processor, greedy_token};
pub use restrictions::Restrictions;
