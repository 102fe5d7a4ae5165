/* exp(x - largest) / sum over the channels of each place; `table` holds exponentials times 2^15: 256 of upper bytes, 256 of lower ones. */
static inline uint32_t sec_exponential(int32_t below, const uint32_t *table) {
    return (table[below >> 8] * table[256 + (below & 255)]) >> 15;
}

static void sec_wide_softmax(const int16_t *x, int16_t *y, int places, int channels, const uint32_t *table) {
    for (; places > 0; places--, x += channels, y += channels) {
        int32_t largest = -32768;
        uint32_t sum = 0;
        for (int each = 0; each < channels; each++) {
            largest = x[each] > largest ? x[each] : largest;
        }
        for (int each = 0; each < channels; each++) {
            sum += sec_exponential(largest - x[each], table);
        }
        for (int each = 0; each < channels; each++) {
            const uint32_t part = (sec_exponential(largest - x[each], table) * 32768 + sum / 2) / sum;
            y[each] = (int16_t)(part > 32767 ? 32767 : part);
        }
    }
}
