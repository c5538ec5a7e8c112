// Causal attention of a ragged batch over the paged cache.
//
// A sequence's rows and the query heads that share a K/V head form tiles of 16 (row, head) pairs: the left
// operand of `mma`, so that keys and values are read once for all of them. The context is cut into splits of
// 256 positions, counted from position 0; each of a block's four warps takes 64 positions of one split. Warps
// are added in order within a split, and splits in order by a second kernel, so a row's bits depend on its own
// context alone. A row of one split is written at once. Values of more than 128 dimensions are weighed in parts, so that
// registers and shared memory hold one part.
//
// Values of a position that one row of a tile sees and another does not are multiplied by 0 for the latter, so
// they must be finite; the cache beyond the sequence is never read.
//
// Cells of 8 bits are widened in registers, exactly. The scale of a key multiplies its f32 score, before all that is done
// to scores. That of a value multiplies its f32 weight, before it is rounded for the second product: so a weight is rounded
// once, as it is beside other cells. What is summed to divide by is the weight without the scale, not rounded. Rows are bf16
// then: in f16, a weight times a scale would leave the numbers that there are.

#include "mma.cuh"

namespace pleach {
namespace {

constexpr int SPAN = 64, WARPS = 4, SPLIT = SPAN * WARPS;
constexpr int COLUMN_TILES = SPAN / MMA_N;

constexpr int BLOCK = 16;  // divides the positions of a cache block
constexpr int BLOCKS = SPAN / BLOCK;

/// What a row sees: positions `begin .. end`, and of those from `draft` on only where `mask` has a bit.
struct Sight {
    int64_t begin, end, draft;
    uint64_t mask;

    /// Bit i: whether it sees position `base + i`, for the `SPAN` positions there.
    __device__ uint64_t span(int64_t base) const {
        const auto before = [&](int64_t position) {
            const int64_t count = position - base;
            return count <= 0 ? uint64_t(0) : count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
        };
        const int64_t from = draft - base;
        const uint64_t drafted = from >= 64 || from <= -64 ? 0 : from >= 0 ? mask << from : mask >> -from;
        return before(end) & ~before(begin) & (before(draft) | drafted);
    }
};
static_assert(SPAN == 64, "a bit for each position");

using Task = PleachAttend;

__device__ __forceinline__ Sight sight_of(const Task &t, int64_t sequence, int64_t row) {
    const int64_t start = t.io.context_lens[sequence], first = t.io.cu_seqlens_q[sequence];
    const int64_t position = start + row - first;
    if (t.io.tree_masks)
        return {0, start + t.io.cu_seqlens_q[sequence + 1] - first, start, t.io.tree_masks[row]};
    const int64_t begin = t.shape.window > 0 ? position + 1 - t.shape.window : 0;
    return {begin < 0 ? 0 : begin, position + 1, position + 1, 0};
}

/// A lane's neighbours of a vector: `COUNT` of them, in 16, 8, 4 or 2 bytes.
template <int COUNT, class Cell>
__device__ __forceinline__ auto load(const Cell *from, bool valid) {
    constexpr int BYTES = COUNT * int(sizeof(Cell));
    if constexpr (BYTES == 2) {
        return Vec<1>{{valid ? *reinterpret_cast<const uint16_t *>(from) : 0u}};
    } else {
        return valid ? *reinterpret_cast<const Vec<BYTES / 4> *>(from) : Vec<BYTES / 4>{};
    }
}

/// Cell i of `a` and j of `b`, as a pair of numbers.
template <class Cell, int WORDS>
__device__ __forceinline__ uint32_t pair_of(const Vec<WORDS> &a, int i, const Vec<WORDS> &b, int j) {
    if constexpr (sizeof(Cell) == 1) {
        return widen(__byte_perm(a.word[i / 4], b.word[j / 4], uint32_t(i % 4 | (4 + j % 4) << 8)));
    } else {
        return (a.word[i / 2] >> i % 2 * 16 & 0xffffu) | (b.word[j / 2] >> j % 2 * 16 & 0xffffu) << 16;
    }
}

/// Adds weighted values of 16 positions to `TILES` tiles of sums. Column n of tile j is value n * TILES + j, so that a lane
/// reads what it needs of a position at once. `valid` of the rows there are.
template <class T, int TILES, class Cell, int ALL>
__device__ __forceinline__ void weigh(float (&sums)[ALL][4], int first, const uint32_t (&weights)[4], const Cell *values,
                                      int dim, int valid) {
    decltype(load<TILES>(values, true)) v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = lane_pair() * 2 + i % 2 + i / 2 * 8;
        v[i] = load<TILES>(values + row * dim + lane_row() * TILES, row < valid);
    }
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        const auto pair = [&](int i) { return pair_of<Cell>(v[i], j, v[i + 1], j); };
        mma<T>(sums[first + j], weights, pair(0), pair(2));
    }
}

