//! A device and its stream: what the driver is asked for, through `cudarc`.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::io::Read;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use flate2::read::GzDecoder;

use super::CudaError;
use super::calls::{Kernel, Launch, Plan, Unfit};

/// The kernels as PTX, which the driver compiles for its device.
const IMAGES: [&[u8]; 5] = [
    include_bytes!("../../cuda/ptx/attention.ptx.gz"),
    include_bytes!("../../cuda/ptx/fused.ptx.gz"),
    include_bytes!("../../cuda/ptx/low_rank.ptx.gz"),
    include_bytes!("../../cuda/ptx/matmul.ptx.gz"),
    include_bytes!("../../cuda/ptx/verify.ptx.gz"),
];

/// One CUDA device with a stream on which all work happens in order.
pub struct Device {
    kernels: Kernels,
    pub(super) stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    name: String,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let index = self.context.ordinal();
        f.debug_struct("Device").field("index", &index).field("name", &self.name).finish()
    }
}

/// What the driver says of an error.
fn text(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    text.unwrap_or_else(|_| format!("error {}", error.0 as u32))
}

/// An error of the driver as one of `what`.
pub(super) fn failed(what: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            CudaError::OutOfMemory { what, bytes: None, free: None }
        }
        _ => CudaError::Failed { what, reason: text(error) },
    }
}

/// The launches of a plan, where the kernel takes its sizes.
fn fitting<A>(what: &'static str, plan: Plan<A>) -> Result<Vec<Launch<A>>, CudaError> {
    let reason = "the kernel does not take these sizes";
    plan.map_err(|Unfit| CudaError::Argument { what, reason: reason.into() })
}

impl Device {
    /// How many devices there are.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] where there is no driver, or one that finds no device.
    pub fn count() -> Result<usize, CudaError> {
        // SAFETY: loading the driver's library runs what NVIDIA starts it with, which any program may.
        #[cfg(not(feature = "linked-driver"))]
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver("the driver's libcuda.so is not found".into()));
        }
        let count =
            CudaContext::device_count().map_err(|error| CudaError::NoDriver(text(error)))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Opens device number `index`.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`], or what the driver says.
    pub fn open(index: usize) -> Result<Arc<Self>, CudaError> {
        let count = Self::count()?;
        if index >= count {
            return Err(CudaError::NoDevice { index, count });
        }
        let context = CudaContext::new(index).map_err(failed("opening the device"))?;
        // SAFETY: the device has one stream, and memory that waits for it before it is freed.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let name = context.name().map_err(failed("asking for the device's name"))?;
        let kernels = Kernels::load().map_err(failed("loading the kernels"))?;
        Ok(Arc::new(Self { kernels, stream, context, name }))
    }

    /// What the device is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of memory that nothing uses, and all there are.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context.mem_get_info().map_err(failed("asking for free memory"))
    }

    /// Waits until everything started so far is done.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(failed("a pass"))
    }

    /// A mark for places in the stream.
    pub(super) fn event(&self) -> Result<CudaEvent, CudaError> {
        self.context.new_event(None).map_err(failed("making an event"))
    }

    /// Makes this the calling thread's device; before every other call.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(failed("choosing the device"))
    }

    /// Loads the kernels of a plan: whoever starts them later needs no memory for them.
    pub(super) fn prepare<A>(&self, what: &'static str, plan: Plan<A>) -> Result<(), CudaError> {
        self.enter()?;
        for launch in fitting(what, plan)? {
            self.kernels.function(launch.kernel).map_err(failed(what))?;
        }
        Ok(())
    }

    /// Starts what a plan says.
    ///
    /// # Safety
    /// The arguments are as the header says, for memory of this device that stays until it is done.
    pub(super) unsafe fn start<A>(
        &self,
        what: &'static str,
        plan: Plan<A>,
    ) -> Result<(), CudaError> {
        let launches = fitting(what, plan)?;
        self.enter()?;
        for mut launch in launches {
            let function = self.kernels.function(launch.kernel).map_err(failed(what))?;
            let mut arguments = [ptr::from_mut(&mut launch.arguments).cast::<c_void>()];
            let ([x, y, z], block) = (launch.grid, (launch.block, 1, 1));
            let stream = self.stream.cu_stream();
            // SAFETY: the function is loaded as long as the device is there; its arguments, which the driver copies,
            // have the type that a plan gives this kernel, and the rest is the caller's.
            unsafe { result::launch_kernel(function, (x, y, z), block, 0, stream, &mut arguments) }
                .map_err(failed(what))?;
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            self.kernels.unload();
        }
    }
}

/// The kernels on a device.
struct Kernels {
    modules: Vec<sys::CUmodule>,
    /// Those that were asked for.
    functions: Mutex<HashMap<Kernel, sys::CUfunction>>,
}

// SAFETY: modules and functions belong to their context, which any thread may enter.
unsafe impl Send for Kernels {}
// SAFETY: as above; what changes lies behind a lock.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads them into the calling thread's context.
    fn load() -> Result<Self, DriverError> {
        let mut kernels = Self { modules: Vec::new(), functions: Mutex::default() };
        for image in IMAGES {
            let mut ptx = Vec::new();
            GzDecoder::new(image).read_to_end(&mut ptx).expect("invariant: embedded whole");
            ptx.push(0);
            // SAFETY: the image is PTX that ends with a zero.
            let module = unsafe { result::module::load_data(ptx.as_ptr().cast()) };
            kernels.modules.push(module.inspect_err(|_| kernels.unload())?);
        }
        Ok(kernels)
    }

    /// Gives back what was loaded, in its context.
    fn unload(&self) {
        for &module in &self.modules {
            // SAFETY: loaded by `load`, and not used any more.
            let _ = unsafe { result::module::unload(module) };
        }
    }

    /// A kernel, by its name in one of the modules.
    fn function(&self, kernel: Kernel) -> Result<sys::CUfunction, DriverError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(&kernel) {
            return Ok(function);
        }
        let missing = DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND);
        for &module in &self.modules {
            let name = CString::new(kernel.name()).expect("invariant: a name without zeros");
            // SAFETY: the module is loaded.
            match unsafe { result::module::get_function(module, name) } {
                Ok(function) => {
                    functions.insert(kernel, function);
                    return Ok(function);
                }
                Err(error) if error == missing => {}
                Err(error) => return Err(error),
            }
        }
        Err(missing)
    }
}
