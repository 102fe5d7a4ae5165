/* The mean of each channel over all places. */
static void sec_float_mean(const float *x, float *y, int places, int channels) {
    for (int channel = 0; channel < channels; channel++) {
        float sum = 0.0f;
        for (int place = 0; place < places; place++) {
            sum += x[place * channels + channel];
        }
        y[channel] = sum / (float)places;
    }
}
