// What every kernel file shares: number formats, kernels by name, shared memory, reductions in a fixed order.
//
// A kernel source compiles twice: with nvcc for GPUs, and as plain C++ over `emulator/` for the tests.
// Whatever differs between the two stands in this file and in `mma.cuh`.
#pragma once

#include <cstdint>

#include "pleach_kernels.h"

#if defined(__CUDACC__)

/// A kernel that the driver finds by `name`: `body`, in brackets, over one structure of arguments, in blocks of so many
/// threads; perhaps also the blocks that must fit a multiprocessor.
#define KERNEL(name, Arguments, body, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Arguments arguments) { \
        body(arguments); \
    }
#define SHARED(T, name, count) __shared__ T name[count]

template <class T>
using Shared = T *;

#else

#include "emulator/emulator.h"

#define KERNEL(name, Arguments, body, ...) \
    static const ::emulator::Kernel name##_kernel{#name, {__VA_ARGS__}, [](const void *from) -> ::emulator::Run { \
        return [arguments = *static_cast<const Arguments *>(from)] { body(arguments); }; \
    }};
#define SHARED(T, name, count) \
    ::emulator::Shared<T> name = ::emulator::shared_array<T>([] { static char key; return &key; }(), count)

template <class T>
using Shared = ::emulator::Shared<T>;

#endif

/// Calls `KERNELS` with the name and the type of every format of activations, keys and values.
#define FOR_EACH_FLOAT(KERNELS) KERNELS(bf16, ::pleach::Bf16) KERNELS(f16, ::pleach::F16)

namespace pleach {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % WARP; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / WARP; }

template <class T>
__host__ __device__ constexpr T div_up(T a, T b) {
    return (a + b - 1) / b;
}

/// The sequence that a row is of; `sequences` behind the last row. `starts` has `sequences + 1` rising rows.
__device__ __forceinline__ int64_t sequence_of(const uint32_t *starts, int64_t sequences, int64_t row) {
    int64_t low = 0, high = sequences;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (starts[middle + 1] <= row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/// Uses what stands at `begin`, `begin + stride` and so on below `end`, in order, and reads `AHEAD` of it before the first
/// is used: a load takes hundreds of cycles, and the compiler keeps it behind a store to who knows where.
template <int AHEAD, class Read, class Use>
__device__ __forceinline__ void read_ahead(int64_t begin, int64_t end, int stride, Read read, Use use) {
    for (int64_t first = begin; first < end; first += int64_t(AHEAD) * stride) {
        decltype(read(first)) values[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (first + k * stride < end) values[k] = read(first + k * stride);
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (first + k * stride < end) use(first + k * stride, values[k]);
    }
}

// ---- number formats ---------------------------------------------------------------------------------

/// bfloat16 and half precision, as bits.
struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

/// 4, 8 or 16 bytes, moved by one instruction.
template <int WORDS>
struct alignas(4 * WORDS) Vec {
    uint32_t word[WORDS];
};
using Vec16 = Vec<4>;
using Vec8 = Vec<2>;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float to_float(F16 x) {
#if defined(__CUDACC__)
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    _Float16 y;
    std::memcpy(&y, &x, 2);
    return float(y);
#endif
}

/// Rounds to nearest, ties to even; NaN stays NaN.
template <class T>
__device__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ Bf16 from_float<Bf16>(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <>
__device__ __forceinline__ F16 from_float<F16>(float x) {
    F16 y;
#if defined(__CUDACC__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const _Float16 half = _Float16(x);
    std::memcpy(&y, &half, 2);
#endif
    return y;
}

/// Two values in a register, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
    return from_float<T>(low).bits | uint32_t(from_float<T>(high).bits) << 16;
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
    return to_float(T{uint16_t(pair)});
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
    return to_float(T{uint16_t(pair >> 16)});
}

// ---- arithmetic with the same bits everywhere -------------------------------------------------------

__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDACC__)
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
}
__device__ __forceinline__ float multiply(float a, float b) {
#if defined(__CUDACC__)
    return __fmul_rn(a, b);  // never contracted
#else
    return a * b;
#endif
}
__device__ __forceinline__ float add(float a, float b) {
#if defined(__CUDACC__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

/// `a / b` to within two units in the last place, for `b` up to 2^126.
__device__ __forceinline__ float quotient(float a, float b) {
#if defined(__CUDACC__)
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

/// e^x to within 2 units in the last place: the function of the CPU kernels, so that weights of equal
/// logits have equal bits on both. NaN stays NaN, other values saturate.
__device__ __forceinline__ float exp_exact(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float ROUND = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = fused_multiply_add(x, 1.44269504f, ROUND);
    const float n = add(shifted, -ROUND);
    float r = fused_multiply_add(n, -0.6933594f, x);
    r = fused_multiply_add(n, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fused_multiply_add(p, r, 1.3981999e-3f);
    p = fused_multiply_add(p, r, 8.333452e-3f);
    p = fused_multiply_add(p, r, 4.1665796e-2f);
    p = fused_multiply_add(p, r, 1.6666665e-1f);
    p = fused_multiply_add(p, r, 0.5f);
    p = add(fused_multiply_add(p, multiply(r, r), r), 1.0f);
    const uint32_t power = (__float_as_uint(shifted) - __float_as_uint(ROUND) + 127u) << 23;
    return multiply(p, __uint_as_float(power));
}

/// The hyperbolic tangent to within 3e-7 of itself: the function of the CPU kernels. NaN stays NaN.
__device__ __forceinline__ float tanh_exact(float x) {
    const float size = fabsf(x), z = multiply(x, x);
    float p = -5.7049887e-3f;
    p = fused_multiply_add(p, z, 2.063909e-2f);
    p = fused_multiply_add(p, z, -5.3739716e-2f);
    p = fused_multiply_add(p, z, 1.3331442e-1f);
    p = fused_multiply_add(p, z, -3.333328e-1f);
    const float near = fused_multiply_add(multiply(p, z), size, size);
    const float far = add(1.0f, -(2.0f / add(exp_exact(multiply(2.0f, size)), 1.0f)));
    return copysignf(size < 0.625f ? near : far, x);
}

// ---- reductions -------------------------------------------------------------------------------------

struct Sum {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a + b;
    }
};
/// The larger; a NaN may be passed over.
struct Max {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return b > a ? b : a;
    }
};
struct Min {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return b < a ? b : a;
    }
};

/// Combines the lanes of a warp; every lane gets the result. `op` must commute to the bit.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
    for (int bits = WARP / 2; bits > 0; bits /= 2)
        value = op(value, __shfl_xor_sync(ALL_LANES, value, bits));
    return value;
}

/// Combines the threads of a block of `WARPS` warps, always in the same order; every thread gets the
/// result. Holds a barrier before and after its use of `scratch`, which has `WARPS` elements.
template <int WARPS, class T, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, Shared<T> scratch) {
    value = warp_reduce(value, op);
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = value;
    __syncthreads();
    T result = scratch[0];
    for (int w = 1; w < WARPS; w++) result = op(result, T(scratch[w]));
    return result;
}

/// Adds to an element of shared memory that several threads add to.
template <class T>
__device__ __forceinline__ void shared_add(Shared<T> array, size_t at, T by) {
#if defined(__CUDACC__)
    if constexpr (sizeof(T) == 8) {
        atomicAdd(reinterpret_cast<unsigned long long *>(&array[at]), static_cast<unsigned long long>(by));
    } else {
        atomicAdd(&array[at], by);
    }
#else
    array.add(at, by);
#endif
}

}  // namespace pleach
