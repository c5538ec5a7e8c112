//! A device, its stream and its memory.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

use super::CudaError;
use super::ffi::{BAD_ARGUMENT, Kernels, OK};

/// One CUDA device with a stream on which all work happens in order.
pub struct Device {
    pub(super) kernels: Kernels,
    pub(super) stream: *mut c_void,
    index: i32,
    name: String,
}

// SAFETY: the functions may be called from any thread, and streams belong to the process.
unsafe impl Send for Device {}
// SAFETY: as above; nothing of the struct changes.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("index", &self.index).field("name", &self.name).finish()
    }
}

impl Device {
    /// Opens device number `index` with the kernels of this program.
    ///
    /// # Errors
    /// [`CudaError::NotBuilt`] in a build without the feature `cuda`, [`CudaError::NoDriver`],
    /// [`CudaError::NoDevice`], or what the driver says.
    pub fn open(index: usize) -> Result<Arc<Self>, CudaError> {
        Self::with_kernels(Kernels::linked()?, index)
    }

    /// Opens device number `index` with the kernels in a shared library built from `kernels/`.
    ///
    /// # Errors
    /// [`CudaError::Library`] if it holds no such kernels; as [`open`](Self::open).
    pub fn open_with(library: &Path, index: usize) -> Result<Arc<Self>, CudaError> {
        Self::with_kernels(Kernels::open(library)?, index)
    }

    fn with_kernels(kernels: Kernels, index: usize) -> Result<Arc<Self>, CudaError> {
        let mut count = 0;
        // SAFETY: the function writes one number.
        if unsafe { (kernels.pleach_device_count)(&raw mut count) } != OK {
            return Err(CudaError::NoDriver(error_text(&kernels)));
        }
        let count = usize::try_from(count).unwrap_or(0);
        if index >= count {
            return Err(CudaError::NoDevice { index, count });
        }
        let mut device = Self {
            kernels,
            stream: std::ptr::null_mut(),
            index: index as i32,
            name: String::new(),
        };
        device.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        let status = unsafe { (device.kernels.pleach_stream_create)(&raw mut stream) };
        device.check("making a stream", status)?;
        device.stream = stream;
        device.name = device.info()?.0;
        Ok(Arc::new(device))
    }

    /// What the device is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of memory that nothing uses.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        Ok(self.info()?.1)
    }

    fn info(&self) -> Result<(String, usize), CudaError> {
        self.enter()?;
        let (mut name, mut free, mut total) = ([0 as c_char; 256], 0i64, 0i64);
        // SAFETY: the function writes a name of at most 256 bytes, its end included, and two numbers.
        let status = unsafe {
            (self.kernels.pleach_device_info)(name.as_mut_ptr(), 256, &raw mut free, &raw mut total)
        };
        self.check("asking for the device's name", status)?;
        // SAFETY: the function ended the name with a zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok((name, usize::try_from(free).unwrap_or(0)))
    }

    /// Waits until everything started so far is done.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the stream is the device's own.
        let status = unsafe { (self.kernels.pleach_synchronize)(self.stream) };
        self.check("a pass", status)
    }

    /// Makes this the calling thread's device; before every other call.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the function takes any number.
        let status = unsafe { (self.kernels.pleach_use_device)(self.index) };
        self.check("choosing the device", status)
    }

    /// A status as a result.
    pub(super) fn check(&self, what: &'static str, status: c_int) -> Result<(), CudaError> {
        match status {
            OK => Ok(()),
            BAD_ARGUMENT => Err(CudaError::Argument {
                what,
                reason: "the kernel does not take these sizes".into(),
            }),
            _ => Err(CudaError::Failed { what, reason: error_text(&self.kernels) }),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.enter().is_ok() && !self.stream.is_null() {
            // SAFETY: nothing uses the stream any more: memory and tensors hold the device alive.
            let _ = unsafe { (self.kernels.pleach_stream_destroy)(self.stream) };
        }
    }
}

fn error_text(kernels: &Kernels) -> String {
    // SAFETY: the function returns a text that lasts as long as the program.
    unsafe { CStr::from_ptr((kernels.pleach_error_text)()) }.to_string_lossy().into_owned()
}

/// Memory of a device, or of the host beside it.
pub(super) struct Memory {
    pub(super) device: Arc<Device>,
    pub(super) pointer: *mut c_void,
    pub(super) bytes: usize,
    on_host: bool,
}

// SAFETY: memory is the process's, whichever thread made it.
unsafe impl Send for Memory {}
// SAFETY: it changes through `&mut` alone.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        Self::allocate(device, bytes, false)
    }

    /// Memory of the host, from and to which copies are fast; zeroed.
    pub(super) fn on_host(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        let memory = Self::allocate(device, bytes, true)?;
        // SAFETY: the memory is the host's and has as many bytes.
        unsafe { memory.pointer.cast::<u8>().write_bytes(0, memory.bytes) };
        Ok(memory)
    }

    fn allocate(device: &Arc<Device>, bytes: usize, on_host: bool) -> Result<Self, CudaError> {
        device.enter()?;
        let kernels = &device.kernels;
        let allocate = if on_host { kernels.pleach_allocate_host } else { kernels.pleach_allocate };
        let bytes = bytes.max(1);
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the function writes one pointer.
        let status = unsafe { allocate(&raw mut pointer, bytes as i64) };
        device.check("allocating memory", status)?;
        Ok(Self { device: Arc::clone(device), pointer, bytes, on_host })
    }

    /// Makes room for `bytes`; contents are undefined where there was less.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), CudaError> {
        if bytes > self.bytes {
            *self = Self::allocate(&self.device, bytes.next_power_of_two(), self.on_host)?;
        }
        Ok(())
    }

    /// Sets the first `bytes` to zero.
    pub(super) fn fill_zero(&mut self, bytes: usize) -> Result<(), CudaError> {
        assert!(bytes <= self.bytes && !self.on_host, "{bytes} bytes of {}", self.bytes);
        let device = &self.device;
        device.enter()?;
        // SAFETY: the memory is the device's and has as many bytes.
        let status =
            unsafe { (device.kernels.pleach_fill)(self.pointer, 0, bytes as i64, device.stream) };
        device.check("clearing memory", status)
    }

    /// Copies `bytes` to the start of the memory, and waits for it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(
            bytes.len() <= self.bytes && !self.on_host,
            "{} bytes into {}",
            bytes.len(),
            self.bytes
        );
        let device = &self.device;
        device.enter()?;
        let (from, count) = (bytes.as_ptr().cast(), bytes.len() as i64);
        // SAFETY: both hold as many bytes, and the host's outlive the copy.
        let status =
            unsafe { (device.kernels.pleach_upload)(self.pointer, from, count, device.stream) };
        device.check("copying to the device", status)?;
        device.synchronize()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let kernels = &self.device.kernels;
        let free = if self.on_host { kernels.pleach_free_host } else { kernels.pleach_free };
        // What still runs may use it. A device that failed keeps its memory until the program ends.
        if self.device.synchronize().is_ok() {
            // SAFETY: allocated by the function's counterpart, and used by nothing.
            let _ = unsafe { free(self.pointer) };
        }
    }
}
