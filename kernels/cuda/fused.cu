// The small steps between the matrix products, each one pass over its rows.

#include "weights.cuh"

namespace pleach {
namespace {

constexpr int NORM_WARPS = 8;

/// One block a row of `out`.
template <class T>
__global__ void __launch_bounds__(NORM_WARPS *WARP)
    add_rms_norm_kernel(float *residual, const T *delta, const T *weight, const uint32_t *wanted, T *out, int64_t width,
                        float eps) {
    SHARED(float, scratch, NORM_WARPS);
    const int64_t row = wanted ? wanted[blockIdx.x] : blockIdx.x;
    residual += row * width;
    out += blockIdx.x * width;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += NORM_WARPS * WARP) {
        float x = residual[i];
        if (delta) {
            x = add(x, to_float(delta[row * width + i]));
            residual[i] = x;
        }
        sum = fused_multiply_add(x, x, sum);
    }
    sum = block_reduce<NORM_WARPS>(sum, Sum{}, scratch);
    const float scale = 1.0f / sqrtf(sum / float(width) + eps);
    // Each thread reads what it wrote itself.
    for (int64_t i = threadIdx.x; i < width; i += NORM_WARPS * WARP)
        out[i] = from_float<T>(multiply(multiply(residual[i], scale), to_float(weight[i])));
}

constexpr unsigned COLUMN_THREADS = 256;

/// Grid (columns, rows).
template <class T>
__global__ void __launch_bounds__(COLUMN_THREADS) silu_mul_kernel(const T *gate_up, T *out, int64_t rows, int64_t width) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= width) return;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const float gate = to_float(gate_up[row * 2 * width + i]);
        const float up = to_float(gate_up[row * 2 * width + width + i]);
        out[row * width + i] = from_float<T>(multiply(gate / add(1.0f, exp_exact(-gate)), up));
    }
}

/// Grid (columns, rows).
template <class T>
__global__ void __launch_bounds__(COLUMN_THREADS) add_bias_kernel(T *x, const T *bias, int64_t rows, int64_t width) {
    const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const float by = to_float(bias[i]);
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y)
        x[row * width + i] = from_float<T>(add(to_float(x[row * width + i]), by));
}

constexpr int ROPE_WARPS = 4;
/// Half of the widest head a warp holds, in lanes.
constexpr int MAX_PAIRS = 2;

/// One warp a head of a row; lane i holds the pairs (i, i + half), (i + 32, ...).
template <class T>
__global__ void __launch_bounds__(ROPE_WARPS *WARP)
    qkv_rope_write_kernel(PleachQkv io, PleachAttentionShape shape, int64_t rows, float eps) {
    const int total = shape.heads + 2 * shape.kv_heads, dim = shape.head_dim, half = dim / 2;
    const int64_t task = int64_t(blockIdx.x) * ROPE_WARPS + warp_id();
    if (task >= rows * total) return;
    const int64_t row = task / total;
    const int head = int(task % total), lane = lane_id();
    const bool is_query = head < shape.heads, is_key = !is_query && head < shape.heads + shape.kv_heads;
    const T *x = static_cast<const T *>(io.qkv) + task * dim;
    const T *bias = static_cast<const T *>(io.bias);
    const T *norm = static_cast<const T *>(is_query ? io.q_norm : is_key ? io.k_norm : nullptr);

    float a[MAX_PAIRS] = {}, b[MAX_PAIRS] = {}, squares = 0.0f;
    for (int p = 0; p < MAX_PAIRS; p++) {
        const int i = lane + p * WARP;
        if (i >= half) break;
        a[p] = to_float(x[i]);
        b[p] = to_float(x[i + half]);
        if (bias) {
            a[p] = add(a[p], to_float(bias[head * dim + i]));
            b[p] = add(b[p], to_float(bias[head * dim + i + half]));
        }
        squares = fused_multiply_add(a[p], a[p], squares);
        squares = fused_multiply_add(b[p], b[p], squares);
    }
    if (norm) {
        const float scale = 1.0f / sqrtf(warp_reduce(squares, Sum{}) / float(dim) + eps);
        for (int p = 0; p < MAX_PAIRS; p++) {
            const int i = lane + p * WARP;
            if (i >= half) break;
            a[p] = multiply(multiply(a[p], scale), to_float(norm[i]));
            b[p] = multiply(multiply(b[p], scale), to_float(norm[i + half]));
        }
    }

    T *to;
    if (is_query) {
        to = static_cast<T *>(io.q) + (row * shape.heads + head) * dim;
    } else {
        const uint32_t slot = io.slots[row];
        if (slot == PLEACH_NO_SLOT) return;
        const int64_t block = slot / shape.block_size, offset = slot % shape.block_size;
        const int kv_head = (head - shape.heads) % shape.kv_heads;
        to = static_cast<T *>(is_key ? io.keys : io.values) +
             ((block * shape.kv_heads + kv_head) * shape.block_size + offset) * dim;
    }
    const float *rotations = io.rotations + int64_t(io.positions[row]) * dim;
    for (int p = 0; p < MAX_PAIRS; p++) {
        const int i = lane + p * WARP;
        if (i >= half) break;
        float low = a[p], high = b[p];
        if (is_query || is_key) {
            const float cosine = rotations[2 * i], sine = rotations[2 * i + 1];
            low = add(multiply(a[p], cosine), -multiply(b[p], sine));
            high = add(multiply(b[p], cosine), multiply(a[p], sine));
        }
        to[i] = from_float<T>(low);
        to[i + half] = from_float<T>(high);
    }
}

