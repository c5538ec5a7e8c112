//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;

use super::wire::{Detokenize, Detokenized, Tokenize, Tokens};
use super::{ApiError, AppState, Body};

pub(super) async fn tokenize(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Tokens>, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    let wanted: Tokenize = body.read()?;
    body.finish()?;
    serving.check_model(wanted.model.as_deref())?;
    let special = wanted.add_special_tokens;
    let tokens = match (wanted.prompt, wanted.messages) {
        (Some(prompt), None) => serving.encode("prompt", &prompt, special.unwrap_or(true))?,
        (None, Some(messages)) => {
            serving.encode("prompt", &serving.render(messages, &[])?, special.unwrap_or(false))?
        }
        _ => return Err(ApiError::invalid("prompt", "give either `prompt` or `messages`")),
    };
    let text = |&id: &u32| serving.tokenizer.id_to_token(id).unwrap_or_default();
    let strings = wanted.return_token_strs.unwrap_or(false);
    Ok(Json(Tokens {
        count: tokens.len(),
        max_model_len: serving.engine.limits().max_model_len,
        token_strs: strings.then(|| tokens.iter().map(text).collect()),
        tokens,
    }))
}

pub(super) async fn detokenize(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Detokenized>, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    let Detokenize { model, tokens } = body.read()?;
    body.finish()?;
    serving.check_model(model.as_deref())?;
    Ok(Json(Detokenized { prompt: serving.decode("tokens", &tokens)? }))
}
