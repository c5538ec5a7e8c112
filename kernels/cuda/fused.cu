// The small steps between the matrix products, each one pass over its rows.

#include "weights.cuh"

namespace pleach {
namespace {

constexpr int NORM_WARPS = 8, NORM_AHEAD = 8;

struct Both {
    float x, y;
};

/// What a norm multiplies values by that have this sum of squares.
__device__ __forceinline__ float norm_scale(float sum, int64_t width, float eps) {
    return 1.0f / sqrtf(sum / float(width) + eps);
}

/// One block a row of `out`.
template <class T>
__device__ __forceinline__ void add_rms_norm(const PleachNorm &a) {
    SHARED(float, scratch, NORM_WARPS);
    const int64_t width = a.width;
    const int64_t row = a.wanted ? a.wanted[blockIdx.x] : blockIdx.x;
    float *residual = a.residual + row * width;
    const T *delta = a.delta ? static_cast<const T *>(a.delta) + row * width : nullptr;
    T *out = static_cast<T *>(a.out) + blockIdx.x * width;
    // A thread has the same values of every pass over the row.
    const auto row_values = [&](auto read, auto use) {
        read_ahead<NORM_AHEAD>(threadIdx.x, width, NORM_WARPS * WARP, read, use);
    };
    float by = 1.0f;
    if (a.delta_weight) {
        float sum = 0.0f;
        row_values([&](int64_t i) { return to_float(delta[i]); },
                   [&](int64_t, float x) { sum = fused_multiply_add(x, x, sum); });
        by = norm_scale(block_reduce<NORM_WARPS>(sum, Sum{}, scratch), width, a.eps);
    }
    float sum = 0.0f;
    row_values(
        [&](int64_t i) {
            float d = delta ? to_float(delta[i]) : 0.0f;
            if (a.delta_weight) d = multiply(multiply(d, by), a.delta_weight[i]);
            return Both{residual[i], d};
        },
        [&](int64_t i, Both both) {
            float x = both.x;
            if (delta) residual[i] = x = add(x, both.y);
            sum = fused_multiply_add(x, x, sum);
        });
    sum = block_reduce<NORM_WARPS>(sum, Sum{}, scratch);
    const float scale = norm_scale(sum, width, a.eps);
    row_values([&](int64_t i) { return Both{residual[i], a.weight[i]}; },
               [&](int64_t i, Both both) { out[i] = from_float<T>(multiply(multiply(both.x, scale), both.y)); });
}

constexpr unsigned COLUMN_THREADS = 256;

/// x / (1 + e^-x), or GELU by its approximation x / (1 + e^-(2 sqrt(2 / pi) (x + 0.044715 x^3))).
__device__ __forceinline__ float activated(float x, uint32_t activation) {
    float inner = x;
    if (activation == PLEACH_GELU_TANH)
        inner = multiply(1.595769f, fused_multiply_add(multiply(multiply(0.044715f, x), x), x, x));
    return x / add(1.0f, exp_exact(-inner));
}

/// Grid (columns, rows).
template <class T>
__device__ __forceinline__ void gate_mul(const PleachGate &a) {
    const T *gate_up = static_cast<const T *>(a.gate_up);
    T *out = static_cast<T *>(a.out);
    const int64_t width = a.width, i = int64_t(blockIdx.x) * COLUMN_THREADS + threadIdx.x;
    if (i >= width) return;
    for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
        const float gate = to_float(gate_up[row * 2 * width + i]);
        const float up = to_float(gate_up[row * 2 * width + width + i]);
        out[row * width + i] = from_float<T>(multiply(activated(gate, a.activation), up));
    }
}

/// Grid (columns, rows).
template <class T>
__device__ __forceinline__ void add_bias(const PleachBias &a) {
    T *x = static_cast<T *>(a.x);
    const int64_t width = a.width, i = int64_t(blockIdx.x) * COLUMN_THREADS + threadIdx.x;
    if (i >= width) return;
    const float by = to_float(static_cast<const T *>(a.bias)[i]);
    for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y)
        x[row * width + i] = from_float<T>(add(to_float(x[row * width + i]), by));
}

