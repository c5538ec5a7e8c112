#include <algorithm>
#include <numeric>

#include "harness.h"

// ---- the reference: sorted lists in f64 ------------------------------------------------------------------

static void reference_philox(const uint32_t (&counter)[4], const uint32_t (&key)[2], uint32_t (&out)[4]) {
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};
    for (uint32_t round = 0; round < 10; round++) {
        const uint64_t a = uint64_t(0xd2511f53u) * c[0], b = uint64_t(0xcd9e8d57u) * c[2];
        const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ (key[0] + round * 0x9e3779b9u), uint32_t(b),
                                  uint32_t(a >> 32) ^ c[3] ^ (key[1] + round * 0xbb67ae85u), uint32_t(a)};
        std::copy(next, next + 4, c);
    }
    std::copy(c, c + 4, out);
}

static uint64_t keyed_bits(uint64_t seed, uint64_t position, uint32_t purpose) {
    uint32_t out[4];
    reference_philox({uint32_t(position), uint32_t(position >> 32), purpose, 0}, {uint32_t(seed), uint32_t(seed >> 32)}, out);
    return uint64_t(out[1]) << 32 | out[0];
}

/// Uniform in [0, 1).
static double uniform(uint64_t bits) { return double(bits >> 11) / 9007199254740992.0; }
static double uniform(uint64_t seed, uint64_t position, uint32_t purpose) { return uniform(keyed_bits(seed, position, purpose)); }

/// The next number of SplitMix64 from this state.
static uint64_t split_mix(uint64_t state) {
    state += 0x9e3779b97f4a7c15u;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    return state ^ (state >> 31);
}

/// The published vectors of Philox4x32-10.
TEST(verify_philox_vectors) {
    uint32_t out[4];
    reference_philox({0, 0, 0, 0}, {0, 0}, out);
    CHECK(out[0] == 0x6627e8d5u && out[1] == 0xe169c58du && out[2] == 0xbc57ac4cu && out[3] == 0x9b00dbd8u, "zeros");
    reference_philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, out);
    CHECK(out[0] == 0x408f276du && out[1] == 0x41c83b0eu && out[2] == 0xa20bc7c6u && out[3] == 0x6d5451fdu, "ones");
    reference_philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}, out);
    CHECK(out[0] == 0xd16cfe09u && out[1] == 0x94fdccebu && out[2] == 0x5001e420u && out[3] == 0x24126ea1u, "pi");
}

struct Case {
    int64_t vocab;
    std::vector<uint32_t> cu_rows, draft_tokens, counts, mask;
    std::vector<float> logits, draft_probs, bias;
    std::vector<PleachSampling> sampling;
    /// Some rows have no row in the tables.
    bool mixed = false;

    int64_t rows() const { return cu_rows.back(); }
    bool has_probs(int64_t row) const { return !draft_probs.empty() && !(mixed && row % 3 == 2); }
    bool has_mask(int64_t row) const { return !mask.empty() && !(mixed && row % 3 == 1); }
    bool has_counts(size_t s) const { return !counts.empty() && !(mixed && s % 2 == 0); }
    bool has_bias(size_t s) const { return !bias.empty() && !(mixed && s % 2 == 1); }
};

struct Results {
    std::vector<PleachRowResult> rows;
    std::vector<PleachVerdict> verdicts;
};

/// A table's rows in reverse: none is at its own place.
template <class T>
static Buffer<T> reversed(const std::vector<T> &table, size_t rows) {
    std::vector<T> other;
    const size_t width = rows ? table.size() / rows : 0;
    for (size_t r = rows; r-- > 0;) other.insert(other.end(), table.begin() + long(r * width), table.begin() + long((r + 1) * width));
    return Buffer<T>(other);
}

