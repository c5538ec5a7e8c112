//! A request that is ready to run, and the answer that comes of it, whichever API it is written for.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::generation::Generation;
use super::loosened::Head;
use super::pieces::Piece;
use super::said::Message;
use crate::engine::SequenceStats;
use crate::server::error::ApiError;
use crate::server::keys;
use crate::server::models::Asked;
use crate::server::request::dialect::Dialect;
use crate::server::serving::Serving;
use crate::server::state::AppState;
use crate::server::wire::{FinishReason, StopReason, Usage};

/// A request that is ready to run.
pub(crate) struct Prepared {
    pub(crate) generation: Generation,
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) dialect: Dialect,
}

impl Prepared {
    /// Begins to generate.
    ///
    /// # Errors
    /// There is no room for the request, or the engine does not take it.
    pub(crate) async fn start(
        self,
        state: &AppState,
        asked: Asked,
    ) -> Result<RunningRequest, ApiError> {
        let Self { mut generation, prompts, dialect } = self;
        let per_prompt = generation.choices;
        let count = prompts.len() * per_prompt;
        // What more choices of one prompt would do, fewer prompts do as well.
        let field = if per_prompt == 1 { dialect.prompt } else { "n" };
        if generation.request.priority != 0 && !keys::may_prioritize() {
            let message = "`priority` is not for this key: `priority = true` in the file of keys lets it set it";
            return Err(ApiError::forbidden("priority", message));
        }
        generation.request.cache_salt = keys::cache_salt(generation.cache_salt.as_deref());
        generation.request.adapter = asked.adapter.as_ref().map(|adapter| adapter.weights());
        let place = asked.serving.queue.enter(count, field)?;
        generation.recorder = state.recorder(&asked).filter(|_| generation.store);
        let serving = asked.serving;
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let (pieces, head) = generation.start(&serving, prompts, dialect, place).await?;
        let stats = vec![SequenceStats::default(); count];
        let (reasoning_tokens, ended) = (0, 0);
        Ok(RunningRequest {
            serving,
            prompt_tokens,
            per_prompt,
            pieces,
            stats,
            reasoning_tokens,
            ended,
            head,
        })
    }
}

/// A request that runs; dropping it cancels it.
pub(crate) struct RunningRequest {
    /// What it runs on.
    pub(crate) serving: Arc<Serving>,
    /// Tokens of its prompts.
    pub(crate) prompt_tokens: usize,
    per_prompt: usize,
    pieces: mpsc::Receiver<Piece>,
    /// One per choice, set where it ends.
    stats: Vec<SequenceStats>,
    /// Tokens of the reasoning of choices that have ended.
    reasoning_tokens: u64,
    /// Choices that have ended.
    ended: usize,
    /// What the answer's head says of it.
    pub(crate) head: Option<Head>,
}

impl RunningRequest {
    /// Choices of all prompts.
    pub(crate) fn choices(&self) -> usize {
        self.stats.len()
    }

    /// The next piece of any choice; `None` after the ends of all.
    ///
    /// # Errors
    /// The server's own fault, which ends the whole answer. Where a choice ends by the request's fault, its
    /// last piece says so.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        let Some(mut piece) = self.pieces.recv().await else {
            let whole = self.ended == self.stats.len();
            return if whole { Ok(None) } else { Err(ApiError::internal("the answer broke off")) };
        };
        if let Some(end) = piece.end.take() {
            if let Err(fault) = &end.reason
                && !fault.is_clients()
            {
                return Err(fault.clone());
            }
            self.ended += 1;
            self.reasoning_tokens += end.reasoning_tokens;
            self.stats[piece.choice] = end.stats.clone();
            piece.end = Some(end);
        }
        Ok(Some(piece))
    }

    /// What the choices that have ended took.
    pub(crate) fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, &self.stats, self.per_prompt, self.reasoning_tokens)
    }

    /// All of an answer that has one choice.
    ///
    /// # Errors
    /// Whatever ended it early.
    pub(crate) async fn whole(mut self) -> Result<Whole, ApiError> {
        let mut message = Message::default();
        let (mut reason, mut stop) = (FinishReason::Stop, None);
        while let Some(piece) = self.next().await? {
            piece.said.into_iter().for_each(|said| message.add(said));
            if let Some(end) = piece.end {
                (reason, stop) = (end.reason?, end.stop);
            }
        }
        Ok(Whole { message, reason, stop, usage: self.usage() })
    }
}

/// A whole answer that has one choice.
pub(crate) struct Whole {
    pub(crate) message: Message,
    /// Why it ended.
    pub(crate) reason: FinishReason,
    /// The text or token of the request that ended it, where one did.
    pub(crate) stop: Option<StopReason>,
    pub(crate) usage: Usage,
}
