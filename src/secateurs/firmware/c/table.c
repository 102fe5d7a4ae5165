/* A function of single numbers, from -128 on. */
static void sec_table(const int8_t *x, int8_t *y, int count, const int8_t *table) {
    const int8_t *middle = table + 128;
    for (; count >= 4; count -= 4, x += 4, y += 4) {
        const int8_t a = middle[x[0]], b = middle[x[1]], c = middle[x[2]], d = middle[x[3]];
        y[0] = a;
        y[1] = b;
        y[2] = c;
        y[3] = d;
    }
    for (; count > 0; count--) {
        *y++ = middle[*x++];
    }
}