/// The sequence of a tile and the tile's first pair in it; `sequence` is `t.sequences` past the last tile.
struct Place {
    int64_t sequence, first_pair;
};
__device__ __forceinline__ Place place_of(const Task &t, int64_t tile, int group) {
    for (int64_t s = 0; s < t.sequences; s++) {
        const int64_t pairs = int64_t(t.io.cu_seqlens_q[s + 1] - t.io.cu_seqlens_q[s]) * group;
        const int64_t tiles = div_up<int64_t>(pairs, MMA_M);
        if (tile < tiles) return {s, tile * MMA_M};
        tile -= tiles;
    }
    return {t.sequences, 0};
}

/// Partial results: [rows, heads, splits] of `dim` sums, a maximum and a weight.
__device__ __forceinline__ float *partial_of(const Task &t, int64_t row, int64_t head, int64_t split) {
    return t.io.workspace + ((row * t.shape.heads + head) * t.splits + split) * (t.shape.head_dim + 2);
}

/// Grid (tiles, K/V heads, splits). Keys and values are of `Cell`: T, or codes of 8 bits.
template <class T, class Cell, int DIM>
__device__ __forceinline__ void attention(const Task &t) {
    // Dimensions of a part, in tiles: eights of them, and what is left.
    constexpr int PART = DIM > 128 ? 128 : DIM, VALUE_TILES = PART / MMA_N, EIGHTS = VALUE_TILES / 8, REST = VALUE_TILES % 8;
    static_assert(DIM % PART == 0 && DIM % MMA_K == 0 && (REST == 0 || REST == 2 || REST == 4), "whole loads");
    SHARED(float, tops, WARPS * MMA_M);
    SHARED(float, weights, WARPS * MMA_M);
    SHARED(float, outputs, WARPS * MMA_M * PART);
    const int group = t.shape.heads / t.shape.kv_heads, kv_head = int(blockIdx.y);
    const Place place = place_of(t, blockIdx.x, group);
    if (place.sequence == t.sequences) return;
    const int64_t first_row = t.io.cu_seqlens_q[place.sequence], end_row = t.io.cu_seqlens_q[place.sequence + 1];
    const int64_t pairs = (end_row - first_row) * group;
    const int64_t length = t.io.context_lens[place.sequence] + end_row - first_row;
    const int64_t split = int64_t(blockIdx.z) * SPLIT;
    if (split >= length) return;
    const auto row_of = [&](int64_t pair) { return first_row + uint32_t(pair) / uint32_t(group); };
    // The split ends before the window of the first row begins, and so before all.
    if (sight_of(t, place.sequence, row_of(place.first_pair)).begin >= split + SPLIT) return;
    const int64_t base = split + warp_id() * SPAN;

    // A lane's two pairs: eight apart.
    Sight sight[2];
    const T *query[2];
    bool inside[2];
    for (int h = 0; h < 2; h++) {
        const int64_t pair = place.first_pair + lane_row() + h * 8;
        inside[h] = pair < pairs;
        const int64_t row = inside[h] ? row_of(pair) : first_row;
        sight[h] = inside[h] ? sight_of(t, place.sequence, row) : Sight{0, 0, 0, 0};
        query[h] = static_cast<const T *>(t.io.q) +
                   (row * t.shape.heads + kv_head * group + (inside[h] ? uint32_t(pair) % uint32_t(group) : 0)) * DIM;
    }

    // Which heads of the cache those of each 16 positions are; behind the sequence nothing is read.
    int64_t blocks[BLOCKS];
    const int shift = t.shape.block_size == 32 ? 5 : 4;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
        const int64_t position = base + i * BLOCK;
        const uint32_t *table = t.io.block_tables + place.sequence * t.io.max_blocks;
        const int64_t block = position < length ? table[position >> shift] : 0;
        const int64_t offset = position & (t.shape.block_size - 1);
        blocks[i] = ((block * t.shape.kv_heads + kv_head) << shift) + offset;
    }
    const int there = int(length - base < SPAN ? length - base : SPAN);
    // Of codes, the scales of a lane's two columns of a tile; of the second, anything where it is behind the sequence.
    constexpr bool CODES = sizeof(Cell) == 1;
    [[maybe_unused]] const auto scales_of = [&](const float *scales, int c) {
        const int column = c * MMA_N + lane_pair() * 2;
        return load<2>(scales + blocks[c / 2] + column % BLOCK, column < there);
    };

    // Scores of 16 pairs and 64 positions. Inputs are permuted within 32: a lane takes 8 neighbours; 4 of the last 16.
    float scores[COLUMN_TILES][4] = {};
    uint32_t a[DIM / MMA_K][4];