constexpr int ROPE_WARPS = 4;
/// Half of the widest head a warp holds, in lanes.
constexpr int MAX_PAIRS = 4;

/// What the codes of values are multiplied by whose largest size this is: NaN and infinity stay. A scale below the normal
/// numbers would be too far from a 127th.
__device__ __forceinline__ float scale_of(float largest) {
    const float scale = largest / 127.0f;
    return scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
}

/// The nearest code, an even one where two are as near; 0 where there is none.
__device__ __forceinline__ int8_t code_of(float x, float scale) {
    // 1.5 * 2^23 and an integer: its lower bits are those of the integer. Of a GPU's NaN, all are set.
    return int8_t(scale < INFINITY ? __float_as_uint(add(x / scale, 12582912.0f)) & 255 : 0);
}

/// One warp a head of a row; lane i holds pairs i, i + 32, ... of values: first those that turn, a value and the one `turned`
/// on, then two of the rest. Keys and values are written as `Cell`: T, or codes of 8 bits.
template <class T, class Cell>
__device__ __forceinline__ void qkv_rope_write(const PleachRope &arguments) {
    const PleachQkv &io = arguments.io;
    const PleachAttentionShape &shape = arguments.shape;
    const int total = shape.heads + 2 * shape.kv_heads, dim = shape.head_dim, half = dim / 2;
    const int64_t task = int64_t(blockIdx.x) * ROPE_WARPS + warp_id();
    if (task >= arguments.rows * total) return;
    const int64_t row = task / total;
    const int head = int(task % total), lane = lane_id();
    const bool is_query = head < shape.heads, is_key = !is_query && head < shape.heads + shape.kv_heads;
    const T *x = static_cast<const T *>(io.qkv) + task * dim;
    const T *bias = static_cast<const T *>(io.bias);
    const float *norm = is_query ? io.q_norm : is_key ? io.k_norm : nullptr;
    const int turned = arguments.turned;
    const auto low_of = [&](int i) { return i < turned ? i : i + turned; };
    const auto high_of = [&](int i) { return i < turned ? i + turned : i + half; };

    float a[MAX_PAIRS] = {}, b[MAX_PAIRS] = {}, squares = 0.0f;
    for (int p = 0; p < MAX_PAIRS; p++) {
        const int i = lane + p * WARP;
        if (i >= half) break;
        a[p] = to_float(x[low_of(i)]);
        b[p] = to_float(x[high_of(i)]);
        if (bias) {
            a[p] = add(a[p], to_float(bias[head * dim + low_of(i)]));
            b[p] = add(b[p], to_float(bias[head * dim + high_of(i)]));
        }
        squares = fused_multiply_add(a[p], a[p], squares);
        squares = fused_multiply_add(b[p], b[p], squares);
    }
    if (norm) {
        const float scale = norm_scale(warp_reduce(squares, Sum{}), dim, arguments.eps);
        for (int p = 0; p < MAX_PAIRS; p++) {
            const int i = lane + p * WARP;
            if (i >= half) break;
            a[p] = multiply(multiply(a[p], scale), norm[low_of(i)]);
            b[p] = multiply(multiply(b[p], scale), norm[high_of(i)]);
        }
    }

    // The head among those of the rows, or of the cache.
    int64_t place = row * shape.heads + head;
    if (!is_query) {
        const uint32_t slot = io.slots[row];
        if (slot == PLEACH_NO_SLOT) return;
        const int64_t block = slot / shape.block_size, offset = slot % shape.block_size;
        const int kv_head = (head - shape.heads) % shape.kv_heads;
        place = (block * shape.kv_heads + kv_head) * shape.block_size + offset;
    }
    const float *rotations = io.rotations + int64_t(io.positions[row]) * 2 * turned;
    for (int p = 0; p < MAX_PAIRS; p++) {
        const int i = lane + p * WARP;
        if (i >= half) break;
        if ((is_query || is_key) && i < turned) {
            const float cosine = rotations[2 * i], sine = rotations[2 * i + 1];
            const float low = add(multiply(a[p], cosine), -multiply(b[p], sine));
            const float high = add(multiply(b[p], cosine), multiply(a[p], sine));
            a[p] = low;
            b[p] = high;
        }
    }
    const auto write = [&](auto *to, const auto &cell_of) {
        to += place * dim;
        for (int p = 0; p < MAX_PAIRS; p++) {
            const int i = lane + p * WARP;
            if (i >= half) break;
            to[low_of(i)] = cell_of(a[p]);
            to[high_of(i)] = cell_of(b[p]);
        }
    };
    if constexpr (sizeof(Cell) == 1) {
        if (!is_query) {
            // Of values without a sign, bits have the order of what they say, and NaN comes last.
            uint32_t largest = 0;
            for (int p = 0; p < MAX_PAIRS; p++) {
                largest = Max{}(largest, __float_as_uint(fabsf(a[p])));
                largest = Max{}(largest, __float_as_uint(fabsf(b[p])));
            }
            const float scale = scale_of(__uint_as_float(warp_reduce(largest, Max{})));
            if (lane == 0) (is_key ? io.key_scales : io.value_scales)[place] = scale;
            write(static_cast<Cell *>(is_key ? io.keys : io.values), [&](float x) { return code_of(x, scale); });
            return;
        }
    }
    write(static_cast<T *>(is_query ? io.q : is_key ? io.keys : io.values), [](float x) { return from_float<T>(x); });
}

