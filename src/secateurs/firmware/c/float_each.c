/* A function of each number. */
static void sec_float_each(const float *x, float *y, int count, float (*function)(float)) {
    for (; count > 0; count--) {
        *y++ = function(*x++);
    }
}