#pragma unroll
    for (int k = 0; k < DIM / 32; k++) {
        const Vec16 upper = load<8>(query[0] + k * 32 + lane_pair() * 8, inside[0]);
        const Vec16 lower = load<8>(query[1] + k * 32 + lane_pair() * 8, inside[1]);
        for (int step = 0; step < 2; step++) {
            a[2 * k + step][0] = upper.word[2 * step];
            a[2 * k + step][1] = lower.word[2 * step];
            a[2 * k + step][2] = upper.word[2 * step + 1];
            a[2 * k + step][3] = lower.word[2 * step + 1];
        }
    }
    constexpr int LAST = DIM / 32 * 32;
    if constexpr (LAST < DIM) {
        const Vec8 upper = load<4>(query[0] + LAST + lane_pair() * 4, inside[0]);
        const Vec8 lower = load<4>(query[1] + LAST + lane_pair() * 4, inside[1]);
        for (int i = 0; i < 4; i++) a[LAST / MMA_K][i] = (i % 2 ? lower : upper).word[i / 2];
    }
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; c++) {
        const bool valid = c * MMA_N + lane_row() < there;
        const Cell *key = static_cast<const Cell *>(t.io.keys) + (blocks[c / 2] + c % 2 * MMA_N + lane_row()) * DIM;
#pragma unroll
        for (int k = 0; k < DIM / 32; k++) {
            const auto b = load<8>(key + k * 32 + lane_pair() * 8, valid);
            const auto pair = [&](int i) { return pair_of<Cell>(b, 2 * i, b, 2 * i + 1); };
            mma<T>(scores[c], a[2 * k], pair(0), pair(1));
            mma<T>(scores[c], a[2 * k + 1], pair(2), pair(3));
        }
        if constexpr (LAST < DIM) {
            const auto b = load<4>(key + LAST + lane_pair() * 4, valid);
            mma<T>(scores[c], a[LAST / MMA_K], pair_of<Cell>(b, 0, b, 1), pair_of<Cell>(b, 2, b, 3));
        }
        if constexpr (CODES) {
            const Vec8 scales = scales_of(t.io.key_scales, c);
            for (int e = 0; e < 4; e++) scores[c][e] = multiply(scores[c][e], __uint_as_float(scales.word[e % 2]));
        }
    }
    // Fetched before the warp agrees on its maxima, and needed behind that.
    [[maybe_unused]] Vec8 value_scales[COLUMN_TILES];
    if constexpr (CODES) {
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++) value_scales[c] = scales_of(t.io.value_scales, c);
    }
    // The bound of scores, where there is one: cap * tanh(score / cap).
    if (t.shape.cap > 0.0f) {
#pragma unroll
        for (int c = 0; c < COLUMN_TILES; c++)
            for (int e = 0; e < 4; e++)
                scores[c][e] = t.shape.cap - quotient(2.0f * t.shape.cap, exp2f(scores[c][e] * t.cap_scale) + 1.0f);
    }

    // Weights relative to the warp's own maximum; what a row does not see weighs nothing.
    float top[2] = {-INFINITY, -INFINITY}, weight[2] = {0.0f, 0.0f};
    const uint64_t own[2] = {sight[0].span(base) >> lane_pair() * 2, sight[1].span(base) >> lane_pair() * 2};
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; c++)
        for (int e = 0; e < 4; e++) {
            const bool seen = own[e / 2] >> (c * MMA_N + e % 2) & 1;
            scores[c][e] = seen ? scores[c][e] * t.scale : -INFINITY;
            // A NaN may be passed over here; its own weight is NaN, and so is the sum.
            top[e / 2] = scores[c][e] > top[e / 2] ? scores[c][e] : top[e / 2];
        }
    for (int h = 0; h < 2; h++)
        for (int bits = 1; bits < 4; bits *= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, top[h], bits);
            top[h] = other > top[h] ? other : top[h];
        }
    uint32_t p[COLUMN_TILES][2];
