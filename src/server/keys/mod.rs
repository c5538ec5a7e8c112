//! API keys: whose requests they are, and how much each may use.

mod allowance;
mod file;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, mpsc};

use crate::cli::toml_file::FileError;
use crate::engine::Event;
use crate::kv_cache::CacheSalt;
use crate::metrics::KEY_TOKENS;
use allowance::Allowance;
use file::Entry;

tokio::task_local! {
    /// The key of the request being handled; not set where no key is needed.
    pub(super) static CALLER: Arc<Key>;
}

/// Headers that say what a key may use at most, what of it is left, and how long until all of it is.
pub(super) const LIMIT_HEADERS: [&str; 6] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

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
pub(super) struct Keys {
    file: Option<PathBuf>,
    /// The key that is in no file.
    single: Option<Arc<Key>>,
    all: RwLock<Arc<[Arc<Key>]>>,
}

/// One key, and what it may use.
pub(super) struct Key {
    name: String,
    digest: [u8; 32],
    limits: Limits,
    pub(super) slots: Option<Arc<Semaphore>>,
    allowance: Option<Mutex<Allowance>>,
}

/// What a key may do.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Limits {
    requests: Option<usize>,
    tokens_per_minute: Option<u32>,
    priority: bool,
}

impl Keys {
    /// The keys of a TOML file of `[[key]]` tables, and one without limits, with the setting it comes from.
    pub(super) fn open(
        file: Option<&Path>,
        single: Option<(&'static str, &str)>,
    ) -> Result<Self, KeysError> {
        let single = single.map(|(setting, key)| {
            let (name, key, priority) = ("default".into(), key.into(), true);
            let (max_concurrent_requests, tokens_per_minute) = (None, None);
            let key =
                Key::new(Entry { name, key, max_concurrent_requests, tokens_per_minute, priority });
            key.map_err(|reason| KeysError::Setting { setting, reason })
        });
        let single = single.transpose()?.map(Arc::new);
        let keys = Self { file: file.map(Into::into), single, all: RwLock::new([].into()) };
        keys.reload()?;
        Ok(keys)
    }

    /// Reads the file again, and gives the number of its keys, where there is one. A key that has not changed goes on
    /// with what it has used; all stay as they are where the file is of no use.
    pub(super) fn reload(&self) -> Result<Option<usize>, FileError> {
        let known = self.all();
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for entry in self.file.as_deref().map_or(Ok(Vec::new()), file::read)? {
            let invalid =
                |reason| FileError::invalid(self.file.as_deref().unwrap_or(Path::new("")), reason);
            let name = entry.name.clone();
            let key = Key::new(entry)
                .map_err(|reason| invalid(format!("the `key` of `{name}` {reason}")))?;
            let twice = |other: &Key| other.name == name || other.digest == key.digest;
            if keys.iter().any(|other| twice(other)) {
                return Err(invalid(format!("`{name}` or its key is there twice")));
            }
            if self.single.as_deref().is_some_and(twice) {
                let reason =
                    format!("`{name}` or its key is that of `--api-key` (named `default`)");
                return Err(invalid(reason));
            }
            let same = known.iter().find(|other| other.is(&key)).cloned();
            keys.push(same.unwrap_or_else(|| Arc::new(key)));
        }
        let count = self.file.is_some().then_some(keys.len());
        keys.extend(self.single.clone());
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
        Ok(count)
    }

    fn all(&self) -> Arc<[Arc<Key>]> {
        Arc::clone(&self.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key that a request carries. Takes as long for any wrong key.
    pub(super) fn find(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let bearer = bearer.and_then(|value| value.trim_start().split_once(' '));
        // A scheme's case does not matter (RFC 9110, section 11.1).
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let bearer = bearer.map(|(_, key)| key);
        let given = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())?;
        let digest: [u8; 32] = Sha256::digest(given.trim()).into();
        let all = self.all();
        let found =
            all.iter().fold(
                None,
                |found, key| {
                    if key.digest.ct_eq(&digest).into() { Some(key) } else { found }
                },
            );
        found.cloned()
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
        let limits = Limits {
            requests: entry.max_concurrent_requests.map(|n| n.min(Semaphore::MAX_PERMITS)),
            tokens_per_minute: entry.tokens_per_minute,
            priority: entry.priority,
        };
        let allowance = |tokens| Mutex::new(Allowance::new(tokens, Instant::now()));
        Ok(Self {
            digest: Sha256::digest(key).into(),
            name: entry.name,
            limits,
            slots: limits.requests.map(|n| Arc::new(Semaphore::new(n))),
            allowance: limits.tokens_per_minute.map(allowance),
        })
    }

    /// Whether it is the same key with the same limits.
    fn is(&self, other: &Self) -> bool {
        (&self.name, self.digest, self.limits) == (&other.name, other.digest, other.limits)
    }

    fn charge(&self, tokens: usize) {
        metrics::counter!(KEY_TOKENS, "key" => self.name.clone()).increment(tokens as u64);
        self.with_allowance(|allowance| allowance.charge(tokens));
    }

    /// Whether any allowance is left; else the seconds until it is.
    pub(super) fn admit(&self) -> Result<(), u64> {
        self.with_allowance(|allowance| allowance.admit()).unwrap_or(Ok(()))
    }

    /// Says what of its limits is left, as OpenAI does.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let mut tell = |names: &[&'static str], values: [HeaderValue; 3]| {
            headers.extend(names.iter().map(|name| HeaderName::from_static(name)).zip(values));
        };
        if let (Some(limit), Some(slots)) = (self.limits.requests, &self.slots) {
            // A place is free as soon as a request ends, which nobody knows: what a refused one is told.
            let left = slots.available_permits();
            tell(&LIMIT_HEADERS[..3], [limit.into(), left.into(), HeaderValue::from_static("1s")]);
        }
        let tokens = |allowance: &mut Allowance| {
            (allowance.left(), duration(allowance.seconds_until_full()))
        };
        if let (Some(limit), Some((left, reset))) =
            (self.limits.tokens_per_minute, self.with_allowance(tokens))
        {
            tell(&LIMIT_HEADERS[3..], [limit.into(), left.into(), reset]);
        }
    }

