#include "tables.h"

namespace secateurs::coding {

const Tables tables;

Tables::Tables() {
    uint64_t power = uint64_t(1) << 60; // e^(-i/256), in 2^-60
    for (int i = 0; i <= 4096; ++i) {
        const uint64_t small = power >> 28;
        if (i < 2048) {
            const uint32_t p = uint32_t((uint64_t(1) << 48) / ((uint64_t(1) << 32) + small));
            squash[2048 + i] = uint16_t(p < 65504 ? p : 65504);
            squash[2048 - i] = uint16_t(65536 - squash[2048 + i]);
        }
        if (i % 2 == 0) {
            logistic[2048 + i / 2] = uint32_t((uint64_t(1) << 62) / ((uint64_t(1) << 32) + small));
            logistic[2048 - i / 2] = (uint32_t(1) << 30) - logistic[2048 + i / 2];
        }
        power = uint64_t((static_cast<unsigned __int128>(power) * 18374827034086858296u) >> 64);
    }
    squash[0] = squash[1];
    for (int p = 0, x = -2047; p < 4096; ++p) {
        while (x < 2047 && squash[x + 2048] < p * 16 + 8) ++x;
        stretch[p] = int16_t(x);
    }
    for (uint32_t p = 0; p < 4096; ++p) {
        uint64_t x = 2 * p + 1; // in 1/8192
        const int log = 63 - __builtin_clzll(x);
        x <<= 31 - log;
        uint32_t bits = uint32_t(13 - log) << 16;
        for (int at = 15; at >= 0; --at) { // squaring doubles the logarithm
            x = (x * x) >> 31;
            if (x >> 32) {
                x >>= 1;
                bits -= uint32_t(1) << at;
            }
        }
        cost[p] = bits;
    }
    for (int n = 0; n < 1024; ++n) count[n] = 131072 / (2 * n + 3);
    for (int n = 0; n < 2048; ++n) share[n] = 65536 / (n + 1);
    inverse[0] = 178 << 16;
    for (int s = 1; s < 8192; ++s) inverse[s] = (178 << 16) / s;
}

} // namespace secateurs::coding
