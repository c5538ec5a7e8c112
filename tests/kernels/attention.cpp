#include <algorithm>

#include "harness.h"

/// A ragged batch over a cache in which everything that is not a sequence's own is NaN.
struct Batch {
    PleachAttentionShape shape;
    int dtype;
    std::vector<uint32_t> cu_seqlens, context_lens, tables;
    int64_t max_blocks = 0;
    std::vector<uint64_t> masks;  // empty: no tree
    std::vector<uint16_t> q, keys, values;
    // In place of keys and values, where there are scales: a code is multiplied by that of its head and position.
    std::vector<int8_t> key_codes, value_codes;
    std::vector<float> key_scales, value_scales;

    double key(size_t cell) const { return held(cell, keys, key_codes, key_scales); }
    double value(size_t cell) const { return held(cell, values, value_codes, value_scales); }
    double held(size_t cell, const std::vector<uint16_t> &cells, const std::vector<int8_t> &codes,
                const std::vector<float> &scales) const {
        if (scales.empty()) return decode(cells[cell], dtype);
        return double(codes[cell]) * double(scales[cell / size_t(shape.head_dim)]);
    }

    int64_t rows() const { return cu_seqlens.back(); }
    int64_t length(size_t s) const { return context_lens[s] + cu_seqlens[s + 1] - cu_seqlens[s]; }
    size_t at(size_t s, int64_t position, int64_t kv_head) const {
        const int64_t block = tables[s * size_t(max_blocks) + size_t(position / shape.block_size)];
        return size_t(((block * shape.kv_heads + kv_head) * shape.block_size + position % shape.block_size) * shape.head_dim);
    }
};

static Batch random_batch(PleachAttentionShape shape, int dtype, const std::vector<std::pair<int64_t, int64_t>> &sequences) {
    Batch b{shape, dtype, {0}, {}, {}, 0, {}, {}, {}, {}, {}, {}, {}, {}};
    int64_t blocks = 1;
    for (auto [context, rows] : sequences) {
        b.context_lens.push_back(uint32_t(context));
        b.cu_seqlens.push_back(b.cu_seqlens.back() + uint32_t(rows));
        b.max_blocks = std::max(b.max_blocks, (context + rows + shape.block_size - 1) / shape.block_size);
        blocks += (context + rows + shape.block_size - 1) / shape.block_size;
    }
    std::vector<uint32_t> order(static_cast<size_t>(blocks));
    for (size_t i = 0; i < order.size(); i++) order[i] = uint32_t(i);
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[size_t(random_int(0, int64_t(i) - 1))]);
    // A table entry past its sequence leads out of the cache.
    b.tables.assign(sequences.size() * size_t(b.max_blocks), 0x7fffffff);
    const size_t cache = size_t(blocks * shape.kv_heads * shape.block_size * shape.head_dim);
    b.keys.assign(cache, 0xffff);
    b.values.assign(cache, 0xffff);
    size_t next = 0;
    for (size_t s = 0; s < sequences.size(); s++) {
        for (int64_t p = 0; p < b.length(s); p++) {
            if (p % shape.block_size == 0) b.tables[s * size_t(b.max_blocks) + size_t(p / shape.block_size)] = order[next++];
            for (int64_t h = 0; h < shape.kv_heads; h++)
                for (int64_t i = 0; i < shape.head_dim; i++) {
                    b.keys[b.at(s, p, h) + size_t(i)] = encode(2 * random_value(), dtype);
                    b.values[b.at(s, p, h) + size_t(i)] = encode(random_value(), dtype);
                }
        }
    }
    b.q = random_halves(size_t(b.rows() * shape.heads * shape.head_dim), dtype);
    return b;
}

