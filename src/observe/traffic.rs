//! Answers kept as they were served, so that a draft can be trained on what is really asked.
//!
//! A recorder gathers the answers of a sample of requests and writes them as files of JSON lines, each file
//! whole or not at all, the oldest removed where they would exceed their bound.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::checkpoint::write;
use crate::metrics::{RECORDED_ANSWERS, RECORDING_FAILURES};

/// One answer of the served model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The prompt as text, as the chat template wrote it.
    pub prompt: String,
    /// The answer as text.
    pub response: String,
    /// The prompt in tokens.
    pub prompt_tokens: Vec<u32>,
    /// The answer in tokens, its end-of-sequence token included.
    pub response_tokens: Vec<u32>,
    /// `stop` or `length`.
    pub finish_reason: String,
    /// Temperature the answer was drawn at.
    pub temperature: f32,
}

/// What is recorded, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Folder of the files; made, for its owner alone, where it does not exist.
    pub folder: PathBuf,
    /// Share of the requests, 0 to 1.
    pub share: f64,
    /// Bytes of all files at most.
    pub max_bytes: u64,
}

/// A file is written when it has so many bytes, or its first answer has waited so long.
const FILE_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers that wait to be written; further ones are left out.
const WAITING: usize = 64;
/// How the names of the files begin and end; between lie the milliseconds since 1970 and the process.
const NAME: (&str, &str) = ("traffic-", ".jsonl");

/// Writes what it is given on a thread of its own. Dropping it writes the rest.
#[derive(Debug)]
pub struct Recorder {
    share: f64,
    answers: Option<SyncSender<Recorded>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Starts recording.
    ///
    /// # Errors
    /// Where the folder cannot be made or the system has no thread left.
    pub fn start(recording: Recording) -> io::Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&recording.folder)?;
        let (answers, receiver) = mpsc::sync_channel(WAITING);
        let share = recording.share;
        let work = move || Files(recording).write_all(&receiver);
        let thread = std::thread::Builder::new().name("recorder".into()).spawn(work)?;
        Ok(Self { share, answers: Some(answers), thread: Some(thread) })
    }

    /// The recorder, where this request belongs to the sample.
    #[must_use]
    pub fn sample(self: &Arc<Self>) -> Option<Arc<Self>> {
        (fastrand::f64() < self.share).then(|| Arc::clone(self))
    }

    /// Takes an answer to be written. Never waits: where the disk does not keep up, it is left out.
    pub fn keep(&self, answer: Recorded) {
        let full = self.answers.as_ref().is_none_or(|answers| answers.try_send(answer).is_err());
        if full {
            metrics::counter!(RECORDING_FAILURES).increment(1);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.answers = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Files(Recording);

impl Files {
    fn write_all(&self, answers: &Receiver<Recorded>) {
        let enough = FILE_BYTES.min(self.0.max_bytes / 4);
        let (mut lines, mut count, mut since) = (Vec::new(), 0, Instant::now());
        loop {
            let wait = if count == 0 { PATIENCE } else { PATIENCE.saturating_sub(since.elapsed()) };
            let next = answers.recv_timeout(wait);
            if let Ok(answer) = &next {
                if count == 0 {
                    since = Instant::now();
                }
                serde_json::to_writer(&mut lines, answer).expect("answers are JSON");
                lines.push(b'\n');
                count += 1;
            }
            let ended = next == Err(RecvTimeoutError::Disconnected);
            let due = lines.len() as u64 >= enough || since.elapsed() >= PATIENCE || ended;
            if count > 0 && due {
                match self.write(&lines) {
                    Ok(()) => metrics::counter!(RECORDED_ANSWERS).increment(count),
                    Err(error) => {
                        tracing::warn!(%error, answers = count, "recorded answers are lost");
                        metrics::counter!(RECORDING_FAILURES).increment(count);
                    }
                }
                lines.clear();
                count = 0;
            }
            if ended {
                return;
            }
        }
    }

    fn write(&self, lines: &[u8]) -> io::Result<()> {
        let Recording { folder, max_bytes, .. } = &self.0;
        let room = max_bytes.checked_sub(lines.len() as u64).ok_or_else(|| {
            io::Error::other(format!("an answer has {} bytes, the bound is lower", lines.len()))
        })?;
        let mut files = Vec::new();
        for path in files_of(folder)? {
            files.push((std::fs::metadata(&path)?.len(), path));
        }
        let mut used: u64 = files.iter().map(|(bytes, _)| bytes).sum();
        for (bytes, path) in files {
            if used <= room {
                break;
            }
            std::fs::remove_file(path)?;
            used -= bytes;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
        let name = format!("{}{now:013}-{}{}", NAME.0, std::process::id(), NAME.1);
        write::atomically(&folder.join(name), |file| file.write_all(lines))
            .map_err(io::Error::other)
    }
}

/// The files of a folder of recorded traffic, the oldest first.
///
/// # Errors
/// What the file system says.
pub fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(NAME.0) && name.ends_with(NAME.1) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(folder: &Path, max_bytes: u64) -> Arc<Recorder> {
        let recording = Recording { folder: folder.join("new"), share: 1.0, max_bytes };
        Arc::new(Recorder::start(recording).unwrap())
    }

    fn answer(id: u32) -> Recorded {
        Recorded { prompt_tokens: vec![id; 300], ..Recorded::default() }
    }

    fn kept(folder: &Path) -> Vec<u32> {
        let files = files_of(&folder.join("new")).unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        let lines = files
            .into_iter()
            .flat_map(|path| read(path).lines().map(str::to_owned).collect::<Vec<_>>());
        lines
            .map(|line| serde_json::from_str::<Recorded>(&line).unwrap().prompt_tokens[0])
            .collect()
    }

    #[test]
    fn what_is_kept_is_written_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder(folder.path(), 1 << 20);
        let sampled = recorder.sample().unwrap();
        (0..5).for_each(|id| sampled.keep(answer(id)));
        drop(recorder);
        assert!(kept(folder.path()).is_empty());
        drop(sampled);
        assert_eq!(kept(folder.path()), [0, 1, 2, 3, 4]);
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.path().join("new")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "nobody else reads it");
    }

    #[test]
    fn the_oldest_files_make_room() {
        let folder = tempfile::tempdir().unwrap();
        // Answers of about 1,000 bytes.
        for id in 10..30 {
            recorder(folder.path(), 4500).keep(answer(id));
            std::thread::sleep(Duration::from_millis(2));
        }
        let kept = kept(folder.path());
        assert!((3..=4).contains(&kept.len()) && kept.last() == Some(&29), "{kept:?}");
        assert!(kept.is_sorted_by(|a, b| a + 1 == *b), "{kept:?}");
        // One that exceeds the bound by itself is not worth all others.
        recorder(folder.path(), 500).keep(answer(30));
        assert_eq!(*super::tests::kept(folder.path()).last().unwrap(), 29);
    }

    #[test]
    fn a_sample_is_a_share() {
        let folder = tempfile::tempdir().unwrap();
        let share = |share| Recording { folder: folder.path().into(), share, max_bytes: 0 };
        let none = Arc::new(Recorder::start(share(0.0)).unwrap());
        assert!((0..100).all(|_| none.sample().is_none()));
        let half = Arc::new(Recorder::start(share(0.5)).unwrap());
        let sampled = (0..1000).filter(|_| half.sample().is_some()).count();
        assert!((400..600).contains(&sampled), "{sampled}");
    }
}
