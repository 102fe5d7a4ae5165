/* Functions of single numbers. */
static inline float sec_hard_sigmoid(float x) {
    const float found = x / 6.0f + 0.5f;
    return found < 0.0f ? 0.0f : found > 1.0f ? 1.0f : found;
}

static inline float sec_hard_swish(float x) {
    return x * sec_hard_sigmoid(x);
}

static inline float sec_sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

static inline float sec_silu(float x) {
    return x * sec_sigmoid(x);
}

static inline float sec_gelu(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

static inline float sec_gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

static inline float sec_tanh(float x) {
    return tanhf(x);
}
