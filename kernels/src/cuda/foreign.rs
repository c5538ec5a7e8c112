//! The launches as C functions, for a library in another language: the tests of the kernels are C++ (`tests/kernels`),
//! and so run kernels as the decoder does.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, OnceLock};

use cudarc::driver::result;
use libloading::Library;

use super::calls::{self, Address, Plan, Unfit};
use super::device::failed;
use super::{CudaError, Device};
use crate::DType;

/// What a C function returns.
const OK: c_int = 0;
const BAD_ARGUMENT: c_int = 1;
const FAILED: c_int = 2;

/// `PleachDType` and `PleachFormat`, by their numbers.
const FLOATS: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
const FORMATS: [DType; 8] = [
    DType::BF16,
    DType::F16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q8_0,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();

fn device() -> &'static Arc<Device> {
    DEVICE.get().expect("invariant: set before a library gets the functions")
}

fn of(known: &[DType], number: c_int) -> Result<DType, Unfit> {
    usize::try_from(number).ok().and_then(|number| known.get(number)).copied().ok_or(Unfit)
}

fn status(result: Result<(), CudaError>) -> c_int {
    match result {
        Ok(()) => OK,
        Err(CudaError::Argument { .. }) => BAD_ARGUMENT,
        Err(error) => {
            eprintln!("{error}");
            FAILED
        }
    }
}

/// # Safety
/// As [`Device::start`].
unsafe fn start<A>(plan: Plan<A>) -> c_int {
    // SAFETY: the caller's.
    status(unsafe { device().start("a launch", plan) })
}

/// Functions by their names in `Launches` of `tests/kernels/launches.h`, in its order.
macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty $body:block)*) => {
        #[repr(C)]
        struct Launches {
            $($name: unsafe extern "C" fn($($type),*) -> $result,)*
        }

        $(unsafe extern "C" fn $name($($argument: $type),*) -> $result $body)*

        const LAUNCHES: Launches = Launches { $($name,)* };
    };
}