/// `padding` rows belong to no sequence.
static Results verify(const Case &c, int64_t padding = 0) {
    const size_t sequences = c.sampling.size(), count = size_t(c.rows());
    std::vector<PleachSampling> sampling = c.sampling;
    for (size_t s = 0; s < sequences; s++) {
        sampling[s].token_counts = c.has_counts(s) ? uint32_t(sequences - 1 - s) : PLEACH_NONE;
        sampling[s].bias = c.has_bias(s) ? uint32_t(sequences - 1 - s) : PLEACH_NONE;
    }
    std::vector<PleachVerifyRow> rows;
    for (uint32_t r = 0; r < count; r++) {
        const uint32_t place = uint32_t(count) - 1 - r;
        rows.push_back({place, c.draft_tokens[r], c.has_probs(r) ? place : PLEACH_NONE, c.has_mask(r) ? place : PLEACH_NONE});
    }
    const auto logits = reversed(c.logits, count), draft_probs = reversed(c.draft_probs, count), bias = reversed(c.bias, sequences);
    const auto counts = reversed(c.counts, sequences), mask = reversed(c.mask, count);
    Buffer<PleachVerifyRow> own(rows);
    Buffer<uint32_t> cu(c.cu_rows), finished(std::vector<uint32_t>(sequences, 0));
    Buffer<PleachSampling> draws(sampling);
    auto results = Buffer<PleachRowResult>::poisoned(count);
    auto verdicts = Buffer<PleachVerdict>::poisoned(sequences);
    const PleachVerify io{logits, own, cu, draws, draft_probs, counts, bias, mask, finished, results, verdicts, int64_t(sequences), c.vocab};
    CHECK_OK(launches.verify(io, c.rows() + padding));
    for (uint32_t f : finished.host()) CHECK(f == 0, "the counter is not back at zero");
    return {results.host(), verdicts.host()};
}

/// What the row decides, and how far its closest comparison was from going the other way.
struct Expected {
    uint32_t status = PLEACH_ROW_OK, accepted = 0, token = 0;
    double log_prob = 0, margin = 1;
};

