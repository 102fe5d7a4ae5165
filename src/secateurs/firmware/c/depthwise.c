/* Depthwise convolutions. A channel is a plane of int16 of its own while it is worked on, with its padding, so that the taps of a row are
   pairs; four channels are widened at once. */

/* Taps that are read in pairs, and numbers in a row of a plane. */
static inline int sec_even(int number) {
    return (number + 1) & ~1;
}

static void sec_fill(int16_t *to, int16_t value, int count) {
    for (int each = 0; each < count; each++) {
        to[each] = value;
    }
}

/* A row of up to four channels: each of `count` places goes to planes that are `plane` numbers apart. */
static void sec_spread(const int8_t *x, int step, int count, int channels, int16_t *to, int plane) {
    int each = 0;
#ifdef SEC_DSP
    if (channels == 4 && count >= 2) {
        const int apart = 2 * plane;
        int16_t *first = to, *third = to + 2 * plane;
        const int16_t *const end = to + (count & ~1);
        int32_t a, b, c;
        __asm__ volatile(
            "0:\n\tldr %[a], [%[x]]\n\tldr %[b], [%[x], %[step]]\n\tpkhbt %[c], %[a], %[b], lsl #16\n\tpkhtb %[a], %[b], %[a], asr #16\n\t"
            "sxtb16 %[b], %[c], ror #8\n\tsxtb16 %[c], %[c]\n\tstr %[b], [%[first], %[apart]]\n\tstr %[c], [%[first]], #4\n\t"
            "sxtb16 %[b], %[a], ror #8\n\tsxtb16 %[a], %[a]\n\tstr %[b], [%[third], %[apart]]\n\tstr %[a], [%[third]], #4\n\t"
            "add %[x], %[x], %[step], lsl #1\n\tcmp %[first], %[end]\n\tbne 0b"
            : [x] "+r"(x), [first] "+r"(first), [third] "+r"(third), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c)
            : [step] "r"(step), [apart] "r"(apart), [end] "r"(end)
            : "cc", "memory");
        each = count & ~1;
    }
#endif
    for (; each < count; each++, x += step) {
        for (int channel = 0; channel < channels; channel++) {
            to[channel * plane + each] = x[channel];
        }
    }
}

#ifdef SEC_DSP
/* r0 first place, r1 bytes from row to row, r2 taps, r3-r6 sums, r12 place, lr result; a row of three taps for four places or two, that are
   one or two apart. */
#define SEC_TAPS_4_1                                                                                                                       \
    "ldm r12, {r7, r8, r9}\n\tldm r2!, {r10, r11}\n\tadd r12, r12, r1\n\tsmlad r3, r7, r10, r3\n\tsmlabt r3, r8, r11, r3\n\t"              \
    "smlatb r4, r7, r10, r4\n\tsmlad r4, r8, r11, r4\n\tsmlad r5, r8, r10, r5\n\tsmlabt r5, r9, r11, r5\n\t"                               \
    "smlatb r6, r8, r10, r6\n\tsmlad r6, r9, r11, r6\n\t"
#define SEC_TAPS_2_1                                                                                                                       \
    "ldm r12, {r7, r8}\n\tldm r2!, {r10, r11}\n\tadd r12, r12, r1\n\tsmlad r3, r7, r10, r3\n\tsmlabt r3, r8, r11, r3\n\t"                  \
    "smlatb r4, r7, r10, r4\n\tsmlad r4, r8, r11, r4\n\t"
#define SEC_TAPS_4_2                                                                                                                       \
    "ldm r12, {r7, r8, r9}\n\tldm r2!, {r10, r11}\n\tsmlad r3, r7, r10, r3\n\tsmlabt r3, r8, r11, r3\n\tsmlad r4, r8, r10, r4\n\t"         \
    "smlabt r4, r9, r11, r4\n\tldrd r7, r8, [r12, #12]\n\tadd r12, r12, r1\n\tsmlad r5, r9, r10, r5\n\tsmlabt r5, r7, r11, r5\n\t"         \
    "smlad r6, r7, r10, r6\n\tsmlabt r6, r8, r11, r6\n\t"
#define SEC_TAPS_2_2                                                                                                                       \
    "ldm r12, {r7, r8, r9}\n\tldm r2!, {r10, r11}\n\tadd r12, r12, r1\n\tsmlad r3, r7, r10, r3\n\tsmlabt r3, r8, r11, r3\n\t"              \
    "smlad r4, r8, r10, r4\n\tsmlabt r4, r9, r11, r4\n\t"
