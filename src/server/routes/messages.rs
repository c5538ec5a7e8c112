//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's shape, for text and calls of functions.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};

use crate::grammar::GrammarSource;
use crate::server::answer::anthropic::{AnthropicWriter, message};
use crate::server::answer::sse;
use crate::server::error::ApiError;
use crate::server::generate::chat_prompt::{ChatPrompt, PastCall, PromptMessage};
use crate::server::generate::drawing;
use crate::server::generate::generation::{Generation, stop_strings};
use crate::server::generate::running::Prepared;
use crate::server::generate::speech::Reasoning;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::request::functions::{CallChoice, Callable, Function};
use crate::server::request::thinking;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::MessageTokens;
use crate::server::wire::messages::{
    Block, Dialogue, Messages, MessagesTool, MessagesToolChoice, OutputFormat, Speaker,
    ThinkingConfig, Turn, Words,
};
use crate::text::Ending;

pub(crate) async fn messages(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(bytes, |asked, body| prepare(&asked.serving, body)).await?;
    let (asked, prepared) = prepared;
    let message = message(asked.name().to_owned());
    let stream = prepared.generation.stream;
    let running = prepared.start(&state, asked).await?;
    let head = running.head.clone();
    if stream {
        let events = sse::stream(|events| AnthropicWriter::new(events).forward(message, running));
        return Ok((head, events).into_response());
    }
    Ok((head, Json(message.with(running.whole().await?))).into_response())
}

