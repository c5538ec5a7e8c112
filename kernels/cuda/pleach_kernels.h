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
    PLEACH_LAUNCH_FAILED = 2,  ///< `pleach_error_text` says why
};

/// Counts changes to what this file declares: a program and its kernels must agree.
#define PLEACH_KERNELS_VERSION 4
int pleach_kernels_version(void);

/// Activations, and keys and values.
enum PleachDType {
    PLEACH_BF16 = 0,
    PLEACH_F16 = 1,
    PLEACH_F32 = 2,
};

// ---- devices (device.cu) --------------------------------------------------------------------------------

/// Text of this thread's last PLEACH_LAUNCH_FAILED.
const char *pleach_error_text(void);

/// Devices there are. PLEACH_LAUNCH_FAILED without a driver.
int pleach_device_count(int32_t *count);

/// Makes a device the calling thread's own: that of the calls below.
int pleach_use_device(int32_t device);

/// Name, cut to `size` bytes, and bytes of memory: free and in total.
int pleach_device_info(char *name, int64_t size, int64_t *free_bytes, int64_t *total_bytes);

int pleach_stream_create(void **stream);
int pleach_stream_destroy(void *stream);
/// Waits for everything started on `stream`, and reports what went wrong in it.
int pleach_synchronize(void *stream);

/// Memory of the device, or of the host for fast copies. Contents are undefined.
int pleach_allocate(void **memory, int64_t bytes);
int pleach_free(void *memory);
int pleach_allocate_host(void **memory, int64_t bytes);
int pleach_free_host(void *memory);

/// Copies in order with the kernels of `stream`; the host's memory must last until `pleach_synchronize`.
int pleach_upload(void *device, const void *host, int64_t bytes, void *stream);
int pleach_download(void *host, const void *device, int64_t bytes, void *stream);
/// Sets every byte.
int pleach_fill(void *device, int value, int64_t bytes, void *stream);

/// Records what is launched on `stream` between the two calls, and does not run it; no allocation, copy or
/// synchronisation may come between. `pleach_graph_end` makes a graph of it, which `pleach_graph_launch` runs with
/// the arguments of the recording, any number of times.
int pleach_graph_begin(void *stream);
int pleach_graph_end(void *stream, void **graph);
int pleach_graph_launch(void *graph, void *stream);
/// Of a graph that does not run.
int pleach_graph_destroy(void *graph);

// ---- fused steps (fused.cu) ---------------------------------------------------------------------------

/// `residual += delta` (where `delta` is not null), then `out = residual / rms(residual) * weight`.
/// residual [_, width] f32, in place; delta [_, width], out [rows, width] and weight [width] of `dtype`.
/// Row i of `out` is that of row `wanted[i]` of the others, each wanted once; of row i where `wanted` is null.
int pleach_add_rms_norm(float *residual, const void *delta, const void *weight, const uint32_t *wanted, void *out,
                        int64_t rows, int64_t width, float eps, int dtype, void *stream);

/// `out = silu(gate) * up`; gate_up [rows, 2 * width] as [gate | up], out [rows, width].
int pleach_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int dtype, void *stream);

/// `x += bias` in every row; x [rows, width], in place, and bias [width] of `dtype`.
int pleach_add_bias(void *x, const void *bias, int64_t rows, int64_t width, int dtype, void *stream);

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

// ---- attention (attention.cu) ---------------------------------------------------------------------------

/// What `pleach_paged_attention` reads and writes. A sequence's rows are the positions that follow its
/// context; their keys and values are in the cache already.
typedef struct {
    const void *q;                 ///< [rows, heads * head_dim]
    const void *keys;              ///< [blocks, kv_heads, block_size, head_dim]
    const void *values;            ///< as keys; finite wherever a row of the sequence stands
    const uint32_t *cu_seqlens_q;  ///< [sequences + 1]: first row of each sequence, and the number of rows
    const uint32_t *context_lens;  ///< [sequences]: positions before the sequence's first row
    const uint32_t *block_tables;  ///< [sequences, max_blocks]
    int64_t max_blocks;
    /// [rows], or null. Bit j: the row sees row j of its sequence (itself included), all of the context
    /// besides; for drafts that are trees, of up to 64 rows a sequence. Null: every row sees those before it.
    const uint64_t *tree_masks;
    float *workspace;  ///< `pleach_attention_workspace` bytes
    void *out;         ///< [rows, heads * head_dim]
} PleachAttention;

/// Bytes of work space for `rows` rows of sequences of at most `max_length` positions, rows included. Rows are
/// independent: a caller with little memory may launch a few at a time.
int64_t pleach_attention_workspace(const PleachAttentionShape *shape, int64_t rows, int64_t max_length);

/// Softmax attention of every row over what it sees of its sequence; a row that sees nothing gives zeros.
/// `max_length` bounds the length of every sequence, its rows included. No window together with tree masks.
int pleach_paged_attention(const PleachAttention *io, const PleachAttentionShape *shape, int64_t rows,
                           int64_t sequences, int64_t max_length, int dtype, void *stream);

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

// ---- verification (verify.cu) ---------------------------------------------------------------------------

/// No row of a table.
#define PLEACH_NONE 0xffffffffu

/// How one sequence draws, as `sampling::SamplingParams`; applied in the order given there.
typedef struct {
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
} PleachSampling;

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
typedef struct {
    uint32_t logits;        ///< its row of the logits
    uint32_t draft_token;   ///< the token proposed at it; not read in the last row of a sequence
    uint32_t draft_probs;   ///< its row of the table, or PLEACH_NONE: the draft token was certain
    uint32_t grammar_mask;  ///< its row of the table, or PLEACH_NONE: every token may come
} PleachVerifyRow;

typedef struct {
    uint32_t status;
    uint32_t accepted;  ///< 1: the row's draft token stands
    uint32_t token;     ///< the draft token, or the one in its place
    float log_prob;     ///< of `token`, by the raw logits
    float log_sum_exp;  ///< of the raw logits
} PleachRowResult;

typedef struct {
    uint32_t accepted;  ///< draft tokens that stand
    uint32_t last;      ///< the recovered token after them, or the bonus token if all stand
    uint32_t status;    ///< of the row that decides `last`; rows behind it do not matter
} PleachVerdict;

/// What `pleach_verify` reads and writes. A sequence of n draft tokens has n + 1 rows (or one, without).
typedef struct {
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
    int64_t vocab_size;             ///< at most 2^18
} PleachVerify;

/// Decides which draft tokens stand, and draws the token after them, for all sequences in one launch. Draws
/// depend on (seed, position, purpose) alone.
int pleach_verify(const PleachVerify *io, int64_t rows, void *stream);

/// `table[place] = value` for the `count` pairs (place, value) of `entries`, all places different and below
/// `size`: how the tables of `pleach_verify`, zero but for a few numbers, come to the device.
int pleach_scatter(uint32_t *table, const uint32_t *entries, int64_t count, int64_t size, void *stream);

#ifdef __cplusplus
}
#endif