functions! {
    fn allocate(address: &mut Address, bytes: i64) -> c_int {
        let allocated = device().enter().and_then(|()| {
            // SAFETY: what is read before it is written is the library's affair.
            unsafe { result::malloc_sync(bytes as usize) }.map_err(failed("allocating"))
        });
        status(allocated.map(|allocated| *address = allocated))
    }

    fn free(address: Address) -> c_int {
        // What still runs may use it.
        status(device().synchronize().and_then(|()| {
            // SAFETY: the library got it from `allocate`.
            unsafe { result::free_sync(address) }.map_err(failed("freeing"))
        }))
    }

    fn upload(to: Address, from: *const u8, bytes: i64) -> c_int {
        let copied = device().enter().and_then(|()| {
            // SAFETY: the library's memory has as many bytes, and stays until the copy is done, just below.
            unsafe {
                let from = std::slice::from_raw_parts(from, bytes as usize);
                result::memcpy_htod_async(to, from, device().stream.cu_stream())
            }
            .map_err(failed("uploading"))
        });
        status(copied.and(device().synchronize()))
    }

    fn download(to: *mut u8, from: Address, bytes: i64) -> c_int {
        let copied = device().enter().and_then(|()| {
            // SAFETY: as in `upload`.
            unsafe {
                let to = std::slice::from_raw_parts_mut(to, bytes as usize);
                result::memcpy_dtoh_async(to, from, device().stream.cu_stream())
            }
            .map_err(failed("downloading"))
        });
        status(copied.and(device().synchronize()))
    }

    fn add_rms_norm(norm: &calls::Norm, rows: i64, dtype: c_int) -> c_int {
        let plan = of(&FLOATS, dtype).and_then(|dtype| calls::add_rms_norm(*norm, rows, dtype));
        // SAFETY: the library's, here and below.
        unsafe { start(plan) }
    }

    fn gate_mul(gate: &calls::Gate, dtype: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { start(of(&FLOATS, dtype).and_then(|dtype| calls::gate_mul(*gate, dtype))) }
    }

    fn soft_cap(cap: &calls::Cap) -> c_int {
        // SAFETY: as above.
        unsafe { start(calls::soft_cap(*cap)) }
    }

    fn add_bias(bias: &calls::Bias, dtype: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { start(of(&FLOATS, dtype).and_then(|dtype| calls::add_bias(*bias, dtype))) }
    }

    fn qkv_rope_write(rope: &calls::Rope, dtype: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { start(of(&FLOATS, dtype).and_then(|dtype| calls::qkv_rope_write(*rope, dtype))) }
    }

    fn embed(embed: &calls::Embed, rows: i64, format: c_int) -> c_int {
        let plan = of(&FORMATS, format).and_then(|format| calls::embed(*embed, rows, format));
        // SAFETY: as above.
        unsafe { start(plan) }
    }

    fn attention_workspace(shape: &calls::Shape, rows: i64, max_length: i64) -> i64 {
        calls::attention_workspace(shape, rows, max_length)
    }

    fn paged_attention(io: &calls::Attention, shape: &calls::Shape, sizes: &[i64; 3], dtype: c_int) -> c_int {
        let plan =
            of(&FLOATS, dtype).and_then(|dtype| calls::paged_attention(*io, *shape, *sizes, dtype));
        // SAFETY: as above.
        unsafe { start(plan) }
    }

    fn packed_bytes(outputs: i64, inputs: i64, format: c_int) -> i64 {
        let bytes = of(&FORMATS, format).and_then(|format| calls::packed_bytes(outputs, inputs, format));
        bytes.unwrap_or(-1)
    }

    fn pack(pack: &calls::Pack, format: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { start(of(&FORMATS, format).and_then(|format| calls::pack(*pack, format))) }
    }

    fn matmul(product: &calls::Product, format: c_int, dtype: c_int, out_dtype: c_int) -> c_int {
        let formats = of(&FORMATS, format).and_then(|format| {
            Ok((format, of(&FLOATS, dtype)?, of(&FLOATS, out_dtype)?))
        });
        let plan = formats.and_then(|(format, x, out)| calls::matmul(*product, format, x, out));
        // SAFETY: as above.
        unsafe { start(plan) }
    }

    fn add_low_rank(low_rank: &calls::LowRank, ranks: i64, dtype: c_int) -> c_int {
        let plan = of(&FLOATS, dtype).and_then(|dtype| calls::add_low_rank(*low_rank, ranks, dtype));
        // SAFETY: as above.
        unsafe { start(plan) }
    }

    fn verify(verify: &calls::Verify, rows: i64) -> c_int {
        // SAFETY: as above.
        unsafe { start(calls::verify(*verify, rows)) }
    }

    fn scatter(scatter: &calls::Scatter) -> c_int {
        // SAFETY: as above.
        unsafe { start(calls::scatter(*scatter)) }
    }
}

/// Opens device 0 and calls `pleach_main(launches, count, arguments)` of a shared library; what that returns.
///
/// # Errors
/// [`CudaError::Library`] where the library has no such function; as [`Device::open`].
///
/// # Panics
/// If an argument has a zero in it.
pub fn call(library: &Path, arguments: &[&str]) -> Result<i32, CudaError> {
    type Main = unsafe extern "C" fn(*const Launches, c_int, *const *const c_char) -> c_int;
    let unusable = |error: libloading::Error| CudaError::Library {
        path: library.into(),
        reason: error.to_string(),
    };
    if DEVICE.get().is_none() {
        let _ = DEVICE.set(Device::open(0)?);
    }
    // SAFETY: a library that is named here is trusted as the program is.
    let library = unsafe { Library::new(library) }.map_err(unusable)?;
    // SAFETY: such a library has this function with this type.
    let main = unsafe { library.get::<Main>(b"pleach_main\0") }.map_err(unusable)?;
    let texts: Vec<CString> =
        arguments.iter().map(|&text| CString::new(text).expect("no zeros")).collect();
    let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
    // SAFETY: the table lasts as long as the program, the arguments as long as the call.
    Ok(unsafe { main(ptr::from_ref(&LAUNCHES), pointers.len() as c_int, pointers.as_ptr()) })
}