constexpr int EMBED_THREADS = 128;

/// One block a row.
template <int FORMAT>
__global__ void __launch_bounds__(EMBED_THREADS)
    embed_kernel(const uint8_t *table, const uint32_t *tokens, float *out, int64_t width, int64_t vocab_size) {
    const uint32_t token = tokens[blockIdx.x];
    constexpr int values = block_values(FORMAT);
    const uint8_t *row = table + int64_t(token) * (width / values) * block_bytes(FORMAT);
    for (int64_t i = threadIdx.x; i < width; i += EMBED_THREADS) {
        float value;
        if (token >= vocab_size) {
            value = __uint_as_float(0x7fc00000u);
        } else if constexpr (FORMAT == PLEACH_W_BF16) {
            value = to_float(reinterpret_cast<const Bf16 *>(row)[i]);
        } else if constexpr (FORMAT == PLEACH_W_F16) {
            value = to_float(reinterpret_cast<const F16 *>(row)[i]);
        } else {
            const uint8_t *block = row + i / values * block_bytes(FORMAT);
            value = value_at<FORMAT>(block, int(i % values) / GROUP, int(i % GROUP));
        }
        out[blockIdx.x * width + i] = value;
    }
}

template <int FORMAT>
int embed(const void *table, const uint32_t *tokens, float *out, int64_t rows, int64_t width,
          int64_t vocab_size, void *stream) {
    if (width % block_values(FORMAT) != 0) return PLEACH_BAD_ARGUMENT;
    const auto *bytes = static_cast<const uint8_t *>(table);
    return LAUNCH((embed_kernel<FORMAT>), Dim{unsigned(rows)}, Dim{EMBED_THREADS}, stream, bytes, tokens,
                  out, width, vocab_size);
}

template <class T>
int add_rms_norm(float *residual, const void *delta, const void *weight, const uint32_t *wanted, void *out, int64_t rows,
                 int64_t width, float eps, void *stream) {
    return LAUNCH((add_rms_norm_kernel<T>), Dim{unsigned(rows)}, Dim{NORM_WARPS * WARP}, stream, residual,
                  static_cast<const T *>(delta), static_cast<const T *>(weight), wanted, static_cast<T *>(out), width,
                  eps);
}

template <class T>
int silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, void *stream) {
    const Dim grid{unsigned(div_up<int64_t>(width, COLUMN_THREADS)), unsigned(rows < 4096 ? rows : 4096)};
    return LAUNCH((silu_mul_kernel<T>), grid, Dim{COLUMN_THREADS}, stream, static_cast<const T *>(gate_up),
                  static_cast<T *>(out), rows, width);
}

template <class T>
int add_bias(void *x, const void *bias, int64_t rows, int64_t width, void *stream) {
    const Dim grid{unsigned(div_up<int64_t>(width, COLUMN_THREADS)), unsigned(rows < 4096 ? rows : 4096)};
    return LAUNCH((add_bias_kernel<T>), grid, Dim{COLUMN_THREADS}, stream, static_cast<T *>(x),
                  static_cast<const T *>(bias), rows, width);
}

