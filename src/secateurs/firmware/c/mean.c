/* The mean of each channel over all places; `by` is count * zero of x, multiplier, shift and zero of y. */
static void sec_mean(const int8_t *x, int8_t *y, int places, int channels, const int32_t *by) {
    for (int channel = 0; channel < channels; channel += 4) {
        const int some = channels - channel < 4 ? channels - channel : 4;
        int32_t sums[4] = {0, 0, 0, 0};
        for (int done = 0; done < places; done += 255) {
            const int few = places - done < 255 ? places - done : 255;
            int32_t part[4];
            sec_sums_over(x + done * channels + channel, 1, few, 0, channels, some, part);
            for (int each = 0; each < some; each++) {
                sums[each] += part[each];
            }
        }
        for (int each = 0; each < some; each++) {
            y[channel + each] = (int8_t)sec_clamped(sec_rescaled(sums[each] - by[0], by[1], by[2]) + by[3], -128, 127);
        }
    }
}
