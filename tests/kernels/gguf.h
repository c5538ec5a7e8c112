// Random quantised weights in ggml's layouts, and their values by the format's own description.
#pragma once

#include "harness.h"

struct Weights {
    int format;
    int64_t rows, cols;
    std::vector<uint8_t> bytes;
    std::vector<float> values;  // [rows, cols]
};

inline const char *format_name(int format) {
    constexpr const char *names[] = {"bf16", "f16", "q4_0", "q4_1", "q8_0", "q4_k", "q5_k", "q6_k"};
    return names[format];
}
inline int64_t format_block(int format) { return format >= PLEACH_W_Q4_K ? 256 : format >= PLEACH_W_Q4_0 ? 32 : 1; }
inline int64_t format_bytes(int format) {
    constexpr int64_t bytes[] = {2, 2, 18, 20, 34, 144, 176, 210};
    return bytes[format];
}

/// The values of one block.
inline std::vector<float> decode_block(int format, const uint8_t *b) {
    const auto half = [&](int at) { return from_f16(uint16_t(b[at] | b[at + 1] << 8)); };
    std::vector<float> out(size_t(format_block(format)));
    if (format == PLEACH_W_BF16) {
        out[0] = from_bf16(uint16_t(b[0] | b[1] << 8));
    } else if (format == PLEACH_W_F16) {
        out[0] = half(0);
    } else if (format == PLEACH_W_Q8_0) {
        for (int i = 0; i < 32; i++) out[i] = half(0) * float(int8_t(b[2 + i]));
    } else if (format == PLEACH_W_Q4_0 || format == PLEACH_W_Q4_1) {
        const bool min = format == PLEACH_W_Q4_1;
        const uint8_t *codes = b + (min ? 4 : 2);
        for (int i = 0; i < 16; i++) {
            const float low = float(codes[i] % 16), high = float(codes[i] / 16);
            out[i] = min ? half(0) * low + half(2) : half(0) * (low - 8);
            out[i + 16] = min ? half(0) * high + half(2) : half(0) * (high - 8);
        }
    } else if (format == PLEACH_W_Q6_K) {
        for (int part = 0; part < 2; part++)
            for (int i = 0; i < 32; i++)
                for (int quarter = 0; quarter < 4; quarter++) {
                    const int nibble = b[part * 64 + (quarter % 2) * 32 + i] >> (quarter < 2 ? 0 : 4) & 15;
                    const int top = b[128 + part * 32 + i] >> (2 * quarter) & 3;
                    const int at = part * 128 + quarter * 32 + i;
                    out[at] = half(208) * float(int8_t(b[192 + at / 16])) * float(nibble + 16 * top - 32);
                }
    } else {
        const bool five = format == PLEACH_W_Q5_K;
        const uint8_t *s = b + 4, *codes = b + (five ? 48 : 16);
        for (int g = 0; g < 8; g++) {
            const int scale = g < 4 ? s[g] % 64 : s[g + 4] % 16 + s[g - 4] / 64 * 16;
            const int min = g < 4 ? s[g + 4] % 64 : s[g + 4] / 16 + s[g] / 64 * 16;
            for (int i = 0; i < 32; i++) {
                int code = g % 2 ? codes[g / 2 * 32 + i] / 16 : codes[g / 2 * 32 + i] % 16;
                if (five) code += (b[16 + i] >> g) % 2 * 16;
                out[g * 32 + i] = half(0) * float(scale) * float(code) - half(2) * float(min);
            }
        }
    }
    return out;
}

inline Weights random_weights(int format, int64_t rows, int64_t cols) {
    const int64_t size = format_bytes(format), block = format_block(format);
    Weights w{format, rows, cols, std::vector<uint8_t>(size_t(rows * cols / block * size)), {}};
    for (uint8_t &byte : w.bytes) byte = uint8_t(random_bits());
    w.values.reserve(size_t(rows * cols));
    for (size_t at = 0; at < w.bytes.size(); at += size_t(size)) {
        uint8_t *b = w.bytes.data() + at;
        // Halves are numbers of a sensible size, everything else may be anything.
        const auto put = [&](int64_t offset, uint16_t bits) {
            b[offset] = uint8_t(bits);
            b[offset + 1] = uint8_t(bits >> 8);
        };
        if (format == PLEACH_W_BF16) put(0, to_bf16(random_value()));
        else if (format == PLEACH_W_F16) put(0, to_f16(random_value()));
        else if (format == PLEACH_W_Q6_K) put(208, to_f16(random_value() / 2048));
        else put(0, to_f16(random_value() / (format == PLEACH_W_Q8_0 ? 128 : format == PLEACH_W_Q4_0 || format == PLEACH_W_Q4_1 ? 8 : 512)));
        if (format == PLEACH_W_Q4_1 || format == PLEACH_W_Q4_K || format == PLEACH_W_Q5_K)
            put(2, to_f16(random_value() / (format == PLEACH_W_Q4_1 ? 1 : 64)));
        for (float v : decode_block(format, b)) w.values.push_back(v);
    }
    return w;
}
