#include "harness.h"

static const int DTYPES[] = {PLEACH_BF16, PLEACH_F16};

/// Ranks of which the kernel keeps sums at a time.
static const int AT_A_TIME = 128;

/// Factors of one matrix, or of none where the rank is 0: A [rank, inputs], B [rank, outputs].
struct Factors {
    int rank;
    float scale;
    std::vector<float> a, b;
    Buffer<float> on_device_a, on_device_b;

    Factors(int rank, int64_t inputs, int64_t outputs)
        : rank(rank), scale(1 + random_value() / 2), a(random_values(size_t(rank * inputs))),
          b(random_values(size_t(rank * outputs))), on_device_a(a), on_device_b(b) {}

    PleachFactors told() const {
        if (rank == 0) return {nullptr, nullptr, 0, NAN};
        return {on_device_a.get(), on_device_b.get(), rank, scale};
    }
};

/// What an adapter adds to the matrices of a model, of which some stand before those of the test.
struct Adapter {
    std::vector<Factors> factors;
    Buffer<PleachFactors> table;

    static Buffer<PleachFactors> tell(const std::vector<Factors> &factors, int before) {
        std::vector<PleachFactors> table(size_t(before), {nullptr, nullptr, 1 << 20, NAN});
        for (const Factors &own : factors) table.push_back(own.told());
        return Buffer<PleachFactors>(table);
    }
    Adapter(std::vector<Factors> own, int before) : factors(std::move(own)), table(tell(factors, before)) {}
};

struct Case {
    int dtype;
    int64_t inputs;
    std::vector<int64_t> outputs;
    int matrix;

    int64_t width() const {
        int64_t width = 0;
        for (int64_t own : outputs) width += own;
        return width;
    }
    Adapter adapter(const std::vector<int> &ranks) const {
        std::vector<Factors> factors;
        for (size_t m = 0; m < outputs.size(); m++) factors.emplace_back(ranks[m], inputs, outputs[m]);
        return Adapter(std::move(factors), matrix);
    }
    /// Adds to the rows of `out` what their adapters, or none, add; `most` bounds the adapters' ranks.
    std::vector<uint16_t> add(const std::vector<uint16_t> &x, const std::vector<uint16_t> &out,
                              const std::vector<const Adapter *> &adapters, int64_t most) const {
        std::vector<const PleachFactors *> tables;
        for (const Adapter *own : adapters) tables.push_back(own ? own->table.get() : nullptr);
        const int64_t rows = int64_t(adapters.size()), kept = most < AT_A_TIME ? most : AT_A_TIME;
        Buffer<const PleachFactors *> b_tables(tables);
        Buffer<uint16_t> b_x(x), b_out(out);
        auto sums = Buffer<float>::poisoned(size_t(rows * kept) * outputs.size());
        PleachLowRank low_rank{b_tables, b_x, sums, b_out, rows, inputs, {}, matrix, int32_t(outputs.size()), 0, 0};
        std::copy(outputs.begin(), outputs.end(), low_rank.outputs);
        CHECK_OK(launches.add_low_rank(low_rank, most, dtype));
        return b_out.host();
    }
};

/// A row of values.
static std::vector<uint16_t> row_of(const std::vector<uint16_t> &rows, size_t row, size_t width) {
    return {rows.begin() + long(row * width), rows.begin() + long((row + 1) * width)};
}

static void agrees(const Case &c, const std::vector<int> &ranks) {
    const size_t matrices = c.outputs.size(), width = size_t(c.width()), inputs = size_t(c.inputs);
    // Two adapters of all matrices, and one that adds to one of them alone.
    std::vector<int> more(ranks.rbegin(), ranks.rend()), some(matrices, 0);
    some[size_t(random_int(0, int64_t(matrices) - 1))] = ranks[0];
    more.resize(matrices, 5);
    std::vector<int> first(ranks);
    first.resize(matrices, ranks.back());
    const Adapter adapters[] = {c.adapter(first), c.adapter(more), c.adapter(some)};
    int most = 0;
    for (const Adapter &adapter : adapters)
        for (const Factors &factors : adapter.factors) most = std::max(most, factors.rank);
    most += int(random_int(0, 3));

    const size_t rows = size_t(random_int(4, 9));
    std::vector<const Adapter *> of_rows;
    for (size_t row = 0; row < rows; row++) {
        const int64_t which = row < 4 ? int64_t(row) : random_int(0, 3);
        of_rows.push_back(which == 3 ? nullptr : &adapters[which]);
    }
    const auto x = random_halves(rows * inputs, c.dtype), out = random_halves(rows * width, c.dtype, 4.0f);
    const auto got = c.add(x, out, of_rows, most);
    for (size_t row = 0; row < rows; row++) {
        size_t column = 0;
        for (size_t m = 0; m < matrices; m++) {
            const size_t outputs = size_t(c.outputs[m]);
            const Factors *own = of_rows[row] ? &of_rows[row]->factors[m] : nullptr;
            const size_t rank = own ? size_t(own->rank) : 0;
            std::vector<double> sums, sizes;
            for (size_t r = 0; r < rank; r++) {
                double sum = 0, size = 0;
                for (size_t i = 0; i < inputs; i++) {
                    const double term = double(decode(x[row * inputs + i], c.dtype)) * own->a[r * inputs + i];
                    sum += term, size += std::fabs(term);
                }
                sums.push_back(sum * own->scale), sizes.push_back(size * own->scale);
            }
            for (size_t j = 0; j < outputs; j++, column++) {
                const size_t at = row * width + column;
                if (rank == 0) {
                    CHECK(got[at] == out[at], "row %zu, column %zu is not to be changed", row, column);
                    continue;
                }
                // Rounded behind every AT_A_TIME ranks.
                double want = decode(out[at], c.dtype), tolerance = 0;
                for (size_t r = 0; r < rank; r++) {
                    want += sums[r] * own->b[r * outputs + j];
                    tolerance += 1e-6 * sizes[r] * std::fabs(own->b[r * outputs + j]);
                    if (r + 1 == rank || (r + 1) % AT_A_TIME == 0)
                        tolerance += 1.01 * rounding(c.dtype) * std::fabs(want) + 1e-6;
                }
                check_close(decode(got[at], c.dtype), want, tolerance,
                            format("rank %zu, %zu inputs, row %zu, column %zu", rank, inputs, row, column));
            }
        }
    }
    // A row alone has the same bits, whatever ranks the others' adapters have.
    const size_t row = size_t(random_int(0, int64_t(rows) - 1));
    int own = 1;
    if (of_rows[row])
        for (const Factors &factors : of_rows[row]->factors) own = std::max(own, factors.rank);
    const auto alone = c.add(row_of(x, row, inputs), row_of(out, row, width), {of_rows[row]}, own);
    CHECK(alone == row_of(got, row, width), "row %zu alone", row);
}