/// A batch whose keys and values are codes, with scales of several sizes; what is not a sequence's own has the scale NaN.
static Batch random_codes(PleachAttentionShape shape, const std::vector<std::pair<int64_t, int64_t>> &sequences) {
    Batch b = random_batch(shape, PLEACH_BF16, sequences);
    const size_t dim = size_t(shape.head_dim), cells = b.keys.size();
    b.keys.clear();
    b.values.clear();
    b.key_codes.assign(cells, -1);
    b.value_codes.assign(cells, -1);
    b.key_scales.assign(cells / dim, NAN);
    b.value_scales.assign(cells / dim, NAN);
    for (size_t s = 0; s < sequences.size(); s++)
        for (int64_t p = 0; p < b.length(s); p++)
            for (int64_t h = 0; h < shape.kv_heads; h++) {
                const size_t at = b.at(s, p, h);
                // Of some positions the values are nothing: their weights count all the same.
                const bool nothing = random_int(0, 9) == 0;
                b.key_scales[at / dim] = (1.1f + random_value()) / 127;
                b.value_scales[at / dim] =
                    nothing ? 1.17549435e-38f : std::ldexp(1 + random_value() / 2, int(random_int(-6, 2))) / 127;
                for (size_t i = 0; i < dim; i++) {
                    b.key_codes[at + i] = int8_t(random_int(-127, 127));
                    b.value_codes[at + i] = int8_t(nothing ? 0 : random_int(-127, 127));
                }
            }
    return b;
}

static std::vector<uint16_t> attend(const Batch &b, int64_t extra_length = 0) {
    int64_t longest = 0;
    for (size_t s = 0; s < b.context_lens.size(); s++) longest = std::max(longest, b.length(s));
    longest += extra_length;
    Buffer<uint16_t> q(b.q), keys(b.keys), values(b.values), out = Buffer<uint16_t>::poisoned(b.q.size());
    Buffer<uint32_t> cu(b.cu_seqlens), lens(b.context_lens), tables(b.tables);
    Buffer<uint64_t> masks(b.masks);
    auto workspace = Buffer<float>::poisoned(size_t(launches.attention_workspace(b.shape, b.rows(), longest)) / sizeof(float));
    Buffer<int8_t> key_codes(b.key_codes), value_codes(b.value_codes);
    Buffer<float> key_scales(b.key_scales), value_scales(b.value_scales);
    const bool coded = !b.key_scales.empty();
    const PleachAttention io{q, coded ? static_cast<void *>(key_codes.get()) : keys.get(),
                             coded ? static_cast<void *>(value_codes.get()) : values.get(),
                             coded ? key_scales.get() : nullptr, coded ? value_scales.get() : nullptr, cu, lens, tables,
                             b.max_blocks, b.masks.empty() ? nullptr : masks.get(), workspace, out};
    CHECK_OK(pleach_paged_attention(io, b.shape, b.rows(), int64_t(b.context_lens.size()), longest, b.dtype));
    return out.host();
}

static bool sees(const Batch &b, size_t s, int64_t row, int64_t position) {
    const int64_t i = row - b.cu_seqlens[s], context = b.context_lens[s];
    if (position < context) return b.shape.window == 0 || position > context + i - b.shape.window;
    if (!b.masks.empty()) return b.masks[size_t(row)] >> (position - context) & 1;
    return position <= context + i && (b.shape.window == 0 || position > context + i - b.shape.window);
}

static void check(const Batch &b, const std::vector<uint16_t> &got) {
    const int64_t dim = b.shape.head_dim, group = b.shape.heads / b.shape.kv_heads;
    for (size_t s = 0; s < b.context_lens.size(); s++)
        for (int64_t row = b.cu_seqlens[s]; row < b.cu_seqlens[s + 1]; row++)
            for (int64_t head = 0; head < b.shape.heads; head++) {
                const size_t from = size_t((row * b.shape.heads + head) * dim);
                std::vector<double> scores, sums(static_cast<size_t>(dim)), sizes(static_cast<size_t>(dim));
                std::vector<int64_t> seen;
                double top = -INFINITY, weight = 0;
                for (int64_t p = 0; p < b.length(s); p++) {
                    if (!sees(b, s, row, p)) continue;
                    const size_t at = b.at(s, p, head / group);
                    double score = 0;
                    for (int64_t i = 0; i < dim; i++)
                        score += double(decode(b.q[from + size_t(i)], b.dtype)) * b.key(at + size_t(i));
                    score *= b.shape.scale;
                    scores.push_back(b.shape.cap > 0 ? b.shape.cap * std::tanh(score / b.shape.cap) : score);
                    seen.push_back(p);
                    top = std::max(top, scores.back());
                }
                for (size_t n = 0; n < seen.size(); n++) {
                    const double w = std::exp(scores[n] - top);
                    weight += w;
                    const size_t at = b.at(s, seen[n], head / group);
                    for (int64_t i = 0; i < dim; i++) {
                        const double v = b.value(at + size_t(i));
                        sums[size_t(i)] += w * v;
                        sizes[size_t(i)] += w * std::fabs(v);
                    }
                }
                for (int64_t i = 0; i < dim; i++) {
                    const double want = seen.empty() ? 0 : sums[size_t(i)] / weight;
                    const double size = seen.empty() ? 0 : sizes[size_t(i)] / weight;
                    // Weights and result are rounded to `dtype`.
                    check_close(decode(got[from + size_t(i)], b.dtype), want, rounding(b.dtype) * (std::fabs(want) + size) + 1e-5,
                                format("sequence %zu of context %u, row %lld, head %lld, value %lld", s, b.context_lens[s],
                                       (long long)row, (long long)head, (long long)i));
                }
            }
}

