//! `kernels/cuda/pleach_kernels.h` in Rust: the one place that must agree with it.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

use super::CudaError;

pub(super) const OK: c_int = 0;
pub(super) const BAD_ARGUMENT: c_int = 1;
/// `PLEACH_KERNELS_VERSION`
const VERSION: c_int = 4;

/// `PleachAttentionShape`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Shape {
    pub(super) heads: i32,
    pub(super) kv_heads: i32,
    pub(super) head_dim: i32,
    pub(super) block_size: i32,
    pub(super) window: i32,
}

/// `PleachQkv`
#[repr(C)]
pub(super) struct Qkv {
    pub(super) qkv: *const c_void,
    pub(super) bias: *const c_void,
    pub(super) q_norm: *const c_void,
    pub(super) k_norm: *const c_void,
    pub(super) rotations: *const f32,
    pub(super) positions: *const u32,
    pub(super) slots: *const u32,
    pub(super) q: *mut c_void,
    pub(super) keys: *mut c_void,
    pub(super) values: *mut c_void,
}

/// `PleachAttention`
#[repr(C)]
pub(super) struct Attention {
    pub(super) q: *const c_void,
    pub(super) keys: *const c_void,
    pub(super) values: *const c_void,
    pub(super) cu_seqlens_q: *const u32,
    pub(super) context_lens: *const u32,
    pub(super) block_tables: *const u32,
    pub(super) max_blocks: i64,
    pub(super) tree_masks: *const u64,
    pub(super) workspace: *mut f32,
    pub(super) out: *mut c_void,
}

/// `PleachSampling`
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Sampling {
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    /// Repetition, presence, frequency.
    pub(super) penalties: [f32; 3],
    pub(super) top_k: u64,
    pub(super) seed: u64,
    pub(super) position: u64,
    pub(super) coupled: u32,
    pub(super) token_counts: u32,
    pub(super) bias: u32,
    pub(super) _padding: u32,
}

/// `PleachVerifyRow`
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct VerifyRow {
    pub(super) logits: u32,
    pub(super) draft_token: u32,
    pub(super) draft_probs: u32,
    pub(super) grammar_mask: u32,
}

/// `PleachVerify`
#[repr(C)]
pub(super) struct Verify {
    pub(super) logits: *const f32,
    pub(super) rows: *const VerifyRow,
    pub(super) cu_rows: *const u32,
    pub(super) sampling: *const Sampling,
    pub(super) draft_probs: *const f32,
    pub(super) token_counts: *const u32,
    pub(super) bias: *const f32,
    pub(super) grammar_mask: *const u32,
    pub(super) finished: *mut u32,
    pub(super) results: *mut c_void,
    pub(super) verdicts: *mut c_void,
    pub(super) sequences: i64,
    pub(super) vocab_size: i64,
}

/// The functions of the header as a table, filled from what is linked in or from a shared library.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        pub(super) struct Kernels {
            $(pub(super) $name: unsafe extern "C" fn($($type),*) -> $result,)*
            /// Kept open as long as the functions are in use.
            _library: Option<Library>,
        }

        impl Kernels {
            /// The kernels in this program.
            #[cfg(feature = "cuda")]
            pub(super) fn linked() -> Result<Self, CudaError> {
                unsafe extern "C" {
                    $(fn $name($($arg: $type),*) -> $result;)*
                }
                Ok(Self { $($name,)* _library: None })
            }

            #[cfg(not(feature = "cuda"))]
            pub(super) fn linked() -> Result<Self, CudaError> {
                Err(CudaError::NotBuilt)
            }

            fn symbols(library: Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the library is a build of `kernels/`, where the function has this type.
                        *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }?
                    },)*
                    _library: Some(library),
                })
            }
        }
    };
}

