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

static inline float sec_abs(float x) {
    return fabsf(x);
}

static inline float sec_exp(float x) {
    return expf(x);
}

static inline float sec_square(float x) {
    return x * x;
}

static inline float sec_softsign(float x) {
    return x / (1.0f + fabsf(x));
}

static inline float sec_log_sigmoid(float x) {
    return (x < 0.0f ? x : 0.0f) - log1pf(expf(-fabsf(x)));
}

/* Those with numbers of their own; all have three. */
static inline float sec_leaky_relu(float x, float slope, float b, float c) {
    (void)b, (void)c;
    return x > 0.0f ? x : slope * x;
}

static inline float sec_elu(float x, float alpha, float scale, float within) {
    return scale * (x > 0.0f ? x : alpha * expm1f(x * within));
}

static inline float sec_softplus(float x, float beta, float threshold, float c) {
    (void)c;
    return beta * x > threshold ? x : log1pf(expf(beta * x)) / beta;
}

static inline float sec_mish(float x) {
    return x * tanhf(sec_softplus(x, 1.0f, 20.0f, 0.0f));
}
