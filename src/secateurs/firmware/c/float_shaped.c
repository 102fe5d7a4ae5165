/* A function of each number that has numbers of its own. */
static void sec_float_shaped(const float *x, float *y, int count, float (*function)(float, float, float, float), float a, float b,
                             float c) {
    for (; count > 0; count--) {
        *y++ = function(*x++, a, b, c);
    }
}
