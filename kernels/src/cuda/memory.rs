//! Memory of a device, and of the host beside it.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{DriverError, result};

use super::calls::Address;
use super::device::failed;
use super::{CudaError, Device};

/// An error of an allocation of so many bytes; `free` are those of the memory that it was to come from.
fn lacking(
    what: &'static str,
    bytes: usize,
    free: impl Fn() -> Option<usize>,
) -> impl Fn(DriverError) -> CudaError {
    move |error| match failed(what)(error) {
        CudaError::OutOfMemory { .. } => {
            CudaError::OutOfMemory { what, bytes: Some(bytes), free: free() }
        }
        other => other,
    }
}

/// Memory of a device.
pub(super) struct Memory {
    pub(super) device: Arc<Device>,
    pub(super) address: Address,
    pub(super) bytes: usize,
}

impl Memory {
    /// No memory.
    pub(super) fn none(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), address: 0, bytes: 0 }
    }

    /// So many bytes; contents are undefined.
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        if bytes == 0 {
            return Ok(Self::none(device));
        }
        device.enter()?;
        // SAFETY: nothing is read before it is written: whoever copies or launches sees to that.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(lacking(
            "an allocation",
            bytes,
            || Some(device.memory().ok()?.0),
        ))?;
        Ok(Self { device: Arc::clone(device), address, bytes })
    }

    /// Makes room for `bytes`. Where there was less, contents are undefined then; where there is not as much, nothing
    /// is left.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), CudaError> {
        if bytes > self.bytes {
            // What was there may be what is lacking.
            *self = Self::none(&self.device);
            *self = Self::new(&self.device, bytes)?;
        }
        Ok(())
    }

    /// The same, with room for more the next time.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), CudaError> {
        if bytes > self.bytes { self.reserve(bytes.next_power_of_two()) } else { Ok(()) }
    }

    /// Sets the first `bytes` to zero.
    pub(super) fn fill_zero(&mut self, bytes: usize) -> Result<(), CudaError> {
        assert!(bytes <= self.bytes, "{bytes} bytes of {}", self.bytes);
        if bytes == 0 {
            return Ok(());
        }
        self.device.enter()?;
        let stream = self.device.stream.cu_stream();
        // SAFETY: the memory is the device's and has as many bytes.
        unsafe { result::memset_d8_async(self.address, 0, bytes, stream) }
            .map_err(failed("clearing memory"))
    }

    /// Copies `bytes` to the start of the memory, and waits for it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CudaError> {
        self.write_at(0, bytes)
    }

    /// The same, to `offset` bytes behind the start.
    pub(super) fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(offset + bytes.len() <= self.bytes, "{} bytes into {}", bytes.len(), self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        self.device.enter()?;
        let (to, stream) = (self.address + offset as u64, self.device.stream.cu_stream());
        // SAFETY: both hold as many bytes, and the host's outlive the copy, which is waited for.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, stream) };
        let done = self.device.synchronize();
        copied.map_err(failed("copying to the device"))?;
        done
    }

    /// Starts a copy of `bytes` of other memory of the same device, which lie `from_offset` bytes behind its start, to
    /// `offset` bytes behind the start of this.
    ///
    /// # Panics
    /// If one of them does not have as many bytes, or they are on two devices.
    pub(super) fn copy(
        &mut self,
        offset: usize,
        from: &Self,
        from_offset: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        assert!(Arc::ptr_eq(&self.device, &from.device), "memory of two devices");
        assert!(offset + bytes <= self.bytes, "{bytes} bytes into {}", self.bytes);
        assert!(from_offset + bytes <= from.bytes, "{bytes} bytes of {}", from.bytes);
        self.device.enter()?;
        let (to, from) = (self.address + offset as u64, from.address + from_offset as u64);
        // SAFETY: both have as many bytes there and are two allocations, which wait for the copy before they are freed.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.device.stream.cu_stream()) }
            .map_err(failed("copying on the device"))
    }

    /// Starts a copy of what lies `offset` bytes behind the start.
    ///
    /// # Safety
    /// `to` stays, and nobody touches it, until the device was waited for.
    ///
    /// # Panics
    /// If there are not as many bytes.
    pub(super) unsafe fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), CudaError> {
        assert!(offset + to.len() <= self.bytes, "{} bytes of {}", to.len(), self.bytes);
        self.device.enter()?;
        let stream = self.device.stream.cu_stream();
        // SAFETY: the memory has as many bytes there; the rest is the caller's.
        unsafe { result::memcpy_dtoh_async(to, self.address + offset as u64, stream) }
            .map_err(failed("copying from the device"))
    }
}

impl Memory {
    /// Copies what lies `offset` bytes behind the start, once everything before is done.
    ///
    /// # Errors
    /// What went wrong in the kernels before, or in the copy.
    ///
    /// # Panics
    /// If there are not as many bytes.
    pub(super) fn read_now(&self, offset: usize, to: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: the bytes are borrowed until the copy is done, just below.
        let started = unsafe { self.read(offset, to) };
        // Waits even if the copy did not start, so that nothing writes to the bytes later.
        let done = self.device.synchronize();
        started.and(done)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // What still runs may use it. A device that failed keeps its memory until the program ends.
        if self.bytes > 0 && self.device.synchronize().is_ok() {
            // SAFETY: allocated by its counterpart, and used by nothing.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Memory of the host, to which copies are fast.
pub(super) struct HostMemory {
    device: Arc<Device>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory is the process's, whichever thread made it.
unsafe impl Send for HostMemory {}
// SAFETY: it changes through `&mut` alone.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// So many bytes, or one; zeroed.
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        device.enter()?;
        let bytes = bytes.max(1);
        // SAFETY: the memory is written just below. Without flags, it is cached as other memory is.
        let pointer = unsafe { result::malloc_host(bytes, 0) }.map_err(lacking(
            "memory of the host that it reads",
            bytes,
            || None,
        ))?;
        // SAFETY: there are as many bytes.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { device: Arc::clone(device), pointer, bytes })
    }

    /// The bytes, aligned as for any number.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: there are as many bytes, all written.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // A copy that still runs may write to it.
        if self.device.synchronize().is_ok() {
            // SAFETY: allocated by its counterpart, and used by nothing.
            let _ = unsafe { result::free_host(self.pointer) };
        }
    }
}
