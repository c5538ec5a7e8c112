// Tensor-core fragments: one function with a PTX body on the GPU and the documented layout on the CPU
// (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type").
#pragma once

#include "common.cuh"

namespace pleach {

/// Rows, columns and depth of one product.
constexpr int MMA_M = 16, MMA_N = 8, MMA_K = 16;

/// Where a lane's values stand: `lane_row` in 0..8 and `lane_pair` in 0..4.
__device__ __forceinline__ int lane_row() { return lane_id() / 4; }
__device__ __forceinline__ int lane_pair() { return lane_id() % 4; }

/// `d += a b` for a warp, d [16, 8] f32, a [16, 16] and b [16, 8] of T. With r = lane_row, p = lane_pair:
/// d[0], d[1] stand at (r, 2p), (r, 2p + 1), d[2], d[3] eight rows below; a[0] holds (r, 2p) and
/// (r, 2p + 1), a[1] the same eight rows below, a[2], a[3] the same eight columns on; b[0] holds (2p, r)
/// and (2p + 1, r), b[1] the same eight rows below.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDACC__)
    if constexpr (__is_same(T, Bf16)) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#else
    struct Operands {
        uint32_t a[4], b[2];
    };
    Operands all[WARP];
    ::emulator::collect(ALL_LANES, Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, all, __FILE__, __LINE__);
    const auto half = [](uint32_t pair, int k) { return k % 2 ? high_of<T>(pair) : low_of<T>(pair); };
    for (int i = 0; i < 4; i++) {
        const int row = lane_row() + i / 2 * 8, column = lane_pair() * 2 + i % 2;
        float sum = 0.0f;
        for (int k = 0; k < MMA_K; k++) {
            const int pair = k % 8 / 2, eight_on = k / 8;
            const float left = half(all[row % 8 * 4 + pair].a[row / 8 + 2 * eight_on], k);
            const float right = half(all[column * 4 + pair].b[eight_on], k);
            sum += left * right;
        }
        d[i] += sum;
    }
#endif
}

/// `a + b` of two pairs; exact wherever this project uses it.
template <class T>
__device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b) {
#if defined(__CUDACC__)
    uint32_t sum;
    if constexpr (__is_same(T, Bf16)) {
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
    } else {
        asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    }
    return sum;
#else
    return pack2<T>(low_of<T>(a) + low_of<T>(b), high_of<T>(a) + high_of<T>(b));
#endif
}

/// Codes of 8 bits at bits 0 and 16, whatever lies between, as a pair of bf16 numbers: 128 and their lower 7 bits, less 128,
/// or less 256 where the sign is set.
__device__ __forceinline__ uint32_t widen(uint32_t codes) {
    return add2<Bf16>((codes & 0x007f007fu) | 0x43004300u, (codes & 0x00800080u) | 0xc300c300u);
}

/// 16 bytes that are read once: past the first-level cache.
__device__ __forceinline__ Vec16 load_once(const Vec16 *from) {
#if defined(__CUDACC__)
    Vec16 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(from));
    return v;
#else
    return *from;
#endif
}

}  // namespace pleach
