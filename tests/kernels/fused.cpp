#include <algorithm>

#include "gguf.h"

static const int DTYPES[] = {PLEACH_BF16, PLEACH_F16};

TEST(add_rms_norm) {
    for (int dtype : DTYPES)
        for (int64_t width : {1, 31, 64, 255, 257, 576, 2048})
            // Nothing is added; something; something that is normed first.
            for (int added = 0; added < 3; added++) {
                const int64_t rows = random_int(1, 4);
                const float eps = width % 2 ? 0.7f : 1e-5f;
                const auto residual = random_values(size_t(rows * width), 3.0f);
                const auto delta = random_halves(size_t(rows * width), dtype);
                const auto delta_weight = random_values(size_t(width), 2.0f), weight = random_values(size_t(width), 2.0f);
                Buffer<uint16_t> d(delta), out = Buffer<uint16_t>::poisoned(size_t(rows * width));
                Buffer<float> r(residual), w(weight), dw(delta_weight);
                const float *norm = added == 2 ? dw.get() : nullptr;
                CHECK_OK(pleach_add_rms_norm(r, added ? d.get() : nullptr, norm, w, nullptr, out, rows, width, eps, dtype));
                const auto sums = r.host();
                const auto got = out.host();
                for (int64_t row = 0; row < rows; row++) {
                    double squares = 0, delta_squares = 0;
                    for (int64_t i = 0; i < width; i++) {
                        const double by = decode(delta[size_t(row * width + i)], dtype);
                        delta_squares += by * by;
                    }
                    const double delta_scale = 1.0 / std::sqrt(delta_squares / double(width) + double(eps));
                    for (int64_t i = 0; i < width; i++) {
                        const size_t at = size_t(row * width + i);
                        const float by = decode(delta[at], dtype);
                        if (added == 2) {
                            const double want = residual[at] + double(by) * delta_scale * delta_weight[size_t(i)];
                            check_close(sums[at], want, 2e-6 * (1 + std::fabs(want)), "residual");
                        } else {
                            const float x = added ? residual[at] + by : residual[at];
                            CHECK(sums[at] == x, "residual %g, want %g", sums[at], x);
                        }
                        squares += double(sums[at]) * sums[at];
                    }
                    const double scale = 1.0 / std::sqrt(squares / double(width) + double(eps));
                    for (int64_t i = 0; i < width; i++) {
                        const size_t at = size_t(row * width + i);
                        const double want = sums[at] * scale * weight[size_t(i)];
                        check_close(decode(got[at], dtype), want, 1.01 * rounding(dtype) * std::fabs(want) + 1e-6,
                                    format("width %lld row %lld", (long long)width, (long long)row));
                    }
                }
                // A row alone gives the same bits.
                const size_t last = size_t((rows - 1) * width);
                Buffer<float> r1(std::vector<float>(residual.begin() + long(last), residual.end()));
                Buffer<uint16_t> d1(std::vector<uint16_t>(delta.begin() + long(last), delta.end()));
                Buffer<uint16_t> out1 = Buffer<uint16_t>::poisoned(size_t(width));
                CHECK_OK(pleach_add_rms_norm(r1, added ? d1.get() : nullptr, norm, w, nullptr, out1, 1, width, eps, dtype));
                CHECK(out1.host() == std::vector<uint16_t>(got.begin() + long(last), got.end()), "row alone");
                CHECK(r1.host() == std::vector<float>(sums.begin() + long(last), sums.end()), "residual of the row alone");
            }
}

