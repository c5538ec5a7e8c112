//! One safe function a kernel.

use std::ptr;
use std::sync::Arc;

use super::calls::{self, Address, Shape};
use super::memory::Memory;
use super::{Batch, CudaError, Device, KvLayer, Table, Tensor, Weights};
use crate::{Activation, AttentionShape, DType};

/// What [`Device::qkv_rope_write`] reads besides the rows.
#[derive(Clone, Copy)]
pub struct QkvInputs<'a> {
    /// `[1, q + 2 kv]`
    pub bias: Option<&'a Tensor>,
    /// f32 `[1, head_dim]` each: norms of every query and key head.
    pub qk_norm: Option<&'a [Tensor; 2]>,
    /// f32 `[max_positions, n]`: cosine and sine by turns, where the first n values of a head turn; `None` where none does.
    pub rotations: Option<&'a Tensor>,
    /// Epsilon of the norms.
    pub eps: f32,
}

/// What is added to the residual stream.
#[derive(Clone, Copy)]
pub struct Delta<'a> {
    /// `[rows, width]`
    pub values: &'a Tensor,
    /// f32 `[1, width]`: a norm that the values pass through first.
    pub norm: Option<&'a Tensor>,
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
        scale: shape.scale,
        cap: shape.cap.unwrap_or(0.0),
    }
}

fn address(tensor: Option<&Tensor>) -> Address {
    tensor.map_or(0, Tensor::address)
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
        self.that(batch.is_on(self.device), || "the batch is on another device".into())
    }
}

impl Device {
    fn checks(&self, what: &'static str) -> Check<'_> {
        Check { what, device: self }
    }

    /// `out[r] = scale * table[tokens[r]]`: out f32 `[rows, width]`. A token outside the table gives NaN.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn embed(
        &self,
        table: &Table,
        scale: f32,
        batch: &Batch,
        out: &mut Tensor,
    ) -> Result<(), CudaError> {
        let check = self.checks("embed");
        check.memory("table", &table.memory)?;
        check.batch(batch)?;
        check.tensor("out", out, DType::F32, [batch.rows, table.cols])?;
        let embed = calls::Embed {
            table: table.memory.address,
            tokens: batch.tokens(),
            out: out.address(),
            width: table.cols as i64,
            vocab_size: table.rows as i64,
            scale,
        };
        // SAFETY: all memory is this device's and has the shapes the kernel is told; it checks the tokens.
        unsafe { self.start(check.what, calls::embed(embed, batch.rows as i64, table.dtype)) }
    }

