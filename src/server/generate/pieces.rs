//! An answer as it is generated, before it is written in the shape of an API: pieces of its choices, read
//! off the events of their sequences.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::said::Said;
use super::speech::Speech;
use crate::engine::{Event, FinishReason, PromptToken, Request, SequenceStats, TokenOut};
use crate::observe::spans::SequenceSpan;
use crate::observe::traffic::{Recorded, Recorder};
use crate::server::error::ApiError;
use crate::server::keys::Metered;
use crate::server::serving::Serving;
use crate::server::wire;
use crate::server::wire::StopReason;
use crate::text::StoppingText;

/// A part of the answer: what one choice gained.
#[derive(Default)]
pub(crate) struct Piece {
    /// Its place among the choices of all prompts.
    pub(crate) choice: usize,
    /// What it adds to the answer: reasoning, then text, then calls.
    pub(crate) said: Vec<Said>,
    /// The prompt, where its log-probabilities are wanted.
    pub(crate) prompt: Vec<PromptToken>,
    pub(crate) tokens: Vec<TokenOut>,
    /// What each token added to the text; empty where it is held back for the next one.
    pub(crate) texts: Vec<String>,
    /// Where each token begins, in characters of the choice's text.
    pub(crate) offsets: Vec<usize>,
    /// Set on the last piece.
    pub(crate) end: Option<End>,
}

/// How a choice ended.
pub(crate) struct End {
    /// Why, or what failed.
    pub(crate) reason: Result<wire::FinishReason, ApiError>,
    /// The text or token of the request that ended it, where one did.
    pub(crate) stop: Option<StopReason>,
    /// Tokens of its reasoning.
    pub(crate) reasoning_tokens: u64,
    /// Mean log-probability of its tokens, the one that ended it among them, where they are wanted.
    pub(crate) mean_logprob: f32,
    pub(crate) stats: SequenceStats,
}

/// Tokens that end a sequence and are not shown.
pub(crate) struct Ends(Vec<u32>);

impl Ends {
    pub(crate) fn of(request: &Request, serving: &Serving, shows_stop: bool) -> Self {
        let mut ends = if shows_stop { Vec::new() } else { request.stop_token_ids.to_vec() };
        if !request.ignore_eos {
            ends.extend(&serving.eos_token_ids);
        }
        Self(ends)
    }
}

/// Reads one sequence's events.
pub(crate) struct Reader {
    pub(crate) choice: usize,
    pub(crate) pieces: mpsc::Sender<Piece>,
    pub(crate) text: StoppingText,
    /// What its text says.
    pub(crate) speech: Speech,
    /// The field that gives the output's form.
    pub(crate) form: Option<&'static str>,
    /// The field that gives the form of its text alone, where it may call functions instead.
    pub(crate) text_form: Option<&'static str>,
    /// The stop string that ended it, by its place.
    pub(crate) stopped: Option<usize>,
    /// The number of its tokens that have a log-probability, and the sum of those.
    pub(crate) drawn: (usize, f32),
    pub(crate) ends: Ends,
    /// Text that comes first.
    pub(crate) echo: Option<String>,
    /// Characters of `echo`.
    pub(crate) echoed: usize,
    /// Whether the answer is `echo` alone.
    pub(crate) prompt_only: bool,
    /// The span of the sequence, where the request is traced.
    pub(crate) span: Option<SequenceSpan>,
    pub(crate) serving: Arc<Serving>,
    /// What is recorded of it, and where.
    pub(crate) record: Option<(Arc<Recorder>, Recorded)>,
}

