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
    /// Why there are no more.
    pub reason: FinishReason,
    /// What it took.
    pub stats: SequenceStats,
}

impl Answer {
    /// The generated tokens' ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

impl Engine {
    /// Runs requests together to their ends; the answers are in the requests' order. What was read off prompts is
    /// left out.
    ///
    /// # Errors
    /// The first request that can never be served; then none runs.
    pub fn answer(&mut self, requests: Vec<Request>) -> Result<Vec<Answer>, RequestError> {
        requests.iter().try_for_each(|request| request.validate(self.limits()))?;
        let ids: Vec<RequestId> =
            requests.into_iter().map(|request| self.submit(request)).collect::<Result<_, _>>()?;
        let mut tokens: HashMap<RequestId, Vec<TokenOut>> = HashMap::new();
        let mut answers: HashMap<RequestId, Answer> = HashMap::new();
        while self.has_work() {
            for (id, event) in self.step() {
                match event {
                    Event::Tokens(new) => tokens.entry(id).or_default().extend(new),
                    Event::Prompt(_) | Event::Embedding(_) => {}
                    Event::Finished { reason, stats } => {
                        let tokens = tokens.remove(&id).unwrap_or_default();
                        answers.insert(id, Answer { tokens, reason, stats });
                    }
                }
            }
        }
        let take = |id: &RequestId| answers.remove(id).expect("invariant: every sequence ends");
        Ok(ids.iter().map(take).collect())
    }
}
