/* What LSTM and GRU share: what goes into a gate in steps of 2^-12, what functions give and what stays in steps of 2^-15. */

/* tanh from 0 to 8, 32 numbers to 1. */
static const int16_t sec_tanh_table[257] = {
    0, 1024, 2045, 3063, 4075, 5079, 6073, 7056, 8025, 8980, 9919, 10840, 11743, 12625, 13486, 14326, 15143, 15936, 16706, 17452,
    18173, 18870, 19542, 20189, 20813, 21411, 21986, 22538, 23066, 23571, 24054, 24516, 24956, 25376, 25776, 26157, 26519, 26864,
    27191, 27502, 27797, 28076, 28341, 28592, 28830, 29055, 29268, 29470, 29660, 29840, 30010, 30170, 30322, 30465, 30600, 30727,
    30847, 30960, 31067, 31167, 31262, 31351, 31435, 31515, 31589, 31659, 31726, 31788, 31846, 31901, 31953, 32002, 32048, 32091,
    32132, 32170, 32206, 32240, 32271, 32301, 32329, 32356, 32381, 32404, 32426, 32447, 32466, 32484, 32501, 32517, 32532, 32547,
    32560, 32573, 32584, 32596, 32606, 32616, 32625, 32634, 32642, 32649, 32657, 32663, 32670, 32676, 32681, 32686, 32691, 32696,
    32700, 32704, 32708, 32712, 32715, 32718, 32721, 32724, 32727, 32729, 32732, 32734, 32736, 32738, 32740, 32741, 32743, 32745,
    32746, 32747, 32749, 32750, 32751, 32752, 32753, 32754, 32755, 32755, 32756, 32757, 32758, 32758, 32759, 32759, 32760, 32760,
    32761, 32761, 32762, 32762, 32762, 32763, 32763, 32763, 32764, 32764, 32764, 32764, 32765, 32765, 32765, 32765, 32765, 32766,
    32766, 32766, 32766, 32766, 32766, 32766, 32766, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767,
    32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767,
    32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767,
    32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767,
    32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767, 32767,
    32767, 32767, 32767};

/* Places in the array `sizes`, and in the array `by`; `wide`: numbers of 16 bits; `easy`: all
   sums of products can be doubled and none is multiplied by more than 1. */
enum { SEC_STEPS, SEC_STEP_INPUTS, SEC_UNITS, SEC_BACKWARDS, SEC_WIDE, SEC_SUMS_EASY };
enum {
    SEC_ZERO_X, SEC_ZERO_Y, SEC_Y_MULTIPLIER, SEC_Y_SHIFT, SEC_HIDDEN_ZERO, SEC_HIDDEN_MULTIPLIER, SEC_HIDDEN_SHIFT, SEC_CELL_ZERO,
    SEC_CELL_MULTIPLIER, SEC_CELL_SHIFT, SEC_LAST_MULTIPLIER, SEC_LAST_SHIFT, SEC_LAST_ZERO
};

static inline int32_t sec_gate(int32_t number) {
    return sec_clamped(number, -32767, 32767);
}

/* Between two numbers of the table, each 2^bits from the next. */
static inline int32_t sec_between(int32_t size, int bits) {
    const int16_t *piece = sec_tanh_table + (size >> bits);
    const int32_t rest = size & ((1 << bits) - 1);
    return piece[0] + (((piece[1] - piece[0]) * rest + (1 << (bits - 1))) >> bits);
}

static inline int32_t sec_fixed_tanh(int32_t number) {
    return number < 0 ? -sec_between(-number, 7) : sec_between(number, 7);
}

static inline int32_t sec_fixed_sigmoid(int32_t number) {
    return number < 0 ? 16384 - (sec_between(-number, 8) >> 1) : 16384 + (sec_between(number, 8) >> 1);
}

static inline int32_t sec_get(const void *from, int at, int wide) {
    return wide ? ((const int16_t *)from)[at] : ((const int8_t *)from)[at];
}

static inline void sec_put(void *to, int at, int wide, int32_t number) {
    if (wide) {
        ((int16_t *)to)[at] = (int16_t)sec_clamped(number, -32768, 32767);
    } else {
        ((int8_t *)to)[at] = (int8_t)sec_clamped(number, -128, 127);
    }
}

/* Numbers as distances from their zero, and zeros up to a multiple of four. */
static void sec_take(const void *from, int at, int count, int zero, int wide, int16_t *to) {
    for (int each = 0; each < count; each++) {
        *to++ = (int16_t)(sec_get(from, at + each, wide) - zero);
    }
    for (; count % 4; count++) {
        *to++ = 0;
    }
}

/* What `count` gates get from inputs or hidden state; `rows` is bias, multiplier and shift of each. */
static void sec_gates(const int8_t *weights, const int16_t *x, int taps, int count, const int32_t *rows, int easy, int32_t *gates) {
    for (int gate = 0; gate < count; gate++, rows += 3) {
        if (gate % 2 == 0) {
            const int8_t *next = gate + 1 < count ? weights + taps : weights;
            sec_dots(weights, next, x, taps, gates + gate);
            weights = next + taps;
        }
        const int32_t sum = gates[gate] + rows[0];
        gates[gate] = easy ? sec_small(sum, rows[1], 2, -rows[2]) : sec_rescaled(sum, rows[1], rows[2]);
    }
}
