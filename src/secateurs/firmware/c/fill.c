/* `count` equal numbers of `bytes` bytes. */
static void sec_repeat(void *y, const void *value, int count, int bytes) {
    char *to = (char *)y;
    if (bytes == 1) {
        memset(to, *(const signed char *)value, (size_t)count);
        return;
    }
    for (; count > 0; count--, to += bytes) {
        memcpy(to, value, (size_t)bytes);
    }
}
