//! The LoRA adapters of a served model, which may come and go while it serves.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::loading::{AdapterLoader, LoadedAdapter};
use crate::model::AdapterWeights;

/// The adapters of a served model.
#[derive(Default)]
pub(super) struct Adapters {
    /// `None` where none can be loaded.
    pub(super) loader: Option<AdapterLoader>,
    all: RwLock<Arc<[Arc<ServedAdapter>]>>,
}

/// An adapter that requests may ask. It is in memory while it is served, and then until the last request that asked it
/// has ended.
#[derive(Debug)]
pub(super) struct ServedAdapter {
    loaded: LoadedAdapter,
    /// When it was loaded, in seconds since 1970.
    pub(super) since: u64,
}

impl ServedAdapter {
    pub(super) fn new(loaded: LoadedAdapter) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        Self { loaded, since }
    }

    /// Its name in the API.
    pub(super) fn name(&self) -> &str {
        &self.loaded.name
    }

    /// Its folder.
    pub(super) fn folder(&self) -> String {
        self.loaded.path.display().to_string()
    }

    /// Its factors.
    pub(super) fn weights(&self) -> Arc<AdapterWeights> {
        Arc::clone(&self.loaded.weights)
    }
}

impl Adapters {
    /// Those that a model begins with.
    pub(super) fn new(first: Vec<LoadedAdapter>, loader: Option<AdapterLoader>) -> Self {
        let all = first.into_iter().map(|loaded| Arc::new(ServedAdapter::new(loaded)));
        Self { loader, all: RwLock::new(all.collect()) }
    }

    /// All of them, in the order of their first loading.
    pub(super) fn all(&self) -> Arc<[Arc<ServedAdapter>]> {
        Arc::clone(&self.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one of this name.
    pub(super) fn named(&self, name: &str) -> Option<Arc<ServedAdapter>> {
        self.all().iter().find(|adapter| adapter.name() == name).cloned()
    }

    /// Serves an adapter, in place of the one of its name where there is one.
    pub(super) fn put(&self, adapter: ServedAdapter) {
        let adapter = Arc::new(adapter);
        self.change(|all| match all.iter_mut().find(|it| it.name() == adapter.name()) {
            Some(same) => *same = adapter,
            None => all.push(adapter),
        });
    }

    /// Serves the adapter of this name no longer; whether there was one.
    pub(super) fn remove(&self, name: &str) -> bool {
        self.change(|all| {
            let before = all.len();
            all.retain(|adapter| adapter.name() != name);
            all.len() < before
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<ServedAdapter>>) -> T) -> T {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = all.to_vec();
        let done = change(&mut changed);
        *all = changed.into();
        done
    }
}
