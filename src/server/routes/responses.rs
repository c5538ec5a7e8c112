//! `POST /v1/responses`: OpenAI's newer shape, for text and calls of functions. Nothing is stored.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};

use crate::grammar::GrammarSource;
use crate::sampling::SamplingParams;
use crate::server::answer::responses::ResponsesWriter;
use crate::server::answer::sse;
use crate::server::error::ApiError;
use crate::server::generate::chat_prompt::{ChatPrompt, PastCall, PromptMessage};
use crate::server::generate::drawing;
use crate::server::generate::generation::Generation;
use crate::server::generate::running::Prepared;
use crate::server::models::Asked;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::request::functions::{CallChoice, Callable, Function};
use crate::server::request::{structured, thinking};
use crate::server::state::AppState;
use crate::server::wire::response_tools::{ResponsesFunction, ResponsesTool, ResponsesToolChoice};
use crate::server::wire::responses::{Input, InputItem, Responses, Role, TextFormat};
use crate::server::wire::{
    ResponseAnswer, ResponseReasoning, ResponseStatus, ResponseText, ToolMode,
};
use crate::text::Ending;

pub(crate) async fn responses(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (asked, (response, prepared)) = state.prepare(bytes, prepare).await?;
    let writer = ResponsesWriter::new(response);
    let stream = prepared.generation.stream;
    let running = prepared.start(&state, asked).await?;
    let head = running.head.clone();
    if stream {
        return Ok((head, sse::stream(|events| writer.forward(running, events))).into_response());
    }
    let whole = running.whole().await?;
    Ok((head, Json(writer.whole(whole))).into_response())
}

/// The response before it begins, and what makes it, ready to run.
fn prepare(asked: &Asked, mut body: Body) -> Result<(ResponseAnswer, Prepared), ApiError> {
    let wanted: Responses = body.read()?;
    let serving = &asked.serving;
    let params = drawing::params(&mut body, serving)?;
    body.finish()?;
    let response = begun(asked, &wanted, &params);
    let room = serving.engine.limits().max_model_len;
    let mut generation = Generation::new(params, wanted.max_output_tokens.unwrap_or(room));
    generation.grammar = wanted.text.and_then(|text| text.format).and_then(grammar);
    generation.stream = wanted.stream.unwrap_or(false);
    generation.salt(wanted.cache_salt)?;
    generation.store = wanted.store.is_none();
    generation.request.num_speculative_tokens = wanted.num_speculative_tokens;
    let given = wanted.tools.is_some_and(|tools| !tools.is_empty());
    if given && response.tools.is_empty() {
        let message =
            "`tools`: none of them is a function, and this server has no tools of its own";
        return Err(ApiError::invalid("tools", message));
    }
    let functions = response.tools.iter().flat_map(ResponsesTool::functions);
    let functions = functions.map(Function::from).collect();
    let choice = wanted.tool_choice.map_or(CallChoice::Auto, CallChoice::from);
    let parallel = wanted.parallel_tool_calls.unwrap_or(true);
    let prompt = ChatPrompt {
        messages: messages(wanted.instructions, wanted.input),
        ending: Ending::Assistant,
        callable: Callable::new(functions, choice, parallel)?,
        variables: wanted
            .reasoning
            .and_then(|it| it.effort)
            .map(thinking::of_effort)
            .unwrap_or_default(),
    };
    Ok((response, prompt.prepare(serving, generation, Dialect::RESPONSES)?))
}

/// A response that has no output yet.
fn begun(asked: &Asked, wanted: &Responses, params: &SamplingParams) -> ResponseAnswer {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let format = wanted.text.as_ref().and_then(|text| text.format.clone());
    let choice = wanted.tool_choice.clone();
    let tools = wanted.tools.iter().flatten();
    ResponseAnswer {
        id: format!("resp_{}", uuid::Uuid::new_v4().simple()),
        object: "response",
        created_at: created,
        model: asked.name().to_owned(),
        status: ResponseStatus::InProgress,
        error: None,
        incomplete_details: None,
        metadata: wanted.metadata.clone().unwrap_or_default(),
        instructions: wanted.instructions.clone(),
        output: Vec::new(),
        parallel_tool_calls: wanted.parallel_tool_calls.unwrap_or(true),
        tool_choice: choice.unwrap_or(ResponsesToolChoice::Mode(ToolMode::Auto)),
        tools: tools.filter(|tool| !tool.functions().is_empty()).cloned().collect(),
        store: false,
        temperature: params.temperature.into(),
        top_p: params.top_p.into(),
        max_output_tokens: wanted.max_output_tokens,
        previous_response_id: None,
        truncation: "disabled",
        usage: None,
        text: ResponseText { format: format.unwrap_or(TextFormat::Text {}) },
        reasoning: ResponseReasoning {
            effort: wanted.reasoning.as_ref().and_then(|reasoning| reasoning.effort),
            summary: None,
        },
    }
}

