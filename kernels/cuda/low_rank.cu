// Low-rank additions to products (LoRA, arXiv 2106.09685): `y += scale * B (A x)` in rows that go through an adapter, each
// through its own. Factors and sums are f32, and every sum runs in one order, whatever the other rows are.

#include "common.cuh"

namespace pleach {
namespace {

constexpr int SHRINK_WARPS = 4;
/// Neighbouring inputs that a thread reads at once.
constexpr int AT_ONCE = 4;

/// Grid (rows, ranks, matrices): one block a sum.
template <class T>
__device__ __forceinline__ void shrink(const PleachLowRank &p) {
    SHARED(float, scratch, SHRINK_WARPS);
    const int64_t row = blockIdx.x;
    const PleachFactors *adapter = p.adapters[row];
    if (!adapter) return;
    const PleachFactors factors = adapter[p.matrix + blockIdx.z];
    const int64_t rank = p.rank + int64_t(blockIdx.y);
    if (rank >= factors.rank) return;
    const T *x = static_cast<const T *>(p.x) + row * p.inputs;
    const float *a = factors.a + rank * p.inputs;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x * AT_ONCE; i < p.inputs; i += SHRINK_WARPS * WARP * AT_ONCE) {
        const Vec8 values = *reinterpret_cast<const Vec8 *>(x + i);
        const Vec16 by = *reinterpret_cast<const Vec16 *>(a + i);
        for (int pair = 0; pair < 2; pair++) {
            sum = fused_multiply_add(low_of<T>(values.word[pair]), __uint_as_float(by.word[2 * pair]), sum);
            sum = fused_multiply_add(high_of<T>(values.word[pair]), __uint_as_float(by.word[2 * pair + 1]), sum);
        }
    }
    sum = block_reduce<SHRINK_WARPS>(sum, Sum{}, scratch);
    if (threadIdx.x == 0)
        p.sums[(row * p.matrices + blockIdx.z) * p.ranks + blockIdx.y] = multiply(sum, factors.scale);
}

constexpr unsigned EXPAND_THREADS = 256;

/// Grid (columns, rows): a thread a column.
template <class T>
__device__ __forceinline__ void expand(const PleachLowRank &p) {
    const int64_t width = p.outputs[0] + p.outputs[1] + p.outputs[2];
    const int64_t column = int64_t(blockIdx.x) * EXPAND_THREADS + threadIdx.x;
    if (column >= width) return;
    int matrix = 0;
    int64_t output = column;
    while (output >= p.outputs[matrix]) output -= p.outputs[matrix++];
    const int64_t outputs = p.outputs[matrix];
    for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const PleachFactors *adapter = p.adapters[row];
        if (!adapter) continue;
        const PleachFactors factors = adapter[p.matrix + matrix];
        const int ranks = factors.rank - p.rank < p.ranks ? factors.rank - p.rank : p.ranks;
        if (ranks <= 0) continue;
        const float *sums = p.sums + (row * p.matrices + matrix) * p.ranks;
        const float *b = factors.b + p.rank * outputs + output;
        float added = 0.0f;
        for (int r = 0; r < ranks; r++) added = fused_multiply_add(sums[r], b[r * outputs], added);
        T *out = static_cast<T *>(p.out) + row * width + column;
        *out = from_float<T>(add(to_float(*out), added));
    }
}

}  // namespace
}  // namespace pleach

using namespace pleach;

#define KERNELS(name, T)                                                    \
    KERNEL(shrink_##name, PleachLowRank, (shrink<T>), SHRINK_WARPS * WARP)  \
    KERNEL(expand_##name, PleachLowRank, (expand<T>), EXPAND_THREADS)
FOR_EACH_FLOAT(KERNELS)
