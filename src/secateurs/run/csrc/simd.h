// One vector type per translation unit: as wide as the instruction set that the unit is compiled for.
//
// Only plain functions with internal linkage may be used where this is included. A template of the standard library that is
// instantiated here would be merged by the linker with the same template of other units, and a machine without this instruction
// set would then run it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
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

inline vf splat(float value) { return value - vf{}; }

// NaN passes, as in torch.
inline vf at_least(vf value, vf low) { return low > value ? low : value; }
inline vf at_most(vf value, vf high) { return high < value ? high : value; }

}  // namespace
