//! `POST /v1/completions`.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;

use crate::server::answer::openai::{Format, respond};
use crate::server::bounds::PROMPTS;
use crate::server::error::ApiError;
use crate::server::generate::generation::{Generation, in_range};
use crate::server::generate::running::Prepared;
use crate::server::request::body::Body;
use crate::server::request::dialect::Dialect;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{Completion, OnePrompt};

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: usize = 16;

pub(crate) async fn completions(
    State(state): State<AppState>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let prepared = state.prepare(bytes, |asked, body| prepare(&asked.serving, body)).await?;
    respond(&state, prepared, Format::Text).await
}

/// Makes a completion ready to run.
fn prepare(serving: &Serving, mut body: Body) -> Result<Prepared, ApiError> {
    let wanted: Completion = body.read()?;
    let max_tokens = wanted.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let echo = wanted.echo.unwrap_or(false);
    if max_tokens == 0 && !echo {
        let message = "`max_tokens` must be at least 1, unless the prompt is echoed";
        return Err(ApiError::invalid("max_tokens", message));
    }
    // The last row of a prompt is computed either way, so nothing is saved by not drawing from it.
    let mut generation = Generation::read(&mut body, serving, max_tokens.max(1))?;
    body.finish()?;
    generation.prompt_only = max_tokens == 0;
    generation.request.top_logprobs = wanted.logprobs;
    generation.echo_logprobs = wanted.logprobs.filter(|_| echo);
    if let Some(best_of) = wanted.best_of {
        best(&mut generation, best_of)?;
    }
    let prompts = wanted.prompt.into_list();
    if prompts.len() > PROMPTS {
        let message = format!("`prompt` takes 1 to {PROMPTS} prompts");
        return Err(ApiError::invalid("prompt", message));
    }
    let mut encoded = Vec::new();
    for prompt in prompts {
        let (tokens, text) = match prompt {
            OnePrompt::Text(text) => (serving.encode("prompt", &text, true)?, text),
            OnePrompt::Ids(ids) if echo => {
                let text = serving.decode("prompt", &ids)?;
                (ids, text)
            }
            OnePrompt::Ids(ids) => (ids, String::new()),
        };
        encoded.push(tokens);
        generation.echo.extend(echo.then_some(text));
    }
    Ok(Prepared { generation, prompts: encoded, dialect: Dialect::COMPLETIONS })
}

/// Generates `best_of` choices to keep the best of.
fn best(generation: &mut Generation, best_of: usize) -> Result<(), ApiError> {
    in_range("best_of", best_of)?;
    if best_of < generation.kept {
        return Err(ApiError::invalid("best_of", "`best_of` must be at least `n`"));
    }
    if best_of > generation.kept && generation.stream {
        let message = "`best_of` above `n` cannot be streamed: the best are known at the end";
        return Err(ApiError::invalid("best_of", message));
    }
    generation.choices = best_of;
    Ok(())
}
