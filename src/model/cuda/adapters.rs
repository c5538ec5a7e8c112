//! LoRA adapters in a device's memory.
//!
//! Whoever holds an adapter last gives it up, on any thread and at any time; its memory is freed only where no pass is
//! recorded: before the next pass of its model, or before another adapter is loaded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use pleach_kernels::cuda::{CudaError, Device, LowRankAdapter, LowRankLayout};

/// Where adapters of a model lie on its device.
#[derive(Clone)]
pub struct CudaAdapters {
    device: Arc<Device>,
    /// Those that nobody holds any more.
    given_up: Arc<Mutex<Vec<LowRankAdapter>>>,
}

/// The factors of an adapter on a device.
pub(in crate::model) struct CudaAdapter {
    /// There until it is given up.
    factors: Option<LowRankAdapter>,
    given_up: Arc<Mutex<Vec<LowRankAdapter>>>,
}

impl CudaAdapters {
    pub(super) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), given_up: Arc::default() }
    }

    /// Copies an adapter to the device, on which work must not be recorded meanwhile.
    pub(in crate::model) fn load(&self, layout: &LowRankLayout) -> Result<CudaAdapter, CudaError> {
        let factors = Some(LowRankAdapter::new(&self.device, layout)?);
        Ok(CudaAdapter { factors, given_up: Arc::clone(&self.given_up) })
    }

    /// Frees the memory of adapters that were given up, while no work on the device is recorded; gives what the device has
    /// free then, in bytes.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free(&self) -> Result<usize, CudaError> {
        self.forget();
        Ok(self.device.memory()?.0)
    }

    /// Memory of adapters that were given up and are not freed yet.
    #[must_use]
    pub fn given_up_bytes(&self) -> usize {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.iter().map(LowRankAdapter::bytes).sum()
    }

    /// Frees the memory of adapters that were given up.
    pub(super) fn forget(&self) {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let freed = std::mem::take(&mut *given_up);
        drop(given_up);
        drop(freed);
    }
}

impl CudaAdapter {
    pub(super) fn factors(&self) -> &LowRankAdapter {
        self.factors.as_ref().expect("invariant: there until it is dropped")
    }

    /// Memory of the device that it takes.
    pub(in crate::model) fn bytes(&self) -> usize {
        self.factors().bytes()
    }
}

impl Drop for CudaAdapter {
    fn drop(&mut self) {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).extend(self.factors.take());
    }
}

impl fmt::Debug for CudaAdapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaAdapters").field("device", &self.device).finish_non_exhaustive()
    }
}
