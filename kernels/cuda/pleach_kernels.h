// What kernels are given, as their callers lay it out: one structure a kernel, the same in `kernels/src/cuda/calls`.
//
// Pointers are of the device and aligned to 16 bytes, as is every row that a comment calls a vector row. Which sizes a
// kernel takes stands in `calls`, beside its grid. Same row, same bits: no result depends on what else is in the batch.
#pragma once

#include <stdint.h>

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

// ---- fused steps (fused.cu) ---------------------------------------------------------------------------

/// `add_rms_norm`: `residual += delta` (where `delta` is not null; `delta / rms(delta) * delta_weight` where that is not
/// null either), then `out = residual / rms(residual) * weight`. residual [_, width] f32, in place; delta [_, width] and
/// out [rows, width] of the kernel's type; weights [width] f32.
/// Row i of `out` is that of row `wanted[i]` of the others, each wanted once; of row i where `wanted` is null.
struct PleachNorm {
    float *residual;
    const void *delta;
    const float *delta_weight, *weight;
    const uint32_t *wanted;
    void *out;
    int64_t width;
    float eps;
};

/// What a gate passes through.
enum PleachActivation {
    PLEACH_SILU = 0,       ///< x / (1 + e^-x)
    PLEACH_GELU_TANH = 1,  ///< GELU by its approximation with a hyperbolic tangent
};

/// `gate_mul`: `out = activation(gate) * up`; gate_up [rows, 2 * width] as [gate | up], out [rows, width].
struct PleachGate {
    const void *gate_up;
    void *out;
    int64_t rows, width;
    uint32_t activation;
};

/// `soft_cap`: `x = cap * tanh(x / cap)` of `count` f32 values.
struct PleachCap {
    float *x;
    int64_t count;
    float cap;
};

/// `add_bias`: `x += bias` in every row; x [rows, width], in place, and bias [width].
struct PleachBias {
    void *x;
    const void *bias;
    int64_t rows, width;
};

/// What one layer's attention looks like.
struct PleachAttentionShape {
    int32_t heads;       ///< query heads
    int32_t kv_heads;    ///< divides `heads`
    int32_t head_dim;    ///< attention takes 64, 80, 96, 128 and 256
    int32_t block_size;  ///< positions of a cache block, 16 or 32
    int32_t window;      ///< positions a row attends to, itself included; 0: all
    float scale;         ///< multiplier of scores
    float cap;           ///< bound of scores: cap * tanh(score / cap); 0: none
};

/// A row that is not to be written to the cache (padding of a captured batch).
#define PLEACH_NO_SLOT 0xffffffffu

/// What `qkv_rope_write` reads and writes. Vectors of the kernel's type unless they say otherwise.
struct PleachQkv {
    const void *qkv;            ///< [rows, (heads + 2 kv_heads) * head_dim]
    const void *bias;           ///< [(heads + 2 kv_heads) * head_dim], or null
    const float *q_norm;        ///< [head_dim]: RMS norm of every query head, or null
    const float *k_norm;        ///< [head_dim], or null
    const float *rotations;     ///< [max_positions, turned, 2]: cosine and sine
    const uint32_t *positions;  ///< [rows]
    const uint32_t *slots;      ///< [rows]: block * block_size + offset, or PLEACH_NO_SLOT
    void *q;                    ///< [rows, heads * head_dim], out
    void *keys;                 ///< [blocks, kv_heads, block_size, head_dim], out; codes of 8 bits where there are scales
    void *values;               ///< as keys
    float *key_scales;          ///< [blocks, kv_heads, block_size], out: what codes are multiplied by; null: no codes
    float *value_scales;        ///< as key_scales
};

/// `qkv_rope_write`: adds the bias, norms query and key heads, rotates the first 2 `turned` values of them (value i turns
/// with value i + turned), and writes keys and values to their slots. As codes, a head's largest value is 127 steps; where a
/// value is NaN or infinite, so is the scale, and all codes are 0.
struct PleachRope {
    PleachQkv io;
    PleachAttentionShape shape;
    int64_t rows;
    int32_t turned;  ///< at most head_dim / 2; 0: heads stay as they are
    float eps;
};