pub(crate) async fn count_tokens(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<MessageTokens>, ApiError> {
    let counted = state.prepare(bytes, |asked, body| count(&asked.serving, body)).await?;
    Ok(Json(MessageTokens { input_tokens: counted.1 }))
}

/// Makes a message ready to run.
fn prepare(serving: &Serving, mut body: Body) -> Result<Prepared, ApiError> {
    let wanted: Messages = body.read()?;
    let mut dialogue: Dialogue = body.read()?;
    let params = drawing::params(&mut body, serving)?;
    body.finish()?;
    let mut generation = Generation::new(params, wanted.max_tokens);
    generation.stop = stop_strings("stop_sequences", wanted.stop_sequences.unwrap_or_default())?;
    generation.stream = wanted.stream.unwrap_or(false);
    generation.store = wanted.store.is_none();
    generation.request.num_speculative_tokens = wanted.num_speculative_tokens;
    let format = dialogue.output_config.as_mut().and_then(|output| output.format.take());
    generation.grammar = format.map(|OutputFormat::JsonSchema { schema }| {
        ("output_config", GrammarSource::JsonSchema(schema.into()))
    });
    if dialogue.thinking.as_ref().is_some_and(ThinkingConfig::hides) {
        generation.reasoning = Reasoning::Hidden;
    }
    prompt(dialogue)?.prepare(serving, generation, Dialect::MESSAGES)
}

fn count(serving: &Serving, mut body: Body) -> Result<usize, ApiError> {
    let dialogue: Dialogue = body.read()?;
    body.finish()?;
    Ok(prompt(dialogue)?.tokens(serving, Dialect::MESSAGES)?.len())
}

fn prompt(dialogue: Dialogue) -> Result<ChatPrompt, ApiError> {
    if dialogue.messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` must have at least one turn"));
    }
    let system = dialogue.system.map(Words::into_text);
    let system = system.map(|text| PromptMessage::System { text, name: None });
    let mut messages: Vec<PromptMessage> = system.into_iter().collect();
    // A last turn of the assistant is one to go on with.
    let goes_on = matches!(dialogue.messages.last(), Some(Turn { role: Speaker::Assistant, .. }));
    for Turn { role, content } in dialogue.messages {
        let blocks = content.into_blocks();
        match role {
            Speaker::User | Speaker::System => user(blocks, &mut messages)?,
            Speaker::Assistant => messages.push(assistant(blocks)?),
        }
    }
    let functions = dialogue.tools.unwrap_or_default().into_iter().map(Function::from).collect();
    let thinks = dialogue.thinking.as_ref().map(ThinkingConfig::thinks);
    let effort = dialogue.output_config.and_then(|output| output.effort);
    let (choice, alone) = choice(dialogue.tool_choice);
    Ok(ChatPrompt {
        messages,
        ending: if goes_on { Ending::LastMessage } else { Ending::Assistant },
        callable: Callable::new(functions, choice, !alone)?,
        variables: thinking::variables(thinks, effort),
    })
}

/// What the model calls, and whether it makes one call at most.
fn choice(choice: Option<MessagesToolChoice>) -> (CallChoice, bool) {
    match choice {
        None => (CallChoice::Auto, false),
        Some(MessagesToolChoice::None {}) => (CallChoice::None, false),
        Some(MessagesToolChoice::Auto { disable_parallel_tool_use }) => {
            (CallChoice::Auto, disable_parallel_tool_use.unwrap_or(false))
        }
        Some(MessagesToolChoice::Any { disable_parallel_tool_use }) => {
            (CallChoice::Required, disable_parallel_tool_use.unwrap_or(false))
        }
        Some(MessagesToolChoice::Tool { name, .. }) => (CallChoice::Named(name), true),
    }
}

impl From<MessagesTool> for Function {
    fn from(tool: MessagesTool) -> Self {
        let MessagesTool { name, description, input_schema, strict, .. } = tool;
        Self { name, description, parameters: Some(input_schema), strict: strict.unwrap_or(false) }
    }
}

fn misplaced(kind: &str, role: &str) -> ApiError {
    ApiError::invalid("messages", format!("`messages`: no `{kind}` in a turn of the {role}"))
}

/// Adds a turn of the user: words, and results of calls, each of which is a message. Words behind words of the user join
/// them, since many templates want the speakers to take turns.
fn user(blocks: Vec<Block>, messages: &mut Vec<PromptMessage>) -> Result<(), ApiError> {
    let mut words = match messages.pop_if(|last| matches!(last, PromptMessage::User { .. })) {
        Some(PromptMessage::User { text, .. }) => text + "\n\n",
        _ => String::new(),
    };
    let first = messages.len();
    for block in blocks {
        match block {
            Block::Text { text, .. } => words += &text,
            Block::ToolUse { .. } => return Err(misplaced("tool_use", "user")),
            Block::Thinking { .. } | Block::RedactedThinking { .. } => {
                return Err(misplaced("thinking", "user"));
            }
            Block::ToolResult { tool_use_id, content, is_error, .. } => {
                if !words.is_empty() {
                    messages.push(PromptMessage::user(std::mem::take(&mut words)));
                }
                let result = content.map(Words::into_text).unwrap_or_default();
                let failed = if is_error == Some(true) { "Error: " } else { "" };
                let text = format!("{failed}{result}");
                messages.push(PromptMessage::Result { text, name: None, call_id: tool_use_id });
            }
        }
    }
    if !words.is_empty() || messages.len() == first {
        messages.push(PromptMessage::user(words));
    }
    Ok(())
}

/// A turn of the assistant: reasoning, words, then calls.
fn assistant(blocks: Vec<Block>) -> Result<PromptMessage, ApiError> {
    let (mut reasoning, mut text, mut calls) = (None::<String>, String::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Thinking { thinking, .. } => *reasoning.get_or_insert_default() += &thinking,
            Block::RedactedThinking { .. } => {}
            Block::Text { text: more, .. } => text += &more,
            Block::ToolUse { id, name, input, .. } => {
                calls.push(PastCall { id, name, arguments: input.into() });
            }
            Block::ToolResult { .. } => return Err(misplaced("tool_result", "assistant")),
        }
    }
    Ok(PromptMessage::Assistant { reasoning, text, name: None, calls })
}