#pragma unroll
    for (int c = 0; c < COLUMN_TILES; c++)
        for (int h = 0; h < 2; h++) {
            const float first = scores[c][2 * h], second = scores[c][2 * h + 1];
            float low = first == -INFINITY ? 0.0f : exp2f(first - top[h]);
            float high = second == -INFINITY ? 0.0f : exp2f(second - top[h]);
            if constexpr (CODES) {
                weight[h] += low + high;
                // Not where nothing is seen: there a scale may be anything.
                if (first != -INFINITY) low = multiply(low, __uint_as_float(value_scales[c].word[0]));
                if (second != -INFINITY) high = multiply(high, __uint_as_float(value_scales[c].word[1]));
            }
            p[c][h] = pack2<T>(low, high);
            // What is summed is what multiplies the values.
            if constexpr (!CODES) weight[h] += low_of<T>(p[c][h]) + high_of<T>(p[c][h]);
        }
    for (int h = 0; h < 2; h++)
        for (int bits = 1; bits < 4; bits *= 2) weight[h] += __shfl_xor_sync(ALL_LANES, weight[h], bits);

    const auto all_of = [&](int m, float &all_top, float (&share)[WARPS]) {
        all_top = -INFINITY;
        float all_weight = 0.0f;
        for (int w = 0; w < WARPS; w++) {
            const float other = tops[w * MMA_M + m];
            all_top = other > all_top ? other : all_top;
        }
        for (int w = 0; w < WARPS; w++) {
            const float other = tops[w * MMA_M + m];
            share[w] = other == -INFINITY ? 0.0f : exp2f(other - all_top);
            all_weight = fused_multiply_add(share[w], weights[w * MMA_M + m], all_weight);
        }
        return all_weight;
    };
    // Value (j, e) of a lane: in a bank of its own both among those of a warp's lanes, which are written together, and
    // among 32 neighbours of a row, which are read together.
    const auto at = [](int w, int j, int e, int lane) {
        const int bank = j % 8 * 4 + e % 2 * (REST == 0 || j < EIGHTS * 8 ? 2 : 16);
        return ((w * VALUE_TILES + j) * 4 + e) * WARP + (lane ^ bank);
    };
#pragma unroll 1
    for (int part = 0; part < DIM; part += PART) {
        float sums[VALUE_TILES][4] = {};
#pragma unroll
        for (int k = 0; k < SPAN / MMA_K; k++) {
            const uint32_t left[4] = {p[2 * k][0], p[2 * k][1], p[2 * k + 1][0], p[2 * k + 1][1]};
            const Cell *values = static_cast<const Cell *>(t.io.values) + blocks[k] * DIM + part;
#pragma unroll
            for (int i = 0; i < EIGHTS; i++) weigh<T, 8>(sums, i * 8, left, values + i * 64, DIM, there - k * MMA_K);
            if constexpr (REST > 0) weigh<T, REST>(sums, EIGHTS * 8, left, values + EIGHTS * 64, DIM, there - k * MMA_K);
        }

        // Each warp writes its share, relative to the maximum of all, and the shares are added in the order of the warps.
        if (part == 0 && lane_pair() == 0)
            for (int h = 0; h < 2; h++) {
                tops[warp_id() * MMA_M + lane_row() + h * 8] = top[h];
                weights[warp_id() * MMA_M + lane_row() + h * 8] = weight[h];
            }
        // The maxima are there, and the part before has been read.
        __syncthreads();
        for (int h = 0; h < 2; h++) {
            float all_top, share[WARPS], own_share = 0.0f;
            all_of(lane_row() + h * 8, all_top, share);
            for (int w = 0; w < WARPS; w++)
                if (w == warp_id()) own_share = share[w];
#pragma unroll
            for (int j = 0; j < VALUE_TILES; j++)
                for (int e = 2 * h; e < 2 * h + 2; e++)
                    outputs[at(warp_id(), j, e, lane_id())] = multiply(own_share, sums[j][e]);
        }
        __syncthreads();
        for (int m = warp_id(); m < MMA_M; m += WARPS) {
            const int64_t pair = place.first_pair + m;
            if (pair >= pairs) break;
            const int64_t row = row_of(pair), head = kv_head * group + uint32_t(pair) % uint32_t(group);
            const int64_t end = sight_of(t, place.sequence, row).end;
            if (end <= split) continue;  // only later rows of the tile reach this far
            float all_top, share[WARPS];
            const float total = all_of(m, all_top, share);
            float *partial = partial_of(t, row, head, blockIdx.z);
            T *out = static_cast<T *>(t.io.out) + (row * t.shape.heads + head) * DIM;
#pragma unroll 1
            for (int first = 0; first < PART; first += WARP) {
                // Lanes behind the last value take part, with that value.
                const bool own = PART % WARP == 0 || first + lane_id() < PART;
                const int d = own ? first + lane_id() : PART - 1;
                int n = d % 64 / 8, j = d / 64 * 8 + d % 8;
                if constexpr (REST > 0) {
                    const int left = d - EIGHTS * 64;
                    if (left >= 0) n = left / REST, j = EIGHTS * 8 + left % REST;
                }
                const int e = m / 8 * 2 + n % 2, lane = m % 8 * 4 + n / 2;
                float sum = outputs[at(0, j, e, lane)];
                for (int w = 1; w < WARPS; w++) sum = add(sum, outputs[at(w, j, e, lane)]);
                if (!own) continue;
                if (end <= SPLIT) {
                    out[part + d] = from_float<T>(total == 0.0f ? 0.0f : quotient(sum, total));
                } else {
                    partial[part + d] = sum;
                }
            }
            if (end > SPLIT && part == 0 && lane_id() == 0) {
                partial[DIM] = all_top;
                partial[DIM + 1] = total;
            }
        }
    }
}