static Expected expect(const Case &c, size_t s, int64_t row) {
    Expected e;
    const PleachSampling &p = c.sampling[s];
    const int64_t n = c.vocab, first = c.cu_rows[s];
    const float *raw = &c.logits[size_t(row * n)];
    std::vector<float> logits(raw, raw + n);
    for (int64_t id = 0; id < n; id++) {
        float &x = logits[size_t(id)];
        if (c.has_counts(s)) {
            const uint32_t prompt = c.counts[(s * size_t(n) + size_t(id)) * 2];
            uint32_t generated = c.counts[(s * size_t(n) + size_t(id)) * 2 + 1];
            for (int64_t r = first; r < row; r++) generated += c.draft_tokens[size_t(r)] == id;
            if (prompt || generated) x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
            if (generated) x -= p.presence_penalty + p.frequency_penalty * float(generated);
        }
        if (c.has_bias(s)) x += c.bias[s * size_t(n) + size_t(id)];
        if (std::isnan(raw[id]) || raw[id] == INFINITY || std::isnan(x) || x == INFINITY) {
            e.status = PLEACH_ROW_NOT_FINITE;
            e.token = uint32_t(id);
            return e;
        }
        if (c.has_mask(row) && !(c.mask[size_t(row * ((n + 31) / 32) + id / 32)] >> (id % 32) & 1)) x = -INFINITY;
    }
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
    const float top = logits[size_t(order[0])];
    if (top == -INFINITY) {
        e.status = PLEACH_ROW_NOTHING_LEFT;
        return e;
    }
    std::vector<double> probs(static_cast<size_t>(n), 0.0);
    if (p.temperature == 0) {
        probs[size_t(order[0])] = 1;
    } else {
        const auto weight = [&](int64_t id) { return std::exp((double(logits[size_t(id)]) - top) / p.temperature); };
        while (weight(order.back()) < std::ldexp(1.0, -44)) order.pop_back();
        if (p.top_k > 0 && order.size() > p.top_k) order.resize(p.top_k);
        double all = 0, cumulative = 0;
        for (int64_t id : order) all += weight(id);
        if (p.top_p < 1)
            for (size_t i = 0; i < order.size(); i++) {
                cumulative += weight(order[i]);
                e.margin = std::min(e.margin, std::fabs(cumulative / all - p.top_p));
                if (cumulative >= p.top_p * all) order.resize(i + 1);
            }
        all = 0;
        for (int64_t id : order) {
            if (p.min_p > 0) e.margin = std::min(e.margin, std::fabs(weight(id) - p.min_p));
            if (weight(id) >= p.min_p) all += probs[size_t(id)] = weight(id);
        }
        for (double &prob : probs) prob /= all;
    }
    const bool has_draft = row + 1 < c.cu_rows[s + 1];
    const uint64_t position = p.position + uint64_t(row - first);
    const auto draft_prob = [&](int64_t id) {
        return !c.has_probs(row) ? double(id == c.draft_tokens[size_t(row)]) : double(c.draft_probs[size_t(row * n + id)]);
    };
    if (p.coupled && p.temperature != 0) {
        const uint64_t key = keyed_bits(p.seed, position, PLEACH_PURPOSE_SAMPLE);
        double best = INFINITY, second = INFINITY;
        for (int64_t id = 0; id < n; id++) {
            if (probs[size_t(id)] == 0) continue;
            const double time = -std::log1p(-uniform(split_mix(key ^ uint64_t(id)))) / probs[size_t(id)];
            second = std::min(second, std::max(time, best));
            if (time < best) e.token = uint32_t(id);
            best = std::min(best, time);
        }
        e.margin = std::min(e.margin, second / best - 1);
        e.accepted = has_draft && c.draft_tokens[size_t(row)] == e.token;
    } else if (has_draft) {
        const uint32_t draft = c.draft_tokens[size_t(row)];
        const double left = uniform(p.seed, position, PLEACH_PURPOSE_ACCEPT) * draft_prob(draft);
        e.margin = std::min(e.margin, std::fabs(left - probs[draft]));
        e.accepted = left < probs[draft];
        e.token = draft;
    }
    if (!e.accepted && !(p.coupled && p.temperature != 0)) {
        double sum = 0;
        if (has_draft)
            for (int64_t id = 0; id < n; id++) sum += std::max(0.0, probs[size_t(id)] - draft_prob(id));
        const bool residual = sum > 1e-9;
        const double target = uniform(p.seed, position, PLEACH_PURPOSE_SAMPLE) * (residual ? sum : 1.0);
        double cumulative = 0;
        bool found = false;
        for (int64_t id = 0; id < n; id++) {
            const double by = residual ? std::max(0.0, probs[size_t(id)] - draft_prob(id)) : probs[size_t(id)];
            cumulative += by;
            if (by > 0 && p.temperature != 0) e.margin = std::min(e.margin, std::fabs(cumulative - target));
            if (!found && cumulative > target) {
                e.token = uint32_t(id);
                found = true;
            }
        }
    }
    double sum = 0;
    for (int64_t id = 0; id < n; id++) sum += std::exp(double(raw[id]));
    e.log_prob = raw[e.token] - std::log(sum);
    return e;
}

