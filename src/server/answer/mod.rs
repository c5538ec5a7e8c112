//! Answers in each dialect, whole or streamed.

pub(crate) mod anthropic;
pub(crate) mod logprobs;
pub(crate) mod openai;
pub(crate) mod responses;
pub(crate) mod sse;
