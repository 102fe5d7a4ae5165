/* A GRU over all steps; `sizes` is steps, inputs, units, whether backwards. Biases are two a gate, of the inputs and of the hidden state. */
static void sec_float_gru(const float *x, float *y, const float *hidden, float *last, void *scratch, const int16_t *sizes,
                          const float *weights, const float *biases) {
    const int steps = sizes[0], inputs = sizes[1], units = sizes[2];
    float *before = (float *)scratch;
    sec_float_begin(hidden, before, units);
    for (int step = 0; step < steps; step++) {
        const int at = sizes[3] ? steps - 1 - step : step;
        const float *weight = weights, *bias = biases;
        for (int unit = 0; unit < units; unit++) {
            float ours[3], theirs[3];
            for (int each = 0; each < 3; each++, weight += inputs + units) {
                ours[each] = *bias++ + sec_float_dot(weight, x + at * inputs, inputs);
                theirs[each] = *bias++ + sec_float_dot(weight + inputs, before, units);
            }
            const float update = sec_sigmoid(ours[1] + theirs[1]), new = tanhf(ours[2] + sec_sigmoid(ours[0] + theirs[0]) * theirs[2]);
            y[at * units + unit] = (1.0f - update) * new + update * before[unit];
        }
        sec_float_begin(y + at * units, before, units);
    }
    if (last) {
        sec_float_begin(before, last, units);
    }
}
