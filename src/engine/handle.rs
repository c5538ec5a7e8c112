//! The engine on its own thread, behind a handle that any number of tasks share.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as commands;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::{Engine, EngineLimits, Event, FinishReason, Request, RequestError, RequestId};

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
}

/// Submits requests to an engine on another thread. The engine ends when the last handle is
/// dropped and the last sequence has ended.
#[derive(Clone)]
pub struct EngineHandle {
    submissions: commands::Sender<Submission>,
    limits: Arc<EngineLimits>,
    alive: Arc<AtomicBool>,
}

impl EngineHandle {
    /// Moves the engine to a thread of its own. The thread sleeps while there is no work.
    ///
    /// # Panics
    /// If the operating system has no thread left.
    #[must_use]
    pub fn start(engine: Engine) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = commands::channel();
        let handle = Self {
            submissions: sender,
            limits: Arc::new(engine.limits().clone()),
            alive: Arc::new(AtomicBool::new(true)),
        };
        let alive = Arc::clone(&handle.alive);
        let thread = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || run(engine, &receiver, &alive))
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
        // Each event but the last carries a token, so the engine never waits for a reader.
        let room = self.limits.max_model_len - request.prompt.len();
        let (events, receiver) = mpsc::channel(request.max_tokens.min(room) + 1);
        if !self.is_alive() {
            return Err(SubmitError::Stopped);
        }
        let sent = self.submissions.send(Submission { request, events });
        sent.map_err(|_| SubmitError::Stopped)?;
        Ok(receiver)
    }

    /// Whether requests can be served.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// What the engine can serve.
    #[must_use]
    pub fn limits(&self) -> &EngineLimits {
        &self.limits
    }
}

type Readers = HashMap<RequestId, mpsc::Sender<Event>>;

fn run(mut engine: Engine, submissions: &commands::Receiver<Submission>, alive: &AtomicBool) {
    let mut readers = Readers::new();
    let work = AssertUnwindSafe(|| while turn(&mut engine, submissions, &mut readers) {});
    let crashed = catch_unwind(work).is_err();
    alive.store(false, Ordering::Release);
    if crashed {
        tracing::error!(sequences = readers.len(), "the engine stopped on a bug");
        let reason = || FinishReason::Error("the engine has stopped".into());
        let late = submissions.try_iter().map(|submission| submission.events);
        for events in readers.into_values().chain(late) {
            let _ =
                events.try_send(Event::Finished { reason: reason(), stats: Default::default() });
        }
    }
}

/// Takes on what was submitted, drops what nobody reads, runs a step. Returns `false` when there is
/// nothing left to do and nobody left to submit.
fn turn(
    engine: &mut Engine,
    submissions: &commands::Receiver<Submission>,
    readers: &mut Readers,
) -> bool {
    if !engine.has_work() {
        let Ok(submission) = submissions.recv() else { return false };
        take_on(engine, submission, readers);
    }
    for submission in submissions.try_iter() {
        take_on(engine, submission, readers);
    }
    readers.retain(|&id, events| {
        let wanted = !events.is_closed();
        if !wanted {
            engine.cancel(id);
        }
        wanted
    });
    for (id, event) in engine.step() {
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

fn take_on(engine: &mut Engine, submission: Submission, readers: &mut Readers) {
    match engine.submit(submission.request) {
        Ok(id) => {
            readers.insert(id, submission.events);
        }
        // Validated against the same limits before it was sent.
        Err(error) => {
            let reason = FinishReason::Error(error.to_string());
            let finished = Event::Finished { reason, stats: Default::default() };
            let _ = submission.events.try_send(finished);
        }
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
