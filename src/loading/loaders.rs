//! What is loaded of a model after it began to serve.

use super::adapters::AdapterLoader;
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
    /// Tells them of the caches of all engines that serve.
    pub(super) fn beside(&mut self, caches: Reserved) {
        (self.drafts.caches, self.adapters.caches) = (caches, caches);
    }
}