/// `embed`: `out[r] = scale * table[tokens[r]]`; table [vocab_size, width] in the kernel's format, as in the file; out f32. A
/// token outside the vocabulary gives NaN.
struct PleachEmbed {
    const void *table;
    const uint32_t *tokens;
    float *out;
    int64_t width, vocab_size;
    float scale;
};

// ---- attention (attention.cu) ---------------------------------------------------------------------------

/// What attention reads and writes. A sequence's rows are the positions that follow its context; their keys and values
/// are in the cache already.
struct PleachAttention {
    const void *q;                 ///< [rows, heads * head_dim]
    const void *keys;              ///< [blocks, kv_heads, block_size, head_dim]; codes of 8 bits where there are scales
    const void *values;            ///< as keys; finite wherever a row of the sequence stands
    const float *key_scales;       ///< [blocks, kv_heads, block_size]: what codes are multiplied by; null: no codes
    const float *value_scales;     ///< as key_scales
    const uint32_t *cu_seqlens_q;  ///< [sequences + 1]: first row of each sequence, and the number of rows
    const uint32_t *context_lens;  ///< [sequences]: positions before the sequence's first row
    const uint32_t *block_tables;  ///< [sequences, max_blocks]
    int64_t max_blocks;
    /// [rows], or null. Bit j: the row sees row j of its sequence (itself included), all of the context
    /// besides; for drafts that are trees, of up to 64 rows a sequence. Null: every row sees those before it.
    const uint64_t *tree_masks;
    float *workspace;  ///< [rows, heads, splits, head_dim + 2]
    void *out;         ///< [rows, heads * head_dim]
};

/// `attention`, and `combine` where a sequence has more than one split: softmax attention of every row over what it
/// sees of its sequence; a row that sees nothing gives zeros. No window together with tree masks.
struct PleachAttend {
    PleachAttention io;
    PleachAttentionShape shape;
    int64_t rows, sequences;
    int64_t splits;   ///< of the longest sequence, its rows included
    float scale;      ///< of scores, or of what their bound leaves, for powers of two
    float cap_scale;  ///< of scores that are bounded, for the power of two of the tangent
};

// ---- matrix product (matmul.cu) -------------------------------------------------------------------------

/// `pack`: lays a matrix out for `matmul`; weights [outputs, inputs] in the kernel's format, as in the file. Once, at
/// load.
struct PleachPack {
    const void *weights;
    void *packed;
    int64_t outputs, inputs;
};

/// `matmul`: `out = x w^T`; x [rows, inputs], rows `x_stride` values apart (vector rows: a multiple of 8); out [rows,
/// outputs], rows `out_stride` apart, of the type of x or f32.
struct PleachProduct {
    const void *packed;
    const void *x;
    void *out;
    int64_t rows, outputs, inputs, x_stride, out_stride;
    uint32_t out_f32;
};

// ---- low-rank additions (low_rank.cu) -------------------------------------------------------------------

/// What an adapter adds to one matrix: `scale * B A`.
struct PleachFactors {
    const float *a;  ///< [rank, inputs], vector rows
    const float *b;  ///< [rank, outputs]: B's columns
    int32_t rank;    ///< 0: it adds nothing
    float scale;
};

/// `shrink`, then `expand`: add to the outputs of up to three matrices that stand side by side what each row's adapter adds
/// to them, by `ranks` of its ranks from `rank` on. Rows without an adapter, and matrices to which one adds nothing, stay
/// as they are.
struct PleachLowRank {
    const PleachFactors *const *adapters;  ///< [rows]: what a row's adapter adds to all matrices of the model, or null
    const void *x;                         ///< [rows, inputs], vector rows of the kernel's type
    float *sums;                           ///< [rows, matrices, ranks], work space
    void *out;                             ///< [rows, outputs of all], in place, of the kernel's type
    int64_t rows;
    int64_t inputs;      ///< a multiple of 4
    int64_t outputs[3];  ///< of each matrix; 0 behind the last
    int32_t matrix;      ///< the first matrix, by its place among those of the model
    int32_t matrices;
    int32_t rank, ranks;
};