static Case random_case(int64_t vocab, const std::vector<int64_t> &drafts, int round) {
    Case c{vocab, {0}, {}, {}, {}, {}, {}, {}, {}, round % 6 >= 3};
    for (int64_t draft : drafts) {  // -1: a sequence without rows
        c.cu_rows.push_back(c.cu_rows.back() + uint32_t(draft + 1));
        PleachSampling p{};
        p.temperature = round % 4 == 3 ? 0.0f : 0.3f + 1.2f * std::fabs(random_value());
        p.top_k = round % 3 == 1 ? uint64_t(random_int(1, vocab + 3)) : 0;
        p.top_p = round % 2 == 1 ? 0.05f + 0.9f * std::fabs(random_value()) : 1.0f;
        p.min_p = round % 5 == 4 ? 0.3f * std::fabs(random_value()) : 0.0f;
        p.repetition_penalty = 1.3f;
        p.presence_penalty = 0.4f;
        p.frequency_penalty = 0.2f;
        p.coupled = random_bits() % 3 == 0;
        p.seed = random_bits();
        p.position = uint64_t(random_int(0, 5000)) + (round == 2 ? uint64_t(1) << 33 : 0);
        c.sampling.push_back(p);
    }
    const size_t cells = size_t(c.rows() * vocab);
    c.logits = random_values(cells, 4.0f);
    // Equal logits, whose order is that of their ids.
    if (round % 2) for (float &x : c.logits) x = std::round(x);
    for (int64_t r = 0; r < c.rows(); r++) c.draft_tokens.push_back(uint32_t(random_int(0, vocab - 1)));
    if (round % 3) {
        c.draft_probs.resize(cells);
        for (int64_t r = 0; r < c.rows(); r++) {
            double sum = 0;
            float *probs = &c.draft_probs[size_t(r * vocab)];
            for (int64_t id = 0; id < vocab; id++) sum += probs[id] = std::exp(c.logits[size_t(r * vocab + id)] + 2 * random_value());
            for (int64_t id = 0; id < vocab; id++) probs[id] = float(probs[id] / sum);
            // As a draft would: likely tokens.
            double target = random_bits() % 1000 / 1000.0;
            for (int64_t id = 0; id < vocab; id++)
                if ((target -= probs[id]) < 0) { c.draft_tokens[size_t(r)] = uint32_t(id); break; }
        }
    }
    if (round % 4 == 2) {
        c.counts.resize(drafts.size() * size_t(vocab) * 2);
        for (uint32_t &count : c.counts) count = random_bits() % 4 ? 0 : uint32_t(random_int(1, 3));
    }
    if (round % 4 == 1) c.bias = random_values(drafts.size() * size_t(vocab));
    if (round % 3 == 2) {
        c.mask.resize(size_t(c.rows() * ((vocab + 31) / 32)));
        for (uint32_t &word : c.mask) word = uint32_t(random_bits());
        for (int64_t r = 0; r < c.rows(); r++) c.mask[size_t(r * ((vocab + 31) / 32))] |= 1;
    }
    return c;
}

TEST(verify_agrees_with_sorted_lists) {
    int compared = 0, close = 0;
    for (int round = 0; round < 24; round++) {
        const int64_t vocabs[] = {1, 33, 500, 513, 3000};
        const Case c = random_case(vocabs[round % 5], {random_int(0, 4), -1, 0, random_int(1, 3)}, round);
        const Results got = verify(c);
        for (size_t s = 0; s < c.sampling.size(); s++) {
            uint32_t accepted = 0;
            bool ended = c.cu_rows[s] == c.cu_rows[s + 1];
            for (int64_t row = c.cu_rows[s]; row < c.cu_rows[s + 1]; row++) {
                const PleachRowResult &result = got.rows[size_t(row)];
                const Expected want = expect(c, s, row);
                compared++;
                if (want.margin < 1e-5) {
                    close++;
                } else {
                    const auto where = format("round %d, vocabulary %lld, sequence %zu, row %lld: token %u, want %u, accepted %u, want %u",
                                              round, (long long)c.vocab, s, (long long)row, result.token, want.token, result.accepted, want.accepted);
                    CHECK(result.status == want.status && result.token == want.token && result.accepted == want.accepted, "%s", where.c_str());
                    check_close(result.log_prob, want.log_prob, 1e-4, where);
                }
                if (ended) continue;
                ended = !result.accepted;
                accepted += result.accepted;
                if (!ended) continue;
                const PleachVerdict &v = got.verdicts[s];
                CHECK(v.status == PLEACH_ROW_OK && v.accepted == accepted && v.last == result.token, "verdict of sequence %zu", s);
            }
            if (c.cu_rows[s] == c.cu_rows[s + 1]) CHECK(got.verdicts[s].status == 0xffffffffu, "a sequence without rows");
        }
    }
    CHECK(close * 5 < compared, "%d of %d too close to call", close, compared);
}

