// From the target's logits and the draft's probabilities to tokens: rejection sampling (Leviathan et al.,
// arXiv 2211.17192) of a whole batch in one launch.
//
// One block a row: penalties, bias and grammar mask, then exp((logit - max) / temperature), top-k, top-p,
// min-p, the test of the row's draft token, and the token to put in its place. The last block of a sequence
// to finish takes the first row that rejects. Weights are summed as integers in units of 2^-44, so sums are
// exact in any order and a row's result depends on that row alone. The order of the steps, and the bits of the
// weights, are those of `sampling::Processor`.

#include "common.cuh"

namespace pleach {
namespace {

constexpr int WARPS = 16, THREADS = WARPS * WARP, BINS = 256, AHEAD = 4;

/// Weights below 2^-44 of the largest are rounding noise, and left out, as on the CPU.
constexpr float UNITS = 17592186044416.0f;  // 2^44

// ---- random numbers -----------------------------------------------------------------------------------

/// Philox4x32-10 (Salmon et al., SC 2011): 128 random bits of a counter and a key.
__device__ __forceinline__ void philox(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xd2511f53u, counter[0]), low0 = 0xd2511f53u * counter[0];
        const uint32_t high1 = __umulhi(0xcd9e8d57u, counter[2]), low1 = 0xcd9e8d57u * counter[2];
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
}

/// The finaliser of SplitMix64 after one step of its counter: a hash of 64 bits.
__device__ __forceinline__ uint64_t mix(uint64_t value) {
    uint64_t z = value + 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/// The upper 53 bits as a number in [0, 1).
__device__ __forceinline__ double unit(uint64_t bits) { return double(bits >> 11) * 0x1p-53; }

/// 64 random bits for (seed, position, purpose).
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, uint64_t position, uint32_t purpose) {
    uint32_t counter[4] = {uint32_t(position), uint32_t(position >> 32), purpose, 0};
    philox(counter, uint32_t(seed), uint32_t(seed >> 32));
    return counter[0] | uint64_t(counter[1]) << 32;
}

// ---- one row ------------------------------------------------------------------------------------------

/// A float as an integer of the same order; NaN aside.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// A weight from 1 / UNITS to 1 as an integer of the same order. Its upper bits differ more than those of the float, so
/// fewer threads at a time add to the same bin.
__device__ __forceinline__ uint32_t ordered_weight(float weight) {
    return (__float_as_uint(weight) - __float_as_uint(1.0f / UNITS)) << 3;
}

/// Everything about one row, the same in every thread of its block.
struct Row {
    PleachVerify io;
    PleachSampling sampling;
    PleachVerifyRow own;
    int64_t row, sequence, first_row;

    __device__ float raw(int64_t id) const { return io.logits[own.logits * io.vocab_size + id]; }

    /// Calls `use(id, raw)` with the thread's ids of `begin .. end` and their raw logits: every `stride`-th.
    template <class Use>
    __device__ void each(int64_t begin, int64_t end, int stride, Use use) const {
        read_ahead<AHEAD>(begin, end, stride, [&](int64_t id) { return raw(id); }, use);
    }
    /// As `each`, with all ids by turns.
    template <class Use>
    __device__ void each(Use use) const {
        each(threadIdx.x, io.vocab_size, THREADS, use);
    }

    /// The logit after penalties, bias and mask, of a raw one.
    __device__ float logit(int64_t id, float x) const {
        if (sampling.token_counts != PLEACH_NONE) {
            const uint32_t *counts = io.token_counts + (sampling.token_counts * io.vocab_size + id) * 2;
            uint32_t generated = counts[1];
            for (int64_t r = first_row; r < row; r++) generated += io.rows[r].draft_token == uint32_t(id);
            if (counts[0] > 0 || generated > 0) {
                x = x > 0.0f ? x / sampling.repetition_penalty : multiply(x, sampling.repetition_penalty);
                if (generated > 0)
                    x = add(x, -add(sampling.presence_penalty, multiply(sampling.frequency_penalty, float(generated))));
            }
        }
        if (sampling.bias != PLEACH_NONE) x = add(x, io.bias[sampling.bias * io.vocab_size + id]);
        if (own.grammar_mask != PLEACH_NONE) {
            const int64_t words = div_up<int64_t>(io.vocab_size, 32);
            if (!(io.grammar_mask[own.grammar_mask * words + id / 32] >> (id % 32) & 1)) x = -INFINITY;
        }
        return x;
    }

