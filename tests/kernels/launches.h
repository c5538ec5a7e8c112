// The launches of `kernels/src/cuda/calls`, as tests call them: functions that the program around them hands in
// (`kernels/src/cuda/foreign.rs`).
#pragma once

#include "pleach_kernels.h"

enum PleachStatus { PLEACH_OK = 0, PLEACH_BAD_ARGUMENT = 1, PLEACH_LAUNCH_FAILED = 2 };
enum PleachDType { PLEACH_BF16 = 0, PLEACH_F16 = 1, PLEACH_F32 = 2 };

struct Launches {
    int (*allocate)(void **memory, int64_t bytes);
    int (*free)(void *memory);
    int (*upload)(void *device, const void *host, int64_t bytes);
    int (*download)(void *host, const void *device, int64_t bytes);
    int (*add_rms_norm)(const PleachNorm &, int64_t rows, int dtype);
    int (*gate_mul)(const PleachGate &, int dtype);
    int (*soft_cap)(const PleachCap &);
    int (*add_bias)(const PleachBias &, int dtype);
    int (*qkv_rope_write)(const PleachRope &, int dtype);
    int (*embed)(const PleachEmbed &, int64_t rows, int format);
    int64_t (*attention_workspace)(const PleachAttentionShape &, int64_t rows, int64_t max_length);
    int (*paged_attention)(const PleachAttention &, const PleachAttentionShape &, const int64_t (&sizes)[3], int dtype);
    int64_t (*packed_bytes)(int64_t outputs, int64_t inputs, int format);
    int (*pack)(const PleachPack &, int format);
    int (*matmul)(const PleachProduct &, int format, int dtype, int out_dtype);
    int (*add_low_rank)(const PleachLowRank &, int64_t ranks, int dtype);
    int (*verify)(const PleachVerify &, int64_t rows);
    int (*scatter)(const PleachScatter &);
};
extern Launches launches;

inline int pleach_add_rms_norm(float *residual, const void *delta, const float *delta_weight, const float *weight,
                               const uint32_t *wanted, void *out, int64_t rows, int64_t width, float eps, int dtype) {
    return launches.add_rms_norm({residual, delta, delta_weight, weight, wanted, out, width, eps}, rows, dtype);
}
inline int pleach_gate_mul(const void *gate_up, void *out, int64_t rows, int64_t width, uint32_t activation, int dtype) {
    return launches.gate_mul({gate_up, out, rows, width, activation}, dtype);
}
inline int pleach_soft_cap(float *x, int64_t count, float cap) { return launches.soft_cap({x, count, cap}); }
inline int pleach_add_bias(void *x, const void *bias, int64_t rows, int64_t width, int dtype) {
    return launches.add_bias({x, bias, rows, width}, dtype);
}
inline int pleach_qkv_rope_write(const PleachQkv &io, const PleachAttentionShape &shape, int64_t rows, int turned,
                                 float eps, int dtype) {
    return launches.qkv_rope_write({io, shape, rows, turned, eps}, dtype);
}
inline int pleach_embed(const void *table, const uint32_t *tokens, float *out, int64_t rows, int64_t width,
                        int64_t vocab_size, float scale, int format) {
    return launches.embed({table, tokens, out, width, vocab_size, scale}, rows, format);
}
inline int pleach_paged_attention(const PleachAttention &io, const PleachAttentionShape &shape, int64_t rows,
                                  int64_t sequences, int64_t max_length, int dtype) {
    return launches.paged_attention(io, shape, {rows, sequences, max_length}, dtype);
}
inline int pleach_pack(const void *weights, void *packed, int64_t outputs, int64_t inputs, int format) {
    return launches.pack({weights, packed, outputs, inputs}, format);
}
inline int pleach_matmul(const void *packed, const void *x, void *out, int64_t rows, int64_t outputs, int64_t inputs,
                         int64_t x_stride, int64_t out_stride, int format, int dtype, int out_dtype) {
    return launches.matmul({packed, x, out, rows, outputs, inputs, x_stride, out_stride, 0}, format, dtype, out_dtype);
}
inline int pleach_scatter(uint32_t *table, const uint32_t *entries, int64_t count, int64_t size) {
    return launches.scatter({table, entries, count, size});
}
