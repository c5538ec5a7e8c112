//! API keys: whose requests they are, and how much each may use.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, mpsc};

use crate::cli::toml_file::{self, FileError};
use crate::engine::Event;
use crate::metrics::KEY_TOKENS;

tokio::task_local! {
    /// The key of the request being handled; not set where no key is needed.
    pub(super) static CALLER: Arc<Key>;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    key: String,
    max_concurrent_requests: Option<usize>,
    tokens_per_minute: Option<u32>,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each names its own fault")]
pub enum KeysError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{setting} {reason}")]
    Setting { setting: &'static str, reason: &'static str },
}

/// All keys. Only their digests are kept.
pub(super) struct Keys(Vec<Arc<Key>>);

/// One key, and what it may use.
pub(super) struct Key {
    name: String,
    digest: [u8; 32],
    pub(super) slots: Option<Arc<Semaphore>>,
    allowance: Option<Mutex<Allowance>>,
}

/// Tokens that may be used; a minute's worth at most, refilled all the time.
struct Allowance {
    per_minute: f64,
    left: f64,
    at: Instant,
}

impl Keys {
    /// The keys of a TOML file of `[[key]]` tables, and one without limits, with the setting it comes from.
    pub(super) fn open(
        file: Option<&Path>,
        single: Option<(&'static str, &str)>,
    ) -> Result<Self, KeysError> {
        let mut keys = Vec::new();
        if let Some(path) = file {
            let invalid = |reason| FileError::invalid(path, reason);
            let file: File = toml_file::read(path)?;
            for entry in file.key {
                if entry.name.trim().is_empty() {
                    return Err(invalid("`name` must not be empty or blank".into()).into());
                }
                let name = entry.name.clone();
                let key = Key::new(entry)
                    .map_err(|reason| invalid(format!("the `key` of `{name}` {reason}")))?;
                let twice = |other: &Arc<Key>| other.name == key.name || other.digest == key.digest;
                if keys.iter().any(twice) {
                    let reason = format!("`{}` or its key is there twice", key.name);
                    return Err(invalid(reason).into());
                }
                keys.push(Arc::new(key));
            }
        }
        if let Some((setting, key)) = single {
            let (name, key) = ("default".into(), key.into());
            let entry = Entry { name, key, max_concurrent_requests: None, tokens_per_minute: None };
            let key = Key::new(entry).map_err(|reason| KeysError::Setting { setting, reason })?;
            keys.push(Arc::new(key));
        }
        Ok(Self(keys))
    }

    /// The key that a request carries. Takes as long for any wrong key.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<&Arc<Key>> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let bearer = bearer.and_then(|value| value.trim_start().split_once(' '));
        // A scheme's case does not matter (RFC 9110, section 11.1).
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let bearer = bearer.map(|(_, key)| key);
        let given = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())?;
        let digest: [u8; 32] = Sha256::digest(given.trim()).into();
        self.0.iter().fold(
            None,
            |found, key| {
                if key.digest.ct_eq(&digest).into() { Some(key) } else { found }
            },
        )
    }
}

impl Key {
    /// A key as configured, without the white space that files and secrets leave around it; or why no request
    /// could carry it.
    fn new(entry: Entry) -> Result<Self, &'static str> {
        let key = entry.key.trim();
        if key.is_empty() {
            return Err("must not be empty or blank: anybody could send it");
        }
        if !key.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err("must be printable ASCII: no request could carry it");
        }
        let allowance = |tokens: u32| Allowance {
            per_minute: tokens.into(),
            left: tokens.into(),
            at: Instant::now(),
        };
        Ok(Self {
            digest: Sha256::digest(key).into(),
            name: entry.name,
            slots: entry
                .max_concurrent_requests
                .map(|n| Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS)))),
            allowance: entry.tokens_per_minute.map(|tokens| Mutex::new(allowance(tokens))),
        })
    }

    fn charge(&self, tokens: usize) {
        metrics::counter!(KEY_TOKENS, "key" => self.name.clone()).increment(tokens as u64);
        if let Some(allowance) = &self.allowance {
            let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
            allowance.refill(Instant::now());
            allowance.left -= tokens as f64;
        }
    }

    /// Whether any allowance is left; else the seconds until it is.
    pub(super) fn admit(&self) -> Result<(), u64> {
        let Some(allowance) = &self.allowance else { return Ok(()) };
        let mut allowance = allowance.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.refill(Instant::now());
        if allowance.left > 0.0 { Ok(()) } else { Err(allowance.seconds_until_positive()) }
    }
}

impl Allowance {
    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + seconds * self.per_minute / 60.0).min(self.per_minute);
        self.at = now;
    }

    fn seconds_until_positive(&self) -> u64 {
        let seconds = -self.left * 60.0 / self.per_minute.max(1.0);
        (seconds.ceil() as u64).clamp(1, 3600)
    }
}

/// A sequence's events, charged to the key that asked for it.
pub(super) struct Metered {
    events: mpsc::Receiver<Event>,
    key: Option<Arc<Key>>,
}

impl Metered {
    pub(super) fn new(prompt_tokens: usize, events: mpsc::Receiver<Event>) -> Self {
        let key = CALLER.try_with(Arc::clone).ok();
        if let Some(key) = &key {
            key.charge(prompt_tokens);
        }
        Self { events, key }
    }

    pub(super) async fn recv(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        if let (Some(key), Some(Event::Tokens(tokens))) = (&self.key, &event) {
            key.charge(tokens.len());
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_refills_with_time_up_to_a_minutes_worth() {
        let start = Instant::now();
        let mut allowance = Allowance { per_minute: 60.0, left: 60.0, at: start };
        allowance.left -= 100.0;
        assert_eq!(allowance.seconds_until_positive(), 40);
        allowance.refill(start + Duration::from_secs(41));
        assert!((allowance.left - 1.0).abs() < 1e-6);
        allowance.refill(start + Duration::from_secs(4000));
        assert!((allowance.left - 60.0).abs() < 1e-6);
    }
}