    __device__ float draft_prob(int64_t id) const {
        if (own.draft_probs != PLEACH_NONE) return io.draft_probs[own.draft_probs * io.vocab_size + id];
        return uint32_t(id) == own.draft_token ? 1.0f : 0.0f;
    }
};

/// The most probable of several tokens: the largest value, the lowest id among equals.
struct Top {
    float value;
    uint32_t id;
};
struct Likelier {
    __device__ Top operator()(Top a, Top b) const {
        return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
    }
};

/// Which tokens stay: those whose key is above `key`, and of those with the key itself the ones below `id`.
struct Cut {
    uint32_t key = 0, id = 0xffffffffu;
    __device__ bool keeps(uint32_t other, int64_t at) const { return other > key || (other == key && at < id); }
};

/// Scratch of a block.
struct Scratch {
    Shared<uint64_t> bins;    // [BINS]
    Shared<uint64_t> totals;  // [WARPS]
    Shared<float> floats;     // [WARPS]
    Shared<uint64_t> found;   // [2]
};

/// Sum over the threads before this one; `total` gets that over all.
__device__ __forceinline__ uint64_t sum_before(uint64_t value, const Scratch &scratch, uint64_t &total) {
    uint64_t upto = value;
    for (int by = 1; by < WARP; by *= 2) {
        const uint64_t other = __shfl_up_sync(ALL_LANES, upto, by);
        if (lane_id() >= by) upto += other;
    }
    __syncthreads();
    if (lane_id() == WARP - 1) scratch.totals[warp_id()] = upto;
    __syncthreads();
    uint64_t before = 0;
    total = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w == warp_id()) before = total;
        total += scratch.totals[w];
    }
    return before + upto - value;
}

/// The first id at which the sum of `amount`, of an id and its raw logit, over ids exceeds `target`; `target` lies below the
/// sum of all.
template <class Amount>
__device__ __forceinline__ uint32_t find_by_sum(const Row &row, uint64_t target, const Scratch &scratch, Amount amount) {
    // Each warp sums a run of ids; the run in which the sum exceeds the target is shared anew, down to an id a thread.
    int64_t begin = 0, end = row.io.vocab_size;
    while (end - begin > THREADS) {
        const int64_t each = div_up<int64_t>(end - begin, WARPS), first = begin + each * warp_id();
        uint64_t own = 0;
        row.each(first + lane_id(), first + each < end ? first + each : end, WARP,
                 [&](int64_t id, float raw) { own += amount(id, raw); });
        own = warp_reduce(own, Sum{});
        __syncthreads();
        if (lane_id() == 0) scratch.totals[warp_id()] = own;
        __syncthreads();
        int run = 0;
        while (run < WARPS - 1 && scratch.totals[run] <= target) target -= scratch.totals[run++];
        begin += each * run;
        end = begin + each < end ? begin + each : end;
    }
    const int64_t id = begin + threadIdx.x;
    const uint64_t own = id < end ? amount(id, row.raw(id)) : 0;
    uint64_t total;
    const uint64_t sum = sum_before(own, scratch, total);
    if (sum <= target && target < sum + own) scratch.found[0] = uint64_t(id);
    __syncthreads();
    const uint32_t found = uint32_t(scratch.found[0]);
    __syncthreads();
    return found;
}

/// The cut that keeps the fewest tokens, largest keys first and lowest ids first among equals, whose amounts
/// sum to at least `wanted`; all where they sum to less. `key_of` and `amount` give those of an id and its raw logit; amount
/// 0: absent.
template <class Key, class Amount>
__device__ __forceinline__ Cut cut_by_sum(const Row &row, uint64_t wanted, const Scratch &scratch, Key key_of, Amount amount) {
    // From the top byte down: the bin in which the sum from above reaches `wanted`.
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int bin = int(threadIdx.x); bin < BINS; bin += THREADS) scratch.bins[bin] = 0;
        __syncthreads();
        row.each([&](int64_t id, float raw) {
            const uint64_t by = amount(id, raw);
            const uint32_t key = key_of(id, raw);
            if (by > 0 && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)))
                shared_add(scratch.bins, key >> shift & 255, by);
        });
        __syncthreads();
        if (threadIdx.x == 0) {
            uint64_t left = wanted;
            int bin = BINS - 1;
            while (bin > 0 && scratch.bins[bin] < left) left -= scratch.bins[bin--];
            scratch.found[0] = uint64_t(bin);
            scratch.found[1] = left;
            if (scratch.bins[bin] < left) scratch.found[1] = 0;  // everything together is too little
        }
        __syncthreads();
        prefix |= uint32_t(scratch.found[0]) << shift;
        wanted = scratch.found[1];
        if (wanted == 0) return Cut{};
    }
    // Among equals, the ids up to the one that fills what is left.
    const uint32_t last = find_by_sum(row, wanted - 1, scratch, [&](int64_t id, float raw) {
        return key_of(id, raw) == prefix ? amount(id, raw) : uint64_t(0);
    });
    return Cut{prefix, last + 1};
}