constexpr int EMBED_THREADS = 256, EMBED_AHEAD = 8;

/// One block a row.
template <int FORMAT>
__device__ __forceinline__ void embed(const PleachEmbed &a) {
    const uint32_t token = a.tokens[blockIdx.x];
    const int64_t width = a.width;
    constexpr int values = block_values(FORMAT);
    const uint8_t *row = static_cast<const uint8_t *>(a.table) + int64_t(token) * (width / values) * block_bytes(FORMAT);
    const auto value_of = [&](int64_t i) {
        if (token >= a.vocab_size) {
            return __uint_as_float(0x7fc00000u);
        } else if constexpr (FORMAT == PLEACH_W_BF16) {
            return to_float(reinterpret_cast<const Bf16 *>(row)[i]);
        } else if constexpr (FORMAT == PLEACH_W_F16) {
            return to_float(reinterpret_cast<const F16 *>(row)[i]);
        } else {
            const uint8_t *block = row + i / values * block_bytes(FORMAT);
            return value_at<FORMAT>(block, int(i % values) / GROUP, int(i % GROUP));
        }
    };
    read_ahead<EMBED_AHEAD>(threadIdx.x, width, EMBED_THREADS, value_of, [&](int64_t i, float value) {
        a.out[blockIdx.x * width + i] = multiply(value, a.scale);
    });
}

/// A thread a value.
__device__ __forceinline__ void cap_values(const PleachCap &a) {
    const int64_t i = int64_t(blockIdx.x) * COLUMN_THREADS + threadIdx.x;
    if (i < a.count) a.x[i] = multiply(a.cap, tanh_exact(a.x[i] / a.cap));
}

}  // namespace
}  // namespace pleach

using namespace pleach;

#define KERNELS(name, T)                                                              \
    KERNEL(add_rms_norm_##name, PleachNorm, (add_rms_norm<T>), NORM_WARPS * WARP)     \
    KERNEL(gate_mul_##name, PleachGate, (gate_mul<T>), COLUMN_THREADS)                \
    KERNEL(add_bias_##name, PleachBias, (add_bias<T>), COLUMN_THREADS)                \
    KERNEL(qkv_rope_write_##name, PleachRope, (qkv_rope_write<T, T>), ROPE_WARPS * WARP)
FOR_EACH_FLOAT(KERNELS)
#undef KERNELS

KERNEL(qkv_rope_write_int8_bf16, PleachRope, (qkv_rope_write<Bf16, int8_t>), ROPE_WARPS * WARP)

#define KERNELS(name, FORMAT) KERNEL(embed_##name, PleachEmbed, (embed<FORMAT>), EMBED_THREADS)
FOR_EACH_FORMAT(KERNELS)

KERNEL(soft_cap, PleachCap, cap_values, COLUMN_THREADS)
