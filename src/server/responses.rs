//! `POST /v1/responses`: OpenAI's newer shape, for text and calls of functions. Nothing is stored.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::adapt;
use super::respond::Prepared;
use super::response_output::Output;
use super::state::Serving;
use super::wire::responses::{
    Input, InputItem, Responses, ResponsesTool, ResponsesToolChoice, TextFormat,
};
use super::{ApiError, AppState, Body};

pub(super) async fn responses(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(|serving| prepare(serving, Body::parse(bytes)?)).await;
    let (response, prepared) = prepared?;
    let mut output = Output::new(response);
    if prepared.generation.stream {
        let chunks = adapt::streamed(&state, prepared).await.map_err(own)?;
        let (events, response) = adapt::events();
        tokio::spawn(output.forward(chunks, events));
        return Ok(response);
    }
    let chat = adapt::whole(&state, prepared).await.map_err(own)?;
    let choice = &chat["choices"][0];
    output.add(&choice["message"]);
    output.finish(&choice["finish_reason"], &chat["usage"]);
    Ok(Json(output.into_response()).into_response())
}

/// The response before it begins, and the chat completion that it stands for, ready to run.
fn prepare(serving: &Serving, mut body: Body) -> Result<(Value, Prepared), ApiError> {
    let wanted: Responses = body.read()?;
    body.finish()?;
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let response = json!({
        "id": format!("resp_{}", uuid::Uuid::new_v4().simple()),
        "object": "response", "created_at": created, "model": serving.name(),
        "status": "in_progress",
        "error": null, "incomplete_details": null,
        "metadata": wanted.metadata.clone().unwrap_or_default(),
        "instructions": wanted.instructions, "output": [],
        "parallel_tool_calls": wanted.parallel_tool_calls.unwrap_or(true),
        "tool_choice": wanted.tool_choice.as_ref().map_or(json!("auto"), |choice| json!(choice)),
        "tools": wanted.tools.as_deref().unwrap_or_default(), "store": false,
        "temperature": wanted.temperature.map_or(1.0, |t| t.0), "top_p": wanted.top_p.map_or(1.0, |p| p.0),
        "max_output_tokens": wanted.max_output_tokens,
        "previous_response_id": null, "truncation": "disabled", "usage": null,
        "text": {"format": wanted.text.as_ref().and_then(|text| text.format.as_ref()).map_or(
            json!({"type": "text"}), |format| json!(format),
        )},
    });
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