struct Scan {
    Top raw, top;        // of the raw logits and of the adjusted ones
    uint32_t first_bad;  // the first id that is NaN or positive infinity
};

__device__ __forceinline__ Top block_top(Top top, const Scratch &scratch) {
    const float value = block_reduce<WARPS>(top.value, Max{}, scratch.floats);
    // Lanes with another value do not name an id.
    const uint64_t id = block_reduce<WARPS>(uint64_t(top.value == value ? top.id : 0xffffffffu), Min{}, scratch.totals);
    return {value, uint32_t(id)};
}

__device__ __forceinline__ Scan scan(const Row &row, const Scratch &scratch) {
    Scan s{{-INFINITY, 0xffffffffu}, {-INFINITY, 0xffffffffu}, 0xffffffffu};
    row.each([&](int64_t id, float raw) {
        const float logit = row.logit(id, raw);
        s.raw = Likelier{}(s.raw, Top{raw, uint32_t(id)});
        s.top = Likelier{}(s.top, Top{logit, uint32_t(id)});
        const bool finite = raw < INFINITY && logit < INFINITY;  // negative infinity is fine
        if (!finite && uint32_t(id) < s.first_bad) s.first_bad = uint32_t(id);
    });
    s.first_bad = uint32_t(block_reduce<WARPS>(uint64_t(s.first_bad), Min{}, scratch.totals));
    s.raw = block_top(s.raw, scratch);
    s.top = block_top(s.top, scratch);
    return s;
}

/// The winner of the exponential race: the token with the least -ln(1 - uniform(id)) / weight(id), the lowest id
/// among equals; a draw from the distribution of the weights, each of an id and its raw logit. Some weight is positive.
template <class Weight>
__device__ __forceinline__ uint32_t race(const Row &row, uint64_t key, const Scratch &scratch, Weight weight) {
    // Numbers that are not negative are ordered as their bits are.
    uint64_t best = ~uint64_t(0), winner = ~uint64_t(0);
    row.each([&](int64_t id, float raw) {
        const float w = weight(id, raw);
        if (!(w > 0.0f)) return;
        const uint64_t time = __double_as_longlong(-log1p(-unit(mix(key ^ uint64_t(id)))) / double(w));
        if (time < best) {
            best = time;
            winner = uint64_t(id);
        }
    });
    const uint64_t least = block_reduce<WARPS>(best, Min{}, scratch.totals);
    return uint32_t(block_reduce<WARPS>(best == least ? winner : ~uint64_t(0), Min{}, scratch.totals));
}