// ---- verification (verify.cu) ---------------------------------------------------------------------------

/// No row of a table.
#define PLEACH_NONE 0xffffffffu

/// How one sequence draws, as `sampling::SamplingParams`; applied in the order given there.
struct PleachSampling {
    float temperature;  ///< 0: the most likely token, the lowest id among equals
    float top_p;        ///< 1: all
    float min_p;        ///< 0: all
    float repetition_penalty;
    float presence_penalty;
    float frequency_penalty;
    uint64_t top_k;     ///< 0: all
    uint64_t seed;
    uint64_t position;  ///< of the token that the sequence's first row decides
    /// Not 0: the target's own draw is the winner of an exponential race, and a draft token stands if it is that
    /// (`sampling::Draws::coupled`). 0: rejection sampling.
    uint32_t coupled;
    uint32_t token_counts;  ///< its row of the table, or PLEACH_NONE: no penalties
    uint32_t bias;          ///< its row of the table, or PLEACH_NONE
};

/// What a draw decides: part of the key of its random number.
enum PleachPurpose {
    PLEACH_PURPOSE_DRAFT = 0,
    PLEACH_PURPOSE_ACCEPT = 1,
    PLEACH_PURPOSE_SAMPLE = 2,
};

enum PleachRowStatus {
    PLEACH_ROW_OK = 0,
    PLEACH_ROW_NOT_FINITE = 1,    ///< a logit is NaN or positive infinity; `token` is the first such id
    PLEACH_ROW_NOTHING_LEFT = 2,  ///< no token has any probability
};

/// What a row decides over.
struct PleachVerifyRow {
    uint32_t logits;        ///< its row of the logits
    uint32_t draft_token;   ///< the token proposed at it; not read in the last row of a sequence
    uint32_t draft_probs;   ///< its row of the table, or PLEACH_NONE: the draft token was certain
    uint32_t grammar_mask;  ///< its row of the table, or PLEACH_NONE: every token may come
};

struct PleachRowResult {
    uint32_t status;
    uint32_t accepted;  ///< 1: the row's draft token stands
    uint32_t token;     ///< the draft token, or the one in its place
    float log_prob;     ///< of `token`, by the raw logits
    float log_sum_exp;  ///< of the raw logits
};

struct PleachVerdict {
    uint32_t accepted;  ///< draft tokens that stand
    uint32_t last;      ///< the recovered token after them, or the bonus token if all stand
    uint32_t status;    ///< of the row that decides `last`; rows behind it do not matter
};

/// `verify`: decides which draft tokens stand, and draws the token after them, for all sequences in one launch. Draws
/// depend on (seed, position, purpose) alone. A sequence of n draft tokens has n + 1 rows (or one, without).
struct PleachVerify {
    const float *logits;             ///< [_, vocab_size]
    const PleachVerifyRow *rows;     ///< [rows]
    const uint32_t *cu_rows;         ///< [sequences + 1]: first row of each sequence, and the number of rows
    const PleachSampling *sampling;  ///< [sequences]
    const float *draft_probs;        ///< [_, vocab_size]: what draft tokens were drawn from
    const uint32_t *token_counts;    ///< [_, vocab_size, 2]: in the prompt, generated
    const float *bias;               ///< [_, vocab_size]
    const uint32_t *grammar_mask;    ///< [_, vocab_size / 32 rounded up]: bit set where allowed
    uint32_t *finished;              ///< [sequences]: zero before the first call, and after every call
    PleachRowResult *results;        ///< [rows], out
    PleachVerdict *verdicts;         ///< [sequences], out; untouched for a sequence without rows
    int64_t sequences;
    int64_t vocab_size;              ///< at most 2^19, so that 64 bits hold a sum of weights
};

/// `scatter`: `table[place] = value` for the `count` pairs (place, value) of `entries`, all places different and below
/// `size`: how the tables of `verify`, zero but for a few numbers, come to the device.
struct PleachScatter {
    uint32_t *table;
    const uint32_t *entries;
    int64_t count, size;
};