/// What the text must be, as a grammar with the field that gives it.
fn grammar(format: TextFormat) -> Option<(&'static str, GrammarSource)> {
    let source = match format {
        TextFormat::Text {} => return None,
        TextFormat::JsonObject {} => GrammarSource::json_object(),
        TextFormat::JsonSchema { schema, strict, .. } => structured::named(schema, strict),
    };
    Some(("text", source))
}

/// The conversation that a request continues.
fn messages(instructions: Option<String>, input: Input) -> Vec<PromptMessage> {
    let system = instructions.map(|text| PromptMessage::System { text, name: None });
    let mut messages: Vec<PromptMessage> = system.into_iter().collect();
    match input {
        Input::Text(text) => messages.push(PromptMessage::user(text)),
        Input::Items(items) => {
            let mut thought = None;
            items.into_iter().for_each(|item| add(item, &mut thought, &mut messages));
        }
    }
    messages
}

/// Adds an item to a conversation. The calls of one turn belong to one message, and what the model `thought` to the
/// message or call that follows in the same turn.
fn add(item: InputItem, thought: &mut Option<String>, messages: &mut Vec<PromptMessage>) {
    // The thoughts of a turn that came to nothing are those of no other turn.
    let before = match item {
        InputItem::Reasoning { .. } => None,
        _ => thought.take(),
    };
    match item {
        InputItem::Reasoning { content, .. } => {
            let parts = content.into_iter().flatten();
            parts.for_each(|part| *thought.get_or_insert_default() += &part.text);
        }
        InputItem::Message { role, content, .. } => {
            let (text, name) = (content.into_text(), None);
            messages.push(match role {
                Role::System | Role::Developer => PromptMessage::System { text, name },
                Role::User => PromptMessage::User { text, name },
                Role::Assistant => {
                    let (reasoning, calls) = (before, Vec::new());
                    PromptMessage::Assistant { reasoning, text, name, calls }
                }
            });
        }
        InputItem::Output { call_id, output, .. } => {
            let text = output.into_text();
            messages.push(PromptMessage::Result { text, name: None, call_id });
        }
        InputItem::Call { call_id, name, arguments, .. } => {
            let call = PastCall::new(call_id, name, arguments);
            match messages.last_mut() {
                Some(PromptMessage::Assistant { calls, .. }) if before.is_none() => {
                    calls.push(call)
                }
                _ => messages.push(PromptMessage::Assistant {
                    reasoning: before,
                    text: String::new(),
                    name: None,
                    calls: vec![call],
                }),
            }
        }
    }
}

impl From<&ResponsesFunction> for Function {
    fn from(function: &ResponsesFunction) -> Self {
        let ResponsesFunction { name, description, parameters, strict } = function.clone();
        Self { name, description, parameters, strict: strict.unwrap_or(false) }
    }
}

impl From<ResponsesToolChoice> for CallChoice {
    fn from(choice: ResponsesToolChoice) -> Self {
        match choice {
            ResponsesToolChoice::Mode(mode) => mode.into(),
            ResponsesToolChoice::Named { name, .. } => Self::Named(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The reasoning, the text and the number of calls of each message of the assistant.
    fn turns(items: Value) -> Vec<(Option<String>, String, usize)> {
        let messages = messages(None, serde_json::from_value(items).unwrap());
        let turns = messages.into_iter().filter_map(|message| match message {
            PromptMessage::Assistant { reasoning, text, calls, .. } => {
                Some((reasoning, text, calls.len()))
            }
            _ => None,
        });
        turns.collect()
    }

    #[test]
    fn reasoning_belongs_to_its_own_turn() {
        let thought = |text: &str| {
            let content = [json!({"type": "reasoning_text", "text": text})];
            json!({"type": "reasoning", "id": "r", "summary": [], "content": content})
        };
        let said = |role: &str, text: &str| json!({"role": role, "content": text});
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        let output = json!({"type": "function_call_output", "call_id": "c", "output": "1"});
        let some = |text: &str| Some(text.to_owned());
        let items = json!([
            thought("lost"),
            said("user", "x"),
            said("assistant", "a"),
            output,
            thought("b"),
            thought("c"),
            call,
            call,
            output,
            said("assistant", "d"),
            call,
            thought("e"),
            call,
        ]);
        let expected = [
            (None, "a".to_owned(), 0),
            (some("bc"), String::new(), 2),
            (None, "d".to_owned(), 1),
            (some("e"), String::new(), 1),
        ];
        assert_eq!(turns(items), expected);
    }
}