TEST(verify_rows_do_not_depend_on_each_other) {
    const Case c = random_case(700, {3, 0, 2, 5}, 7);
    const Results together = verify(c);
    for (size_t s = 0; s < c.sampling.size(); s++) {
        Case alone{c.vocab, {0, c.cu_rows[s + 1] - c.cu_rows[s]}, {}, {}, {}, {}, {}, {}, {c.sampling[s]}, false};
        const long first = c.cu_rows[s], end = c.cu_rows[s + 1];
        alone.draft_tokens.assign(c.draft_tokens.begin() + first, c.draft_tokens.begin() + end);
        alone.logits.assign(c.logits.begin() + first * c.vocab, c.logits.begin() + end * c.vocab);
        alone.draft_probs.assign(c.draft_probs.begin() + first * c.vocab, c.draft_probs.begin() + end * c.vocab);
        const Results got = verify(alone);
        CHECK(std::memcmp(got.rows.data(), together.rows.data() + first, got.rows.size() * sizeof(PleachRowResult)) == 0, "rows of %zu", s);
        CHECK(std::memcmp(&got.verdicts[0], &together.verdicts[s], sizeof(PleachVerdict)) == 0, "verdict of %zu", s);
    }
}

/// An error counts where a sequence gets to its row, and for that sequence alone.
TEST(verify_reports_bad_logits) {
    Case c = random_case(40, {2, 2, 2, 0}, 0);
    c.draft_probs.clear();
    for (PleachSampling &p : c.sampling) p.temperature = 0;
    for (int64_t r = 0; r < c.rows(); r++) {
        c.draft_tokens[size_t(r)] = 7;
        c.logits[size_t(r * 40 + 7)] = 50;  // every draft token stands
    }
    c.logits[size_t(1 * 40 + 31)] = NAN;                                       // sequence 0, row 1
    c.draft_tokens[3] = 8;                                                     // sequence 1 rejects at once
    c.logits[size_t(4 * 40 + 2)] = INFINITY;                                   // sequence 1, row 1
    for (int64_t id = 0; id < 40; id++) c.logits[size_t(9 * 40 + id)] = -INFINITY;  // sequence 3
    const Results got = verify(c);
    const auto is = [&](size_t s, uint32_t accepted, uint32_t last, uint32_t status) {
        const PleachVerdict &v = got.verdicts[s];
        CHECK(v.accepted == accepted && v.status == status && (v.last == last || status == PLEACH_ROW_NOTHING_LEFT),
              "sequence %zu: accepted %u, last %u, status %u", s, v.accepted, v.last, v.status);
    };
    is(0, 1, 31, PLEACH_ROW_NOT_FINITE);
    is(1, 0, 7, PLEACH_ROW_OK);
    is(2, 2, 7, PLEACH_ROW_OK);
    is(3, 0, 0, PLEACH_ROW_NOTHING_LEFT);
}