__device__ __forceinline__ void decide(const PleachVerify &io) {
    SHARED(uint64_t, bins, BINS);
    SHARED(uint64_t, totals, WARPS);
    SHARED(float, floats, WARPS);
    SHARED(uint64_t, found, 2);
    const Scratch scratch{bins, totals, floats, found};

    Row row{io, {}, {}, int64_t(blockIdx.x), 0, 0};
    row.sequence = sequence_of(io.cu_rows, io.sequences, row.row);
    if (row.sequence == io.sequences) return;
    row.first_row = io.cu_rows[row.sequence];
    row.sampling = io.sampling[row.sequence];
    row.own = io.rows[row.row];
    const PleachSampling &sampling = row.sampling;
    const int64_t end_row = io.cu_rows[row.sequence + 1];
    const bool has_draft = row.row + 1 < end_row;
    const uint32_t draft = has_draft ? row.own.draft_token : 0;
    const uint64_t position = sampling.position + uint64_t(row.row - row.first_row);

    PleachRowResult result{PLEACH_ROW_OK, 0, 0, 0.0f, 0.0f};
    const Scan s = scan(row, scratch);
    if (s.first_bad != 0xffffffffu) {
        result.status = PLEACH_ROW_NOT_FINITE;
        result.token = s.first_bad;
    } else if (s.top.value == -INFINITY) {
        result.status = PLEACH_ROW_NOTHING_LEFT;
    } else {
        // Log-softmax of the raw logits, over strides in a fixed order.
        float sum = 0.0f;
        row.each([&](int64_t, float raw) { sum = add(sum, exp_exact(add(raw, -s.raw.value))); });
        const float log_sum = s.raw.value + logf(block_reduce<WARPS>(sum, Sum{}, scratch.floats));

        const float inverse = 1.0f / sampling.temperature;
        const float scale = inverse < 3.40282347e38f ? inverse : 3.40282347e38f;
        const auto weight = [&](int64_t id, float raw) {
            return exp_exact(multiply(add(row.logit(id, raw), -s.top.value), scale));
        };
        Cut by_logit, by_weight;
        const auto units = [&](int64_t id, float raw) -> uint64_t {
            const float w = weight(id, raw);
            if (!(multiply(w, UNITS) >= 1.0f) || w < sampling.min_p) return 0;
            if (!by_logit.keeps(ordered(row.logit(id, raw)), id) || !by_weight.keeps(ordered_weight(w), id)) return 0;
            return uint64_t(multiply(w, UNITS));
        };
        const auto sum_of = [&](auto amount) {
            uint64_t own = 0, all;
            row.each([&](int64_t id, float raw) { own += amount(id, raw); });
            sum_before(own, scratch, all);
            return all;
        };
        const bool greedy = sampling.temperature == 0.0f;
        if (!greedy) {
            const float min_p = sampling.min_p;
            row.sampling.min_p = 0.0f;
            if (sampling.top_k > 0)
                by_logit = cut_by_sum(row, sampling.top_k, scratch,
                                      [&](int64_t id, float raw) { return ordered(row.logit(id, raw)); },
                                      [&](int64_t id, float raw) { return uint64_t(units(id, raw) > 0); });
            if (sampling.top_p < 1.0f) {
                const double share = ceil(double(sampling.top_p) * double(sum_of(units)));
                by_weight = cut_by_sum(row, share < 1.0 ? 1 : uint64_t(share), scratch,
                                       [&](int64_t id, float raw) { return ordered_weight(weight(id, raw)); }, units);
            }
            row.sampling.min_p = min_p;
        }
        const uint64_t bits = random_bits(sampling.seed, position, PLEACH_PURPOSE_SAMPLE);
        uint64_t total = 0;
        if (greedy || sampling.coupled) {
            // The target's own draw decides.
            const auto kept = [&](int64_t id, float raw) { return units(id, raw) > 0 ? weight(id, raw) : 0.0f; };
            result.token = greedy ? s.top.id : race(row, bits, scratch, kept);
            result.accepted = has_draft && draft == result.token;
        } else {
            total = sum_of(units);
            // Accept with probability min(1, target_prob / draft_prob).
            if (has_draft && draft < io.vocab_size) {
                const double uniform = unit(random_bits(sampling.seed, position, PLEACH_PURPOSE_ACCEPT));
                result.accepted = uniform * double(row.draft_prob(draft)) * double(total) < double(units(draft, row.raw(draft)));
                result.token = draft;
            }
        }
        if (total > 0 && !result.accepted) {
            // norm(max(0, target_probs - draft_probs)) after a rejection, the target's own else.
            const auto residual = [&](int64_t id, float raw) -> uint64_t {
                const uint64_t all = units(id, raw);
                const float prob = row.draft_prob(id);
                if (!(prob > 0.0f)) return all;
                const double taken = double(prob) * double(total);
                return taken < double(all) ? all - uint64_t(taken) : 0;
            };
            const uint64_t left = has_draft ? sum_of(residual) : 0;
            result.token = left > 0 ? find_by_sum(row, __umul64hi(bits, left), scratch, residual)
                                    : find_by_sum(row, __umul64hi(bits, total), scratch, units);
        }
        result.log_prob = add(row.raw(result.token), -log_sum);
        result.log_sum_exp = log_sum;
    }

    if (threadIdx.x != 0) return;
    io.results[row.row] = result;
    // The sequence's last block to get here sees the results of all.
    __threadfence();
    const unsigned count = unsigned(end_row - row.first_row);
    if (atomicAdd(&io.finished[row.sequence], 1u) + 1 < count) return;
    __threadfence();
    io.finished[row.sequence] = 0;
    PleachVerdict verdict{0, 0, PLEACH_ROW_OK};
    for (int64_t r = row.first_row; r < end_row; r++) {
        const volatile PleachRowResult &other = io.results[r];
        verdict.status = other.status;
        verdict.last = other.token;
        if (other.status != PLEACH_ROW_OK || !other.accepted) break;
        verdict.accepted++;
    }
    io.verdicts[row.sequence] = verdict;
}

__device__ __forceinline__ void fill_in(const PleachScatter &a) {
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i < a.count && a.entries[2 * i] < a.size) a.table[a.entries[2 * i]] = a.entries[2 * i + 1];
}

}  // namespace
}  // namespace pleach

using namespace pleach;

KERNEL(verify, PleachVerify, (decide), THREADS, 1)
KERNEL(scatter, PleachScatter, (fill_in), THREADS)
