/* The mean of each channel over all places. */
static void sec_wide_mean(const int16_t *x, int16_t *y, int places, int channels, int32_t multiplier, int32_t shift) {
    for (int channel = 0; channel < channels; channel++) {
        int32_t sum = 0;
        for (int place = 0; place < places; place++) {
            sum += x[place * channels + channel];
        }
        y[channel] = sec_wide_finish(sum, multiplier, shift, 0, -32768, 32767);
    }
}