template <class T>
int qkv_rope_write(const PleachQkv &io, const PleachAttentionShape &shape, int64_t rows, float eps,
                   void *stream) {
    const int64_t warps = rows * (shape.heads + 2 * shape.kv_heads);
    const Dim grid{unsigned(div_up<int64_t>(warps, ROPE_WARPS))};
    return LAUNCH((qkv_rope_write_kernel<T>), grid, Dim{ROPE_WARPS * WARP}, stream, io, shape, rows, eps);
}

/// Calls `$f<T>` with the type of `dtype`.
#define FOR_DTYPE(f, dtype, ...)                    \
    (dtype) == PLEACH_BF16  ? f<Bf16>(__VA_ARGS__)  \
    : (dtype) == PLEACH_F16 ? f<F16>(__VA_ARGS__)   \
                            : PLEACH_BAD_ARGUMENT

bool bad_rows(int64_t rows, int64_t width) {
    return rows < 0 || rows > MAX_GRID_X || width <= 0 || width > MAX_GRID_X;
}

}  // namespace
}  // namespace pleach

using namespace pleach;

extern "C" int pleach_add_rms_norm(float *residual, const void *delta, const void *weight, const uint32_t *wanted,
                                   void *out, int64_t rows, int64_t width, float eps, int dtype, void *stream) {
    if (bad_rows(rows, width)) return PLEACH_BAD_ARGUMENT;
    if (rows == 0) return PLEACH_OK;
    return FOR_DTYPE(add_rms_norm, dtype, residual, delta, weight, wanted, out, rows, width, eps, stream);
}

extern "C" int pleach_silu_mul(const void *gate_up, void *out, int64_t rows, int64_t width, int dtype,
                               void *stream) {
    if (bad_rows(rows, width)) return PLEACH_BAD_ARGUMENT;
    if (rows == 0) return PLEACH_OK;
    return FOR_DTYPE(silu_mul, dtype, gate_up, out, rows, width, stream);
}

extern "C" int pleach_add_bias(void *x, const void *bias, int64_t rows, int64_t width, int dtype, void *stream) {
    if (bad_rows(rows, width)) return PLEACH_BAD_ARGUMENT;
    if (rows == 0) return PLEACH_OK;
    return FOR_DTYPE(add_bias, dtype, x, bias, rows, width, stream);
}

extern "C" int pleach_qkv_rope_write(const PleachQkv *io, const PleachAttentionShape *shape, int64_t rows,
                                     float eps, int dtype, void *stream) {
    const PleachAttentionShape &s = *shape;
    if (s.heads <= 0 || s.kv_heads <= 0 || s.heads % s.kv_heads != 0 || s.head_dim <= 0 ||
        s.head_dim % 2 != 0 || s.head_dim > 2 * MAX_PAIRS * WARP || s.block_size <= 0 ||
        bad_rows(rows, s.head_dim) || rows > MAX_GRID_X / (s.heads + 2 * s.kv_heads))
        return PLEACH_BAD_ARGUMENT;
    if (rows == 0) return PLEACH_OK;
    return FOR_DTYPE(qkv_rope_write, dtype, *io, s, rows, eps, stream);
}

extern "C" int pleach_embed(const void *table, const uint32_t *tokens, float *out, int64_t rows, int64_t width,
                            int64_t vocab_size, int format, void *stream) {
    if (bad_rows(rows, width) || vocab_size <= 0) return PLEACH_BAD_ARGUMENT;
    if (rows == 0) return PLEACH_OK;
    switch (format) {
        case PLEACH_W_BF16: return embed<PLEACH_W_BF16>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_F16: return embed<PLEACH_W_F16>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_Q4_0: return embed<PLEACH_W_Q4_0>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_Q4_1: return embed<PLEACH_W_Q4_1>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_Q8_0: return embed<PLEACH_W_Q8_0>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_Q4_K: return embed<PLEACH_W_Q4_K>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_Q5_K: return embed<PLEACH_W_Q5_K>(table, tokens, out, rows, width, vocab_size, stream);
        case PLEACH_W_Q6_K: return embed<PLEACH_W_Q6_K>(table, tokens, out, rows, width, vocab_size, stream);
        default: return PLEACH_BAD_ARGUMENT;
    }
}
