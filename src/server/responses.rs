//! `POST /v1/responses`: OpenAI's newer shape, for text and calls of functions. Nothing is stored.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::adapt;
use super::response_output::Output;
use super::running::Prepared;
use super::sse::events;
use super::state::Serving;
use super::wire::responses::{
    Input, InputItem, Responses, ResponsesTool, ResponsesToolChoice, TextFormat,
};
use super::wire::{Number, ResponseAnswer, ResponseStatus, ResponseText, ToolMode};
use super::{ApiError, AppState, Body};

pub(super) async fn responses(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(|serving| prepare(serving, Body::parse(bytes)?)).await;
    let (response, prepared) = prepared?;
    let output = Output::new(response);
    let stream = prepared.generation.stream;
    let running = prepared.start(&state).await.map_err(own)?;
    if stream {
        let (events, response) = events();
        tokio::spawn(output.forward(running, events));
        return Ok(response);
    }
    let whole = running.whole().await.map_err(own)?;
    Ok(Json(output.whole(whole)).into_response())
}

/// The response before it begins, and the chat completion that it stands for, ready to run.
fn prepare(serving: &Serving, mut body: Body) -> Result<(ResponseAnswer, Prepared), ApiError> {
    let wanted: Responses = body.read()?;
    body.finish()?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let format = wanted.text.as_ref().and_then(|text| text.format.clone());
    let response = ResponseAnswer {
        id: format!("resp_{}", uuid::Uuid::new_v4().simple()),
        object: "response",
        created_at: created,
        model: serving.name().to_owned(),
        status: ResponseStatus::InProgress,
        error: None,
        incomplete_details: None,
        metadata: wanted.metadata.clone().unwrap_or_default(),
        instructions: wanted.instructions.clone(),
        output: Vec::new(),
        parallel_tool_calls: wanted.parallel_tool_calls.unwrap_or(true),
        tool_choice: wanted
            .tool_choice
            .clone()
            .unwrap_or(ResponsesToolChoice::Mode(ToolMode::Auto)),
        tools: wanted.tools.clone().unwrap_or_default(),
        store: false,
        temperature: wanted.temperature.unwrap_or(Number(1.0)),
        top_p: wanted.top_p.unwrap_or(Number(1.0)),
        max_output_tokens: wanted.max_output_tokens,
        previous_response_id: None,
        truncation: "disabled",
        usage: None,
        text: ResponseText { format: format.unwrap_or(TextFormat::Text {}) },
    };
    let stream = wanted.stream.unwrap_or(false);
    let prepared = adapt::prepare(serving, request(wanted), stream).map_err(own)?;
    Ok((response, prepared))
}

/// A chat completion's fault, under this API's names.
fn own(error: ApiError) -> ApiError {
    let error = error.renamed("messages", "input").renamed("response_format", "text");
    error.renamed("max_completion_tokens", "max_output_tokens")
}

/// The chat completion that a request stands for.
fn request(wanted: Responses) -> Value {
    let mut messages: Vec<Value> = Vec::new();
    if let Some(instructions) = wanted.instructions {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match wanted.input {
        Input::Text(text) => messages.push(json!({"role": "user", "content": text})),
        Input::Items(items) => items.into_iter().for_each(|item| add(item, &mut messages)),
    }
    let tools = wanted.tools.map(|tools| {
        let function = |tool| {
            let ResponsesTool::Function { name, description, parameters, .. } = tool;
            let function =
                json!({"name": name, "description": description, "parameters": parameters});
            json!({"type": "function", "function": function})
        };
        tools.into_iter().map(function).collect::<Vec<_>>()
    });
    let choice = wanted.tool_choice.map(|choice| match choice {
        ResponsesToolChoice::Mode(mode) => json!(mode),
        ResponsesToolChoice::Named { name, .. } => {
            json!({"type": "function", "function": {"name": name}})
        }
    });
    let format = wanted.text.and_then(|text| text.format).map(|format| match format {
        TextFormat::Text {} => json!({"type": "text"}),
        TextFormat::JsonObject {} => json!({"type": "json_object"}),
        TextFormat::JsonSchema { name, schema, .. } => {
            json!({"type": "json_schema", "json_schema": {"name": name, "schema": schema}})
        }
    });
    json!({
        "model": wanted.model, "messages": messages,
        "tools": tools, "tool_choice": choice, "parallel_tool_calls": wanted.parallel_tool_calls,
        "response_format": format,
        "max_completion_tokens": wanted.max_output_tokens,
        "temperature": wanted.temperature, "top_p": wanted.top_p,
        "num_speculative_tokens": wanted.num_speculative_tokens,
        "store": wanted.store.map(|_| false),
    })
}

/// Adds an item to a conversation; the calls of one turn belong to one message.
fn add(item: InputItem, messages: &mut Vec<Value>) {
    match item {
        InputItem::Message { role, content, .. } => {
            messages.push(json!({"role": role.name(), "content": content.into_text()}));
        }
        InputItem::Output { call_id, output, .. } => {
            let content = output.into_text();
            messages.push(json!({"role": "tool", "tool_call_id": call_id, "content": content}));
        }
        InputItem::Call { call_id, name, arguments, .. } => {
            let function = json!({"name": name, "arguments": arguments});
            let call = json!({"id": call_id, "type": "function", "function": function});
            match messages.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match last["tool_calls"].as_array_mut() {
                    Some(calls) => calls.push(call),
                    None => last["tool_calls"] = json!([call]),
                },
                None => messages.push(json!({"role": "assistant", "tool_calls": [call]})),
            }
        }
    }
}