impl Reader {
    /// Turns events into pieces, until the sequence ends or nobody listens.
    pub(crate) async fn read(mut self, mut events: Metered) {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                // A sequence that waits, or reads a long prompt, has nothing to say for long.
                () = self.pieces.closed() => return,
            };
            if let Some(echo) = self.echo.take() {
                self.speech.hear(&echo);
            }
            let mut piece = Piece { choice: self.choice, ..Piece::default() };
            match event {
                Some(Event::Prompt(tokens)) => piece.prompt = tokens,
                Some(Event::Embedding(_)) => {}
                Some(Event::Tokens(_)) if self.prompt_only => {}
                Some(Event::Tokens(tokens)) => {
                    self.span.iter().for_each(|span| span.round(&tokens));
                    if let Some((_, record)) = &mut self.record {
                        record.response_tokens.extend(tokens.iter().map(|token| token.id));
                    }
                    self.add(tokens, &mut piece);
                }
                Some(Event::Finished { reason, stats }) => {
                    if let Some(span) = self.span.take() {
                        span.end(reason.name(), &stats);
                    }
                    piece.end = Some(self.finish(reason, stats));
                }
                None => {
                    let reason = Err(ApiError::internal("the engine has stopped"));
                    let (stats, reasoning_tokens, mean_logprob) =
                        (SequenceStats::default(), 0, 0.0);
                    piece.end =
                        Some(End { reason, stop: None, reasoning_tokens, mean_logprob, stats });
                }
            }
            let ended = piece.end.is_some();
            piece.said = self.speech.say(ended);
            if let Some(End { reason: Ok(reason), .. }) = &mut piece.end {
                self.record(reason);
                *reason = reason.with_calls(self.speech.calls());
            }
            // Dropping the events cancels a sequence that has not ended.
            if self.pieces.send(piece).await.is_err() || ended {
                return;
            }
        }
    }

    /// Records the answer, where that is wanted.
    fn record(&mut self, reason: &wire::FinishReason) {
        let Some((recorder, mut record)) = self.record.take() else { return };
        let Serving { tokenizer, texts, .. } = &*self.serving;
        record.prompt = tokenizer.decode(&record.prompt_tokens, false).unwrap_or_default();
        record.response = texts.text(&record.response_tokens);
        record.finish_reason = match reason {
            wire::FinishReason::Length => "length".into(),
            _ => "stop".into(),
        };
        recorder.keep(record);
    }

    /// Adds tokens to a piece, and their text to what is said.
    fn add(&mut self, tokens: Vec<TokenOut>, piece: &mut Piece) {
        for token in tokens {
            if let Some(logprob) = token.logprob {
                self.drawn = (self.drawn.0 + 1, self.drawn.1 + logprob);
            }
            if self.ends.0.contains(&token.id) {
                continue;
            }
            piece.offsets.push(self.echoed + self.text.position());
            let (text, stopped) = self.text.push(token.id);
            self.stopped = self.stopped.or(stopped);
            self.speech.hear_token(&text);
            piece.tokens.push(token);
            piece.texts.push(text);
        }
    }

    /// The end of a sequence, with what was held back of its text.
    fn finish(&mut self, reason: FinishReason, mut stats: SequenceStats) -> End {
        let (rest, stopped) = self.text.finish();
        self.speech.hear(&rest);
        let stopped = self.stopped.or(stopped).map(|place| self.text.stop(place).to_owned());
        let stop = match reason {
            FinishReason::StopToken(id) => Some(StopReason::Token(id)),
            _ => stopped.map(StopReason::Text),
        };
        let stop = stop.filter(|_| !self.prompt_only);
        let reason = match reason {
            FinishReason::Error(reason) => Err(ApiError::internal(reason)),
            FinishReason::Overdue if stats.rounds.generated_tokens == 0 => Err(ApiError::overdue()),
            FinishReason::GrammarError(reason) => {
                let of_text = self.text_form.filter(|_| !self.speech.has_called());
                let field = of_text.or(self.form).unwrap_or("response_format");
                Err(ApiError::invalid(field, format!("`{field}`: {reason}")))
            }
            _ if self.prompt_only => {
                stats.rounds.generated_tokens = 0;
                Ok(wire::FinishReason::Length)
            }
            FinishReason::Length | FinishReason::Overdue if stop.is_none() => {
                Ok(wire::FinishReason::Length)
            }
            _ => Ok(wire::FinishReason::Stop),
        };
        let mean_logprob = self.drawn.1 / self.drawn.0.max(1) as f32;
        let reasoning_tokens = self.speech.reasoning_tokens();
        End { reason, stop, reasoning_tokens, mean_logprob, stats }
    }
}
