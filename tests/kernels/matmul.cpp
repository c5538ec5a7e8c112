#include "gguf.h"

/// x w^T in f32, by the kernel.
static std::vector<float> product(const Buffer<uint8_t> &packed, const Weights &w, const std::vector<uint16_t> &x,
                                  int64_t rows, int64_t x_stride, int dtype) {
    Buffer<uint16_t> b_x(x);
    auto out = Buffer<float>::poisoned(size_t(rows * w.rows));
    CHECK_OK(pleach_matmul(packed, b_x, out, rows, w.rows, w.cols, x_stride, w.rows, w.format, dtype, PLEACH_F32));
    return out.host();
}

static Buffer<uint8_t> pack(const Weights &w) {
    const int64_t bytes = launches.packed_bytes(w.rows, w.cols, w.format);
    CHECK(bytes > 0, "packed size");
    auto packed = Buffer<uint8_t>::poisoned(size_t(bytes));
    Buffer<uint8_t> b_w(w.bytes);
    CHECK_OK(pleach_pack(b_w, packed, w.rows, w.cols, w.format));
    return packed;
}

static bool fits(int format, int dtype) {
    return format > PLEACH_W_F16 || (format == PLEACH_W_BF16) == (dtype == PLEACH_BF16);
}

/// Rows of `stride` values, `used` of them numbers and the rest NaN.
static std::vector<uint16_t> random_rows(int64_t rows, int64_t used, int64_t stride, int dtype) {
    auto x = random_halves(size_t(rows * stride), dtype);
    for (int64_t i = 0; i < rows * stride; i++)
        if (i % stride >= used) x[size_t(i)] = encode(NAN, dtype);
    return x;
}

TEST(matmul_agrees_with_f64) {
    for (int format_id = PLEACH_W_BF16; format_id <= PLEACH_W_Q6_K; format_id++)
        for (int dtype : {PLEACH_BF16, PLEACH_F16}) {
            if (!fits(format_id, dtype)) continue;
            const int64_t unit = std::max<int64_t>(32, format_block(format_id));
            // Widths of one block, of fewer chunks than warps, and of several rounds of all warps.
            const int64_t widths[] = {unit, unit * random_int(2, 9), 64 * 8 * 5 + 256};
            const int64_t rows_of[] = {random_int(1, 7), random_int(8, 16), random_int(17, 70)};
            for (int shape = 0; shape < 3; shape++) {
                const int64_t cols = widths[shape] / unit * unit, rows = rows_of[(shape + dtype + format_id) % 3];
                const Weights w = random_weights(format_id, random_int(1, 75), cols);
                const int64_t stride = cols + 8 * random_int(0, 2);
                const auto x = random_rows(rows, cols, stride, dtype);
                const auto got = product(pack(w), w, x, rows, stride, dtype);
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t n = 0; n < w.rows; n++) {
                        double want = 0, size = 0;
                        for (int64_t k = 0; k < cols; k++) {
                            const double term = double(decode(x[size_t(r * stride + k)], dtype)) * w.values[size_t(n * cols + k)];
                            want += term;
                            size += std::fabs(term);
                        }
                        // Codes and minima may cancel: their sizes count, not only the values'.
                        check_close(got[size_t(r * w.rows + n)], want, 1e-5 * size + 1e-4,
                                    format("%s, %lld x %lld, row %lld of %lld, output %lld", format_name(format_id),
                                           (long long)w.rows, (long long)cols, (long long)r, (long long)rows, (long long)n));
                    }
            }
        }
}

/// A row alone, among others, among NaN, in any place: the same bits.
TEST(matmul_rows_do_not_depend_on_each_other) {
    for (int format_id : {PLEACH_W_BF16, PLEACH_W_Q4_0, PLEACH_W_Q4_K, PLEACH_W_Q6_K}) {
        const int64_t cols = 768;
        const Weights w = random_weights(format_id, 40, cols);
        const auto packed = pack(w);
        const auto x = random_halves(size_t(cols), PLEACH_BF16);
        const auto alone = product(packed, w, x, 1, cols, PLEACH_BF16);
        for (int64_t rows : {2, 7, 8, 9, 16, 17, 33, 65}) {
            auto batch = random_rows(rows, random_int(0, cols), cols, PLEACH_BF16);
            const int64_t place = random_int(0, rows - 1);
            std::copy(x.begin(), x.end(), batch.begin() + place * cols);
            const auto got = product(packed, w, batch, rows, cols, PLEACH_BF16);
            CHECK(std::memcmp(got.data() + place * w.rows, alone.data(), alone.size() * sizeof(float)) == 0,
                  "%s: row %lld of %lld", format_name(format_id), (long long)place, (long long)rows);
        }
    }
}

TEST(matmul_writes_its_part_of_the_rows_in_their_type) {
    const Weights w = random_weights(PLEACH_W_Q4_1, 37, 96);
    const int64_t rows = 11, stride = 50;
    const auto x = random_halves(size_t(rows * 96), PLEACH_F16);
    const auto packed = pack(w);
    const auto want = product(packed, w, x, rows, 96, PLEACH_F16);
    Buffer<uint16_t> b_x(x), out = Buffer<uint16_t>::poisoned(size_t(rows * stride));
    CHECK_OK(pleach_matmul(packed, b_x, out + 5, rows, w.rows, 96, 96, stride, w.format, PLEACH_F16, PLEACH_F16));
    const auto got = out.host();
    for (int64_t i = 0; i < rows * stride; i++) {
        const int64_t n = i % stride - 5;
        const bool written = n >= 0 && n < w.rows;
        const uint16_t expected = written ? to_f16(want[size_t(i / stride * w.rows + n)]) : 0xffff;
        CHECK(got[size_t(i)] == expected, "at %lld", (long long)i);
    }
}

TEST(matmul_names_what_it_does_not_take) {
    const auto status = [](int64_t rows, int64_t outputs, int64_t inputs, int64_t stride, int format_id, int dtype, int out) {
        return pleach_matmul(nullptr, nullptr, nullptr, rows, outputs, inputs, stride, outputs, format_id, dtype, out);
    };
    CHECK(status(0, 5, 64, 64, PLEACH_W_Q4_0, PLEACH_BF16, PLEACH_F32) == PLEACH_OK, "no rows");
    CHECK(status(1, 5, 48, 48, PLEACH_W_Q4_0, PLEACH_BF16, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "half a block");
    CHECK(status(1, 5, 64, 64, PLEACH_W_Q4_K, PLEACH_BF16, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "half a block");
    CHECK(status(1, 5, 64, 68, PLEACH_W_Q4_0, PLEACH_BF16, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "unaligned rows");
    CHECK(status(1, 5, 64, 64, PLEACH_W_F16, PLEACH_BF16, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "two types");
    CHECK(status(1, 5, 64, 64, PLEACH_W_Q4_0, PLEACH_BF16, PLEACH_F16) == PLEACH_BAD_ARGUMENT, "output type");
    CHECK(launches.packed_bytes(5, 64, 9) == -1 && launches.packed_bytes(0, 64, PLEACH_W_Q4_0) == -1, "no such matrix");
    CHECK(launches.packed_bytes(5, 256, 8) == -1 && launches.packed_bytes(5, 256, -1) == -1, "no such format");
    CHECK(launches.packed_bytes(5, 0, PLEACH_W_BF16) == -1 && launches.packed_bytes(5, 288, PLEACH_W_Q6_K) == -1, "no such width");
}
