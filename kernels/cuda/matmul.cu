// `out = x w^T` with packed weights, for the rows of decoding and verification.
//
// The weights are the left operand of `mma` (16 outputs), the rows of x its right one (8 rows), so that one
// row costs what eight do and gives the same bits as among them: there is no second path for few rows.
// Codes enter as exact integers; a group's sum is multiplied by its scale in f32. The eight warps of a block
// share 32 outputs and take every eighth chunk of 64 inputs each; their sums are added in order. That order
// depends on the width alone.
//
// Packed layout: tiles of 16 outputs, chunks of 64 inputs; a lane finds its fragments in 16 contiguous
// bytes. Outputs are padded to 32 and inputs to 64 with zeros.

#include "mma.cuh"
#include "weights.cuh"

namespace pleach {
namespace {

constexpr int TILE = MMA_M, TILES = 2, CHUNK = 64, GROUPS = CHUNK / GROUP, WARPS = 8;
/// Steps of `mma` in a group.
constexpr int STEPS = GROUP / MMA_K;

template <int FORMAT>
constexpr int code_bits = FORMAT <= PLEACH_W_F16                                                           ? 16
                          : FORMAT == PLEACH_W_Q4_0 || FORMAT == PLEACH_W_Q4_1 || FORMAT == PLEACH_W_Q4_K ? 4
                                                                                                          : 8;
/// Scales of 16 inputs instead of 32.
template <int FORMAT>
constexpr bool half_groups = FORMAT == PLEACH_W_Q6_K;
template <int FORMAT>
constexpr bool has_super_blocks = FORMAT >= PLEACH_W_Q4_K;
/// Vectors of 16 bytes that a lane has of a chunk of a tile.
template <int FORMAT>
constexpr int lane_vectors = code_bits<FORMAT> / 4;

/// Input of a group that is value `j` (0..4) of a lane's pairs in a step. In most formats a lane's eight
/// inputs are neighbours; with half groups, a step must not mix the halves.
template <int FORMAT>
__device__ __forceinline__ int input_of(int pair, int step, int j) {
    return half_groups<FORMAT> ? step * 16 + pair * 4 + j : pair * 8 + step * 4 + j;
}

/// Sections of a packed matrix, in bytes from its start.
struct Layout {
    int64_t tiles, chunks, groups, supers;
    int64_t scales, group_scales, total;
};

template <int FORMAT>
__device__ __forceinline__ Layout layout_of(int64_t outputs, int64_t inputs) {
    Layout l{};
    l.tiles = div_up<int64_t>(outputs, TILES * TILE) * TILES;
    l.chunks = div_up<int64_t>(inputs, CHUNK);
    l.groups = l.chunks * GROUPS;
    l.supers = div_up<int64_t>(inputs, 256);
    l.scales = l.tiles * l.chunks * lane_vectors<FORMAT> * WARP * int64_t(sizeof(Vec16));
    // A scale is a half, with a minimum two; K-quants have them per 256 inputs, and 2 bytes a group.
    const int64_t size = has_min(FORMAT) ? 4 : 2;
    const int64_t count = FORMAT <= PLEACH_W_F16 ? 0 : has_super_blocks<FORMAT> ? l.supers : l.groups;
    l.group_scales = l.scales + l.tiles * count * TILE * size;
    l.total = l.group_scales + (has_super_blocks<FORMAT> ? l.tiles * l.groups * TILE * 2 : 0);
    return l;
}

// ---- packing ----------------------------------------------------------------------------------------

constexpr int PACK_THREADS = 128;

/// One thread a group of an output.
template <int FORMAT>
__device__ __forceinline__ void pack(const PleachPack &a) {
    const auto *weights = static_cast<const uint8_t *>(a.weights);
    auto *packed = static_cast<uint8_t *>(a.packed);
    const int64_t outputs = a.outputs, inputs = a.inputs;
    const Layout l = layout_of<FORMAT>(outputs, inputs);
    const int64_t task = int64_t(blockIdx.x) * PACK_THREADS + threadIdx.x;
    if (task >= l.tiles * TILE * l.groups) return;
    const int64_t output = task / l.groups, group = task % l.groups;
    const int64_t tile = output / TILE, chunk = group / GROUPS;
    const int r = int(output % TILE), part = int(group % GROUPS), high = r / 8;
    constexpr int per_block = block_values(FORMAT) / GROUP > 0 ? block_values(FORMAT) / GROUP : 1;
    const bool inside = output < outputs && group * GROUP < inputs;
    const uint8_t *row = weights + output * (inputs / block_values(FORMAT)) * block_bytes(FORMAT);
    const uint8_t *block = row + group / per_block * block_bytes(FORMAT);
    const int in_block = int(group % per_block);
    auto *lanes = reinterpret_cast<Vec16 *>(packed) + (tile * l.chunks + chunk) * lane_vectors<FORMAT> * WARP;

    for (int pair = 0; pair < 4; pair++) {
        const int lane = r % 8 * 4 + pair;
        uint32_t words[4] = {};
        for (int step = 0; step < STEPS; step++) {
            for (int j = 0; j < 4; j++) {
                const int input = input_of<FORMAT>(pair, step, j);
                if constexpr (code_bits<FORMAT> == 16) {
                    const auto *halves = reinterpret_cast<const uint16_t *>(row) + group * GROUP;
                    words[step * 2 + j / 2] |= uint32_t(inside ? halves[input] : 0) << (j % 2 * 16);
                } else {
                    const int code = inside ? code_at<FORMAT>(block, in_block, input) : 0;
                    if constexpr (code_bits<FORMAT> == 4) {
                        // Neighbours lie 16 bits apart, ready to become a pair.
                        const uint32_t nibble = uint32_t(code + (FORMAT == PLEACH_W_Q4_0 ? 8 : 0));
                        words[0] |= nibble << (4 * (step * 2 + j / 2) + 16 * (j % 2));
                    } else {
                        words[step] |= uint32_t(code + 128) << (8 * j);
                    }
                }
            }
        }
        if constexpr (code_bits<FORMAT> == 4) {
            lanes[lane].word[part * 2 + high] = words[0];
        } else if constexpr (code_bits<FORMAT> == 8) {
            lanes[part * WARP + lane].word[high * 2] = words[0];
            lanes[part * WARP + lane].word[high * 2 + 1] = words[1];
        } else {
            lanes[(part * 2 + high) * WARP + lane] = Vec16{{words[0], words[1], words[2], words[3]}};
        }
    }

    if constexpr (code_bits<FORMAT> < 16) {
        const int64_t stored = has_super_blocks<FORMAT> ? l.supers : l.groups;
        const int64_t index = has_super_blocks<FORMAT> ? group * GROUP / 256 : group;
        const int64_t at = (tile * stored + index) * TILE + r;
        if (!has_super_blocks<FORMAT> || group * GROUP % 256 == 0) {
            const uint8_t *d = block + (FORMAT == PLEACH_W_Q6_K ? 208 : 0);
            const uint16_t scale = inside ? half_at(d).bits : 0;
            if constexpr (has_min(FORMAT)) {
                reinterpret_cast<uint32_t *>(packed + l.scales)[at] =
                    scale | uint32_t(inside ? half_at(block + 2).bits : 0) << 16;
            } else {
                reinterpret_cast<uint16_t *>(packed + l.scales)[at] = scale;
            }
        }
        if constexpr (has_super_blocks<FORMAT>) {
            int low = 0, up = 0;
            if (inside) {
                if constexpr (FORMAT == PLEACH_W_Q6_K) {
                    low = block[192 + in_block * 2];
                    up = block[192 + in_block * 2 + 1];
                } else {
                    k_scale(block + 4, in_block, low, up);
                }
            }
            reinterpret_cast<uint16_t *>(packed + l.group_scales)[(tile * l.groups + group) * TILE + r] =
                uint16_t(low | up << 8);
        }
    }
}

// ---- the product ------------------------------------------------------------------------------------

/// Scales and minima of a lane's two outputs in one group; of both halves where the format has half groups.
struct Scales {
    float scale[2][2];  // [output, half]
    float min[2];       // [output]
};

template <int FORMAT>
__device__ __forceinline__ Scales load_scales(const uint8_t *packed, const Layout &l, int64_t tile, int64_t group) {
    Scales s{};
    for (int high = 0; high < 2; high++) {
        const int r = lane_row() + high * 8;
        if constexpr (has_super_blocks<FORMAT>) {
            const int64_t at = (tile * l.supers + group * GROUP / 256) * TILE + r;
            const uint16_t small =
                reinterpret_cast<const uint16_t *>(packed + l.group_scales)[(tile * l.groups + group) * TILE + r];
            if constexpr (FORMAT == PLEACH_W_Q6_K) {
                const float d = to_float(reinterpret_cast<const F16 *>(packed + l.scales)[at]);
                s.scale[high][0] = d * float(int8_t(small & 255));
                s.scale[high][1] = d * float(int8_t(small >> 8));
            } else {
                const uint32_t d = reinterpret_cast<const uint32_t *>(packed + l.scales)[at];
                s.scale[high][0] = low_of<F16>(d) * float(small & 255);
                s.min[high] = -high_of<F16>(d) * float(small >> 8);
            }
        } else {
            const int64_t at = (tile * l.groups + group) * TILE + r;
            if constexpr (has_min(FORMAT)) {
                const uint32_t d = reinterpret_cast<const uint32_t *>(packed + l.scales)[at];
                s.scale[high][0] = low_of<F16>(d);
                s.min[high] = high_of<F16>(d);
            } else {
                s.scale[high][0] = to_float(reinterpret_cast<const F16 *>(packed + l.scales)[at]);
            }
        }
    }
    return s;
}

/// The left fragment of one step: codes as numbers of T.
template <int FORMAT, class T>
__device__ __forceinline__ void left_fragment(const Vec16 *vectors, int part, int step, uint32_t (&a)[4]) {
    constexpr bool bf16 = __is_same(T, Bf16);
    for (int i = 0; i < 4; i++) {
        const int high = i % 2, p = i / 2;
        if constexpr (code_bits<FORMAT> == 16) {
            a[i] = vectors[part * 2 + high].word[step * 2 + p];
        } else if constexpr (code_bits<FORMAT> == 4) {
            // 128 + code in bf16, 1024 + code in f16, less the offset.
            const uint32_t codes = vectors[0].word[part * 2 + high] >> (4 * (step * 2 + p)) & 0x000f000fu;
            constexpr uint32_t offset = FORMAT == PLEACH_W_Q4_0 ? (bf16 ? 0xc308c308u : 0xe408e408u)
                                                                : (bf16 ? 0xc300c300u : 0xe400e400u);
            a[i] = add2<T>(codes | (bf16 ? 0x43004300u : 0x64006400u), offset);
        } else {
            const uint32_t codes = vectors[part].word[high * 2 + step] >> (16 * p);
            const uint32_t first = codes & 255, second = codes >> 8 & 255;
            if constexpr (bf16) {
                // 2^23 + code in f32, less the offset: an integer of 8 bits, whole in the upper half.
                const float low = __uint_as_float(0x4b000000u | first) - 8388736.0f;
                const float up = __uint_as_float(0x4b000000u | second) - 8388736.0f;
                a[i] = __float_as_uint(low) >> 16 | (__float_as_uint(up) & 0xffff0000u);
            } else {
                a[i] = add2<F16>(first | second << 16 | 0x64006400u, 0xe480e480u);
            }
        }
    }
}

/// The right fragments of a group for eight rows: word 2 s and 2 s + 1 are those of step s.
template <int FORMAT, class T>
__device__ __forceinline__ Vec16 right_fragment(const T *x, int64_t row, int64_t rows, int64_t input,
                                                int64_t inputs, int64_t stride) {
    if (row >= rows || input >= inputs) return Vec16{};
    const T *from = x + row * stride + input;
    if constexpr (half_groups<FORMAT>) {
        const Vec8 first = *reinterpret_cast<const Vec8 *>(from + lane_pair() * 4);
        const Vec8 second = *reinterpret_cast<const Vec8 *>(from + 16 + lane_pair() * 4);
        return Vec16{{first.word[0], first.word[1], second.word[0], second.word[1]}};
    } else {
        return *reinterpret_cast<const Vec16 *>(from + lane_pair() * 8);
    }
}

/// Grid (tiles of 32 outputs, tiles of 8 * COLUMNS rows).
template <int FORMAT, class T, int COLUMNS>
__device__ __forceinline__ void matmul(const PleachProduct &p) {
    // Chunks a warp has under way, about as many bytes in every format; many rows need the registers.
    constexpr int AHEAD = COLUMNS > 2 && code_bits<FORMAT> == 4 ? 2 : 16 / code_bits<FORMAT>;
    constexpr int VECTORS = lane_vectors<FORMAT>;
    SHARED(float, sums, WARPS * TILES * 4 * WARP);
    const Layout l = layout_of<FORMAT>(p.outputs, p.inputs);
    const auto *packed = static_cast<const uint8_t *>(p.packed);
    const auto *codes = reinterpret_cast<const Vec16 *>(packed);
    const T *x = static_cast<const T *>(p.x);
    const int64_t first_tile = int64_t(blockIdx.x) * TILES, first_row = int64_t(blockIdx.y) * COLUMNS * MMA_N;
    constexpr uint32_t one = __is_same(T, Bf16) ? 0x3f803f80u : 0x3c003c00u;
    constexpr uint32_t ones[4] = {one, one, one, one};

    float acc[COLUMNS][TILES][4] = {};
    Vec16 ahead[AHEAD][TILES][VECTORS] = {};
    const auto fetch = [&](Vec16(&to)[TILES][VECTORS], int64_t chunk) {
        if (chunk >= l.chunks) return;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                to[t][v] = load_once(codes + (((first_tile + t) * l.chunks + chunk) * VECTORS + v) * WARP + lane_id());
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch(ahead[i], warp_id() + i * WARPS);

    for (int64_t base = warp_id(); base < l.chunks; base += AHEAD * WARPS) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int64_t chunk = base + i * WARPS;
            if (chunk >= l.chunks) break;
#pragma unroll
            for (int part = 0; part < GROUPS; part++) {
                const int64_t group = chunk * GROUPS + part;
                Vec16 b[COLUMNS];
                float row_sums[COLUMNS][4] = {};
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    b[c] = right_fragment<FORMAT>(x, first_row + c * MMA_N + lane_row(), p.rows, group * GROUP,
                                                  p.inputs, p.x_stride);
                    if constexpr (has_min(FORMAT))
                        for (int step = 0; step < STEPS; step++)
                            mma<T>(row_sums[c], ones, b[c].word[2 * step], b[c].word[2 * step + 1]);
                }
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    uint32_t a[STEPS][4];
#pragma unroll
                    for (int step = 0; step < STEPS; step++)
                        left_fragment<FORMAT, T>(ahead[i][t], part, step, a[step]);
                    if constexpr (code_bits<FORMAT> == 16) {
#pragma unroll
                        for (int c = 0; c < COLUMNS; c++)
                            for (int step = 0; step < STEPS; step++)
                                mma<T>(acc[c][t], a[step], b[c].word[2 * step], b[c].word[2 * step + 1]);
                    } else {
                        const Scales s = load_scales<FORMAT>(packed, l, first_tile + t, group);
#pragma unroll
                        for (int c = 0; c < COLUMNS; c++) {
                            float part_sums[4] = {};
#pragma unroll
                            for (int step = 0; step < STEPS; step++) {
                                mma<T>(part_sums, a[step], b[c].word[2 * step], b[c].word[2 * step + 1]);
                                if (!half_groups<FORMAT> && step + 1 < STEPS) continue;
                                const int half = half_groups<FORMAT> ? step : 0;
                                for (int e = 0; e < 4; e++) {
                                    acc[c][t][e] = fused_multiply_add(s.scale[e / 2][half], part_sums[e], acc[c][t][e]);
                                    part_sums[e] = 0.0f;
                                }
                            }
                            if constexpr (has_min(FORMAT))
                                for (int e = 0; e < 4; e++)
                                    acc[c][t][e] = fused_multiply_add(s.min[e / 2], row_sums[c][e], acc[c][t][e]);
                        }
                    }
                }
            }
            fetch(ahead[i], chunk + AHEAD * WARPS);
        }
    }

    // The warps' sums, in order.
    for (int c = 0; c < COLUMNS; c++) {
        __syncthreads();
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[((warp_id() * TILES + t) * 4 + e) * WARP + lane_id()] = acc[c][t][e];
        __syncthreads();
        // One element a thread: 32 outputs x 8 rows.
        const int t = warp_id() / 4, e = warp_id() % 4;
        float sum = sums[(t * 4 + e) * WARP + lane_id()];
        for (int w = 1; w < WARPS; w++) sum = add(sum, sums[((w * TILES + t) * 4 + e) * WARP + lane_id()]);
        const int64_t output = (first_tile + t) * TILE + lane_row() + e / 2 * 8;
        const int64_t row = first_row + c * MMA_N + lane_pair() * 2 + e % 2;
        if (output < p.outputs && row < p.rows) {
            const int64_t at = row * p.out_stride + output;
            if (p.out_f32) static_cast<float *>(p.out)[at] = sum;
            else static_cast<T *>(p.out)[at] = from_float<T>(sum);
        }
    }
}
static_assert(TILES * 4 == WARPS, "one element a thread");

}  // namespace
}  // namespace pleach

using namespace pleach;

#define KERNELS(name, FORMAT) KERNEL(pack_##name, PleachPack, (pack<FORMAT>), PACK_THREADS)
FOR_EACH_FORMAT(KERNELS)
#undef KERNELS

/// By the rows that a block takes.
#define PRODUCTS(name, FORMAT, T)                                                         \
    KERNEL(matmul_##name##_8, PleachProduct, (matmul<FORMAT, T, 1>), WARPS *WARP, 2)      \
    KERNEL(matmul_##name##_16, PleachProduct, (matmul<FORMAT, T, 2>), WARPS *WARP, 1)     \
    KERNEL(matmul_##name##_32, PleachProduct, (matmul<FORMAT, T, 4>), WARPS *WARP, 1)
#define KERNELS(name, FORMAT) PRODUCTS(name##_bf16, FORMAT, Bf16) PRODUCTS(name##_f16, FORMAT, F16)
PRODUCTS(bf16_bf16, PLEACH_W_BF16, Bf16)
PRODUCTS(f16_f16, PLEACH_W_F16, F16)
FOR_EACH_QUANTISED(KERNELS)
