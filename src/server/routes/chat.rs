//! `POST /v1/chat/completions`, and the prompt that its conversation is.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;

use crate::server::answer::openai::{Format, respond};
use crate::server::error::ApiError;
use crate::server::generate::chat_prompt::{ChatPrompt, PastCall, PromptMessage};
use crate::server::generate::generation::Generation;
use crate::server::generate::running::Prepared;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::request::functions::{CallChoice, Callable, Function};
use crate::server::request::thinking;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{
    Chat, Content, Conversation, Message, Prediction, Templated, Tool, ToolCall, ToolChoice,
    ToolMode, Tools,
};
use crate::text::{ChatTemplate, Ending};

pub(crate) async fn chat_completions(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(bytes, |asked, body| prepare(&asked.serving, body)).await?;
    respond(&state, prepared, Format::Chat).await
}

/// Makes a chat completion ready to run.
fn prepare(serving: &Serving, mut body: Body) -> Result<Prepared, ApiError> {
    let wanted: Chat = body.read()?;
    let room = serving.engine.limits().max_model_len;
    let (dialect, max_tokens) = match wanted.max_completion_tokens {
        Some(max_tokens) => {
            (Dialect { max_tokens: "max_completion_tokens", ..Dialect::CHAT }, max_tokens)
        }
        None => (Dialect::CHAT, wanted.max_tokens.unwrap_or(room)),
    };
    let prompt = read_prompt(&mut body)?;
    let mut generation = Generation::read(&mut body, serving, max_tokens)?;
    body.finish()?;
    let logprobs = wanted.logprobs.unwrap_or(false);
    if wanted.top_logprobs.is_some() && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs: true`"));
    }
    generation.request.top_logprobs = logprobs.then(|| wanted.top_logprobs.unwrap_or(0));
    if let Some(Prediction::Content { content }) = wanted.prediction {
        generation.request.prediction =
            serving.encode("prediction", &content.into_text(), false)?.into();
    }
    prompt.prepare(serving, generation, dialect)
}

/// Reads the fields of a body that make a conversation.
pub(crate) fn read_prompt(body: &mut Body) -> Result<ChatPrompt, ApiError> {
    let conversation: Conversation = body.read()?;
    let ending = match (conversation.continue_final_message, conversation.add_generation_prompt) {
        (Some(true), Some(true)) => {
            let message = "`continue_final_message` and `add_generation_prompt` exclude each other";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        (Some(true), _) => Ending::LastMessage,
        (_, Some(false)) => Ending::Conversation,
        _ => Ending::Assistant,
    };
    let Tools { tools, tool_choice, parallel_tool_calls } = body.read()?;
    let functions = tools.unwrap_or_default().into_iter().map(Function::from).collect();
    let choice = tool_choice.map_or(CallChoice::Auto, CallChoice::from);
    let callable = Callable::new(functions, choice, parallel_tool_calls.unwrap_or(true))?;
    let messages = conversation.messages.into_iter().map(PromptMessage::from).collect();
    let own = conversation.chat_template_kwargs.unwrap_or_default();
    ChatTemplate::check_variables(&own)
        .map_err(|e| ApiError::invalid("chat_template_kwargs", e.to_string()))?;
    let mut variables = conversation.reasoning_effort.map(thinking::of_effort).unwrap_or_default();
    variables.extend(own);
    Ok(ChatPrompt { messages, ending, callable, variables })
}

/// `POST /apply-template`: the prompt that a conversation makes, as llama.cpp gives it.
pub(crate) async fn apply_template(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Templated>, ApiError> {
    let templated = state.prepare(bytes, |asked, mut body| {
        let prompt = read_prompt(&mut body)?;
        body.finish()?;
        Ok(Templated { prompt: prompt.text(&asked.serving, Dialect::CHAT)? })
    });
    Ok(Json(templated.await?.1))
}

impl From<Message> for PromptMessage {
    fn from(message: Message) -> Self {
        match message {
            Message::System { content, name } | Message::Developer { content, name } => {
                Self::System { text: content.into_text(), name }
            }
            Message::User { content, name } => Self::User { text: content.into_text(), name },
            Message::Assistant {
                content,
                name,
                reasoning_content,
                reasoning,
                refusal,
                tool_calls,
                ..
            } => {
                let reasoning = reasoning_content.or(reasoning);
                let text = content.map(Content::into_text).or(refusal).unwrap_or_default();
                let calls = tool_calls.into_iter().flatten().map(PastCall::from).collect();
                Self::Assistant { reasoning, text, name, calls }
            }
            Message::Tool { content, tool_call_id, name } => {
                Self::Result { text: content.into_text(), name, call_id: tool_call_id }
            }
        }
    }
}

impl From<ToolCall> for PastCall {
    fn from(call: ToolCall) -> Self {
        Self::new(call.id, call.function.name, call.function.arguments)
    }
}

impl From<Tool> for Function {
    fn from(tool: Tool) -> Self {
        let function = tool.function;
        let (name, description) = (function.name, function.description);
        let (parameters, strict) = (function.parameters, function.strict.unwrap_or(false));
        Self { name, description, parameters, strict }
    }
}

impl From<ToolChoice> for CallChoice {
    fn from(choice: ToolChoice) -> Self {
        match choice {
            ToolChoice::Mode(mode) => mode.into(),
            ToolChoice::Named(named) => Self::Named(named.function.name),
        }
    }
}

impl From<ToolMode> for CallChoice {
    fn from(mode: ToolMode) -> Self {
        match mode {
            ToolMode::None => Self::None,
            ToolMode::Auto => Self::Auto,
            ToolMode::Required => Self::Required,
        }
    }
}
