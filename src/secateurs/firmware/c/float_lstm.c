/* An LSTM over all steps; `sizes` is steps, inputs, units, whether backwards. See `sec_lstm`; biases are one a gate. */
static void sec_float_lstm(const float *x, float *y, const float *hidden, const float *cell, float *last_hidden, float *last_cell,
                           void *scratch, const int16_t *sizes, const float *weights, const float *biases) {
    const int steps = sizes[0], inputs = sizes[1], units = sizes[2];
    float *state = (float *)scratch, *before = state + units;
    sec_float_begin(hidden, before, units);
    sec_float_begin(cell, state, units);
    for (int step = 0; step < steps; step++) {
        const int at = sizes[3] ? steps - 1 - step : step;
        const float *weight = weights, *bias = biases;
        for (int unit = 0; unit < units; unit++) {
            float gate[4];
            for (int each = 0; each < 4; each++, weight += inputs + units) {
                gate[each] = *bias++ + sec_float_dot(weight, x + at * inputs, inputs) + sec_float_dot(weight + inputs, before, units);
            }
            state[unit] = sec_sigmoid(gate[1]) * state[unit] + sec_sigmoid(gate[0]) * tanhf(gate[2]);
            y[at * units + unit] = sec_sigmoid(gate[3]) * tanhf(state[unit]);
        }
        sec_float_begin(y + at * units, before, units);
    }
    if (last_hidden) {
        sec_float_begin(before, last_hidden, units);
    }
    if (last_cell) {
        sec_float_begin(state, last_cell, units);
    }
}
