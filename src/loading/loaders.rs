//! What is loaded of a model after it began to serve.

use super::adapters::{AdapterLoader, LoadedBeside};
use super::drafts::DraftLoader;
use crate::memory::Reserved;

/// What loads things of a model that serves.
#[derive(Clone)]
pub struct Loaders {
    /// Further drafts.
    pub drafts: DraftLoader,
    /// Further LoRA adapters.
    pub adapters: AdapterLoader,
}

impl Loaders {
    /// Tells them of the caches of all engines that serve, and of the adapters that are loaded beside them.
    pub(super) fn beside(&mut self, caches: Reserved, loaded: &LoadedBeside) {
        if let DraftLoader::Cpu(drafts) = &mut self.drafts {
            (drafts.caches, drafts.loaded) = (caches, loaded.clone());
        }
        (self.adapters.caches, self.adapters.loaded) = (caches, loaded.clone());
    }
}