static PleachAttentionShape random_shape(int round) {
    const int kv_heads = int(random_int(1, 2)), group = int(round % 4 == 0 ? 7 : random_int(1, 4));
    PleachAttentionShape shape = heads_of(kv_heads * group, kv_heads, HEAD_DIMS[round % 5], round / 2 % 2 ? 16 : 32);
    shape.scale *= 1 + random_value() / 2;
    return shape;
}

TEST(attention_of_ragged_batches) {
    for (int round = 0; round < 10; round++) {
        const int dtype = round < 5 ? PLEACH_BF16 : PLEACH_F16;
        // Empty sequences, no context, prompt chunks, verification rows, splits that just begin and end.
        std::vector<std::pair<int64_t, int64_t>> sequences = {{random_int(0, 80), random_int(1, 9)}, {random_int(0, 30), 0}, {0, 1}};
        if (round % 2 == 0) sequences.push_back({random_int(240, 270), random_int(1, 8)});
        if (round % 4 == 1) sequences.push_back({0, 70});
        if (round == 3) sequences.push_back({255, 2});
        if (round >= 7) sequences.push_back({random_int(500, 800), 3});
        // More than a warp has lanes.
        if (round == 2)
            for (int s = 0; s < 34; s++) sequences.push_back({random_int(0, 3), random_int(0, 2)});
        const Batch b = random_batch(random_shape(round), dtype, sequences);
        check(b, attend(b));
    }
}

TEST(attention_over_4096_positions) {
    const Batch b = random_batch(heads_of(4, 1, 64, 16), PLEACH_BF16, {{4093, 3}, {7, 1}});
    check(b, attend(b));
}

TEST(attention_in_a_window) {
    for (auto [window, dim] : {std::pair<int, int>{1, 64}, {5, 128}, {64, 256}, {300, 64}, {200, 80}, {7, 96}}) {
        const PleachAttentionShape shape = heads_of(2, 1, dim, 32, window);
        // The last one's windows begin on both sides of position 256, where a split begins.
        const int64_t across = 256 + window - 4;
        const Batch b = random_batch(shape, PLEACH_BF16, {{random_int(300, 600), 4}, {0, 5}, {random_int(0, 200), 2}, {across, 8}});
        check(b, attend(b));
    }
}

/// Scores of which some are far beyond their bound, with windows and without.
TEST(attention_of_bounded_scores) {
    for (int round = 0; round < 10; round++) {
        PleachAttentionShape shape = random_shape(round);
        shape.cap = round % 3 ? 5 + random_value() : 50;
        if (round >= 5) shape.window = int(random_int(2, 300));
        Batch b = random_batch(shape, round % 2 ? PLEACH_BF16 : PLEACH_F16, {{random_int(0, 80), 5}, {random_int(240, 300), 4}});
        for (size_t i = 0; i < b.q.size(); i += 3) b.q[i] = encode(20 * random_value(), b.dtype);
        check(b, attend(b));
    }
}

TEST(attention_of_a_tree) {
    for (int round = 0; round < 5; round++) {
        Batch b = random_batch(random_shape(round), PLEACH_BF16, {{random_int(0, 300), random_int(2, 20)}, {0, 64}, {250, 12}});
        for (size_t s = 0; s < b.context_lens.size(); s++)
            for (uint32_t row = b.cu_seqlens[s]; row < b.cu_seqlens[s + 1]; row++) {
                // Each row's parent is any row before it.
                const uint32_t i = row - b.cu_seqlens[s];
                const uint64_t parent = i ? b.masks[size_t(b.cu_seqlens[s] + random_int(0, i - 1))] : 0;
                b.masks.push_back(parent | uint64_t(1) << i);
            }
        check(b, attend(b));
    }
}

