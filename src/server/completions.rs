//! `POST /v1/completions`.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use serde_json::{Value, json};

use super::generation::Generation;
use super::respond::{Format, respond};
use super::state::Serving;
use super::{ApiError, AppState, Body};

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most prompts in one request.
const MAX_PROMPTS: usize = 128;

pub(super) async fn completions(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    let prompts = prompts(serving, body.require("prompt")?)?;
    let mut generation = Generation::take(&mut body, &["max_tokens"], DEFAULT_MAX_TOKENS)?;
    generation.request.top_logprobs = body.take("logprobs")?;
    body.only("best_of", &[json!(1)])?;
    body.only("echo", &[json!(false)])?;
    body.only("suffix", &[])?;
    body.finish()?;
    respond(&state, serving, generation, prompts, Format::Text).await
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
fn prompts(serving: &Serving, prompt: Value) -> Result<Vec<Vec<u32>>, ApiError> {
    let kinds = || {
        let kinds = "`prompt` must be a string, a list of strings, or lists of token ids";
        ApiError::invalid("prompt", kinds)
    };
    let ids =
        |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).map_err(|_| kinds());
    let prompts = match &prompt {
        Value::String(text) => vec![serving.encode(text, true)?],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => vec![ids(&prompt)?],
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => serving.encode(text, true),
                other => ids(other),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(kinds()),
    };
    if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
        let message = format!("`prompt` takes 1 to {MAX_PROMPTS} prompts");
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(prompts)
}
