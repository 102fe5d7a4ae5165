/* The sum of products of two rows of numbers. */
static inline float sec_float_dot(const float *weights, const float *x, int count) {
    float sum = 0.0f;
    for (; count >= 4; count -= 4, weights += 4, x += 4) {
        sum += weights[0] * x[0];
        sum += weights[1] * x[1];
        sum += weights[2] * x[2];
        sum += weights[3] * x[3];
    }
    for (; count > 0; count--) {
        sum += *weights++ * *x++;
    }
    return sum;
}

/* Numbers from one place to another, or zeros. */
static inline void sec_float_begin(const float *from, float *to, int count) {
    for (int each = 0; each < count; each++) {
        to[each] = from ? from[each] : 0.0f;
    }
}
