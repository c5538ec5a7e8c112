// What the kernel tests share. They know of no driver: the same library runs over the emulator and on a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "launches.h"

struct Test {
    const char *name;
    void (*run)();
};
std::vector<Test> &tests();
struct Register {
    Register(const char *name, void (*run)()) { tests().push_back({name, run}); }
};
#define TEST(name)                                       \
    static void name();                                  \
    static const Register register_##name(#name, &name); \
    static void name()

[[noreturn]] void test_failed(const char *file, int line, const std::string &what);
#define CHECK(condition, ...) \
    do { \
        if (!(condition)) test_failed(__FILE__, __LINE__, #condition ": " + format(__VA_ARGS__)); \
    } while (0)
#define CHECK_OK(call) CHECK((call) == PLEACH_OK, "status")

__attribute__((format(printf, 1, 2))) std::string format(const char *pattern, ...);

// ---- fresh random inputs --------------------------------------------------------------------------------

extern uint64_t random_state;
inline uint64_t random_bits() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = random_state;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}
/// Uniform in low ..= high.
inline int64_t random_int(int64_t low, int64_t high) {
    return low + int64_t(random_bits() % uint64_t(high - low + 1));
}
/// Uniform in -1 .. 1.
inline float random_value() { return float(random_bits() >> 40) / float(1 << 23) - 1.0f; }
inline std::vector<float> random_values(size_t count, float scale = 1.0f) {
    std::vector<float> values(count);
    for (float &v : values) v = scale * random_value();
    return values;
}

// ---- number formats, written anew for the reference -----------------------------------------------------

inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return 0x7fc0;
    const uint32_t rest = bits & 0xffff, up = rest > 0x8000 || (rest == 0x8000 && (bits >> 16 & 1));
    return uint16_t((bits >> 16) + up);
}
inline float from_bf16(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline float from_f16(uint16_t x) {
    const int exponent = x >> 10 & 31, fraction = x & 1023;
    float y = exponent == 0    ? std::ldexp(float(fraction), -24)
              : exponent == 31 ? (fraction ? NAN : INFINITY)
                               : std::ldexp(float(1024 + fraction), exponent - 25);
    return x & 0x8000 ? -y : y;
}
inline uint16_t to_f16(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7e00;
    const float size = std::fabs(x);
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);  // size = m * 2^exponent, m in [1/2, 1)
    exponent = size == 0.0f ? -13 : std::max(exponent, -13);
    const float steps = std::nearbyint(std::ldexp(size, 11 - exponent));  // ties to even
    return sign | uint16_t(int(steps) + ((exponent + 13) << 10));
}
inline uint16_t encode(float x, int dtype) { return dtype == PLEACH_BF16 ? to_bf16(x) : to_f16(x); }
inline float decode(uint16_t x, int dtype) { return dtype == PLEACH_BF16 ? from_bf16(x) : from_f16(x); }
/// Half a unit in the last place, relative.
inline double rounding(int dtype) { return dtype == PLEACH_BF16 ? 1.0 / 256 : 1.0 / 2048; }

inline std::vector<uint16_t> encode_all(const std::vector<float> &x, int dtype) {
    std::vector<uint16_t> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = encode(x[i], dtype);
    return y;
}
inline std::vector<uint16_t> random_halves(size_t count, int dtype, float scale = 1.0f) {
    return encode_all(random_values(count, scale), dtype);
}

// ---- device memory --------------------------------------------------------------------------------------

/// An array on the device, exactly as long as it says: the sanitizer sees a byte too far.
template <class T>
class Buffer {
  public:
    explicit Buffer(const std::vector<T> &values) : size_(values.size()) {
        void *data = nullptr;
        CHECK_OK(launches.allocate(&data, int64_t(size_ ? size_ * sizeof(T) : 1)));
        data_ = static_cast<T *>(data);
        if (size_) CHECK_OK(launches.upload(data_, values.data(), int64_t(size_ * sizeof(T))));
    }
    /// Every byte 0xff: NaN in all float formats.
    static Buffer poisoned(size_t size) {
        std::vector<T> values(size);
        if (size) std::memset(static_cast<void *>(values.data()), 0xff, size * sizeof(T));
        return Buffer(values);
    }
    Buffer(const Buffer &) = delete;
    Buffer(Buffer &&other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
    ~Buffer() {
        if (data_) launches.free(data_);
    }

    T *get() const { return data_; }
    operator T *() const { return data_; }
    size_t size() const { return size_; }

    /// What it holds once everything before is done.
    std::vector<T> host() const {
        std::vector<T> values(size_);
        if (size_) CHECK_OK(launches.download(values.data(), data_, int64_t(size_ * sizeof(T))));
        return values;
    }

  private:
    T *data_ = nullptr;
    size_t size_;
};

/// Heads that see all positions, or those of a window, with scores over the square root of their width.
inline PleachAttentionShape heads_of(int heads, int kv_heads, int head_dim, int block_size, int window = 0) {
    return {heads, kv_heads, head_dim, block_size, window, float(1.0 / std::sqrt(double(head_dim))), 0.0f};
}
/// The widths of heads that attention takes.
constexpr int HEAD_DIMS[] = {64, 80, 96, 128, 256};

/// `got` must be within `tolerance` of `want`; NaN fails.
void check_close(double got, double want, double tolerance, const std::string &where);
