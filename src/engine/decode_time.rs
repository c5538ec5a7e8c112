//! What generating tokens takes, and what it would take without speculation.

use super::{DecodeTime, Event, ProposerSeconds, RequestId};
use crate::speculation::{ByProposer, Proposal, Proposer};

/// A step that generated tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct GeneratingStep {
    /// Rows of the target pass: prompt tokens, last tokens and draft tokens.
    pub(super) rows: usize,
    /// Rows of prompts, but for the last token of each that is complete.
    pub(super) prompt_rows: usize,
    /// Sequences that generated something.
    pub(super) sequences: usize,
    /// Tokens they generated.
    pub(super) tokens: usize,
    /// Seconds of the target pass.
    pub(super) target_seconds: f64,
    /// Seconds of the draft passes before it.
    pub(super) draft_seconds: f64,
}

/// What drafting took and gave in one step: `rows` seconds for the rows of all draft tokens, `drafting` for the draft
/// passes, and `token` for each token without speculation.
pub(super) fn by_proposer(
    proposals: &[Proposal],
    events: &[(RequestId, Event)],
    rows: f64,
    drafting: f64,
    token: f64,
) -> ByProposer<ProposerSeconds> {
    let mut time: ByProposer<ProposerSeconds> = ByProposer::default();
    let drafted = proposals.iter().flat_map(|proposal| &proposal.tokens);
    let row = rows / drafted.clone().count().max(1) as f64;
    drafted.for_each(|draft| time[draft.proposer as usize].spent += row);
    time[Proposer::DraftModel as usize].spent += drafting;
    let accepted = events.iter().filter_map(|(_, event)| match event {
        Event::Tokens(tokens) => Some(tokens.iter().filter_map(|token| token.source.proposer())),
        _ => None,
    });
    accepted.flatten().for_each(|proposer| time[proposer as usize].saved += token);
    time
}

impl GeneratingStep {
    /// What the step took and would have taken, where a pass with one row of each sequence takes
    /// `plain` seconds; `None` where nothing was generated.
    pub(super) fn time(self, plain: f64) -> Option<DecodeTime> {
        if self.tokens == 0 {
            return None;
        }
        // In a pass that reads prompts too, every row has its share.
        let row = self.target_seconds / self.rows as f64;
        let own = self.rows - self.prompt_rows;
        let without_drafts = if self.prompt_rows == 0 && own > self.sequences {
            plain
        } else {
            row * self.sequences as f64
        };
        // The tokens beyond the first of each sequence would have taken further passes.
        let further = (self.tokens as f64 / self.sequences as f64 - 1.0).max(0.0) * plain;
        Some(DecodeTime {
            seconds: row * own as f64 + self.draft_seconds,
            without_speculation: without_drafts + further,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{TokenOut, TokenSource};
    use crate::speculation::DraftToken;

    fn step(rows: usize, prompt_rows: usize, sequences: usize, tokens: usize) -> DecodeTime {
        let plain = if sequences == 1 { 1.0 } else { 1.2 };
        let (target_seconds, draft_seconds) = (2.0, if rows > sequences { 0.5 } else { 0.0 });
        let step =
            GeneratingStep { rows, prompt_rows, sequences, tokens, target_seconds, draft_seconds };
        step.time(plain).unwrap()
    }

    /// Rows are shared by the draft tokens, passes are the draft model's, and each accepted token saves a step.
    #[test]
    fn proposers_have_what_they_took_and_gave() {
        let token = |proposer| DraftToken::copied(7, proposer);
        let mut proposal = Proposal::default();
        proposal.tokens =
            [Proposer::Ngram, Proposer::Ngram, Proposer::DraftModel].map(token).into();
        let sent = [TokenSource::Accepted(Proposer::Ngram), TokenSource::Recovered]
            .map(|source| TokenOut { id: 7, source, logprob: None, top_logprobs: Vec::new() });
        let events = [(RequestId(0), Event::Tokens(sent.into()))];
        let [draft, ngram, prediction, _] = by_proposer(&[proposal], &events, 0.3, 0.5, 2.0);
        assert!((draft.spent - 0.6).abs() < 1e-9 && draft.saved == 0.0);
        assert!((ngram.spent - 0.2).abs() < 1e-9 && ngram.saved == 2.0);
        assert_eq!(prediction, ProposerSeconds::default());
    }

    #[test]
    fn the_same_tokens_without_speculation() {
        let near = |time: DecodeTime, seconds: f64, without: f64| {
            assert!((time.seconds - seconds).abs() < 1e-9, "{time:?}");
            assert!((time.without_speculation - without).abs() < 1e-9, "{time:?}");
        };
        near(step(1, 0, 1, 1), 2.0, 2.0); // no drafts: as it was, whatever a pass usually takes
        near(step(5, 0, 1, 3), 2.5, 3.0); // three passes of one row instead
        near(step(8, 0, 2, 5), 2.5, 2.5 * 1.2); // five tokens at two a pass
        // A fifth of the pass belongs to the sequence, half of that to its draft token.
        near(step(10, 8, 1, 2), 2.0 * 0.2 + 0.5, 2.0 * 0.1 + 1.0);
        let none = GeneratingStep {
            rows: 4,
            prompt_rows: 4,
            sequences: 0,
            tokens: 0,
            target_seconds: 1.0,
            draft_seconds: 0.0,
        };
        assert_eq!(none.time(1.0), None);
        assert_eq!(DecodeTime::default().speedup(), 1.0);
    }
}