    /// Does something with the allowance as it is now, where the key has one.
    fn with_allowance<T>(&self, work: impl FnOnce(&mut Allowance) -> T) -> Option<T> {
        let mut allowance = self.allowance.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        allowance.refill(Instant::now());
        Some(work(&mut allowance))
    }
}

/// Seconds in OpenAI's words, such as `2m5s`.
fn duration(seconds: u64) -> HeaderValue {
    let text = match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    };
    HeaderValue::try_from(text).expect("invariant: digits and letters")
}

/// Whether the request being handled may say when it runs, before or behind those of others.
pub(super) fn may_prioritize() -> bool {
    CALLER.try_with(|key| key.limits.priority).unwrap_or(true)
}

/// What sets the prefix cache of the request being handled apart: its key, and what it gives itself.
pub(super) fn cache_salt(given: Option<&str>) -> Option<CacheSalt> {
    let owner = CALLER.try_with(|key| key.name.clone()).ok();
    (owner.is_some() || given.is_some())
        .then(|| CacheSalt::new(&owner.unwrap_or_default(), given.unwrap_or_default()))
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
    use super::*;

    #[test]
    fn durations_are_in_minutes_and_seconds() {
        assert_eq!([0, 59, 60, 125].map(duration), ["0s", "59s", "1m0s", "2m5s"]);
    }

    #[test]
    fn a_key_goes_on_with_what_it_has_used_unless_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let write = |limit: u32| {
            let text = format!("[[key]]\nname = \"a\"\nkey = \"x\"\ntokens_per_minute = {limit}\n");
            std::fs::write(&path, text).unwrap();
        };
        let carried = HeaderMap::from_iter([(
            HeaderName::from_static("x-api-key"),
            HeaderValue::from_static("x"),
        )]);
        write(50);
        let keys = Keys::open(Some(&path), None).unwrap();
        let key = keys.find(&carried).unwrap();
        key.charge(60);
        assert_eq!(keys.reload().unwrap(), Some(1));
        assert!(keys.find(&carried).unwrap().admit().is_err(), "it was full again");
        std::fs::write(&path, "[[key]]\nname = \"a\"\n").unwrap();
        let error = keys.reload().unwrap_err().to_string();
        assert!(error.contains("keys.toml") && error.contains("`key`"), "{error}");
        assert!(Arc::ptr_eq(&keys.find(&carried).unwrap(), &key));
        write(70);
        keys.reload().unwrap();
        assert!(keys.find(&carried).unwrap().admit().is_ok());
    }

    #[test]
    fn no_two_keys_are_or_are_named_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        for (first, second, single) in [
            ("a x", "a y", None),
            ("a x", "b x", None),
            ("a x", "default y", Some("z")),
            ("a x", "b y", Some("y")),
        ] {
            let table = |key: &str| {
                let (name, key) = key.split_once(' ').unwrap();
                format!("[[key]]\nname = \"{name}\"\nkey = \"{key}\"\n")
            };
            std::fs::write(&path, table(first) + &table(second)).unwrap();
            let single = single.map(|key| ("--api-key", key));
            let refused = Keys::open(Some(&path), single).err().unwrap().to_string();
            let name = second.split_once(' ').unwrap().0;
            assert!(refused.contains("keys.toml") && refused.contains(name), "{refused}");
        }
    }
}
