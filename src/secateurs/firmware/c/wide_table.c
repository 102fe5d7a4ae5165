/* A function of single numbers: 513 numbers of it, lines between. */
static void sec_wide_table(const int16_t *x, int16_t *y, int count, const int16_t *table) {
    for (; count > 0; count--) {
        const int32_t place = *x++ + 32768;
        const int16_t *piece = table + (place >> 7);
        *y++ = (int16_t)(piece[0] + (((piece[1] - piece[0]) * (place & 127) + 64) >> 7));
    }
}
