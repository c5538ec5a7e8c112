// Weight formats as files hold them: 32 values at a time, `w = scale * code + min`, as `pleach_kernels::DType`.
#pragma once

#include "common.cuh"

namespace pleach {

/// Calls `KERNELS` with the name and the number of every quantised format, or of every format.
#define FOR_EACH_QUANTISED(KERNELS) \
    KERNELS(q4_0, PLEACH_W_Q4_0)    \
    KERNELS(q4_1, PLEACH_W_Q4_1)    \
    KERNELS(q8_0, PLEACH_W_Q8_0)    \
    KERNELS(q4_k, PLEACH_W_Q4_K)    \
    KERNELS(q5_k, PLEACH_W_Q5_K)    \
    KERNELS(q6_k, PLEACH_W_Q6_K)
#define FOR_EACH_FORMAT(KERNELS) \
    KERNELS(bf16, PLEACH_W_BF16) KERNELS(f16, PLEACH_W_F16) FOR_EACH_QUANTISED(KERNELS)

/// Values of one quantised group.
constexpr int GROUP = 32;

/// Values and bytes of one block of storage.
__host__ __device__ constexpr int block_values(int format) {
    return format >= PLEACH_W_Q4_K ? 256 : format >= PLEACH_W_Q4_0 ? 32 : 1;
}
__host__ __device__ constexpr int block_bytes(int format) {
    constexpr int bytes[] = {2, 2, 18, 20, 34, 144, 176, 210};
    return bytes[format];
}
__host__ __device__ constexpr bool has_min(int format) {
    return format == PLEACH_W_Q4_1 || format == PLEACH_W_Q4_K || format == PLEACH_W_Q5_K;
}

/// File blocks have odd sizes, so halves are read by byte.
__device__ __forceinline__ F16 half_at(const uint8_t *bytes) {
    return {uint16_t(bytes[0] | bytes[1] << 8)};
}

/// The 6-bit scale and minimum of group `g` of a Q4_K or Q5_K block; `s` are its 12 packed bytes.
__device__ __forceinline__ void k_scale(const uint8_t *s, int g, int &scale, int &min) {
    if (g < 4) {
        scale = s[g] & 63;
        min = s[g + 4] & 63;
    } else {
        scale = (s[g + 4] & 15) | s[g - 4] >> 6 << 4;
        min = s[g + 4] >> 4 | s[g] >> 6 << 4;
    }
}

/// Code `i` of group `g` of a block, centred: 0 has the value `min`, or 0 in formats without minimum.
template <int FORMAT>
__device__ __forceinline__ int code_at(const uint8_t *block, int g, int i) {
    if constexpr (FORMAT == PLEACH_W_Q4_0) {
        return (block[2 + i % 16] >> (i / 16 * 4) & 15) - 8;
    } else if constexpr (FORMAT == PLEACH_W_Q4_1) {
        return block[4 + i % 16] >> (i / 16 * 4) & 15;
    } else if constexpr (FORMAT == PLEACH_W_Q8_0) {
        return int8_t(block[2 + i]);
    } else if constexpr (FORMAT == PLEACH_W_Q4_K) {
        return block[16 + g / 2 * 32 + i] >> (g % 2 * 4) & 15;
    } else if constexpr (FORMAT == PLEACH_W_Q5_K) {
        return (block[48 + g / 2 * 32 + i] >> (g % 2 * 4) & 15) | (block[16 + i] >> g & 1) << 4;
    } else {
        static_assert(FORMAT == PLEACH_W_Q6_K);
        const int part = g / 4, quarter = g % 4;
        const int low = block[part * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
        return (low | (block[128 + part * 32 + i] >> (quarter * 2) & 3) << 4) - 32;
    }
}

/// Value `i` of group `g` of a block.
template <int FORMAT>
__device__ __forceinline__ float value_at(const uint8_t *block, int g, int i) {
    const float code = float(code_at<FORMAT>(block, g, i));
    if constexpr (FORMAT == PLEACH_W_Q4_0 || FORMAT == PLEACH_W_Q8_0) {
        return to_float(half_at(block)) * code;
    } else if constexpr (FORMAT == PLEACH_W_Q4_1) {
        return fused_multiply_add(to_float(half_at(block)), code, to_float(half_at(block + 2)));
    } else if constexpr (FORMAT == PLEACH_W_Q6_K) {
        return multiply(to_float(half_at(block + 208)), float(int8_t(block[192 + g * 2 + i / 16]))) * code;
    } else {
        int scale, min;
        k_scale(block + 4, g, scale, min);
        const float d = multiply(to_float(half_at(block)), float(scale));
        return fused_multiply_add(d, code, -multiply(to_float(half_at(block + 2)), float(min)));
    }
}

}  // namespace pleach