/// Draft tokens drawn from the draft, verified: distributed as the target.
TEST(verify_keeps_the_targets_distribution) {
    const int64_t sequences = 200, n = 5;
    const auto logits = random_values(size_t(n), 2.0f), draft_logits = random_values(size_t(n), 2.0f);
    std::vector<double> target(static_cast<size_t>(n)), draft(static_cast<size_t>(n));
    const auto softmax = [&](const std::vector<float> &x, std::vector<double> &probs) {
        double sum = 0;
        for (size_t i = 0; i < x.size(); i++) sum += probs[i] = std::exp(double(x[i]));
        for (double &p : probs) p /= sum;
    };
    softmax(logits, target);
    softmax(draft_logits, draft);
    Case c{n, {0}, {}, {}, {}, {}, {}, {}, {}, false};
    for (int64_t s = 0; s < sequences; s++) {
        c.cu_rows.push_back(c.cu_rows.back() + 2);
        PleachSampling p{1, 1, 0, 1, 0, 0, 0, random_bits(), 3, 0, 0, 0};
        c.sampling.push_back(p);
        double left = double(random_bits() >> 11) / 9007199254740992.0;
        uint32_t token = 0;
        while (token + 1 < n && (left -= draft[token]) >= 0) token++;
        for (uint32_t row = 0; row < 2; row++) {
            c.draft_tokens.push_back(token);
            c.logits.insert(c.logits.end(), logits.begin(), logits.end());
            for (double p_draft : draft) c.draft_probs.push_back(float(p_draft));
        }
    }
    const Results got = verify(c);
    std::vector<double> counts(static_cast<size_t>(n));
    for (int64_t s = 0; s < sequences; s++) {
        const PleachVerdict &v = got.verdicts[size_t(s)];
        counts[v.accepted ? c.draft_tokens[size_t(2 * s)] : v.last] += 1;
    }
    for (size_t i = 0; i < target.size(); i++) {
        const double mean = double(sequences) * target[i], deviation = std::sqrt(mean * (1 - target[i]));
        check_close(counts[i], mean, 5.5 * deviation + 1, format("token %zu", i));
    }
}

/// Sequences of one row that draw from `logits`.
static Case same_rows(const std::vector<float> &logits, const std::vector<PleachSampling> &sampling) {
    Case c{int64_t(logits.size()), {0}, {}, {}, {}, {}, {}, {}, sampling, false};
    for (size_t s = 0; s < sampling.size(); s++) {
        c.cu_rows.push_back(uint32_t(s + 1));
        c.draft_tokens.push_back(0);
        c.logits.insert(c.logits.end(), logits.begin(), logits.end());
    }
    return c;
}

/// Which tokens come out of so many draws.
static std::vector<int> drawn(const std::vector<float> &logits, PleachSampling p, size_t draws) {
    std::vector<PleachSampling> sampling(draws, p);
    for (size_t s = 0; s < sampling.size(); s++) sampling[s].seed = random_bits();
    std::vector<int> counts(logits.size());
    for (const PleachVerdict &v : verify(same_rows(logits, sampling)).verdicts) counts.at(v.last)++;
    return counts;
}

/// Logits that differ in their last bits alone: the cut falls between them, not near them.
TEST(verify_cuts_between_neighbours) {
    std::vector<float> logits;
    float x = 1.0f;
    for (int i = 0; i < 12; i++, x = std::nextafterf(x, 2.0f)) logits.push_back(x);  // the last is the largest
    PleachSampling p{1, 1, 0, 1, 0, 0, 5, 0, 3, 0, 0, 0};
    for (int flip = 0; flip < 2; flip++) {
        const auto counts = drawn(logits, p, 160);
        for (size_t i = 0; i < 12; i++) {
            const size_t rank = flip ? i : 11 - i;
            CHECK((counts[i] > 0) == (rank < 5), "token %zu was drawn %d times", i, counts[i]);
        }
        std::reverse(logits.begin(), logits.end());
    }
    // Equal logits: the lowest ids stay.
    const auto equal = drawn(std::vector<float>(12, 0.5f), p, 160);
    for (size_t i = 0; i < 12; i++) CHECK((equal[i] > 0) == (i < 5), "token %zu was drawn %d times", i, equal[i]);
    // Twelve equal weights, of which top-p takes as many as reach it.
    p.top_k = 0;
    for (int wanted : {1, 5, 12}) {
        p.top_p = (float(wanted) - 0.5f) / 12;
        const auto half = drawn(std::vector<float>(12, 0.5f), p, 160);
        for (size_t i = 0; i < 12; i++) CHECK((half[i] > 0) == (int(i) < wanted), "top-p %d: token %zu", wanted, i);
    }
}

