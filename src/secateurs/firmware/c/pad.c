/* Rows of `bytes` bytes into a box that is filled already: `row` and `plane` bytes from row to row and from plane to plane. */
static void sec_inner(const void *x, void *y, int planes, int rows, int bytes, int row, int plane) {
    const char *from = (const char *)x;
    char *to = (char *)y;
    for (; planes > 0; planes--, to += plane) {
        for (int each = 0; each < rows; each++, from += bytes) {
            memcpy(to + each * row, from, (size_t)bytes);
        }
    }
}