/// A row with its own context alone, and the same row in a batch: the same bits.
static void check_alone(const Batch &b) {
    const auto together = attend(b, 1000);
    const size_t width = size_t(b.shape.heads * b.shape.head_dim);
    for (size_t s = 0; s < b.context_lens.size(); s++)
        for (uint32_t i = 0; i < b.cu_seqlens[s + 1] - b.cu_seqlens[s]; i += 2) {
            Batch alone = b;
            const size_t row = b.cu_seqlens[s] + i;
            alone.cu_seqlens = {0, 1};
            alone.context_lens = {b.context_lens[s] + i};
            alone.tables.assign(b.tables.begin() + long(s) * b.max_blocks, b.tables.begin() + long(s + 1) * b.max_blocks);
            alone.q.assign(b.q.begin() + long(row * width), b.q.begin() + long((row + 1) * width));
            const auto got = attend(alone);
            CHECK(std::equal(got.begin(), got.end(), together.begin() + long(row * width)), "sequence %zu row %u", s, i);
        }
}

TEST(attention_rows_do_not_depend_on_each_other) {
    for (int round = 0; round < 5; round++) {
        PleachAttentionShape shape = random_shape(round);
        if (round % 2) shape.cap = 3;
        if (round % 3 == 0) shape.window = int(random_int(200, 400));
        check_alone(random_batch(shape, PLEACH_BF16, {{random_int(0, 40), 3}, {random_int(250, 262), 9}, {600, 1}}));
    }
}

/// Keys and values of 8 bits: ragged batches with windows, bounds of scores and trees.
TEST(attention_over_codes) {
    for (int round = 0; round < 10; round++) {
        PleachAttentionShape shape = random_shape(round);
        if (round % 3 == 1) shape.cap = 5 + random_value();
        const bool tree = round % 4 == 2;
        if (round >= 6 && !tree) shape.window = int(random_int(2, 300));
        std::vector<std::pair<int64_t, int64_t>> sequences = {{random_int(0, 80), random_int(1, 9)}, {random_int(0, 30), 0}, {0, 1}};
        if (round % 2) sequences.push_back({random_int(240, 270), random_int(1, 8)});
        if (round == 3) sequences.push_back({0, 70});
        Batch b = random_codes(shape, sequences);
        for (size_t s = 0; tree && s < sequences.size(); s++)
            for (int64_t i = 0; i < sequences[s].second; i++) b.masks.push_back(random_bits() | uint64_t(1) << i);
        check(b, attend(b));
    }
}

TEST(attention_rows_over_codes_do_not_depend_on_each_other) {
    for (int round = 0; round < 5; round++) {
        PleachAttentionShape shape = random_shape(round);
        if (round % 2) shape.cap = 3;
        if (round % 3 == 0) shape.window = int(random_int(200, 400));
        check_alone(random_codes(shape, {{random_int(0, 40), 3}, {random_int(250, 262), 3}}));
    }
}

/// A row that sees one position has its values, each code as it is.
TEST(attention_over_every_code) {
    Batch b = random_codes(heads_of(1, 1, 256, 16), {{0, 1}});
    const size_t at = b.at(0, 0, 0);
    for (size_t i = 0; i < 256; i++) b.value_codes[at + i] = int8_t(int(i) - 128);
    for (float scale : {1.0f, 0.03125f}) {
        b.value_scales[at / 256] = scale;
        const auto got = attend(b);
        for (int i = 0; i < 256; i++) CHECK(from_bf16(got[size_t(i)]) == scale * float(i - 128), "code %d", i - 128);
    }
}

/// A scale that is no number, of a key or of a value, reaches all values of the rows that see its position, and no other
/// row of the tile.
TEST(attention_over_codes_keeps_nan) {
    for (int dim : HEAD_DIMS)
        for (int64_t context : {20, 21, 300})
            for (float scale : {NAN, INFINITY})
                for (bool of_key : {true, false}) {
                    Batch b = random_codes(heads_of(2, 1, dim, 16), {{context, 3}});
                    const size_t at = b.at(0, context + 1, 0);
                    (of_key ? b.key_scales : b.value_scales)[at / size_t(dim)] = scale;
                    auto &codes = of_key ? b.key_codes : b.value_codes;
                    std::fill_n(codes.begin() + long(at), dim, int8_t(0));
                    const auto got = attend(b);
                    for (size_t i = 0; i < got.size(); i++)
                        CHECK(std::isnan(from_bf16(got[i])) == (i >= size_t(2 * dim)), "value %zu of heads of %d", i, dim);
                }
}

