//! One decoder block.

use std::array;

use crate::checkpoint::architecture::{MATRICES, RopeTables};
use crate::model::Rows;
use pleach_kernels::{
    Activation, Activations, Additions, AttentionShape, Gated, LayerCache, PackedMatrix,
    ThreadPool, add_bias, add_rms_norm, gated_product, matmul, matmul_add, paged_attention,
    rms_norm_heads, rms_norm_quantized,
};

pub(super) struct Projection {
    pub(super) weight: PackedMatrix,
    pub(super) bias: Option<Vec<f32>>,
    /// Where adapters find what they add to it: its block, and its place among the matrices of a block.
    pub(super) place: (usize, usize),
}

impl Projection {
    /// What adapters add to the outputs of `x`, in the rows that go through them.
    fn additions<'a>(&self, pass: &Pass<'a>, x: &Activations) -> Additions<'a> {
        let (block, module) = self.place;
        let parts =
            pass.rows.adapted().iter().filter_map(|(rows, adapter)| {
                Some((rows.clone(), adapter.low_rank(block, module)?))
            });
        Additions::new(pass.pool, parts, x)
    }
}

/// One decoder block.
pub(in crate::model) struct Layer {
    /// Which block of its model it is.
    pub(super) index: usize,
    pub(super) input_norm: Vec<f32>,
    /// Query, key, value; written side by side.
    pub(super) qkv: [Projection; 3],
    /// Norms of every query and key head.
    pub(super) qk_norm: Option<[Vec<f32>; 2]>,
    pub(super) output: Projection,
    /// Norm of what attention adds to the residual stream.
    pub(super) attention_norm: Option<Vec<f32>>,
    /// Norm of what the feed-forward layer reads.
    pub(super) post_norm: Vec<f32>,
    /// Gate, up.
    pub(super) gate_up: [Projection; 2],
    pub(super) down: Projection,
    /// Norm of what the feed-forward layer adds to the residual stream.
    pub(super) feed_forward_norm: Option<Vec<f32>>,
    pub(super) activation: Activation,
    pub(super) attention: AttentionShape,
}

/// What the blocks of a pass share.
pub(in crate::model) struct Pass<'a> {
    pub(in crate::model) pool: &'a ThreadPool,
    pub(in crate::model) eps: f32,
    pub(in crate::model) rows: &'a Rows,
    /// Set to the rows' positions.
    pub(in crate::model) ropes: &'a RopeTables,
}

impl Layer {
    /// Computes the block for all rows of `hidden`, `[rows, hidden]`, in place, and writes their keys and values.
    /// `wide` and the operands of products are work space.
    pub(in crate::model) fn forward(
        &self,
        pass: &Pass<'_>,
        cache: &mut LayerCache,
        hidden: &mut [f32],
        wide: &mut Vec<f32>,
        [operand, gated_operand]: &mut [Activations; 2],
    ) {
        let Pass { pool, eps, rows, ropes } = *pass;
        let (count, shape) = (rows.len(), &self.attention);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let stride = q + 2 * kv;
        let every = |row| row;

        rms_norm_quantized(pool, hidden, count, every, &self.input_norm, eps, operand);
        wide.resize(count * stride, 0.0);
        project(pass, &self.qkv, operand, wide, stride);
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            rms_norm_heads(pool, wide, q_norm, eps, shape.heads, stride, 0);
            rms_norm_heads(pool, wide, k_norm, eps, shape.kv_heads, stride, q);
        }
        cache.write(pool, shape, ropes.of(self.index), wide, stride, &rows.slots);
        paged_attention(
            pool,
            shape,
            wide,
            stride,
            cache,
            &rows.cu_seqlens_q,
            &rows.positions,
            |sequence| rows.block_table(sequence),
            operand,
        );
        let norm = self.attention_norm.as_deref().map(|norm| (norm, eps));
        add_projection(pass, &self.output, operand, norm, wide, hidden);

        rms_norm_quantized(pool, hidden, count, every, &self.post_norm, eps, operand);
        let gated = Gated {
            activation: self.activation,
            weights: self.gate_up.each_ref().map(|p| &p.weight),
            biases: self.gate_up.each_ref().map(|p| p.bias.as_deref()),
            additions: self.gate_up.each_ref().map(|p| p.additions(pass, operand)),
        };
        gated_product(pool, &gated, operand, gated_operand);
        let norm = self.feed_forward_norm.as_deref().map(|norm| (norm, eps));
        add_projection(pass, &self.down, gated_operand, norm, wide, hidden);
    }

    /// Shapes of its matrices, `[out, in]`, in the order of [`MATRICES`].
    pub(super) fn shapes(&self) -> [[usize; 2]; MATRICES.len()] {
        self.projections().map(|it| [it.weight.out_features(), it.weight.in_features()])
    }

    /// Its matrices: query, key, value, output, gate, up, down.
    fn projections(&self) -> [&Projection; 7] {
        let ([q, k, v], [gate, up]) = (&self.qkv, &self.gate_up);
        [q, k, v, &self.output, gate, up, &self.down]
    }

    /// Memory of the block's matrices.
    pub(in crate::model) fn bytes(&self) -> usize {
        self.projections().map(|it| it.weight.bytes()).iter().sum()
    }
}

/// Writes the outputs of several projections side by side into rows of `stride` values.
fn project<const N: usize>(
    pass: &Pass<'_>,
    projections: &[Projection; N],
    x: &Activations,
    out: &mut [f32],
    stride: usize,
) {
    matmul(pass.pool, &projections.each_ref().map(|p| &p.weight), x, out, stride);
    let mut offset = 0;
    for projection in projections {
        projection.additions(pass, x).add(pass.pool, out, stride, offset);
        if let Some(bias) = &projection.bias {
            add_bias(out, bias, stride, offset);
        }
        offset += projection.weight.out_features();
    }
}

/// Adds the output of a projection to rows of its own width, normed first where there is a norm: its weights and
/// epsilon. `wide` is work space.
fn add_projection(
    pass: &Pass<'_>,
    projection: &Projection,
    x: &Activations,
    norm: Option<(&[f32], f32)>,
    wide: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = projection.weight.out_features();
    if let Some((weight, eps)) = norm {
        wide.resize(out.len(), 0.0);
        project(pass, array::from_ref(projection), x, wide, width);
        add_rms_norm(pass.pool, wide, weight, eps, out);
        return;
    }
    matmul_add(pass.pool, &projection.weight, x, out, width);
    projection.additions(pass, x).add(pass.pool, out, width, 0);
    if let Some(bias) = &projection.bias {
        add_bias(out, bias, width, 0);
    }
}
