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

TEST(qkv_rope_write) {
    for (int round = 0; round < 24; round++) {
        const int dtype = DTYPES[round % 2];
        constexpr int DIMS[] = {128, 64, 40, 80, 96, 256};
        const int kv_heads = int(random_int(1, 3)), group = int(random_int(1, 4));
        const PleachAttentionShape shape = heads_of(kv_heads * group, kv_heads, DIMS[round / 2 % 6], round % 4 < 2 ? 16 : 32);
        // Whole heads turn, none, or the first values.
        const int turned = round % 3 == 0 ? shape.head_dim / 2 : round % 9 == 1 ? 0 : int(random_int(1, shape.head_dim / 2 - 1));
        const bool with_bias = round / 2 % 2, with_norm = round / 4 % 2;
        const int64_t dim = shape.head_dim, rows = random_int(1, 9), blocks = 5, max_positions = 50;
        const int64_t total = shape.heads + 2 * shape.kv_heads;
        const float eps = round % 2 ? 0.2f : 1e-6f;
        const auto x = random_halves(size_t(rows * total * dim), dtype);
        const auto bias = random_halves(size_t(total * dim), dtype);
        const auto q_norm = random_values(size_t(dim), 2.0f), k_norm = random_values(size_t(dim), 2.0f);
        std::vector<float> rotations;
        for (int64_t p = 0; p < max_positions; p++)
            for (int64_t i = 0; i < turned; i++) {
                const double angle = double(p) * std::pow(100.0, -double(i) / double(dim / 2));
                rotations.push_back(float(std::cos(angle)));
                rotations.push_back(float(std::sin(angle)));
            }
        std::vector<uint32_t> positions, slots, free;
        for (uint32_t s = 0; s < uint32_t(blocks * shape.block_size); s++) free.push_back(s);
        for (int64_t r = 0; r < rows; r++) {
            positions.push_back(uint32_t(random_int(0, max_positions - 1)));
            const size_t pick = size_t(random_int(0, int64_t(free.size()) - 1));
            slots.push_back(r == 1 ? PLEACH_NO_SLOT : free[pick]);
            free.erase(free.begin() + long(pick));
        }
        const size_t cache = size_t(blocks * shape.kv_heads * shape.block_size * dim);
        Buffer<uint16_t> b_x(x), b_bias(bias);
        Buffer<float> b_rotations(rotations), b_q_norm(q_norm), b_k_norm(k_norm);
        Buffer<uint32_t> b_positions(positions), b_slots(slots);
        auto q = Buffer<uint16_t>::poisoned(size_t(rows * shape.heads * dim));
        auto keys = Buffer<uint16_t>::poisoned(cache), values = Buffer<uint16_t>::poisoned(cache);
        PleachQkv io{b_x, with_bias ? b_bias.get() : nullptr, with_norm ? b_q_norm.get() : nullptr,
                     with_norm ? b_k_norm.get() : nullptr, b_rotations, b_positions, b_slots, q, keys, values};
        CHECK_OK(pleach_qkv_rope_write(io, shape, rows, turned, eps, dtype));
        const auto got_q = q.host(), got_k = keys.host(), got_v = values.host();
        std::vector<bool> written(cache, false);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t h = 0; h < total; h++) {
                const bool is_q = h < shape.heads, is_k = !is_q && h < shape.heads + shape.kv_heads;
                std::vector<double> v(static_cast<size_t>(dim));
                double squares = 0;
                for (int64_t i = 0; i < dim; i++) {
                    v[size_t(i)] = decode(x[size_t((r * total + h) * dim + i)], dtype);
                    if (with_bias) v[size_t(i)] += decode(bias[size_t(h * dim + i)], dtype);
                    squares += v[size_t(i)] * v[size_t(i)];
                }
                if (with_norm && (is_q || is_k))
                    for (int64_t i = 0; i < dim; i++)
                        v[size_t(i)] *= (is_q ? q_norm : k_norm)[size_t(i)] /
                                        std::sqrt(squares / double(dim) + double(eps));
                std::vector<double> want = v;
                if (is_q || is_k)
                    for (int64_t i = 0; i < turned; i++) {
                        const float *turn = &rotations[size_t((positions[size_t(r)] * turned + i) * 2)];
                        const double a = v[size_t(i)], b = v[size_t(i + turned)];
                        want[size_t(i)] = a * turn[0] - b * turn[1];
                        want[size_t(i + turned)] = b * turn[0] + a * turn[1];
                    }
                const uint32_t slot = slots[size_t(r)];
                if (!is_q && slot == PLEACH_NO_SLOT) continue;
                const int64_t kv_head = is_k ? h - shape.heads : h - shape.heads - shape.kv_heads;
                for (int64_t i = 0; i < dim; i++) {
                    const size_t at =
                        is_q ? size_t((r * shape.heads + h) * dim + i)
                             : size_t(((slot / shape.block_size * shape.kv_heads + kv_head) * shape.block_size +
                                       slot % shape.block_size) * dim + i);
                    const double got = decode((is_q ? got_q : is_k ? got_k : got_v)[at], dtype);
                    check_close(got, want[size_t(i)], 1.01 * rounding(dtype) * std::fabs(want[size_t(i)]) + 2e-6,
                                format("row %lld head %lld value %lld", (long long)r, (long long)h, (long long)i));
                    if (!is_q) written[at] = true;
                }
            }
        for (size_t i = 0; i < cache; i++)
            CHECK(written[i] || (got_k[i] == 0xffff && got_v[i] == 0xffff), "wrote past its slots, at %zu", i);
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
    const PleachQkv io{};
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
