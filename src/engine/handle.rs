//! The engine on its own thread, behind a handle that any number of tasks share.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc as commands;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::progress::Progress;
use super::turns::Turns;
use super::{
    Candidate, Comparison, Engine, EngineError, EngineLimits, Event, FinishReason, Request,
    RequestError, RequestId,
};
use crate::model::ModelConfig;

/// Why a request was not taken on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The request is at fault.
    #[error(transparent)]
    Invalid(#[from] RequestError),
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

struct Submission {
    request: Request,
    events: mpsc::Sender<Event>,
    /// When it came: the step that runs then may be long.
    at: Instant,
}

enum Command {
    Submit(Box<Submission>),
    Compare(String, Candidate, u64),
    StopComparing,
    Stop,
}

/// Why the engine's thread ends.
const CRASHED: &str = "the engine has stopped";
const STOPPED: &str = "the server is shutting down";

/// Submits requests to an engine on another thread. The engine ends when the last handle is
/// dropped and the last sequence has ended.
#[derive(Clone)]
pub struct EngineHandle {
    commands: commands::Sender<Command>,
    limits: Arc<EngineLimits>,
    num_blocks: usize,
    comparison: watch::Receiver<Option<Comparison>>,
    alive: watch::Receiver<bool>,
    progress: Arc<Progress>,
}

impl EngineHandle {
    /// Moves the engine to a thread of its own, which takes a turn for each step. It sleeps while there is no work.
    ///
    /// # Panics
    /// If the operating system has no thread left.
    #[must_use]
    pub fn start(engine: Engine, turns: Turns) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = commands::channel();
        let (alive, watched) = watch::channel(true);
        let limits = Arc::new(engine.limits().clone());
        let (news, comparison) = watch::channel(None);
        let num_blocks = engine.cache_blocks().1;
        let progress = Arc::new(Progress::new());
        let handle = Self {
            commands: sender,
            limits,
            num_blocks,
            comparison,
            alive: watched,
            progress: Arc::clone(&progress),
        };
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || run(engine, receiver, &turns, &alive, &news, &progress))
            .expect("the operating system has a thread for the engine");
        (handle, thread)
    }

    /// Queues a request. Its events arrive in order, [`Event::Finished`] last; a channel that
    /// closes without it means that the engine has stopped. Dropping the receiver cancels the
    /// request within one step.
    ///
    /// # Errors
    /// [`SubmitError`] if the request can never be served or the engine has stopped.
    pub async fn submit(&self, request: Request) -> Result<mpsc::Receiver<Event>, SubmitError> {
        request.validate(&self.limits)?;
        // Each event but what is read off the prompt and the last carries a token, so the engine never
        // waits for a reader.
        let room = self.limits.max_model_len - request.prompt.len();
        let (events, receiver) = mpsc::channel(request.max_tokens.min(room) + 2);
        if !self.is_alive() {
            return Err(SubmitError::Stopped);
        }
        let submission = Submission { request, events, at: Instant::now() };
        let sent = self.commands.send(Command::Submit(Box::new(submission)));
        sent.map_err(|_| SubmitError::Stopped)?;
        Ok(receiver)
    }

    /// Whether requests can be served.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// For how long there has been work and no step of the engine has ended; 0 while there is no work.
    #[must_use]
    pub fn standing_still(&self) -> Duration {
        self.progress.standing_still()
    }

    /// Resolves when the engine's thread no longer serves, whether it was asked to stop or crashed.
    pub async fn stopped(&self) {
        let _ = self.alive.clone().wait_for(|alive| !alive).await;
    }

    /// Ends every sequence with an error, and the thread, within one step.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// Checks that a draft of this shape, whose head has rows for these tokens where it is trimmed, can be compared.
    ///
    /// # Errors
    /// [`EngineError`] if it cannot draft for the target.
    pub fn check_draft(
        &self,
        config: &ModelConfig,
        draft_vocab: Option<&[u32]>,
    ) -> Result<(), EngineError> {
        if self.limits.num_speculative_tokens == 0 {
            return Err(EngineError::NoSpeculation);
        }
        self.limits.check_draft(config, draft_vocab)
    }

    /// Has a draft model compared with the one that serves, on `wanted` tokens, and put in its place if it
    /// promises more; see [`Engine::compare`]. Its cache must have [`num_blocks`](Self::num_blocks).
    ///
    /// # Errors
    /// [`EngineError`] if it cannot draft for the target.
    pub fn compare(
        &self,
        name: String,
        candidate: Candidate,
        wanted: u64,
    ) -> Result<(), EngineError> {
        self.check_draft(candidate.config(), candidate.draft_vocab().map(|vocab| &**vocab))?;
        // An engine that has stopped compares nothing, and says so to whoever asks it for tokens.
        let _ = self.commands.send(Command::Compare(name, candidate, wanted));
        Ok(())
    }

    /// Ends a comparison; the old draft goes on.
    pub fn stop_comparing(&self) {
        let _ = self.commands.send(Command::StopComparing);
    }

    /// The comparison that goes on, or the last one.
    #[must_use]
    pub fn comparison(&self) -> watch::Receiver<Option<Comparison>> {
        self.comparison.clone()
    }

    /// Blocks of the K/V cache.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// What the engine can serve.
    #[must_use]
    pub fn limits(&self) -> &EngineLimits {
        &self.limits
    }
}