#define SEC_CONSTANTS "ldr r10, %[multiplier]\n\tldr r11, %[shift]\n\tldr r12, %[zero]\n\tldr r7, %[apart]\n\t"
#define SEC_PLACE(sum)                                                                                                                     \
    "smmulr " sum ", " sum ", r10\n\tadd " sum ", " sum ", " sum ", asr #31\n\tasrs " sum ", " sum ", r11\n\tadc " sum ", " sum ", r12\n\t" \
    "ssat " sum ", #8, " sum "\n\t"
#define SEC_ROWS_OF_PLACES(four, two, fours, twos)                                                                                         \
    __asm__ volatile(                                                                                                                      \
        "0:\n\tldr r0, %[x]\n\tldr lr, %[y]\n\tldr r1, %[down]\n\tldr r12, %[most]\n\tcmp r12, #0\n\tbeq 2f\n\tadd r12, r12, r0\n\tstr r12, %[end]\n"    \
        "1:\n\tldr r3, %[start]\n\tldr r2, %[taps]\n\tmov r12, r0\n\tmov r4, r3\n\tmov r5, r3\n\tmov r6, r3\n\t" four four four             \
        SEC_CONSTANTS SEC_PLACE("r3") SEC_PLACE("r4") SEC_PLACE("r5") SEC_PLACE("r6")                                                      \
        "strb r3, [lr]\n\tstrb r4, [lr, r7]\n\tadd lr, lr, r7, lsl #1\n\tstrb r5, [lr]\n\tstrb r6, [lr, r7]\n\tadd lr, lr, r7, lsl #1\n\t"    \
        "ldr r12, %[end]\n\tadds r0, #" fours "\n\tcmp r0, r12\n\tbne 1b\n"                                                              \
        "2:\n\tldr r9, %[rest]\n\tcmp r9, #0\n\tbeq 4f\n\tstr r9, %[end]\n"                                                               \
        "3:\n\tldr r3, %[start]\n\tldr r2, %[taps]\n\tmov r12, r0\n\tmov r4, r3\n\t" two two two SEC_CONSTANTS SEC_PLACE("r3")              \
        "ldr r9, %[end]\n\tstrb r3, [lr]\n\tcmp r9, #1\n\tbeq 4f\n\t" SEC_PLACE("r4") "strb r4, [lr, r7]\n\tadd lr, lr, r7, lsl #1\n\t"      \
        "adds r0, #" twos "\n\tsubs r9, #2\n\tstr r9, %[end]\n\tbne 3b\n"                                                                \
        "4:\n\tldr r0, %[x]\n\tldr r1, %[jump]\n\tadd r0, r1\n\tstr r0, %[x]\n\tldr r0, %[y]\n\tldr r1, %[to_row]\n\tadd r0, r1\n\t"         \
        "str r0, %[y]\n\tldr r0, %[rows]\n\tsubs r0, #1\n\tstr r0, %[rows]\n\tbne 0b"                                                      \
        : [x] "+m"(x), [y] "+m"(y), [rows] "+m"(rows), [end] "+m"(end)                                                                     \
        : [down] "m"(down), [start] "m"(start), [taps] "m"(taps), [multiplier] "m"(multiplier), [shift] "m"(shift), [zero] "m"(zero),       \
          [apart] "m"(apart), [most] "m"(most), [rest] "m"(rest), [jump] "m"(jump), [to_row] "m"(to_row)                                    \
        : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory")

/* A plane with a kernel of three by three, whose taps are doubled; `down` and `jump` in bytes. */
static void sec_three_by_three(const int16_t *x, int down, int jump, const int16_t *taps, const int32_t *row, int zero, int stride, int8_t *y,
                               int rows, int to_row, int apart, int count) {
    const int32_t start = row[SEC_START], multiplier = row[SEC_MULTIPLIER], shift = row[SEC_SHIFT];
    const int most = 2 * stride * (count & ~3), rest = count & 3;
    int end = 0;
    if (stride == 1) {
        SEC_ROWS_OF_PLACES(SEC_TAPS_4_1, SEC_TAPS_2_1, "8", "4");
    } else {
        SEC_ROWS_OF_PLACES(SEC_TAPS_4_2, SEC_TAPS_2_2, "16", "8");
    }
}
#endif

/* Adds to the sums of four places side by side, `stride` apart: rows of `pairs` pairs. */
SEC_ALONE void sec_four_places(const int16_t *x, int stride, int down, const int16_t *taps, int rows, int pairs, int32_t *sums) {
    int32_t first = sums[0], second = sums[1], third = sums[2], fourth = sums[3];
#ifdef SEC_DSP
    const int apart = 2 * stride, far = 6 * stride, next = 2 * down;
    const int16_t *at;
    int32_t word, seen;
    int left;
    __asm__ volatile(
        "0:\n\tmov %[at], %[x]\n\tldr %[left], %[pairs]\n"
        "1:\n\tldr %[word], [%[taps]], #4\n\tldr %[seen], [%[at]]\n\tsmlad %[first], %[word], %[seen], %[first]\n\tldr %[seen], [%[at], %[apart]]\n\t"
        "smlad %[second], %[word], %[seen], %[second]\n\tldr %[seen], [%[at], %[apart], lsl #1]\n\tsmlad %[third], %[word], %[seen], %[third]\n\t"
        "ldr %[seen], [%[at], %[far]]\n\tsmlad %[fourth], %[word], %[seen], %[fourth]\n\tadds %[at], %[at], #4\n\tsubs %[left], %[left], #1\n\tbne 1b\n\t"
        "ldr %[seen], %[next]\n\tadd %[x], %[x], %[seen]\n\tsubs %[rows], %[rows], #1\n\tbne 0b"
        : [x] "+r"(x), [taps] "+r"(taps), [rows] "+r"(rows), [first] "+r"(first), [second] "+r"(second), [third] "+r"(third),
          [fourth] "+r"(fourth), [at] "=&r"(at), [word] "=&r"(word), [seen] "=&r"(seen), [left] "=&r"(left)
        : [apart] "r"(apart), [far] "r"(far), [next] "m"(next), [pairs] "m"(pairs)
        : "cc", "memory");
#else
    for (int row = 0; row < rows; row++, x += down) {
        const int16_t *at = x, *const end = x + 2 * pairs;
        for (; at < end; at++) {
            const int32_t tap = *taps++;
            first += tap * at[0];
            second += tap * at[stride];
            third += tap * at[2 * stride];
            fourth += tap * at[3 * stride];
        }
    }
#endif
    sums[0] = first;
    sums[1] = second;
    sums[2] = third;
    sums[3] = fourth;
}

/* One row of a channel of the result; taps are doubled where that is easy. */
static void sec_line_of_places(const int16_t *x, int down, const int16_t *taps, const int32_t *row, const int16_t *shape, int count,
                               int out_step, int8_t *y) {
    const int rows = shape[SEC_KERNEL_H], pairs = sec_even(shape[SEC_KERNEL_W]) / 2, stride = shape[SEC_STRIDE_W], easy = shape[SEC_EASY];
    const int32_t start = row[SEC_START], multiplier = row[SEC_MULTIPLIER], shift = row[SEC_SHIFT], zero = shape[SEC_ZERO_OUT];
    for (; count > 0; count -= 4, x += 4 * stride) {
        int32_t sums[4] = {start, start, start, start};
        sec_four_places(x, stride, down, taps, rows, pairs, sums);
        for (int each = 0; each < 4 && each < count; each++, y += out_step) {
            *y = (int8_t)(easy ? sec_easy(sums[each], multiplier, shift, zero)
                               : sec_scaled(sums[each], multiplier, shift, zero, shape[SEC_LOW], shape[SEC_HIGH]));
        }
    }
}

/* A channel of the result, `out_h` rows of it, out of a plane. */
static void sec_plane(const int16_t *plane, int pitch, const int8_t *weights, int16_t *taps, const int32_t *row, const int16_t *shape,
                      int out_h, int out_w, int out_row, int out_step, int8_t *y) {
    const int rows = shape[SEC_KERNEL_H], across = shape[SEC_KERNEL_W], factor = shape[SEC_EASY] ? 2 : 1;
    const int down = shape[SEC_DILATION_H] * pitch, jump = shape[SEC_STRIDE_H] * pitch;
    int16_t *next = taps;
#ifdef SEC_DSP
    const int stride = shape[SEC_STRIDE_W];
    if (factor == 2 && rows == 3 && across == 3 && (stride == 1 || stride == 2)) {
        for (int each = 0; each < 3; each++, next += 4, weights += 3) {
            next[0] = (int16_t)(2 * weights[0]);
            next[1] = next[2] = (int16_t)(2 * weights[1]);
            next[3] = (int16_t)(2 * weights[2]);
        }
        sec_three_by_three(plane, 2 * down, 2 * jump, taps, row, shape[SEC_ZERO_OUT], stride, y, out_h, out_row, out_step, out_w);
        out_h = shape[SEC_CLAMPS] ? out_h : 0;
        for (; out_h > 0; out_h--, y += out_row) {
            sec_clamp(y, out_w, out_step, shape);
        }
        return;
    }
#endif
    for (int each = 0; each < rows; each++) {
        for (int tap = 0; tap < across; tap++) {
            *next++ = (int16_t)(factor * *weights++);
        }
        if (across % 2) {
            *next++ = 0;
        }
    }
    for (int oy = 0; oy < out_h; oy++, plane += jump, y += out_row) {
        sec_line_of_places(plane, down, taps, row, shape, out_w, out_step, y);
        sec_clamp(y, out_w, out_step, shape);
    }
}

/* Up to four channels of the rows from `iy` on as planes; padding is written where it is not there yet. */
static void sec_planes(const int8_t *x, int iy, int count, int in_h, int in_w, int in_row, int in_step, int left, int channels, int pitch,
                       int zero, int first, int16_t *to) {
    const int plane = count * pitch, room = pitch - left, some = in_w < room ? in_w : room;
    for (int row = 0; row < count; row++, iy++, to += pitch) {
        const int there = iy >= 0 && iy < in_h && some > 0;
        const int from = there ? left + some : 0;
        for (int channel = 0; first && channel < channels; channel++) {
            sec_fill(to + channel * plane, (int16_t)zero, there ? left : 0);
            sec_fill(to + channel * plane + from, (int16_t)zero, pitch - from);
        }
        if (there) {
            sec_spread(x + iy * in_row, in_step, some, channels, to + left, plane);
        }
    }
}

/* A depthwise convolution, SEC_BAND rows of the result at a time. `shape` says rows and columns the other way round where it is turned.
   `scratch`: four planes, then taps as pairs. */
static void sec_depthwise(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const int8_t *weights, const int32_t *rows,
                          int in_h, int in_w, int in_row, int out_h, int out_w, int out_row, int top, int left) {
    const int channels = shape[SEC_GROUPS], each = shape[SEC_OUTPUTS], turned = shape[SEC_TURNED], size = shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W];
    const int h = turned ? in_w : in_h, w = turned ? in_h : in_w, high = turned ? out_w : out_h, wide = turned ? out_h : out_w;
    const int row = turned ? channels : in_row, step = turned ? in_row : channels;
    const int to_row = turned ? channels * each : out_row, to_step = turned ? out_row : channels * each;
    const int above = turned ? left : top, before = turned ? top : left;
    const int pitch = sec_even(((wide + 3) / 4 * 4 - 1) * shape[SEC_STRIDE_W] + sec_even(shape[SEC_KERNEL_W]));
    int16_t *const planes = (int16_t *)scratch;
    for (int oy = 0; oy < high; oy += shape[SEC_BAND]) {
        const int some = high - oy < shape[SEC_BAND] ? high - oy : shape[SEC_BAND];
        const int count = (some - 1) * shape[SEC_STRIDE_H] + (shape[SEC_KERNEL_H] - 1) * shape[SEC_DILATION_H] + 1;
        for (int channel = 0; channel < channels; channel += 4) {
            const int few = channels - channel < 4 ? channels - channel : 4;
            sec_planes(x + channel, oy * shape[SEC_STRIDE_H] - above, count, h, w, row, step, before, few, pitch, shape[SEC_ZERO],
                       channel == 0, planes);
            for (int output = channel * each; output < (channel + few) * each; output++) {
                sec_plane(planes + (output / each - channel) * count * pitch, pitch, weights + output * size, planes + 4 * count * pitch,
                          rows + SEC_ROW * output, shape, some, wide, to_row, to_step, y + oy * to_row + output);
            }
        }
    }
}