TEST(attention_keeps_nan) {
    for (int dim : HEAD_DIMS)
        for (float cap : {0.0f, 10.0f}) {
            PleachAttentionShape shape = heads_of(2, 1, dim, 16);
            shape.cap = cap;
            // Neighbours: each of a pair of weights.
            for (auto [context, position] : {std::pair<int64_t, int64_t>{20, 3}, {20, 4}, {300, 3}, {300, 4}}) {
                Batch b = random_batch(shape, PLEACH_F16, {{context, 1}, {context, 1}});
                b.keys[b.at(1, position, 0) + size_t(random_int(0, dim - 1))] = to_f16(NAN);
                const auto got = attend(b);
                for (size_t i = 0; i < got.size(); i++)
                    CHECK(std::isnan(from_f16(got[i])) == (i >= size_t(2 * dim)), "value %zu of heads of %d", i, dim);
            }
        }
}

/// A NaN among the values of a position reaches its own dimension, and no other.
TEST(attention_keeps_nan_of_values) {
    for (int dim : HEAD_DIMS) {
        Batch b = random_batch(heads_of(1, 1, dim, 32), PLEACH_BF16, {{random_int(10, 400), 1}});
        const int64_t place = random_int(0, dim - 1);
        b.values[b.at(0, random_int(0, b.length(0) - 1), 0) + size_t(place)] = to_bf16(NAN);
        const auto got = attend(b);
        for (int64_t i = 0; i < dim; i++)
            CHECK(std::isnan(from_bf16(got[size_t(i)])) == (i == place), "value %lld, not %lld", (long long)i, (long long)place);
    }
}

TEST(attention_names_what_it_does_not_take) {
    PleachAttention io{};
    const auto status = [&](PleachAttentionShape shape, int64_t rows, int64_t length) {
        return pleach_paged_attention(io, shape, rows, 1, length, PLEACH_BF16);
    };
    CHECK(status(heads_of(4, 2, 64, 16), 0, 0) == PLEACH_OK, "no rows");
    CHECK(status(heads_of(4, 3, 64, 16), 1, 5) == PLEACH_BAD_ARGUMENT, "heads");
    CHECK(status(heads_of(4, 2, 72, 16), 1, 5) == PLEACH_BAD_ARGUMENT, "head_dim");
    CHECK(status(heads_of(4, 2, 64, 8), 1, 5) == PLEACH_BAD_ARGUMENT, "block_size");
    CHECK(status(heads_of(4, 2, 64, 16, -1), 1, 5) == PLEACH_BAD_ARGUMENT, "window");
    CHECK(status(heads_of(4, 2, 64, 16), 1, 0) == PLEACH_BAD_ARGUMENT, "length");
    float scale = 1;
    io.key_scales = &scale;
    CHECK(status(heads_of(4, 2, 64, 16), 1, 5) == PLEACH_BAD_ARGUMENT, "scales of keys alone");
    io.value_scales = &scale;
    CHECK(pleach_paged_attention(io, heads_of(4, 2, 64, 16), 1, 1, 5, PLEACH_F16) == PLEACH_BAD_ARGUMENT, "codes beside f16");
}

/// Scores so low that weights relative to anything but the row's own maximum would vanish.
TEST(attention_of_low_scores) {
    for (int64_t context : {5, 200, 300, 700}) {
        Batch b = random_batch(heads_of(2, 1, 64, 16), PLEACH_BF16, {{context, 2}});
        for (uint16_t &q : b.q) q = encode(10 + random_value() / 4, PLEACH_BF16);
        for (int64_t p = 0; p < b.length(0); p++)
            for (int64_t i = 0; i < 64; i++) b.keys[b.at(0, p, 0) + size_t(i)] = encode(-4 + random_value() / 16, PLEACH_BF16);
        check(b, attend(b));
    }
}
