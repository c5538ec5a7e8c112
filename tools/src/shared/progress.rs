//! How far a command is.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar with the time left; where standard error is no terminal, a line every half minute.
pub(crate) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    printed: Option<Instant>,
}

impl Progress {
    /// `total` in the unit that [`set`](Self::set) counts in.
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template(
            "{prefix} {wide_bar} {percent:>3}% {elapsed}, {eta} left  {msg}",
        );
        bar.set_style(style.expect("a valid template"));
        bar.set_prefix(what);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, what, printed: None }
    }

    pub(crate) fn set(&mut self, done: u64, message: String) {
        self.bar.set_position(done);
        let due = self.printed.is_none_or(|at| at.elapsed() > Duration::from_secs(30));
        if due && !std::io::stderr().is_terminal() {
            self.printed = Some(Instant::now());
            let percent = 100 * done / self.bar.length().unwrap_or(1).max(1);
            eprintln!("{}: {percent} %  {message}", self.what);
        }
        self.bar.set_message(message);
    }

    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