/// Only the wanted rows are changed and normed, with the bits of a whole pass.
TEST(add_rms_norm_of_wanted_rows) {
    const int64_t rows = 6, width = 300;
    const auto residual = random_values(size_t(rows * width), 3.0f);
    const auto delta = random_halves(size_t(rows * width), PLEACH_BF16);
    Buffer<float> r(residual), r_some(residual), w(random_values(size_t(width))), dw(random_values(size_t(width)));
    Buffer<uint16_t> d(delta), out = Buffer<uint16_t>::poisoned(size_t(rows * width)),
                               some = Buffer<uint16_t>::poisoned(size_t(2 * width));
    const std::vector<uint32_t> wanted = {4, 1};
    Buffer<uint32_t> b_wanted(wanted);
    CHECK_OK(pleach_add_rms_norm(r, d, dw, w, nullptr, out, rows, width, 1e-5f, PLEACH_BF16));
    CHECK_OK(pleach_add_rms_norm(r_some, d, dw, w, b_wanted, some, 2, width, 1e-5f, PLEACH_BF16));
    const auto all = out.host(), got = some.host();
    const auto sums = r.host(), sums_some = r_some.host();
    for (size_t i = 0; i < got.size(); i++)
        CHECK(got[i] == all[wanted[i / size_t(width)] * size_t(width) + i % size_t(width)], "value %zu", i);
    for (size_t i = 0; i < sums.size(); i++) {
        const size_t row = i / size_t(width);
        CHECK(sums_some[i] == (row == 4 || row == 1 ? sums : residual)[i], "residual %zu", i);
    }
}

TEST(add_rms_norm_keeps_nan) {
    for (bool in_delta : {false, true}) {
        auto residual = random_values(2 * 300);
        auto delta = random_halves(2 * 300, PLEACH_BF16);
        if (in_delta) delta[17] = to_bf16(NAN);
        else residual[17] = NAN;
        Buffer<float> r(residual), w(random_values(300)), dw(random_values(300));
        Buffer<uint16_t> d(delta), out(std::vector<uint16_t>(600, 0));
        CHECK_OK(pleach_add_rms_norm(r, d, dw, w, nullptr, out, 2, 300, 1e-5f, PLEACH_BF16));
        const auto got = out.host();
        for (size_t i = 0; i < 600; i++) CHECK(std::isnan(from_bf16(got[i])) == (i < 300), "value %zu", i);
    }
}

