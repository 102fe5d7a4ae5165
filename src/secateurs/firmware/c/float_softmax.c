/* exp(x - largest) / sum over the channels of each place. */
static void sec_float_softmax(const float *x, float *y, int places, int channels) {
    for (; places > 0; places--, x += channels, y += channels) {
        float largest = x[0], sum = 0.0f;
        for (int each = 1; each < channels; each++) {
            largest = x[each] > largest ? x[each] : largest;
        }
        for (int each = 0; each < channels; each++) {
            y[each] = expf(x[each] - largest);
            sum += y[each];
        }
        for (int each = 0; each < channels; each++) {
            y[each] /= sum;
        }
    }
}
