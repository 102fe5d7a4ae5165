/* exp(x - largest) / sum over the channels of each place; `table` holds exponentials times 2^16. */
static void sec_softmax(const int8_t *x, int8_t *y, int places, int channels, const uint32_t *table) {
    for (; places > 0; places--, x += channels, y += channels) {
        int32_t largest = -128;
        uint32_t sum = 0;
        for (int each = 0; each < channels; each++) {
            largest = x[each] > largest ? x[each] : largest;
        }
        for (int each = 0; each < channels; each++) {
            sum += table[largest - x[each]];
        }
        for (int each = 0; each < channels; each++) {
            const uint32_t part = (table[largest - x[each]] * 256 + sum / 2) / sum;
            y[each] = (int8_t)((int32_t)(part > 255 ? 255 : part) - 128);
        }
    }
}