TEST(low_rank_agrees) {
    for (int dtype : DTYPES) {
        for (int rank : {1, 3, 8, 16, 20, 64}) {
            const int64_t inputs = 32 * random_int(1, 20);
            agrees({dtype, inputs, {random_int(1, 300)}, int(random_int(0, 9))}, {rank});
            agrees({dtype, 32, {random_int(1, 70), 256, random_int(1, 70)}, 7}, {rank, int(random_int(1, 30)), 2});
        }
        agrees({dtype, 576, {random_int(1, 300), 33}, 0}, {20, 7});
    }
    // More ranks than sums are kept of, and exactly as many.
    agrees({PLEACH_BF16, 64, {40, 17}, 3}, {300, 129});
    agrees({PLEACH_F16, 32, {19}, 0}, {128});
    agrees({PLEACH_BF16, 4, {1}, 0}, {257});
}

/// NaN stays in its row, and in the matrices that the row's adapter adds to.
TEST(low_rank_keeps_nan) {
    for (int dtype : DTYPES) {
        const Case c{dtype, 96, {50, 31}, 2};
        const Adapter adapter = c.adapter({9, 0}), both = c.adapter({2, 3});
        auto x = random_halves(3 * 96, dtype);
        x[96 + size_t(random_int(0, 95))] = encode(NAN, dtype);
        for (const Adapter *own : {&adapter, &both}) {
            const auto got = c.add(x, random_halves(3 * 81, dtype), {own, own, own}, 9);
            for (size_t i = 0; i < got.size(); i++) {
                const bool expected = i / 81 == 1 && (own == &both || i % 81 < 50);
                CHECK(std::isnan(decode(got[i], dtype)) == expected, "value %zu", i);
            }
        }
    }
}

/// More rows than a grid has.
TEST(low_rank_of_many_rows) {
    const Case c{PLEACH_F16, 4, {2}, 0};
    const Adapter adapter = c.adapter({1});
    const size_t rows = 4099;
    const auto x = random_halves(rows * 4, PLEACH_F16), out = random_halves(rows * 2, PLEACH_F16);
    std::vector<const Adapter *> of_rows(rows, nullptr);
    of_rows[2] = of_rows[rows - 1] = &adapter;
    const auto got = c.add(x, out, of_rows, 1);
    for (size_t row = 0; row < rows; row++) {
        auto want = row_of(out, row, 2);
        if (of_rows[row]) want = c.add(row_of(x, row, 4), want, {&adapter}, 1);
        CHECK(row_of(got, row, 2) == want, "row %zu", row);
    }
}

TEST(low_rank_names_what_it_does_not_take) {
    const auto add = [](int64_t rows, int64_t inputs, std::vector<int64_t> outputs, int matrices, int64_t ranks, int dtype) {
        PleachLowRank low_rank{nullptr, nullptr, nullptr, nullptr, rows, inputs, {}, 0, matrices, 0, 0};
        std::copy(outputs.begin(), outputs.end(), low_rank.outputs);
        return launches.add_low_rank(low_rank, ranks, dtype);
    };
    CHECK(add(0, 32, {5}, 1, 8, PLEACH_BF16) == PLEACH_OK, "no rows");
    CHECK(add(3, 32, {5}, 1, 0, PLEACH_BF16) == PLEACH_OK, "no ranks");
    CHECK(add(-1, 32, {5}, 1, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "rows");
    CHECK(add(1, 0, {5}, 1, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "no inputs");
    CHECK(add(1, 30, {5}, 1, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "rows that are not aligned");
    CHECK(add(1, 32, {5}, 2, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "a matrix without outputs");
    CHECK(add(1, 32, {5, 5}, 1, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "outputs without a matrix");
    CHECK(add(1, 32, {5}, 0, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "no matrix");
    CHECK(add(1, 32, {5}, 4, 8, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "too many matrices");
    CHECK(add(1, 32, {5}, 1, -1, PLEACH_BF16) == PLEACH_BAD_ARGUMENT, "ranks");
    CHECK(add(1, 32, {5}, 1, 8, PLEACH_F32) == PLEACH_BAD_ARGUMENT, "dtype");
}
