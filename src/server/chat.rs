//! `POST /v1/chat/completions`.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use serde_json::{Value, json};

use super::generation::Generation;
use super::respond::{Format, respond};
use super::{ApiError, AppState, Body};

pub(super) async fn chat_completions(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let serving = state.serving()?;
    let mut body = Body::parse(bytes)?;
    let template = serving.template.as_ref().ok_or_else(|| {
        ApiError::invalid("messages", "this model has no chat template; use /v1/completions")
    })?;
    let messages = body.require::<Vec<Value>>("messages")?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` must not be empty"));
    }
    let room = serving.engine.limits().max_model_len;
    let names = ["max_completion_tokens", "max_tokens"];
    let mut generation = Generation::take(&mut body, &names, room)?;
    let wanted = body.or("logprobs", false)?;
    let top = body.take::<usize>("top_logprobs")?;
    if top.is_some() && !wanted {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    generation.request.top_logprobs = wanted.then(|| top.unwrap_or(0));
    body.only("modalities", &[json!(["text"])])?;
    body.only("store", &[json!(false)])?;
    body.only("tools", &[json!([])])?;
    body.only("tool_choice", &[json!("none"), json!("auto")])?;
    body.finish()?;
    let text =
        template.render(&messages).map_err(|e| ApiError::invalid("messages", e.to_string()))?;
    let prompt = serving.encode(&text, false)?;
    respond(&state, serving, generation, vec![prompt], Format::Chat).await
}

/// A message with plain text content, as templates expect it.
pub(super) fn message(mut message: Value) -> Result<Value, ApiError> {
    let invalid = |text: &str| ApiError::invalid("messages", text);
    let fields =
        message.as_object_mut().ok_or_else(|| invalid("each message must be an object"))?;
    match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer" | "user" | "assistant") => {}
        _ => return Err(invalid("`role` must be system, developer, user or assistant")),
    }
    if fields["role"] == "developer" {
        fields["role"] = json!("system");
    }
    if let Some(name) = fields.keys().find(|k| !["role", "content", "name"].contains(&k.as_str())) {
        return Err(invalid(&format!("`{name}` in a message is not supported by this server")));
    }
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text),
                _ => Err(invalid("content parts must be of type `text`: this is a text model")),
            })
            .collect::<Result<String, _>>()?,
        _ => return Err(invalid("`content` must be a string or a list of text parts")),
    };
    fields.insert("content".into(), content.into());
    Ok(message)
}
