//! What `generate` has written, and what is left of its time.

use std::time::Instant;

use anyhow::Result;

use super::args::Args;
use super::clock::Clock;
use super::writer::Writer;
use crate::shared::progress::Progress;

/// What has been written, and what is left of the time.
pub(super) struct Work<'a> {
    pub(super) args: &'a Args,
    pub(super) writer: Writer,
    pub(super) clock: Clock,
    pub(super) progress: Progress,
    pub(super) started: Instant,
    pub(super) tokens: usize,
    /// Prompts that were too long.
    pub(super) skipped: usize,
}

impl Work<'_> {
    pub(super) fn is_late(&self) -> bool {
        self.args.minutes.is_some_and(|minutes| self.clock.seconds() > minutes * 60.0)
    }

    pub(super) fn show(&mut self) -> Result<()> {
        let (written, tokens) = (self.writer.written, self.tokens);
        let done = self.args.minutes.map_or(written as u64, |_| self.clock.seconds() as u64);
        let speed = tokens as f64 / self.started.elapsed().as_secs_f64();
        self.progress.set(done, format!("{written} answers, {tokens} tokens, {speed:.0}/s"));
        self.clock.save_now_and_then()
    }
}
