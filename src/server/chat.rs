//! `POST /v1/chat/completions`.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;

use super::generation::Generation;
use super::respond::{Format, respond};
use super::tools::Callable;
use super::wire::{Chat, Prediction};
use super::{ApiError, AppState, Body};

pub(super) async fn chat_completions(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    let wanted: Chat = body.read()?;
    let room = serving.engine.limits().max_model_len;
    let max_tokens = wanted.max_completion_tokens.or(wanted.max_tokens).unwrap_or(room);
    let callable = Callable::new(body.read()?)?;
    let mut generation = Generation::read(&mut body, serving, max_tokens)?;
    body.finish()?;
    let logprobs = wanted.logprobs.unwrap_or(false);
    if wanted.top_logprobs.is_some() && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    generation.request.top_logprobs = logprobs.then(|| wanted.top_logprobs.unwrap_or(0));
    if let Some(Prediction::Content { content }) = wanted.prediction {
        generation.request.prediction =
            serving.encode("prediction", &content.into_text(), false)?;
    }
    let mut tools = Vec::new();
    if let Some(callable) = callable {
        generation.grammar = Some(("tools", callable.grammar(generation.grammar.take())?));
        generation.calls = true;
        tools = callable.tools;
    }
    let prompt = serving.encode("prompt", &serving.render(wanted.messages, &tools)?, false)?;
    respond(&state, serving, generation, vec![prompt], Format::Chat).await
}
