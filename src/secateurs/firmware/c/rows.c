/* Rows of `bytes` bytes to places `row` bytes apart. */
static void sec_rows(const void *x, void *y, int rows, int bytes, int row) {
    const char *from = (const char *)x;
    char *to = (char *)y;
    for (; rows > 0; rows--, from += bytes, to += row) {
        memcpy(to, from, (size_t)bytes);
    }
}
