//! `POST /tokenize` and `POST /detokenize`, in vLLM's shape.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use serde_json::{Value, json};

use super::chat::message;
use super::{ApiError, AppState, Body};

pub(super) async fn tokenize(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    body.take::<String>("model")?;
    let prompt = body.take::<String>("prompt")?;
    let messages = body.take::<Vec<Value>>("messages")?;
    let special = body.take::<bool>("add_special_tokens")?;
    let strings = body.or("return_token_strs", false)?;
    body.only("add_generation_prompt", &[json!(true)])?;
    body.finish()?;
    let tokens = match (prompt, messages) {
        (Some(prompt), None) => serving.encode(&prompt, special.unwrap_or(true))?,
        (None, Some(messages)) => {
            let template = serving.template.as_ref().ok_or_else(|| {
                ApiError::invalid("messages", "this model has no chat template; use `prompt`")
            })?;
            let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
            let text = template
                .render(&messages)
                .map_err(|e| ApiError::invalid("messages", e.to_string()))?;
            serving.encode(&text, special.unwrap_or(false))?
        }
        _ => return Err(ApiError::invalid("prompt", "give either `prompt` or `messages`")),
    };
    let text = |&id: &u32| serving.tokenizer.id_to_token(id).unwrap_or_default();
    let strings = strings.then(|| tokens.iter().map(text).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": serving.engine.limits().max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    })))
}

pub(super) async fn detokenize(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    body.take::<String>("model")?;
    let tokens = body.require::<Vec<u32>>("tokens")?;
    body.finish()?;
    let vocab_size = serving.engine.limits().vocab_size;
    if tokens.iter().any(|&id| id as usize >= vocab_size) {
        let message = format!("`tokens` must lie below {vocab_size}");
        return Err(ApiError::invalid("tokens", message));
    }
    let prompt = serving.tokenizer.decode(&tokens, false);
    let prompt = prompt.map_err(|e| ApiError::invalid("tokens", e.to_string()))?;
    Ok(Json(json!({"prompt": prompt})))
}