type Readers = HashMap<RequestId, mpsc::Sender<Event>>;

fn run(
    mut engine: Engine,
    commands: commands::Receiver<Command>,
    turns: &Turns,
    alive: &watch::Sender<bool>,
    news: &watch::Sender<Option<Comparison>>,
    progress: &Progress,
) {
    let mut readers = Readers::new();
    let work = AssertUnwindSafe(|| {
        while turn(&mut engine, &commands, turns, &mut readers, progress) {
            tell(&engine, news);
        }
    });
    let crashed = catch_unwind(work).is_err();
    alive.send_replace(false);
    let reason = if crashed { CRASHED } else { STOPPED };
    if crashed {
        tracing::error!(sequences = readers.len(), "the engine stopped on a bug");
    }
    let late = commands.try_iter().filter_map(|command| match command {
        Command::Submit(submission) => Some(submission.events),
        _ => None,
    });
    for events in readers.into_values().chain(late) {
        refuse(&events, reason);
    }
}

/// Takes on what was submitted, drops what nobody reads, runs a step. Returns `false` when the engine
/// was told to stop, or when there is nothing left to do and nobody left to submit.
fn turn(
    engine: &mut Engine,
    commands: &commands::Receiver<Command>,
    turns: &Turns,
    readers: &mut Readers,
    progress: &Progress,
) -> bool {
    let mut next = if engine.has_work() {
        commands.try_recv().ok()
    } else {
        progress.rest();
        let next = commands.recv().ok();
        progress.get_on();
        next
    };
    if next.is_none() && !engine.has_work() {
        return false;
    }
    // A draft that is given up is freed in a turn too: no other engine records a pass on its device meanwhile.
    let own = turns.take();
    while let Some(command) = next {
        match command {
            Command::Submit(submission) => take_on(engine, *submission, readers),
            Command::Compare(name, candidate, wanted) => {
                if let Err(error) = engine.compare(name, candidate, wanted) {
                    tracing::error!(%error, "the new draft cannot be compared");
                }
            }
            Command::StopComparing => engine.stop_comparing(),
            Command::Stop => return false,
        }
        next = commands.try_recv().ok();
    }
    readers.retain(|&id, events| {
        let wanted = !events.is_closed();
        if !wanted {
            engine.cancel(id);
        }
        wanted
    });
    let steps = engine.stats().steps;
    let events = engine.step();
    drop(own);
    if engine.stats().steps > steps {
        progress.get_on();
    }
    for (id, event) in events {
        let finished = matches!(event, Event::Finished { .. });
        if let Some(events) = readers.get(&id) {
            // A closed channel is found closed before the next step; a full one cannot be.
            let _ = events.try_send(event);
        }
        if finished {
            readers.remove(&id);
        }
    }
    true
}

/// Makes known how a comparison stands.
fn tell(engine: &Engine, news: &watch::Sender<Option<Comparison>>) {
    news.send_if_modified(|known| {
        let changed = known.as_ref() != engine.comparison();
        if changed {
            *known = engine.comparison().cloned();
        }
        changed
    });
}

fn take_on(engine: &mut Engine, submission: Submission, readers: &mut Readers) {
    match engine.submit_since(submission.request, submission.at) {
        Ok(id) => {
            readers.insert(id, submission.events);
        }
        // Validated against the same limits before it was sent.
        Err(error) => refuse(&submission.events, &error.to_string()),
    }
}

/// Ends a request with an error; its reader may be gone.
fn refuse(events: &mpsc::Sender<Event>, reason: &str) {
    let reason = FinishReason::Error(reason.into());
    let _ = events.try_send(Event::Finished { reason, stats: Default::default() });
}

#[cfg(test)]
mod tests;
