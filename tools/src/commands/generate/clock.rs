//! Time spent on answers over several starts.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pleach::checkpoint::write::atomically;

/// Time spent, kept in a file from one start to the next.
pub(crate) struct Clock {
    path: PathBuf,
    /// Seconds of the starts before.
    before: f64,
    started: Instant,
    saved: Instant,
}

impl Clock {
    const EVERY: Duration = Duration::from_secs(5);

    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let before = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == ErrorKind::NotFound => 0.0,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { path, before, started: Instant::now(), saved: Instant::now() })
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn save_now_and_then(&mut self) -> Result<()> {
        if self.saved.elapsed() > Self::EVERY {
            self.saved = Instant::now();
            let seconds = self.seconds();
            atomically(&self.path, |writer| writeln!(writer, "{seconds:.1}"))?;
        }
        Ok(())
    }

    pub(crate) fn forget(self) {
        let _ = std::fs::remove_file(self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spent_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seconds");
        let mut clock = Clock::open(path.clone()).unwrap();
        assert!(clock.seconds() < 5.0);
        (clock.before, clock.saved) = (60.0, Instant::now() - 2 * Clock::EVERY);
        clock.save_now_and_then().unwrap();
        let again = Clock::open(path.clone()).unwrap();
        assert!((60.0..65.0).contains(&again.seconds()));
        again.forget();
        assert!(!path.exists());
        std::fs::write(&path, "soon").unwrap();
        assert!(Clock::open(path).is_err());
    }
}
