/* A GRU over all steps. `hidden` is what it begins with, `last` where its last state goes, each 0 for none. The weights of a unit are those
   of its three gates: first the rows for the inputs, then those for the hidden state. `scratch`: the hidden state in 32 bits, then inputs and
   hidden state in 16. */
static void sec_gru(const void *x, void *y, const void *hidden, void *last, void *scratch, const int16_t *sizes, const int8_t *weights,
                    const int32_t *rows, const int32_t *by) {
    const int units = sizes[SEC_UNITS], inputs = sizes[SEC_STEP_INPUTS], steps = sizes[SEC_STEPS], wide = sizes[SEC_WIDE];
    const int easy = sizes[SEC_SUMS_EASY];
    const int taps = (inputs + 3) / 4 * 4, further = (units + 3) / 4 * 4;
    int32_t *state = (int32_t *)scratch;
    int16_t *now = (int16_t *)(state + units), *before = now + taps;
    for (int unit = 0; unit < units; unit++) {
        const int32_t h = hidden ? sec_get(hidden, unit, wide) - by[SEC_HIDDEN_ZERO] : 0;
        state[unit] = sec_rescaled(h, by[SEC_HIDDEN_MULTIPLIER], by[SEC_HIDDEN_SHIFT]);
        sec_put(y, unit, wide, sec_rescaled(state[unit], by[SEC_Y_MULTIPLIER], by[SEC_Y_SHIFT]) + by[SEC_ZERO_Y]);
    }
    sec_take(y, 0, units, by[SEC_ZERO_Y], wide, before);
    for (int step = 0; step < steps; step++) {
        const int at = sizes[SEC_BACKWARDS] ? steps - 1 - step : step;
        const int8_t *weight = weights;
        const int32_t *row = rows;
        sec_take(x, at * inputs, inputs, by[SEC_ZERO_X], wide, now);
        for (int unit = 0; unit < units; unit++, row += 18, weight += 3 * (taps + further)) {
            int32_t ours[4], theirs[4];
            sec_gates(weight, now, taps, 3, row, easy, ours);
            sec_gates(weight + 3 * taps, before, further, 3, row + 9, easy, theirs);
            const int32_t reset = sec_fixed_sigmoid(sec_gate(ours[0] + theirs[0])), update = sec_fixed_sigmoid(sec_gate(ours[1] + theirs[1]));
            const int32_t new = sec_fixed_tanh(sec_gate(ours[2] + (int32_t)(((int64_t)reset * theirs[2] + 16384) >> 15)));
            state[unit] = (int32_t)(((int64_t)update * state[unit] + (32768 - update) * new + 16384) >> 15);
            sec_put(y, at * units + unit, wide, sec_rescaled(state[unit], by[SEC_Y_MULTIPLIER], by[SEC_Y_SHIFT]) + by[SEC_ZERO_Y]);
        }
        sec_take(y, at * units, units, by[SEC_ZERO_Y], wide, before);
    }
    for (int unit = 0; last && unit < units; unit++) {
        sec_put(last, unit, wide, before[unit] + by[SEC_ZERO_Y]);
    }
}
