//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's shape, for text and calls of functions.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::adapt;
use super::chat::Prompt;
use super::message_output::{Output, message};
use super::running::Prepared;
use super::sse::events;
use super::state::Serving;
use super::wire::MessageTokens;
use super::wire::messages::{
    Block, Dialogue, Messages, MessagesTool, MessagesToolChoice, Speaker, Turn, Words,
};
use super::{ApiError, AppState, Body};

pub(super) async fn messages(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    answer(&state, bytes).await.unwrap_or_else(refusal)
}

pub(super) async fn count_tokens(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    let counted = state.prepare(|serving| count(serving, Body::parse(bytes)?)).await;
    let counted =
        counted.map(|tokens| Json(MessageTokens { input_tokens: tokens }).into_response());
    counted.unwrap_or_else(refusal)
}

fn refusal(error: ApiError) -> Response {
    error.renamed("stop", "stop_sequences").into_anthropic_response()
}

async fn answer(
    state: &AppState,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(|serving| prepare(serving, Body::parse(bytes)?)).await?;
    let message = message(state.serving()?.name().to_owned());
    let stream = prepared.generation.stream;
    let running = prepared.start(state).await?;
    if stream {
        let (events, response) = events();
        tokio::spawn(Output::new(events).forward(message, running));
        return Ok(response);
    }
    Ok(Json(message.with(running.whole().await?)).into_response())
}

/// Makes the chat completion that a message stands for ready to run.
fn prepare(serving: &Serving, mut body: Body) -> Result<Prepared, ApiError> {
    let wanted: Messages = body.read()?;
    let mut request = request(body.read()?)?;
    body.finish()?;
    let fields = json!({
        "max_tokens": wanted.max_tokens, "stop": wanted.stop_sequences,
        "temperature": wanted.temperature, "top_p": wanted.top_p, "top_k": wanted.top_k,
        "num_speculative_tokens": wanted.num_speculative_tokens,
        "store": wanted.store.map(|_| false),
    });
    let fields = fields.as_object().into_iter().flatten();
    fields.for_each(|(name, value)| request[name] = value.clone());
    adapt::prepare(serving, request, wanted.stream.unwrap_or(false))
}

fn count(serving: &Serving, mut body: Body) -> Result<usize, ApiError> {
    let request = request(body.read()?)?;
    body.finish()?;
    serving.check_model(request["model"].as_str())?;
    let text = Prompt::read(&mut Body::from(request))?.text(serving)?;
    let tokens = serving.encode("messages", &text, false)?;
    Ok(tokens.len())
}

/// The chat completion that a conversation stands for.
fn request(dialogue: Dialogue) -> Result<Value, ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = dialogue.system {
        messages.push(json!({"role": "system", "content": system.into_text()}));
    }
    // A last turn of the assistant is one to go on with.
    let goes_on = matches!(dialogue.messages.last(), Some(Turn { role: Speaker::Assistant, .. }));
    for Turn { role, content } in dialogue.messages {
        let blocks = content.into_blocks();
        match role {
            Speaker::User => user(blocks, &mut messages)?,
            Speaker::Assistant => messages.push(assistant(blocks)?),
        }
    }
    let tools = dialogue.tools.map(|tools| {
        let function = |tool: MessagesTool| {
            let MessagesTool { name, description, input_schema, .. } = tool;
            let function =
                json!({"name": name, "description": description, "parameters": input_schema});
            json!({"type": "function", "function": function})
        };
        tools.into_iter().map(function).collect::<Vec<_>>()
    });
    let (choice, alone) = match dialogue.tool_choice {
        None => (Value::Null, None),
        Some(MessagesToolChoice::None {}) => (json!("none"), None),
        Some(MessagesToolChoice::Auto { disable_parallel_tool_use }) => {
            (json!("auto"), disable_parallel_tool_use)
        }
        Some(MessagesToolChoice::Any { disable_parallel_tool_use }) => {
            (json!("required"), disable_parallel_tool_use)
        }
        Some(MessagesToolChoice::Tool { name, disable_parallel_tool_use }) => {
            (json!({"type": "function", "function": {"name": name}}), disable_parallel_tool_use)
        }
    };
    Ok(json!({
        "model": dialogue.model, "messages": messages, "tools": tools, "tool_choice": choice,
        "parallel_tool_calls": alone.map(|alone| !alone),
        "continue_final_message": goes_on,
    }))
}

fn misplaced(kind: &str, role: &str) -> ApiError {
    ApiError::invalid("messages", format!("`messages`: no `{kind}` in a turn of the {role}"))
}

/// A turn of the user: words, and results of calls.
fn user(blocks: Vec<Block>, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let mut words = String::new();
    let flush = |words: &mut String, messages: &mut Vec<Value>| {
        if !words.is_empty() {
            messages.push(json!({"role": "user", "content": std::mem::take(words)}));
        }
    };
    let first = messages.len();
    for block in blocks {
        match block {
            Block::Text { text, .. } => words += &text,
            Block::ToolUse { .. } => return Err(misplaced("tool_use", "user")),
            Block::ToolResult { tool_use_id, content, is_error, .. } => {
                flush(&mut words, messages);
                let result = content.map(Words::into_text).unwrap_or_default();
                let failed = if is_error == Some(true) { "Error: " } else { "" };
                messages.push(json!({
                    "role": "tool", "tool_call_id": tool_use_id,
                    "content": format!("{failed}{result}"),
                }));
            }
        }
    }
    flush(&mut words, messages);
    if messages.len() == first {
        messages.push(json!({"role": "user", "content": ""}));
    }
    Ok(())
}

/// A turn of the assistant: words, then calls.
fn assistant(blocks: Vec<Block>) -> Result<Value, ApiError> {
    let (mut words, mut calls) = (String::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Text { text, .. } => words += &text,
            Block::ToolUse { id, name, input, .. } => {
                let function = json!({"name": name, "arguments": json!(input).to_string()});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            Block::ToolResult { .. } => return Err(misplaced("tool_result", "assistant")),
        }
    }
    let calls = Some(calls).filter(|calls| !calls.is_empty());
    Ok(json!({"role": "assistant", "content": words, "tool_calls": calls}))
}
