//! One safe function a kernel.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use super::device::Memory;
use super::ffi::{Attention, Qkv, Shape};
use super::tensor::float_code;
use super::{Batch, CudaError, Device, Table, Tensor, Weights};
use crate::{AttentionShape, DType};

/// What [`Device::qkv_rope_write`] reads besides the rows.
#[derive(Clone, Copy)]
pub struct QkvInputs<'a> {
    /// `[1, q + 2 kv]`
    pub bias: Option<&'a Tensor>,
    /// `[1, head_dim]` each: norms of every query and key head.
    pub qk_norm: Option<&'a [Tensor; 2]>,
    /// f32 `[max_positions, head_dim]`: cosine and sine by turns.
    pub rotations: &'a Tensor,
    /// Epsilon of the norms.
    pub eps: f32,
}

/// Keys and values of one layer, `[blocks, kv_heads, block_size, head_dim]` each.
pub struct KvLayer {
    keys: Memory,
    values: Memory,
    dtype: DType,
    shape: AttentionShape,
    num_blocks: usize,
    block_size: usize,
}

impl KvLayer {
    /// A cache of `num_blocks` blocks of `block_size` positions for one layer.
    ///
    /// # Errors
    /// If there is no memory left, or `dtype` is neither BF16 nor F16.
    pub fn new(
        device: &Arc<Device>,
        shape: AttentionShape,
        dtype: DType,
        [num_blocks, block_size]: [usize; 2],
    ) -> Result<Self, CudaError> {
        let bytes = num_blocks * Self::block_bytes(&shape, block_size) / 2;
        let memory = || Memory::new(device, bytes);
        Ok(Self { keys: memory()?, values: memory()?, dtype, shape, num_blocks, block_size })
    }

    /// Bytes of one block of one layer, keys and values, in 16-bit numbers.
    #[must_use]
    pub fn block_bytes(shape: &AttentionShape, block_size: usize) -> usize {
        2 * shape.kv_heads * block_size * shape.head_dim * 2
    }
}

/// What [`Device::paged_attention`] reads.
#[derive(Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// `[rows, heads * head_dim]`
    pub q: &'a Tensor,
    /// Keys and values, those of the rows included.
    pub cache: &'a KvLayer,
}

fn kernel_shape(shape: &AttentionShape, block_size: usize) -> Shape {
    Shape {
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: shape.head_dim as i32,
        block_size: block_size as i32,
        window: shape.window.map_or(0, |window| window as i32),
    }
}

/// Collects what does not fit.
struct Check<'a> {
    what: &'static str,
    device: &'a Device,
}

impl Check<'_> {
    fn that(&self, holds: bool, reason: impl FnOnce() -> String) -> Result<(), CudaError> {
        if holds { Ok(()) } else { Err(CudaError::Argument { what: self.what, reason: reason() }) }
    }

    fn memory(&self, name: &str, memory: &Memory) -> Result<(), CudaError> {
        let here = ptr::eq(Arc::as_ptr(&memory.device), self.device);
        self.that(here, || format!("{name} is on another device"))
    }

    /// A tensor of this format and shape, on this device.
    fn tensor(
        &self,
        name: &str,
        tensor: &Tensor,
        dtype: DType,
        shape: [usize; 2],
    ) -> Result<(), CudaError> {
        self.memory(name, &tensor.memory)?;
        let found = (tensor.dtype, tensor.shape());
        self.that(found == (dtype, shape), || {
            format!("{name} is {:?} {:?}, not {dtype:?} {shape:?}", found.0, found.1)
        })
    }

    fn batch(&self, batch: &Batch) -> Result<(), CudaError> {
        let here = batch.same_device(ptr::from_ref(self.device).cast());
        self.that(here, || "the batch is on another device".into())
    }
}

