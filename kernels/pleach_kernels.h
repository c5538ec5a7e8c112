// The kernels as their callers see them: device pointers, sizes and a stream in, a status out.
//
// A launch is asynchronous on `stream` (a cudaStream_t); its status tells whether it could be started.
// Sizes that a kernel does not take are PLEACH_BAD_ARGUMENT, and nothing is launched; no rows, nothing to do:
// PLEACH_OK. Pointers are on the stream's device and aligned to 16 bytes, as is every row that a comment
// calls a vector row. Same row, same bits: no result depends on what else is in the batch.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum PleachStatus {
    PLEACH_OK = 0,
    PLEACH_BAD_ARGUMENT = 1,
    PLEACH_LAUNCH_FAILED = 2,
};

/// Activations, and keys and values.
enum PleachDType {
    PLEACH_BF16 = 0,
    PLEACH_F16 = 1,
    PLEACH_F32 = 2,
};

// ---- fused steps (fused.cu) ---------------------------------------------------------------------------

/// `residual += delta` (where `delta` is not null), then `out = residual / rms(residual) * weight`.
/// residual [rows, width] f32, in place; delta, out [rows, width] and weight [width] of `dtype`.
int pleach_add_rms_norm(float *residual, const void *delta, const void *weight, void *out, int64_t rows,
                        int64_t width, float eps, int dtype, void *stream);

/// `out = silu(gate) * up`; gate_up [rows, 2 * width] as [gate | up], out [rows, width].
int pleach_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int dtype, void *stream);

/// What one layer's attention looks like.
typedef struct {
    int32_t heads;       ///< query heads
    int32_t kv_heads;    ///< divides `heads`
    int32_t head_dim;    ///< 64 or 128
    int32_t block_size;  ///< positions of a cache block, 16 or 32
    int32_t window;      ///< positions a row attends to, itself included; 0: all
} PleachAttentionShape;

/// A row that is not to be written to the cache (padding of a captured batch).
#define PLEACH_NO_SLOT 0xffffffffu

/// What `pleach_qkv_rope_write` reads and writes. Vectors of `dtype` unless they say otherwise.
typedef struct {
    const void *qkv;            ///< [rows, (heads + 2 kv_heads) * head_dim]
    const void *bias;           ///< [(heads + 2 kv_heads) * head_dim], or null
    const void *q_norm;         ///< [head_dim]: RMS norm of every query head, or null
    const void *k_norm;         ///< [head_dim], or null
    const float *rotations;     ///< f32 [max_positions, head_dim / 2, 2]: cosine and sine
    const uint32_t *positions;  ///< [rows]
    const uint32_t *slots;      ///< [rows]: block * block_size + offset, or PLEACH_NO_SLOT
    void *q;                    ///< [rows, heads * head_dim], out
    void *keys;                 ///< [blocks, kv_heads, block_size, head_dim], out
    void *values;               ///< as keys
} PleachQkv;

/// Adds the bias, norms and rotates query and key heads (value i turns with value i + head_dim / 2), and
/// writes keys and values to their slots.
int pleach_qkv_rope_write(const PleachQkv *io, const PleachAttentionShape *shape, int64_t rows, float eps,
                          int dtype, void *stream);

/// How a weight matrix is stored. Quantised layouts are ggml's.
enum PleachFormat {
    PLEACH_W_BF16 = 0,
    PLEACH_W_F16 = 1,
    PLEACH_W_Q4_0 = 2,
    PLEACH_W_Q4_1 = 3,
    PLEACH_W_Q8_0 = 4,
    PLEACH_W_Q4_K = 5,
    PLEACH_W_Q5_K = 6,
    PLEACH_W_Q6_K = 7,
};

/// `out[r] = table[tokens[r]]`; table [vocab_size, width] in `format`, as in the file; out f32. A token
/// outside the vocabulary gives NaN.
int pleach_embed(const void *table, const uint32_t *tokens, float *out, int64_t rows, int64_t width,
                 int64_t vocab_size, int format, void *stream);

// ---- matrix product (matmul.cu) -------------------------------------------------------------------------

/// Bytes of a packed matrix of [outputs, inputs], or -1 for a shape the format does not take: inputs must be
/// whole blocks of the format, and a multiple of 32.
int64_t pleach_packed_bytes(int64_t outputs, int64_t inputs, int format);

/// Lays a matrix out for `pleach_matmul`; weights [outputs, inputs] in `format`, as in the file. Once, at load.
int pleach_pack(const void *weights, void *packed, int64_t outputs, int64_t inputs, int format, void *stream);

/// `out = x w^T`: x [rows, inputs] of `dtype`, rows `x_stride` values apart (vector rows: a multiple of 8);
/// out [rows, outputs], rows `out_stride` apart, of `dtype` or f32. Float weights must have the type of x.
int pleach_matmul(const void *packed, const void *x, void *out, int64_t rows, int64_t outputs, int64_t inputs,
                  int64_t x_stride, int64_t out_stride, int format, int dtype, int out_dtype, void *stream);

#ifdef __cplusplus
}
#endif
