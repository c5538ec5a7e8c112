//! Small copies to a device that nobody waits for.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, result};

use super::device::failed;
use super::memory::{HostMemory, Memory};
use super::{CudaError, Device, Tensor};

/// Bytes of the largest copy that is not waited for.
const MOST: usize = 256 << 10;

const WHAT: &str = "copying to the device";

/// Memory of the host that copies to a device start from: the host goes on, and may change what it gave.
pub struct Staging {
    memory: HostMemory,
    /// Behind the last copy.
    sent: CudaEvent,
}

impl Staging {
    /// Takes the host's memory for the largest copy.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self { memory: HostMemory::new(device, MOST)?, sent: device.event()? })
    }

    /// Gives the first rows of a tensor these values, rounded to its format.
    ///
    /// # Errors
    /// What went wrong before, or in starting the copy.
    ///
    /// # Panics
    /// If there are more than the tensor has.
    pub fn send_values(&mut self, values: &[f32], to: &mut Tensor) -> Result<(), CudaError> {
        let bytes = to.bytes_of(values);
        self.send(&bytes, &mut to.memory)
    }

    /// Starts a copy of `bytes` to the start of `to`, of the same device; waits for it where there are more than [`MOST`].
    ///
    /// # Errors
    /// What went wrong in the kernels before the last copy, or in starting this one.
    ///
    /// # Panics
    /// If there is less memory.
    pub(super) fn send(&mut self, bytes: &[u8], to: &mut Memory) -> Result<(), CudaError> {
        if bytes.len() > MOST {
            return to.write(bytes);
        }
        assert!(bytes.len() <= to.bytes, "{} bytes into {}", bytes.len(), to.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        self.sent.synchronize().map_err(failed("a pass"))?;
        let staged = &mut self.memory.bytes_mut()[..bytes.len()];
        staged.copy_from_slice(bytes);
        to.device.enter()?;
        let stream = &to.device.stream;
        // SAFETY: both hold as many bytes. The host's change behind `sent` alone, and are freed when the device was
        // waited for, as are the device's.
        let started = unsafe { result::memcpy_htod_async(to.address, staged, stream.cu_stream()) };
        let recorded = started.and_then(|()| self.sent.record(stream));
        recorded.or_else(|error| {
            // Nothing tells when a copy that may have started ends.
            to.device.synchronize()?;
            Err(failed(WHAT)(error))
        })
    }
}