/// The bounds of min-p and top-p themselves.
TEST(verify_keeps_the_likeliest) {
    const std::vector<float> logits = {1, 3, 2, 3, -1};
    for (float min_p : {1.0f, 0.999f}) {
        const auto counts = drawn(logits, {1, 1, min_p, 1, 0, 0, 0, 0, 3, 0, 0, 0}, 40);
        CHECK(counts[1] > 0 && counts[3] > 0 && counts[1] + counts[3] == 40, "min-p %g", min_p);
    }
    for (float top_p : {0.0f, 1e-20f}) CHECK(drawn(logits, {1, top_p, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0}, 40)[1] == 40, "top-p %g", top_p);
    CHECK(drawn(logits, {0, 1, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0}, 40)[1] == 40, "greedy takes the lowest id");
    const auto cold = drawn(logits, {1e-30f, 1, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0}, 40);
    CHECK(cold[1] > 0 && cold[3] > 0 && cold[1] + cold[3] == 40, "a temperature whose inverse is no number");
}

/// Log-probabilities are of the raw logits, wherever those lie.
TEST(verify_log_probs_of_shifted_logits) {
    for (float shift : {-400.0f, 0.0f, 400.0f}) {
        std::vector<float> logits;
        for (int i = 0; i < 700; i++) logits.push_back(shift + 3 * random_value());
        logits[650] = shift + 9;
        logits[3] = -INFINITY;
        double sum = 0;
        for (float x : logits) sum += std::exp(double(x) - shift);
        const Results got = verify(same_rows(logits, {{0, 1, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0}}));
        CHECK(got.rows[0].token == 650, "token %u", got.rows[0].token);
        check_close(got.rows[0].log_sum_exp, shift + std::log(sum), 1e-4, format("log-sum-exp at %g", shift));
        check_close(got.rows[0].log_prob, 9 - std::log(sum), 1e-4, format("log-probability at %g", shift));
    }
}

/// A bias of infinity is as bad as a logit of it; one of minus infinity takes the token out.
TEST(verify_infinite_bias) {
    for (float bias : {INFINITY, -INFINITY, NAN}) {
        Case c = same_rows({1, 5, 2}, {{0, 1, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0}});
        c.bias = {0, bias, 0};
        const Results got = verify(c);
        const uint32_t status = bias == -INFINITY ? PLEACH_ROW_OK : PLEACH_ROW_NOT_FINITE;
        CHECK(got.verdicts[0].status == status && got.verdicts[0].last == (bias == -INFINITY ? 2u : 1u), "bias %g: status %u, token %u",
              bias, got.verdicts[0].status, got.verdicts[0].last);
    }
}

/// A coupled draft token stands if it is the target's own draw, whatever it was drawn from.
TEST(verify_coupled_draws_do_not_depend_on_drafts) {
    const int64_t vocab = 40;
    int stood = 0;
    for (int round = 0; round < 20; round++) {
        const auto logits = random_values(size_t(vocab), 3.0f);
        PleachSampling p{0.8f, 1, 0, 1, 0, 0, 0, random_bits(), 77, 1, 0, 0};
        const uint32_t own = verify(same_rows(logits, {p})).verdicts[0].last;
        for (uint32_t draft : {own, (own + 1) % uint32_t(vocab)}) {
            Case c = same_rows(logits, {p, p});
            c.sampling.pop_back();
            c.cu_rows = {0, 2};
            c.draft_tokens[0] = draft;
            c.draft_probs.assign(size_t(2 * vocab), 1.0f / float(vocab));
            const Results got = verify(c);
            CHECK(got.verdicts[0].accepted == (draft == own), "round %d", round);
            CHECK(got.rows[0].token == own, "round %d: token %u, not %u", round, got.rows[0].token, own);
            stood += int(got.verdicts[0].accepted);
        }
    }
    CHECK(stood == 20, "%d", stood);
}