/// Grid (rows, heads): adds the splits of a row in order.
template <class T, int DIM>
__device__ __forceinline__ void combine(const Task &t) {
    SHARED(float, tops, 1);
    const int64_t row = blockIdx.x, head = blockIdx.y;
    const int64_t sequence = sequence_of(t.io.cu_seqlens_q, t.sequences, row);
    if (sequence == t.sequences) return;
    const Sight sight = sight_of(t, sequence, row);
    const int64_t first = sight.begin / SPLIT, splits = div_up<int64_t>(sight.end, SPLIT);
    if (splits <= 1) return;
    if (warp_id() == 0) {
        float top = -INFINITY;
        for (int64_t s = first + lane_id(); s < splits; s += WARP) {
            const float other = partial_of(t, row, head, s)[DIM];
            top = other > top ? other : top;
        }
        top = warp_reduce(top, Max{});
        if (lane_id() == 0) tops[0] = top;
    }
    __syncthreads();
    const float top = tops[0];
    float weight = 0.0f, sum = 0.0f;
    // Several splits are read before the first is added.
#pragma unroll 4
    for (int64_t s = first; s < splits; s++) {
        const float *partial = partial_of(t, row, head, s);
        const float share = partial[DIM] == -INFINITY && partial[DIM + 1] == 0.0f ? 0.0f : exp2f(partial[DIM] - top);
        weight = fused_multiply_add(share, partial[DIM + 1], weight);
        sum = fused_multiply_add(share, partial[threadIdx.x], sum);
    }
    const float mean = weight == 0.0f ? 0.0f : quotient(sum, weight);
    static_cast<T *>(t.io.out)[(row * t.shape.heads + head) * DIM + threadIdx.x] = from_float<T>(mean);
}

}  // namespace
}  // namespace pleach

using namespace pleach;

#define SIZE(name, T, DIM)                                                      \
    KERNEL(attention_##name##_##DIM, Task, (attention<T, T, DIM>), WARPS *WARP) \
    KERNEL(combine_##name##_##DIM, Task, (combine<T, DIM>), DIM)
#define KERNELS(name, T) \
    SIZE(name, T, 64) SIZE(name, T, 80) SIZE(name, T, 96) SIZE(name, T, 128) SIZE(name, T, 256)
FOR_EACH_FLOAT(KERNELS)

/// Over codes; perhaps with the blocks that must fit a multiprocessor: for a third of the widest, registers would spill.
#define CODED(DIM, ...) KERNEL(attention_int8_bf16_##DIM, Task, (attention<Bf16, int8_t, DIM>), __VA_ARGS__)
CODED(64, WARPS *WARP) CODED(80, WARPS *WARP) CODED(96, WARPS *WARP) CODED(128, WARPS *WARP) CODED(256, WARPS *WARP, 2)
