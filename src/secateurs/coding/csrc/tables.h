// Functions of probabilities as tables, made of whole numbers only, so that every machine codes alike.
#pragma once
#include <cstdint>

namespace secateurs::coding {

struct Tables {
    uint16_t squash[4096];   // x = -2048 … 2047, in 1/256: 2^16 / (1 + e^-x)
    int16_t stretch[4096];   // probability in 1/4096: its logit in 1/256
    uint32_t logistic[4097]; // x = -2048 … 2048, in 1/128: 2^30 / (1 + e^-x)
    uint32_t cost[4096];     // probability in 1/4096: bits, in 2^-16
    int32_t count[1024];     // n: 2^16 / (n + 3/2)
    int32_t share[2048];     // n: 2^16 / (n + 1)
    int32_t inverse[8192];   // s: 178 · 2^16 / s; a mean error of s is that of a logistic distribution 178/128 times narrower
    Tables();
};
extern const Tables tables;

inline int clamp(int64_t value, int lowest, int highest) { return value < lowest ? lowest : value > highest ? highest : int(value); }
inline int squash(int x) { return tables.squash[clamp(x, -2047, 2047) + 2048]; }

// 1 + the logarithm in quarters of an octave; 0 for 0.
inline int quarters(uint32_t x) {
    if (!x) return 0;
    const int log = 31 - __builtin_clz(x);
    return log * 4 + int((log >= 2 ? x >> (log - 2) : x << (2 - log)) & 3) + 1;
}

} // namespace secateurs::coding