TEST(verify_scatter) {
    const size_t size = 3000, count = 700;
    std::vector<uint32_t> want(size, 0), entries;
    for (size_t i = 0; i < count; i++) {
        const uint32_t place = uint32_t(i * 4 + size_t(random_int(0, 3))), value = uint32_t(random_bits());
        entries.insert(entries.end(), {place, value});
        want[place] = value;
    }
    Buffer<uint32_t> table(std::vector<uint32_t>(size, 0)), pairs(entries);
    CHECK_OK(pleach_scatter(table, pairs, int64_t(count), int64_t(size)));
    CHECK(table.host() == want, "values");
    CHECK_OK(pleach_scatter(table, pairs, 0, int64_t(size)));
    CHECK(pleach_scatter(table, pairs, -1, int64_t(size)) == PLEACH_BAD_ARGUMENT, "a negative count");
    // What lies outside is left out.
    Buffer<uint32_t> outside(std::vector<uint32_t>{2, 5, 3, 6}), three(std::vector<uint32_t>(3, 0));
    CHECK_OK(pleach_scatter(three, outside, 2, 3));
    CHECK(three.host() == (std::vector<uint32_t>{0, 0, 5}), "bounds");
}

/// Draws are keyed by seed, position and purpose, all 64 bits of the first two.
TEST(verify_draws_are_keyed) {
    std::vector<PleachSampling> sampling;
    std::vector<double> want;
    for (int i = 0; i < 200; i++) {
        PleachSampling p{1, 1, 0, 1, 0, 0, 0, random_bits(), random_bits(), 0, 0, 0};
        if (i % 4 == 1) p.seed &= 0xffffffffu;
        if (i % 4 == 2) p.position &= 0xffffffffu;
        sampling.push_back(p);
        want.push_back(uniform(p.seed, p.position, PLEACH_PURPOSE_SAMPLE));
    }
    const int64_t n = 1000;
    const Results got = verify(same_rows(std::vector<float>(size_t(n), 0.0f), sampling));
    for (size_t s = 0; s < sampling.size(); s++)
        check_close(got.verdicts[s].last + 0.5, want[s] * double(n), 0.5 + 1e-3, format("sequence %zu", s));
}

/// The largest sum that there is: as many tokens as a vocabulary may have, all equally likely.
TEST(verify_draws_from_the_largest_vocabulary) {
    const PleachSampling p{1, 1, 0, 1, 0, 0, 0, random_bits(), random_bits(), 0, 0, 0};
    const Results got = verify(same_rows(std::vector<float>(1 << 19, 0.5f), {p}));
    const uint64_t want = keyed_bits(p.seed, p.position, PLEACH_PURPOSE_SAMPLE) >> 45;
    CHECK(got.verdicts[0].last == want, "token %u, not %llu", got.verdicts[0].last, (unsigned long long)want);
}

TEST(verify_takes_no_rows_and_rows_of_nobody) {
    Case c = same_rows({1, 2}, {{0, 1, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0}});
    PleachVerify io{};
    io.vocab_size = 2;
    CHECK(launches.verify(io, 3) == PLEACH_OK && (io.sequences = 1, launches.verify(io, 0)) == PLEACH_OK, "nothing");
    CHECK(launches.verify(io, -1) == PLEACH_BAD_ARGUMENT, "rows");
    CHECK((io.sequences = -1, launches.verify(io, 1)) == PLEACH_BAD_ARGUMENT, "sequences");
    io.sequences = 1;
    for (int64_t vocab : {0, (1 << 19) + 1}) {
        io.vocab_size = vocab;
        CHECK(launches.verify(io, 1) == PLEACH_BAD_ARGUMENT, "vocabulary of %lld", (long long)vocab);
    }
    // A captured batch may have more rows than its sequences.
    CHECK(verify(c, 2).verdicts[0].last == 1, "padding");
}