impl Device {
    fn checks(&self, what: &'static str) -> Result<Check<'_>, CudaError> {
        self.enter()?;
        Ok(Check { what, device: self })
    }

    /// `out[r] = table[tokens[r]]`: out f32 `[rows, width]`. A token outside the table gives NaN.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn embed(&self, table: &Table, batch: &Batch, out: &mut Tensor) -> Result<(), CudaError> {
        let check = self.checks("embed")?;
        check.memory("table", &table.memory)?;
        check.batch(batch)?;
        check.tensor("out", out, DType::F32, [batch.rows, table.cols])?;
        let (rows, width, vocab) = (batch.rows as i64, table.cols as i64, table.rows as i64);
        // SAFETY: all memory is this device's and has the shapes the kernel is told; it checks the tokens.
        let status = unsafe {
            let (from, to) = (table.memory.pointer, out.pointer().cast());
            let embed = self.kernels.pleach_embed;
            embed(from, batch.tokens(), to, rows, width, vocab, table.format, self.stream)
        };
        self.check(check.what, status)
    }

    /// `residual += delta`, then `out = residual / rms(residual) * weight`, each `[rows, width]`. With `wanted`, of its
    /// logit rows alone, so that `out` is `[logit_rows, width]`.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn add_rms_norm(
        &self,
        residual: &mut Tensor,
        delta: Option<&Tensor>,
        weight: &Tensor,
        wanted: Option<&Batch>,
        out: &mut Tensor,
        eps: f32,
    ) -> Result<(), CudaError> {
        let check = self.checks("add_rms_norm")?;
        let ([rows, width], dtype) = (residual.shape(), out.dtype);
        let code = float_code(check.what, dtype)?;
        check.tensor("residual", residual, DType::F32, [rows, width])?;
        check.tensor("weight", weight, dtype, [1, width])?;
        if let Some(delta) = delta {
            check.tensor("delta", delta, dtype, [rows, width])?;
        }
        if let Some(batch) = wanted {
            check.batch(batch)?;
            check.that(batch.rows == rows, || {
                format!("a batch of {} rows, not {rows}", batch.rows)
            })?;
        }
        let count = wanted.map_or(rows, |batch| batch.wanted);
        check.tensor("out", out, dtype, [count, width])?;
        // SAFETY: as in `embed`; wanted rows lie below `rows` and rise, so each is changed by one block.
        let status = unsafe {
            (self.kernels.pleach_add_rms_norm)(
                residual.pointer().cast(),
                delta.map_or(ptr::null(), |delta| delta.pointer().cast_const()),
                weight.pointer(),
                wanted.map_or(ptr::null(), Batch::logit_rows),
                out.pointer(),
                count as i64,
                width as i64,
                eps,
                code,
                self.stream,
            )
        };
        self.check(check.what, status)
    }

    /// `out = x w^T`: x `[rows, inputs]`; into the columns of `out` from `column` on, of x's format or f32. Float
    /// weights must have x's format.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn matmul(
        &self,
        w: &Weights,
        x: &Tensor,
        out: &mut Tensor,
        column: usize,
    ) -> Result<(), CudaError> {
        let check = self.checks("matmul")?;
        let ([rows, inputs], [out_rows, out_cols]) = (x.shape(), out.shape());
        let (x_code, out_code) =
            (float_code(check.what, x.dtype)?, float_code(check.what, out.dtype)?);
        check.memory("weights", &w.memory)?;
        check.tensor("x", x, x.dtype, [rows, w.inputs])?;
        check.tensor("out", out, out.dtype, [rows, out_cols])?;
        check.that(column + w.outputs <= out_cols, || {
            format!(
                "{} outputs from column {column} do not fit [{out_rows}, {out_cols}]",
                w.outputs
            )
        })?;
        check.that(w.dtype.is_quantized() || w.dtype == x.dtype, || {
            format!("{:?} weights do not multiply {:?} rows", w.dtype, x.dtype)
        })?;
        // SAFETY: as in `embed`; the column lies within the row, so the last output lies within `out`.
        let status = unsafe {
            let to = out.pointer().cast::<u8>().add(column * out.dtype.block_bytes());
            (self.kernels.pleach_matmul)(
                w.memory.pointer,
                x.pointer(),
                to.cast::<c_void>(),
                rows as i64,
                w.outputs as i64,
                inputs as i64,
                inputs as i64,
                out_cols as i64,
                w.format,
                x_code,
                out_code,
                self.stream,
            )
        };
        self.check(check.what, status)
    }

    /// `x += bias` in every row: x `[rows, width]`, bias `[1, width]` of its format.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn add_bias(&self, x: &mut Tensor, bias: &Tensor) -> Result<(), CudaError> {
        let check = self.checks("add_bias")?;
        let ([rows, width], dtype) = (x.shape(), x.dtype);
        let code = float_code(check.what, dtype)?;
        check.memory("x", &x.memory)?;
        check.tensor("bias", bias, dtype, [1, width])?;
        // SAFETY: as in `embed`.
        let status = unsafe {
            let add_bias = self.kernels.pleach_add_bias;
            add_bias(x.pointer(), bias.pointer(), rows as i64, width as i64, code, self.stream)
        };
        self.check(check.what, status)
    }

    /// Adds the bias, norms and rotates query and key heads, writes queries to `q` and keys and values to the rows'
    /// slots: qkv `[rows, q + 2 kv]`, q `[rows, heads * head_dim]`.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn qkv_rope_write(
        &self,
        qkv: &Tensor,
        inputs: &QkvInputs<'_>,
        batch: &Batch,
        q: &mut Tensor,
        cache: &mut KvLayer,
    ) -> Result<(), CudaError> {
        let check = self.checks("qkv_rope_write")?;
        let (shape, dtype, rows) = (&cache.shape, cache.dtype, batch.rows);
        let code = float_code(check.what, dtype)?;
        let (q_width, head) = (shape.heads * shape.head_dim, [1, shape.head_dim]);
        let width = q_width + 2 * shape.kv_heads * shape.head_dim;
        check.batch(batch)?;
        check.memory("cache", &cache.keys)?;
        check.tensor("qkv", qkv, dtype, [rows, width])?;
        check.tensor("q", q, dtype, [rows, q_width])?;
        check.tensor(
            "rotations",
            inputs.rotations,
            DType::F32,
            [batch.max_positions, shape.head_dim],
        )?;
        check.that(batch.num_blocks <= cache.num_blocks, || {
            format!("rows of a cache of {} blocks, not {}", batch.num_blocks, cache.num_blocks)
        })?;
        if let Some(bias) = inputs.bias {
            check.tensor("bias", bias, dtype, [1, width])?;
        }
        for norm in inputs.qk_norm.into_iter().flatten() {
            check.tensor("norm", norm, dtype, head)?;
        }
        let pointer =
            |tensor: Option<&Tensor>| tensor.map_or(ptr::null(), |t| t.pointer().cast_const());
        let io = Qkv {
            qkv: qkv.pointer(),
            bias: pointer(inputs.bias),
            q_norm: pointer(inputs.qk_norm.map(|norms| &norms[0])),
            k_norm: pointer(inputs.qk_norm.map(|norms| &norms[1])),
            rotations: inputs.rotations.pointer().cast(),
            positions: batch.positions(),
            slots: batch.slots(),
            q: q.pointer(),
            keys: cache.keys.pointer,
            values: cache.values.pointer,
        };
        let shape = kernel_shape(shape, cache.block_size);
        // SAFETY: as in `embed`; positions and slots were checked against the batch's bounds, and those are the
        // rotations' and the cache's.
        let status = unsafe {
            let write = self.kernels.pleach_qkv_rope_write;
            write(&raw const io, &raw const shape, rows as i64, inputs.eps, code, self.stream)
        };
        self.check(check.what, status)
    }

    /// Bytes of work space for the attention of `rows` rows of sequences of at most `length` positions.
    #[must_use]
    pub fn attention_workspace(&self, shape: &AttentionShape, rows: usize, length: usize) -> usize {
        let shape = kernel_shape(shape, 16);
        // SAFETY: the function computes with these numbers.
        let bytes = unsafe {
            let workspace = self.kernels.pleach_attention_workspace;
            workspace(&raw const shape, rows as i64, length as i64)
        };
        usize::try_from(bytes).unwrap_or(0)
    }

    /// Causal softmax attention of every row over its sequence: out as q. `workspace` grows as needed.
    ///
    /// # Errors
    /// If a tensor does not fit, there is no memory left, or the launch fails.
    pub fn paged_attention(
        &self,
        inputs: &AttentionInputs<'_>,
        batch: &Batch,
        workspace: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<(), CudaError> {
        let check = self.checks("paged_attention")?;
        let AttentionInputs { q, cache } = inputs;
        let (shape, dtype) = (&cache.shape, cache.dtype);
        let code = float_code(check.what, dtype)?;
        let width = shape.heads * shape.head_dim;
        check.batch(batch)?;
        check.memory("cache", &cache.keys)?;
        check.memory("work space", &workspace.memory)?;
        check.tensor("q", q, dtype, [batch.rows, width])?;
        check.tensor("out", out, dtype, [batch.rows, width])?;
        check.tensor("work space", workspace, DType::F32, [workspace.rows, 1])?;
        check.that(batch.num_blocks <= cache.num_blocks, || {
            format!("rows of a cache of {} blocks, not {}", batch.num_blocks, cache.num_blocks)
        })?;
        let kernel = kernel_shape(shape, cache.block_size);
        for group in &batch.groups {
            let bytes = self.attention_workspace(shape, group.rows.len(), group.max_length);
            if bytes > workspace.memory.bytes {
                workspace.set_rows(bytes.div_ceil(size_of::<f32>()))?;
            }
            let [cu_seqlens_q, context_lens, block_tables] = batch.group_arrays(group);
            // The group's part of q and out; wrapping, since the tensors' sizes were checked above.
            let first = group.rows.start * width * dtype.block_bytes();
            let part = |tensor: &Tensor| {
                tensor.pointer().cast::<u8>().wrapping_add(first).cast::<c_void>()
            };
            let io = Attention {
                q: part(q),
                keys: cache.keys.pointer,
                values: cache.values.pointer,
                cu_seqlens_q,
                context_lens,
                block_tables,
                max_blocks: group.max_blocks as i64,
                tree_masks: ptr::null(),
                workspace: workspace.pointer().cast(),
                out: part(out),
            };
            let (rows, sequences) = (group.rows.len() as i64, group.context_lens.len() as i64);
            // SAFETY: as in `embed`; blocks were checked against the batch's bounds, and those are the cache's.
            let status = unsafe {
                let attend = self.kernels.pleach_paged_attention;
                let length = group.max_length as i64;
                attend(&raw const io, &raw const kernel, rows, sequences, length, code, self.stream)
            };
            self.check(check.what, status)?;
        }
        Ok(())
    }

    /// `out = silu(gate) * up`: gate_up `[rows, 2 * width]`, out `[rows, width]`.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<(), CudaError> {
        let check = self.checks("silu_mul")?;
        let ([rows, width], dtype) = (out.shape(), out.dtype);
        let code = float_code(check.what, dtype)?;
        check.memory("out", &out.memory)?;
        check.tensor("gate_up", gate_up, dtype, [rows, 2 * width])?;
        // SAFETY: as in `embed`.
        let status = unsafe {
            let silu_mul = self.kernels.pleach_silu_mul;
            silu_mul(gate_up.pointer(), out.pointer(), rows as i64, width as i64, code, self.stream)
        };
        self.check(check.what, status)
    }
}
