/* An LSTM over all steps. `hidden` and `cell` are what it begins with, `last_hidden` and `last_cell` where its last state goes, each 0 for
   none. The weights of a unit are those of its four gates: first the rows for the inputs, then those for the hidden state. `scratch`: the
   cells in 32 bits, then inputs and hidden state in 16. */
static void sec_lstm(const void *x, void *y, const void *hidden, const void *cell, void *last_hidden, void *last_cell, void *scratch,
                     const int16_t *sizes, const int8_t *weights, const int32_t *rows, const int32_t *by) {
    const int units = sizes[SEC_UNITS], inputs = sizes[SEC_STEP_INPUTS], steps = sizes[SEC_STEPS], wide = sizes[SEC_WIDE];
    const int easy = sizes[SEC_SUMS_EASY];
    const int taps = (inputs + 3) / 4 * 4, further = (units + 3) / 4 * 4;
    int32_t *state = (int32_t *)scratch;
    int16_t *now = (int16_t *)(state + units), *before = now + taps;
    for (int unit = 0; unit < units; unit++) {
        const int32_t h = hidden ? sec_get(hidden, unit, wide) - by[SEC_HIDDEN_ZERO] : 0, c = cell ? sec_get(cell, unit, wide) - by[SEC_CELL_ZERO] : 0;
        sec_put(y, unit, wide, sec_rescaled(h, by[SEC_HIDDEN_MULTIPLIER], by[SEC_HIDDEN_SHIFT]) + by[SEC_ZERO_Y]);
        state[unit] = sec_rescaled(c, by[SEC_CELL_MULTIPLIER], by[SEC_CELL_SHIFT]);
    }
    sec_take(y, 0, units, by[SEC_ZERO_Y], wide, before);
    for (int step = 0; step < steps; step++) {
        const int at = sizes[SEC_BACKWARDS] ? steps - 1 - step : step;
        const int8_t *weight = weights;
        const int32_t *row = rows;
        sec_take(x, at * inputs, inputs, by[SEC_ZERO_X], wide, now);
        for (int unit = 0; unit < units; unit++, row += 24, weight += 4 * (taps + further)) {
            int32_t gate[4], theirs[4];
            sec_gates(weight, now, taps, 4, row, easy, gate);
            sec_gates(weight + 4 * taps, before, further, 4, row + 12, easy, theirs);
            for (int each = 0; each < 4; each++) {
                gate[each] = sec_gate(gate[each] + theirs[each]);
            }
            const int64_t kept = (int64_t)sec_fixed_sigmoid(gate[1]) * state[unit];
            state[unit] = (int32_t)((kept + sec_fixed_sigmoid(gate[0]) * sec_fixed_tanh(gate[2]) + 16384) >> 15);
            const int32_t out = sec_fixed_sigmoid(gate[3]) * sec_fixed_tanh(sec_gate((state[unit] + 4) >> 3));
            sec_put(y, at * units + unit, wide, sec_rescaled(out, by[SEC_Y_MULTIPLIER], by[SEC_Y_SHIFT]) + by[SEC_ZERO_Y]);
        }
        sec_take(y, at * units, units, by[SEC_ZERO_Y], wide, before);
    }
    for (int unit = 0; unit < units; unit++) {
        if (last_hidden) {
            sec_put(last_hidden, unit, wide, before[unit] + by[SEC_ZERO_Y]);
        }
        if (last_cell) {
            sec_put(last_cell, unit, wide, sec_rescaled(state[unit], by[SEC_LAST_MULTIPLIER], by[SEC_LAST_SHIFT]) + by[SEC_LAST_ZERO]);
        }
    }
}
