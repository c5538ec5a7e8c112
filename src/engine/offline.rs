//! Requests answered by whoever owns the engine, without a thread and a channel.

use std::collections::HashMap;

use super::{
    Engine, Event, FinishReason, Request, RequestError, RequestId, SequenceStats, TokenOut,
};

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The generated tokens.
    pub tokens: Vec<TokenOut>,
    /// Why the sequence ended.
    pub reason: FinishReason,
    /// Tokens, passes and seconds that it took.
    pub stats: SequenceStats,
}

impl Answer {
    /// The generated tokens' ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Requests that run together, each with what its answer is for; as some end, others may join. What is read off prompts
/// is left out.
pub struct OfflineBatch<T> {
    running: HashMap<RequestId, (T, Vec<TokenOut>)>,
}

impl<T> Default for OfflineBatch<T> {
    fn default() -> Self {
        Self { running: HashMap::new() }
    }
}

impl<T> OfflineBatch<T> {
    /// Requests that have not ended.
    #[must_use]
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Submits a request, whose answer is for `purpose`.
    ///
    /// # Errors
    /// [`RequestError`] if it can never be served, and the purpose.
    pub fn submit(
        &mut self,
        engine: &mut Engine,
        request: Request,
        purpose: T,
    ) -> Result<(), (RequestError, T)> {
        match engine.submit(request) {
            Ok(id) => {
                self.running.insert(id, (purpose, Vec::new()));
                Ok(())
            }
            Err(error) => Err((error, purpose)),
        }
    }

    /// One step of the engine; returns what has ended in it.
    pub fn step(&mut self, engine: &mut Engine) -> Vec<(T, Answer)> {
        let mut ended = Vec::new();
        for (id, event) in engine.step() {
            match event {
                Event::Tokens(new) => {
                    if let Some((_, tokens)) = self.running.get_mut(&id) {
                        tokens.extend(new);
                    }
                }
                Event::Prompt(_) | Event::Embedding(_) => {}
                Event::Finished { reason, stats } => {
                    if let Some((purpose, tokens)) = self.running.remove(&id) {
                        ended.push((purpose, Answer { tokens, reason, stats }));
                    }
                }
            }
        }
        ended
    }

    /// What had not ended, with the tokens that it has so far.
    pub fn into_unfinished(self) -> impl Iterator<Item = (T, Vec<TokenOut>)> {
        self.running.into_values()
    }
}

impl Engine {
    /// Runs requests together to their ends; the answers are in the requests' order.
    ///
    /// # Errors
    /// The first request that can never be served; then none runs.
    pub fn answer(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, RequestError> {
        requests.iter().try_for_each(|request| request.validate(self.limits()))?;
        let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
        let mut batch = OfflineBatch::default();
        for (place, request) in requests.into_iter().enumerate() {
            batch.submit(self, request, place).map_err(|(error, _)| error)?;
        }
        while !batch.is_empty() {
            for (place, answer) in batch.step(self) {
                answers[place] = Some(answer);
            }
        }
        let ended = |answer: Option<Answer>| answer.expect("invariant: every sequence ends");
        Ok(answers.into_iter().map(ended).collect())
    }
}
