/* Runs of bytes from places that several loops lead to, one run after another: `loops` is, from the outermost loop, how often and how many
   bytes further. Where no step leads back, y may begin where x does. */
static void sec_move(const void *x, void *y, int bytes, int dims, const int32_t *loops) {
    const char *from = (const char *)x;
    char *to = (char *)y;
    int32_t done[8] = {0};
    const int32_t count = loops[2 * dims - 2], step = loops[2 * dims - 1];
    for (;;) {
        const char *place = from;
        if (bytes == 1) {
            for (int32_t each = 0; each < count; each++, place += step) {
                *to++ = *place;
            }
        } else if (bytes == 2) {
            for (int32_t each = 0; each < count; each++, place += step, to += 2) {
                memmove(to, place, 2);
            }
        } else if (bytes == 4) {
            for (int32_t each = 0; each < count; each++, place += step, to += 4) {
                memmove(to, place, 4);
            }
        } else {
            for (int32_t each = 0; each < count; each++, place += step, to += bytes) {
                memmove(to, place, (size_t)bytes);
            }
        }
        int dim = dims - 2;
        for (; dim >= 0; dim--) {
            from += loops[2 * dim + 1];
            if (++done[dim] < loops[2 * dim]) {
                break;
            }
            from -= loops[2 * dim] * loops[2 * dim + 1];
            done[dim] = 0;
        }
        if (dim < 0) {
            return;
        }
    }
}
