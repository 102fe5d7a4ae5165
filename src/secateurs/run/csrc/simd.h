// One vector type per translation unit: as wide as the instruction set that the unit is compiled for.
//
// Only plain functions with internal linkage may be used where this is included. A template of the standard library that is
// instantiated here would be merged by the linker with the same template of other units, and a machine without this instruction
// set would then run it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

namespace {

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

// Through memcpy, because an alignment that is an attribute of the type is lost where the type is a template's argument.
inline vf load(const float *from) {
    vf value;
    memcpy(&value, from, sizeof(vf));
    return value;
}

inline vi load(const int32_t *from) {
    vi value;
    memcpy(&value, from, sizeof(vi));
    return value;
}

inline void store(float *to, vf value) { memcpy(to, &value, sizeof(vf)); }

// The first lanes, no more than so many.
inline void store_first(float *to, vf value, int64_t count) {
    if (count >= LANES) return store(to, value);
#if LANES == 16
    if (count > 0) _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)value);
#else
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
#endif
}

// Lanes whose bits are set. What the others would read or write is not touched, be there memory or not.
inline void store_lanes(float *to, int32_t bits, vf value) {
#if LANES == 16
    _mm512_mask_storeu_ps(to, __mmask16(bits), (__m512)value);
#else
    if (bits == (1 << LANES) - 1) return store(to, value);
    for (int lane = 0; lane < LANES; ++lane)
        if (bits >> lane & 1) to[lane] = value[lane];
#endif
}

// Lanes whose bits are set; the others are zero.
inline vf load_lanes(const float *from, int32_t bits) {
#if LANES == 16
    return (vf)_mm512_maskz_loadu_ps(__mmask16(bits), from);
#else
    if (bits == (1 << LANES) - 1) return load(from);
    vf value = {};
    for (int lane = 0; lane < LANES; ++lane)
        if (bits >> lane & 1) value[lane] = from[lane];
    return value;
#endif
}

inline vf splat(float value) { return value - vf{}; }

#if LANES == 16
inline vf square_root(vf value) { return (vf)_mm512_sqrt_ps((__m512)value); }
#elif LANES == 8
inline vf square_root(vf value) { return (vf)_mm256_sqrt_ps((__m256)value); }
#elif defined(__SSE__)
inline vf square_root(vf value) { return (vf)_mm_sqrt_ps((__m128)value); }
#else
inline vf square_root(vf value) {
    for (int lane = 0; lane < LANES; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
    return value;
}
#endif

// NaN passes, as in torch: where one is NaN, these instructions give the second.
#if LANES == 16
inline vf at_least(vf value, vf low) { return (vf)_mm512_max_ps((__m512)low, (__m512)value); }
inline vf at_most(vf value, vf high) { return (vf)_mm512_min_ps((__m512)high, (__m512)value); }
#elif LANES == 8
inline vf at_least(vf value, vf low) { return (vf)_mm256_max_ps((__m256)low, (__m256)value); }
inline vf at_most(vf value, vf high) { return (vf)_mm256_min_ps((__m256)high, (__m256)value); }
#elif defined(__SSE__)
inline vf at_least(vf value, vf low) { return (vf)_mm_max_ps((__m128)low, (__m128)value); }
inline vf at_most(vf value, vf high) { return (vf)_mm_min_ps((__m128)high, (__m128)value); }
#else
inline vf at_least(vf value, vf low) { return low > value ? low : value; }
inline vf at_most(vf value, vf high) { return high < value ? high : value; }
#endif

}  // namespace