static double activated(double x, uint32_t activation) {
    if (activation == PLEACH_SILU) return x / (1 + std::exp(-x));
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

TEST(gate_mul) {
    for (int dtype : DTYPES)
        for (uint32_t activation : {PLEACH_SILU, PLEACH_GELU_TANH})
            for (int64_t width : {1, 77, 256, 1000}) {
                const int64_t rows = random_int(1, 5);
                auto x = random_halves(size_t(rows * 2 * width), dtype, 12.0f);
                x[0] = encode(NAN, dtype);
                Buffer<uint16_t> in(x), out = Buffer<uint16_t>::poisoned(size_t(rows * width));
                CHECK_OK(pleach_gate_mul(in, out, rows, width, activation, dtype));
                const auto got = out.host();
                CHECK(std::isnan(decode(got[0], dtype)), "NaN is lost");
                for (int64_t i = 1; i < rows * width; i++) {
                    const int64_t row = i / width, col = i % width;
                    const double gate = decode(x[size_t(row * 2 * width + col)], dtype);
                    const double up = decode(x[size_t(row * 2 * width + width + col)], dtype);
                    const double want = activated(gate, activation) * up;
                    check_close(decode(got[size_t(i)], dtype), want, 1.01 * rounding(dtype) * std::fabs(want) + 1e-6,
                                format("activation %u row %lld column %lld", activation, (long long)row, (long long)col));
                }
            }
}

TEST(soft_cap) {
    for (int64_t count : {1, 255, 256, 700}) {
        const float cap = 20 + 10 * random_value();
        auto x = random_values(size_t(count), 100.0f);
        x[0] = NAN;
        if (count > 1) x[1] = 1e-3f * random_value(), x[2] = INFINITY, x[3] = -INFINITY;
        Buffer<float> values(x);
        CHECK_OK(pleach_soft_cap(values, count, cap));
        const auto got = values.host();
        CHECK(std::isnan(got[0]), "NaN is lost");
        for (size_t i = 1; i < got.size(); i++) {
            const double want = cap * std::tanh(double(x[i]) / cap);
            check_close(got[i], want, 1e-6 * std::fabs(want), format("%g under %g", x[i], cap));
        }
    }
    CHECK(pleach_soft_cap(nullptr, 0, 1.0f) == PLEACH_OK, "no values");
    CHECK(pleach_soft_cap(nullptr, 5, 0.0f) == PLEACH_BAD_ARGUMENT, "no bound");
}

TEST(add_bias) {
    for (int dtype : DTYPES)
        for (int64_t rows : {1, 3, 4099}) {
            const int64_t width = rows > 4096 ? 2 : random_int(200, 600);
            auto x = random_halves(size_t(rows * width), dtype);
            x[1] = encode(NAN, dtype);
            const auto bias = random_halves(size_t(width), dtype, 4.0f);
            Buffer<uint16_t> in(x), by(bias);
            CHECK_OK(pleach_add_bias(in, by, rows, width, dtype));
            const auto got = in.host();
            for (int64_t i = 0; i < rows * width; i++) {
                const float want = decode(x[size_t(i)], dtype) + decode(bias[size_t(i % width)], dtype);
                CHECK(i == 1 ? std::isnan(decode(got[1], dtype)) : got[size_t(i)] == encode(want, dtype), "row %lld column %lld",
                      (long long)(i / width), (long long)(i % width));
            }
        }
    CHECK(pleach_add_bias(nullptr, nullptr, 0, 5, PLEACH_BF16) == PLEACH_OK, "no rows");
    CHECK(pleach_add_bias(nullptr, nullptr, 1, 5, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "f32");
}

/// Rows whose heads are normed, rotated and written.
struct Heads {
    PleachAttentionShape shape;
    int dtype, turned;
    bool with_bias, with_norm;
    float eps;
    int64_t rows, blocks;
    std::vector<uint16_t> x, bias;
    std::vector<float> q_norm, k_norm, rotations;
    std::vector<uint32_t> positions, slots;

    int64_t total() const { return shape.heads + 2 * shape.kv_heads; }
    bool is_q(int64_t h) const { return h < shape.heads; }
    bool is_k(int64_t h) const { return !is_q(h) && h < shape.heads + shape.kv_heads; }
    /// Cells of all keys.
    size_t cache() const { return size_t(blocks * shape.kv_heads * shape.block_size * shape.head_dim); }
    /// The first value of a head of a row, among those of the rows or the cells of the cache.
    size_t at(int64_t r, int64_t h) const {
        if (is_q(h)) return size_t((r * shape.heads + h) * shape.head_dim);
        const uint32_t slot = slots[size_t(r)];
        const int64_t kv_head = is_k(h) ? h - shape.heads : h - shape.heads - shape.kv_heads;
        return size_t(((slot / shape.block_size * shape.kv_heads + kv_head) * shape.block_size + slot % shape.block_size) * shape.head_dim);
    }
    std::vector<double> want(int64_t r, int64_t h) const {
        const int64_t dim = shape.head_dim;
        std::vector<double> v(static_cast<size_t>(dim));
        double squares = 0;
        for (int64_t i = 0; i < dim; i++) {
            v[size_t(i)] = decode(x[size_t((r * total() + h) * dim + i)], dtype);
            if (with_bias) v[size_t(i)] += decode(bias[size_t(h * dim + i)], dtype);
            squares += v[size_t(i)] * v[size_t(i)];
        }
        if (!is_q(h) && !is_k(h)) return v;
        if (with_norm)
            for (int64_t i = 0; i < dim; i++)
                v[size_t(i)] *= (is_q(h) ? q_norm : k_norm)[size_t(i)] / std::sqrt(squares / double(dim) + double(eps));
        std::vector<double> want = v;
        for (int64_t i = 0; i < turned; i++) {
            const float *turn = &rotations[size_t((positions[size_t(r)] * turned + i) * 2)];
            const double a = v[size_t(i)], b = v[size_t(i + turned)];
            want[size_t(i)] = a * turn[0] - b * turn[1];
            want[size_t(i + turned)] = b * turn[0] + a * turn[1];
        }
        return want;
    }
};

static Heads random_heads(int round, int dtype) {
    constexpr int DIMS[] = {128, 64, 40, 80, 96, 256};
    constexpr int64_t MAX_POSITIONS = 50;
    const int kv_heads = int(random_int(1, 3)), group = int(random_int(1, 4));
    const PleachAttentionShape shape = heads_of(kv_heads * group, kv_heads, DIMS[round / 2 % 6], round % 4 < 2 ? 16 : 32);
    // Whole heads turn, none, or the first values.
    const int turned = round % 3 == 0 ? shape.head_dim / 2 : round % 9 == 1 ? 0 : int(random_int(1, shape.head_dim / 2 - 1));
    Heads h{shape, dtype, turned, round / 2 % 2 != 0, round / 4 % 2 != 0, round % 2 ? 0.2f : 1e-6f, random_int(1, 9), 5, {}, {}, {}, {}, {}, {}, {}};
    const int64_t dim = shape.head_dim;
    h.x = random_halves(size_t(h.rows * h.total() * dim), dtype);
    h.bias = random_halves(size_t(h.total() * dim), dtype);
    h.q_norm = random_values(size_t(dim), 2.0f);
    h.k_norm = random_values(size_t(dim), 2.0f);
    for (int64_t p = 0; p < MAX_POSITIONS; p++)
        for (int64_t i = 0; i < turned; i++) {
            const double angle = double(p) * std::pow(100.0, -double(i) / double(dim / 2));
            h.rotations.push_back(float(std::cos(angle)));
            h.rotations.push_back(float(std::sin(angle)));
        }
    std::vector<uint32_t> free;
    for (uint32_t s = 0; s < uint32_t(h.blocks * shape.block_size); s++) free.push_back(s);
    for (int64_t r = 0; r < h.rows; r++) {
        h.positions.push_back(uint32_t(random_int(0, MAX_POSITIONS - 1)));
        const size_t pick = size_t(random_int(0, int64_t(free.size()) - 1));
        h.slots.push_back(r == 1 ? PLEACH_NO_SLOT : free[pick]);
        free.erase(free.begin() + long(pick));
    }
    return h;
}

/// What was written: queries, keys and values, and of codes their scales.
template <class Cell>
struct Written {
    std::vector<uint16_t> q;
    std::vector<Cell> keys, values;
    std::vector<float> key_scales, value_scales;
};

template <class Cell>
static Written<Cell> write(const Heads &h) {
    constexpr bool coded = sizeof(Cell) == 1;
    const size_t scales = coded ? h.cache() / size_t(h.shape.head_dim) : 0;
    Buffer<uint16_t> x(h.x), bias(h.bias);
    Buffer<float> rotations(h.rotations), q_norm(h.q_norm), k_norm(h.k_norm);
    Buffer<uint32_t> positions(h.positions), slots(h.slots);
    auto q = Buffer<uint16_t>::poisoned(size_t(h.rows * h.shape.heads * h.shape.head_dim));
    auto keys = Buffer<Cell>::poisoned(h.cache()), values = Buffer<Cell>::poisoned(h.cache());
    auto key_scales = Buffer<float>::poisoned(scales), value_scales = Buffer<float>::poisoned(scales);
    const PleachQkv io{x, h.with_bias ? bias.get() : nullptr, h.with_norm ? q_norm.get() : nullptr,
                       h.with_norm ? k_norm.get() : nullptr, rotations, positions, slots, q, keys, values,
                       coded ? key_scales.get() : nullptr, coded ? value_scales.get() : nullptr};
    CHECK_OK(pleach_qkv_rope_write(io, h.shape, h.rows, h.turned, h.eps, h.dtype));
    return {q.host(), keys.host(), values.host(), key_scales.host(), value_scales.host()};
}

TEST(qkv_rope_write) {
    for (int round = 0; round < 24; round++) {
        const Heads heads = random_heads(round, DTYPES[round % 2]);
        const auto written = write<uint16_t>(heads);
        std::vector<bool> own(heads.cache(), false);
        for (int64_t r = 0; r < heads.rows; r++)
            for (int64_t h = 0; h < heads.total(); h++) {
                if (!heads.is_q(h) && heads.slots[size_t(r)] == PLEACH_NO_SLOT) continue;
                const auto want = heads.want(r, h);
                const auto &got = heads.is_q(h) ? written.q : heads.is_k(h) ? written.keys : written.values;
                for (size_t i = 0; i < want.size(); i++) {
                    const size_t at = heads.at(r, h) + i;
                    check_close(decode(got[at], heads.dtype), want[i], 1.01 * rounding(heads.dtype) * std::fabs(want[i]) + 2e-6,
                                format("row %lld head %lld value %zu", (long long)r, (long long)h, i));
                    if (!heads.is_q(h)) own[at] = true;
                }
            }
        for (size_t i = 0; i < heads.cache(); i++)
            CHECK(own[i] || (written.keys[i] == 0xffff && written.values[i] == 0xffff), "wrote past its slots, at %zu", i);
    }
}

/// Keys and values in codes: the largest is 127 steps, none is further from what it was than half a step, and queries are as
/// beside other cells.
TEST(qkv_rope_write_in_codes) {
    for (int round = 0; round < 24; round++) {
        const Heads heads = random_heads(round, PLEACH_BF16);
        const auto written = write<int8_t>(heads);
        CHECK(written.q == write<uint16_t>(heads).q, "queries");
        const size_t dim = size_t(heads.shape.head_dim);
        std::vector<bool> own(heads.cache() / dim, false);
        for (int64_t r = 0; r < heads.rows; r++)
            for (int64_t h = heads.shape.heads; h < heads.total(); h++) {
                if (heads.slots[size_t(r)] == PLEACH_NO_SLOT) continue;
                const auto want = heads.want(r, h);
                const auto &codes = heads.is_k(h) ? written.keys : written.values;
                const size_t at = heads.at(r, h);
                const float scale = (heads.is_k(h) ? written.key_scales : written.value_scales)[at / dim];
                own[at / dim] = true;
                double largest = 0;
                for (double x : want) largest = std::max(largest, std::fabs(x));
                check_close(scale, largest / 127, 1e-6 * largest / 127 + 2e-8, "scale");
                // What is neither normed nor rotated is known to the bit.
                if (!heads.is_k(h) && !heads.with_bias) CHECK(scale == float(largest) / 127.0f, "scale of row %lld", (long long)r);
                int most = 0;
                for (size_t i = 0; i < dim; i++) {
                    most = std::max(most, std::abs(int(codes[at + i])));
                    check_close(codes[at + i] * double(scale), want[i], 0.5001 * double(scale) + 2e-6,
                                format("row %lld head %lld value %zu", (long long)r, (long long)h, i));
                    if (!heads.is_k(h) && !heads.with_bias)
                        CHECK(codes[at + i] == int(std::nearbyint(float(want[i]) / scale)), "code %zu", i);
                }
                CHECK(most == 127, "the largest code is %d", most);
            }
        for (size_t i = 0; i < own.size(); i++) {
            bool untouched = std::isnan(written.key_scales[i]) && std::isnan(written.value_scales[i]);
            for (size_t j = i * dim; j < (i + 1) * dim; j++) untouched = untouched && written.keys[j] == -1 && written.values[j] == -1;
            CHECK(own[i] || untouched, "wrote past its slots, at %zu", i);
        }
    }
}

/// Of a head with a value that is no number, all codes are 0 and so is what the scale is; one of zeros has the least scale.
TEST(qkv_rope_write_in_codes_keeps_nan) {
    for (int dim : HEAD_DIMS)
        for (float x : {NAN, INFINITY, -INFINITY, 0.0f, 1e-38f}) {
            Heads heads = random_heads(0, PLEACH_BF16);
            heads.shape = heads_of(1, 1, dim, 16);
            heads.turned = 0;
            heads.with_bias = heads.with_norm = false;
            heads.rows = 1;
            heads.slots = {uint32_t(random_int(0, 5 * 16 - 1))};
            heads.x = random_halves(size_t(3 * dim), PLEACH_BF16);
            const bool of_key = random_int(0, 1) == 0;
            const long head = of_key ? dim : 2 * dim;
            if (std::isfinite(x)) std::fill_n(heads.x.begin() + head, dim, to_bf16(0.0f));
            heads.x[size_t(head + random_int(0, dim - 1))] = to_bf16(x);
            const auto written = write<int8_t>(heads);
            const size_t at = heads.at(0, of_key ? 1 : 2);
            const float scale = (of_key ? written.key_scales : written.value_scales)[at / size_t(dim)];
            CHECK(std::isnan(x) ? std::isnan(scale) : std::isinf(x) ? scale == INFINITY : scale == 1.17549435e-38f, "scale %g of %g", scale, x);
            int sizes = 0;
            for (int i = 0; i < dim; i++) sizes += std::abs(int((of_key ? written.keys : written.values)[at + size_t(i)]));
            CHECK(sizes == (x == 1e-38f), "codes of %g", x);
            const float other = (of_key ? written.value_scales : written.key_scales)[heads.at(0, of_key ? 2 : 1) / size_t(dim)];
            CHECK(other > 0 && other < 1, "scale %g of the other head", other);
        }
}

TEST(embed) {
    for (int format_id = PLEACH_W_BF16; format_id <= PLEACH_W_Q6_K; format_id++) {
        const int64_t width = 256 * random_int(1, 3), vocab = random_int(3, 40), rows = random_int(1, 6);
        const Weights w = random_weights(format_id, vocab, width);
        const float scale = format_id % 2 ? 1.0f : 30 * random_value();
        std::vector<uint32_t> tokens;
        for (int64_t r = 0; r < rows; r++) tokens.push_back(uint32_t(random_int(0, vocab - 1)));
        tokens.push_back(uint32_t(vocab));
        Buffer<uint8_t> table(w.bytes);
        Buffer<uint32_t> b_tokens(tokens);
        auto out = Buffer<float>::poisoned(tokens.size() * size_t(width));
        CHECK_OK(pleach_embed(table, b_tokens, out, rows + 1, width, vocab, scale, format_id));
        const auto got = out.host();
        for (size_t i = 0; i < got.size(); i++) {
            const size_t row = i / size_t(width);
            if (row == size_t(rows)) {
                CHECK(std::isnan(got[i]), "a token outside the vocabulary");
            } else {
                const double want = scale * w.values[tokens[row] * size_t(width) + i % size_t(width)];
                check_close(got[i], want, 1e-6 * std::fabs(want) + 1e-7 * (1 + std::fabs(scale)), format("%s at %zu", format_name(format_id), i));
            }
        }
    }
    CHECK(pleach_embed(nullptr, nullptr, nullptr, 1, 100, 5, 1, PLEACH_W_Q4_0) == PLEACH_BAD_ARGUMENT, "width");
    CHECK(pleach_embed(nullptr, nullptr, nullptr, 1, 256, 5, 1, 99) == PLEACH_BAD_ARGUMENT, "format");
}

/// More rows than a grid has.
TEST(gate_mul_of_many_rows) {
    const int64_t rows = 4099;
    const auto x = random_halves(size_t(rows * 2), PLEACH_F16);
    Buffer<uint16_t> in(x), out = Buffer<uint16_t>::poisoned(size_t(rows));
    CHECK_OK(pleach_gate_mul(in, out, rows, 1, PLEACH_SILU, PLEACH_F16));
    const auto got = out.host();
    for (size_t row = 0; row < size_t(rows); row++) {
        const double gate = from_f16(x[2 * row]), want = gate / (1 + std::exp(-gate)) * from_f16(x[2 * row + 1]);
        check_close(from_f16(got[row]), want, 1.01 * rounding(PLEACH_F16) * std::fabs(want) + 1e-6, format("row %zu", row));
    }
}

/// Gates beyond what e^x holds: both activations tend to 0 and to their argument.
TEST(gate_mul_saturates) {
    const std::vector<float> gates = {-300, -90, 90, 300, 0}, want = {0, 0, 180, 600, 0};
    std::vector<float> x = gates;
    x.insert(x.end(), gates.size(), 2.0f);
    for (uint32_t activation : {PLEACH_SILU, PLEACH_GELU_TANH}) {
        Buffer<uint16_t> in(encode_all(x, PLEACH_F16)), out = Buffer<uint16_t>::poisoned(gates.size());
        CHECK_OK(pleach_gate_mul(in, out, 1, int64_t(gates.size()), activation, PLEACH_F16));
        const auto got = out.host();
        for (size_t i = 0; i < gates.size(); i++) check_close(from_f16(got[i]), want[i], 1e-6, format("gate %g", gates[i]));
    }
}

TEST(fused_names_what_it_does_not_take) {
    PleachQkv io{};
    const auto rope = [&](PleachAttentionShape shape, int64_t rows, int dtype, int turned = 32) {
        return pleach_qkv_rope_write(io, shape, rows, turned, 1e-6f, dtype);
    };
    CHECK(rope(heads_of(4, 2, 64, 16), 0, PLEACH_BF16) == PLEACH_OK, "no rows");
    CHECK(rope(heads_of(4, 2, 64, 16), -1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "rows");
    CHECK(rope(heads_of(4, 2, 64, 16), 1, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "dtype");
    CHECK(rope(heads_of(4, 3, 64, 16), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "heads");
    CHECK(rope(heads_of(0, 2, 64, 16), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "no heads");
    CHECK(rope(heads_of(4, 0, 64, 16), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "no K/V heads");
    CHECK(rope(heads_of(4, 2, 65, 16), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "an odd head");
    CHECK(rope(heads_of(4, 2, 258, 16), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "a wide head");
    CHECK(rope(heads_of(4, 2, 64, 0), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "block size");
    CHECK(rope(heads_of(4, 2, 64, 16), 1, PLEACH_BF16, 33) == PLEACH_BAD_ARGUMENT, "more than turns");
    CHECK(rope(heads_of(4, 2, 64, 16), 1, PLEACH_BF16, -1) == PLEACH_BAD_ARGUMENT, "less than nothing turns");
    float scale = 1;
    io.value_scales = &scale;
    CHECK(rope(heads_of(4, 2, 64, 16), 1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "scales of values alone");
    io.key_scales = &scale;
    CHECK(rope(heads_of(4, 2, 64, 16), 1, PLEACH_F16) == PLEACH_BAD_ARGUMENT, "codes beside f16");
    const auto norm = [](int64_t rows, int64_t width, int dtype) {
        return pleach_add_rms_norm(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, rows, width, 1e-6f, dtype);
    };
    CHECK(norm(0, 8, PLEACH_F16) == PLEACH_OK, "no rows");
    CHECK(norm(1, 0, PLEACH_F16) == PLEACH_BAD_ARGUMENT && norm(-1, 8, PLEACH_F16) == PLEACH_BAD_ARGUMENT, "sizes");
    CHECK(norm(1, 8, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "dtype");
    CHECK(pleach_gate_mul(nullptr, nullptr, 0, 8, PLEACH_SILU, PLEACH_F16) == PLEACH_OK, "no rows");
    CHECK(pleach_gate_mul(nullptr, nullptr, 1, 0, PLEACH_SILU, PLEACH_F16) == PLEACH_BAD_ARGUMENT, "width");
    CHECK(pleach_embed(nullptr, nullptr, nullptr, 0, 256, 5, 1, PLEACH_W_Q4_0) == PLEACH_OK, "no rows");
    CHECK(pleach_embed(nullptr, nullptr, nullptr, 1, 256, 0, 1, PLEACH_W_Q4_0) == PLEACH_BAD_ARGUMENT, "no vocabulary");
    CHECK(pleach_embed(nullptr, nullptr, nullptr, 1, 128, 5, 1, PLEACH_W_Q4_K) == PLEACH_BAD_ARGUMENT, "half a block");
}
