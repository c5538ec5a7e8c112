//! `POST /v1/chat/completions`, and what a conversation is as a prompt.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;

use super::generation::Generation;
use super::respond::{Format, respond};
use super::running::Prepared;
use super::state::Serving;
use super::tools::Callable;
use super::wire::{Chat, Conversation, Prediction, Templated};
use super::{ApiError, AppState, Body};
use crate::text::{CallFormat, ChatTemplate, Ending};

pub(super) async fn chat_completions(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(|serving| prepare(serving, Body::parse(bytes)?)).await?;
    respond(&state, prepared).await
}

/// Makes a chat completion ready to run.
pub(super) fn prepare(serving: &Serving, mut body: Body) -> Result<Prepared, ApiError> {
    let wanted: Chat = body.read()?;
    let room = serving.engine.limits().max_model_len;
    let max_tokens = wanted.max_completion_tokens.or(wanted.max_tokens).unwrap_or(room);
    let prompt = Prompt::read(&mut body)?;
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
    if let Some(callable) = &prompt.callable {
        let format = serving.template.as_ref().map_or(CallFormat::Hermes, ChatTemplate::calls);
        let grammar =
            callable.grammar(format, &serving.marks(format), generation.grammar.take())?;
        generation.grammar = Some(("tools", grammar));
        generation.calls = Some(format);
    }
    let tokens = serving.encode(Format::Chat.prompt(), &prompt.text(serving)?, false)?;
    Ok(Prepared { generation, prompts: vec![tokens], format: Format::Chat })
}

/// A conversation on its way to be a prompt.
pub(super) struct Prompt {
    conversation: Conversation,
    ending: Ending,
    callable: Option<Callable>,
}

impl Prompt {
    /// Reads the fields that make it.
    pub(super) fn read(body: &mut Body) -> Result<Self, ApiError> {
        let conversation: Conversation = body.read()?;
        let ending = match (conversation.continue_final_message, conversation.add_generation_prompt)
        {
            (Some(true), Some(true)) => {
                let message =
                    "`continue_final_message` and `add_generation_prompt` exclude each other";
                return Err(ApiError::invalid("continue_final_message", message));
            }
            (Some(true), _) => Ending::LastMessage,
            (_, Some(false)) => Ending::Conversation,
            _ => Ending::Assistant,
        };
        Ok(Self { conversation, ending, callable: Callable::new(body.read()?)? })
    }

    /// The prompt's text.
    pub(super) fn text(self, serving: &Serving) -> Result<String, ApiError> {
        let tools = self.callable.map(|callable| callable.tools).unwrap_or_default();
        serving.render(self.conversation.messages, &tools, self.ending)
    }
}

/// `POST /apply-template`: the prompt that a conversation makes, as llama.cpp gives it.
pub(super) async fn apply_template(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Templated>, ApiError> {
    let templated = state.prepare(|serving| {
        let mut body = Body::parse(bytes)?;
        let prompt = Prompt::read(&mut body)?;
        body.finish()?;
        Ok(Templated { prompt: prompt.text(serving)? })
    });
    templated.await.map(Json)
}