    /// `residual += delta`, then `out = residual / rms(residual) * weight`, each `[rows, width]`, weight f32 `[1, width]`.
    /// With `wanted`, of its logit rows alone, so that `out` is `[logit_rows, width]`.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn add_rms_norm(
        &self,
        residual: &mut Tensor,
        delta: Option<Delta<'_>>,
        weight: &Tensor,
        wanted: Option<&Batch>,
        out: &mut Tensor,
        eps: f32,
    ) -> Result<(), CudaError> {
        let check = self.checks("add_rms_norm");
        let ([rows, width], dtype) = (residual.shape(), out.dtype);
        check.tensor("residual", residual, DType::F32, [rows, width])?;
        check.tensor("weight", weight, DType::F32, [1, width])?;
        if let Some(delta) = delta {
            check.tensor("delta", delta.values, dtype, [rows, width])?;
        }
        let delta_norm = delta.and_then(|delta| delta.norm);
        if let Some(norm) = delta_norm {
            check.tensor("the norm of delta", norm, DType::F32, [1, width])?;
        }
        if let Some(batch) = wanted {
            check.batch(batch)?;
            check.that(batch.rows == rows, || {
                format!("a batch of {} rows, not {rows}", batch.rows)
            })?;
        }
        let count = wanted.map_or(rows, |batch| batch.wanted);
        check.tensor("out", out, dtype, [count, width])?;
        let norm = calls::Norm {
            residual: residual.address(),
            delta: address(delta.map(|delta| delta.values)),
            delta_weight: address(delta_norm),
            weight: weight.address(),
            wanted: wanted.map_or(0, Batch::logit_rows),
            out: out.address(),
            width: width as i64,
            eps,
        };
        // SAFETY: as in `embed`; wanted rows lie below `rows` and rise, so each is changed by one block.
        unsafe { self.start(check.what, calls::add_rms_norm(norm, count as i64, dtype)) }
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
        let check = self.checks("matmul");
        let ([rows, inputs], [out_rows, out_cols]) = (x.shape(), out.shape());
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
        let to = out.address() + (column * out.dtype.block_bytes()) as u64;
        let product = calls::Product::new(
            [w.memory.address, x.address(), to],
            [rows, w.outputs, inputs].map(|size| size as i64),
            [inputs, out_cols].map(|stride| stride as i64),
        );
        // SAFETY: as in `embed`; the column lies within the row, so the last output lies within `out`.
        unsafe { self.start(check.what, calls::matmul(product, w.dtype, x.dtype, out.dtype)) }
    }

    /// `x += bias` in every row: x `[rows, width]`, bias `[1, width]` of its format.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn add_bias(&self, x: &mut Tensor, bias: &Tensor) -> Result<(), CudaError> {
        let check = self.checks("add_bias");
        let ([rows, width], dtype) = (x.shape(), x.dtype);
        check.memory("x", &x.memory)?;
        check.tensor("bias", bias, dtype, [1, width])?;
        let (rows, width) = (rows as i64, width as i64);
        let add = calls::Bias { x: x.address(), bias: bias.address(), rows, width };
        // SAFETY: as in `embed`.
        unsafe { self.start(check.what, calls::add_bias(add, dtype)) }
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
        let check = self.checks("qkv_rope_write");
        let (shape, dtype, rows) = (&cache.shape, cache.dtype, batch.rows);
        let (q_width, head) = (shape.heads * shape.head_dim, [1, shape.head_dim]);
        let width = q_width + 2 * shape.kv_heads * shape.head_dim;
        check.batch(batch)?;
        check.memory("cache", &cache.keys)?;
        check.tensor("qkv", qkv, dtype, [rows, width])?;
        check.tensor("q", q, dtype, [rows, q_width])?;
        let turned = inputs.rotations.map_or(0, |rotations| rotations.cols / 2);
        if let Some(rotations) = inputs.rotations {
            let shape = [batch.max_positions, 2 * turned];
            check.tensor("rotations", rotations, DType::F32, shape)?;
        }
        check.that(batch.num_blocks <= cache.num_blocks, || {
            format!("rows of a cache of {} blocks, not {}", batch.num_blocks, cache.num_blocks)
        })?;
        if let Some(bias) = inputs.bias {
            check.tensor("bias", bias, dtype, [1, width])?;
        }
        for norm in inputs.qk_norm.into_iter().flatten() {
            check.tensor("norm", norm, DType::F32, head)?;
        }
        let [key_scales, value_scales] = cache.scales();
        let io = calls::Qkv {
            qkv: qkv.address(),
            bias: address(inputs.bias),
            q_norm: address(inputs.qk_norm.map(|norms| &norms[0])),
            k_norm: address(inputs.qk_norm.map(|norms| &norms[1])),
            rotations: address(inputs.rotations),
            positions: batch.positions(),
            slots: batch.slots(),
            q: q.address(),
            keys: cache.keys.address,
            values: cache.values.address,
            key_scales,
            value_scales,
        };
        let shape = kernel_shape(shape, cache.block_size);
        let rope =
            calls::Rope { io, shape, rows: rows as i64, turned: turned as i32, eps: inputs.eps };
        // SAFETY: as in `embed`; positions and slots were checked against the batch's bounds, and those are the
        // rotations' and the cache's.
        unsafe { self.start(check.what, calls::qkv_rope_write(rope, dtype)) }
    }

    /// Bytes of work space for the attention of `rows` rows of sequences of at most `length` positions.
    #[must_use]
    pub fn attention_workspace(&self, shape: &AttentionShape, rows: usize, length: usize) -> usize {
        let shape = kernel_shape(shape, 16);
        calls::attention_workspace(&shape, rows as i64, length as i64) as usize
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
        let check = self.checks("paged_attention");
        let AttentionInputs { q, cache } = inputs;
        let (shape, dtype) = (&cache.shape, cache.dtype);
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
        let [key_scales, value_scales] = cache.scales();
        for group in &batch.groups {
            let bytes = self.attention_workspace(shape, group.rows.len(), group.max_length);
            if bytes > workspace.memory.bytes {
                workspace.set_rows(bytes.div_ceil(size_of::<f32>()))?;
            }
            let [cu_seqlens_q, context_lens, block_tables] = batch.group_arrays(group);
            // The group's part of q and out.
            let first = (group.rows.start * width * dtype.block_bytes()) as u64;
            let io = calls::Attention {
                q: q.address() + first,
                keys: cache.keys.address,
                values: cache.values.address,
                key_scales,
                value_scales,
                cu_seqlens_q,
                context_lens,
                block_tables,
                max_blocks: group.max_blocks as i64,
                tree_masks: 0,
                workspace: workspace.address(),
                out: out.address() + first,
            };
            let sizes = [group.rows.len(), group.context_lens.len(), group.max_length];
            let plan = calls::paged_attention(io, kernel, sizes.map(|size| size as i64), dtype);
            // SAFETY: as in `embed`; blocks were checked against the batch's bounds, and those are the cache's.
            unsafe { self.start(check.what, plan) }?;
        }
        Ok(())
    }

    /// `out = activation(gate) * up`: gate_up `[rows, 2 * width]`, out `[rows, width]`.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn gate_mul(
        &self,
        activation: Activation,
        gate_up: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), CudaError> {
        let check = self.checks("gate_mul");
        let ([rows, width], dtype) = (out.shape(), out.dtype);
        check.memory("out", &out.memory)?;
        check.tensor("gate_up", gate_up, dtype, [rows, 2 * width])?;
        let gate = calls::Gate {
            gate_up: gate_up.address(),
            out: out.address(),
            rows: rows as i64,
            width: width as i64,
            activation: match activation {
                Activation::Silu => calls::SILU,
                Activation::GeluTanh => calls::GELU_TANH,
            },
        };
        // SAFETY: as in `embed`.
        unsafe { self.start(check.what, calls::gate_mul(gate, dtype)) }
    }

    /// `x = cap * tanh(x / cap)` of an f32 tensor.
    ///
    /// # Errors
    /// If it is of another format, or the launch fails.
    pub fn soft_cap(&self, x: &mut Tensor, cap: f32) -> Result<(), CudaError> {
        let check = self.checks("soft_cap");
        let shape = x.shape();
        check.tensor("x", x, DType::F32, shape)?;
        let values = calls::Cap { x: x.address(), count: (shape[0] * shape[1]) as i64, cap };
        // SAFETY: as in `embed`.
        unsafe { self.start(check.what, calls::soft_cap(values)) }
    }
}