functions! {
    fn pleach_kernels_version() -> c_int;
    fn pleach_error_text() -> *const c_char;
    fn pleach_device_count(count: *mut i32) -> c_int;
    fn pleach_use_device(device: i32) -> c_int;
    fn pleach_device_info(name: *mut c_char, size: i64, free: *mut i64, total: *mut i64) -> c_int;
    fn pleach_stream_create(stream: *mut *mut c_void) -> c_int;
    fn pleach_stream_destroy(stream: *mut c_void) -> c_int;
    fn pleach_synchronize(stream: *mut c_void) -> c_int;
    fn pleach_allocate(memory: *mut *mut c_void, bytes: i64) -> c_int;
    fn pleach_free(memory: *mut c_void) -> c_int;
    fn pleach_allocate_host(memory: *mut *mut c_void, bytes: i64) -> c_int;
    fn pleach_free_host(memory: *mut c_void) -> c_int;
    fn pleach_upload(device: *mut c_void, host: *const c_void, bytes: i64, stream: *mut c_void) -> c_int;
    fn pleach_download(host: *mut c_void, device: *const c_void, bytes: i64, stream: *mut c_void) -> c_int;
    fn pleach_add_rms_norm(residual: *mut f32, delta: *const c_void, weight: *const c_void,
        wanted: *const u32, out: *mut c_void, rows: i64, width: i64, eps: f32, dtype: c_int,
        stream: *mut c_void) -> c_int;
    fn pleach_silu_mul(gate_up: *const c_void, out: *mut c_void, rows: i64, width: i64, dtype: c_int,
        stream: *mut c_void) -> c_int;
    fn pleach_add_bias(x: *mut c_void, bias: *const c_void, rows: i64, width: i64, dtype: c_int,
        stream: *mut c_void) -> c_int;
    fn pleach_qkv_rope_write(io: *const Qkv, shape: *const Shape, rows: i64, eps: f32, dtype: c_int,
        stream: *mut c_void) -> c_int;
    fn pleach_embed(table: *const c_void, tokens: *const u32, out: *mut f32, rows: i64, width: i64,
        vocab_size: i64, format: c_int, stream: *mut c_void) -> c_int;
    fn pleach_attention_workspace(shape: *const Shape, rows: i64, max_length: i64) -> i64;
    fn pleach_paged_attention(io: *const Attention, shape: *const Shape, rows: i64, sequences: i64,
        max_length: i64, dtype: c_int, stream: *mut c_void) -> c_int;
    fn pleach_packed_bytes(outputs: i64, inputs: i64, format: c_int) -> i64;
    fn pleach_pack(weights: *const c_void, packed: *mut c_void, outputs: i64, inputs: i64, format: c_int,
        stream: *mut c_void) -> c_int;
    fn pleach_matmul(packed: *const c_void, x: *const c_void, out: *mut c_void, rows: i64, outputs: i64,
        inputs: i64, x_stride: i64, out_stride: i64, format: c_int, dtype: c_int, out_dtype: c_int,
        stream: *mut c_void) -> c_int;
    fn pleach_graph_begin(stream: *mut c_void) -> c_int;
    fn pleach_graph_end(stream: *mut c_void, graph: *mut *mut c_void) -> c_int;
    fn pleach_graph_launch(graph: *mut c_void, stream: *mut c_void) -> c_int;
    fn pleach_graph_destroy(graph: *mut c_void) -> c_int;
    fn pleach_fill(device: *mut c_void, value: c_int, bytes: i64, stream: *mut c_void) -> c_int;
    fn pleach_scatter(table: *mut u32, entries: *const u32, count: i64, size: i64,
        stream: *mut c_void) -> c_int;
    fn pleach_verify(io: *const Verify, rows: i64, stream: *mut c_void) -> c_int;
}

impl Kernels {
    /// The kernels in a shared library.
    pub(super) fn open(path: &Path) -> Result<Self, CudaError> {
        let failed = |reason: String| CudaError::Library { path: path.into(), reason };
        // SAFETY: a build of `kernels/` runs nothing on being loaded but its C++ runtime.
        let library = unsafe { Library::new(path) }.map_err(|error| failed(error.to_string()))?;
        let kernels = Self::symbols(library).map_err(|error| failed(error.to_string()))?;
        // SAFETY: the function takes nothing and returns a constant.
        let version = unsafe { (kernels.pleach_kernels_version)() };
        if version != VERSION {
            return Err(failed(format!("kernels of version {version}, not {VERSION}")));
        }
        Ok(kernels)
    }
}
