// Linear maps, their reverse and their gradients, by whichever products the instruction set has.

template <class S>
static void pack_as(const Linear& f) {
    products::pack(f.in, f.out, f.w, 1, f.in, (S*)f.forward_panels);
    products::pack(f.out, f.in, f.w, f.in, 1, (S*)f.backward_panels);
}
static void pack_linear(const Linear& f) { f.half ? pack_as<Half>(f) : pack_as<float>(f); }

// Y = X W^T + bias
static void product_forward(const Linear& f, long M, const float* X, long ldx, const float* bias, float* Y) {
    if (f.half)
        products::product(M, f.out, f.in, X, ldx, (const Half*)f.forward_panels, bias, false, Y, f.out);
    else
        products::product(M, f.out, f.in, X, ldx, (const float*)f.forward_panels, bias, false, Y, f.out);
}
// X (+)= Y W
static void product_back(const Linear& f, long M, const float* Y, float* X, long ldx, bool accumulate) {
    if (f.half)
        products::product(M, f.in, f.out, Y, f.out, (const Half*)f.backward_panels, 0, accumulate, X, ldx);
    else
        products::product(M, f.in, f.out, Y, f.out, (const float*)f.backward_panels, 0, accumulate, X, ldx);
}

template <bool D>
static inline void apply(const Linear& f, long M, Array x, long ldx, Array y) {
    product_forward(f, M, written<D>(x), ldx, D ? 0 : f.b, written<D>(y));
}
// xbar (+)= ybar W
template <bool D>
static inline void apply_back(const Linear& f, long M, Array ybar, Array xbar, long ldx, bool accumulate) {
    product_back(f, M, written<D>(ybar), written<D>(xbar), ldx, accumulate);
}
static inline void bias_gradient(const Linear& f, long M, const float* ybar) {
    for (long m = 0; m < M; m++)
        for (long n = 0; n < f.out; n += VL) store(f.gb + n, load(f.gb + n) + load(ybar + m * f.out + n));
}
// The gradients of a weight matrix and of its bias.
template <Goal G>
static inline void gradient(const Linear& f, long M, Array ybar, Array x, long ldx) {
    if (!dual(G)) ybar = {0, ybar.v}, x = {x.v, 0};
    products::outer(M, f.out, f.in, ybar, f.out, x, ldx, f.gw);
    if (f.b) bias_gradient(f, M, ybar.d);
}

// Maps of radial functions, of which a pair has 9 to 17 that are not zero, of whatever number. The others are left out of products by
// vectors, which then take no longer than AMX tiles, whose sums are of 32 at a time.
template <class S>
static void pack_filter_as(const Linear& f) {
    by_vectors::pack(f.in, f.out, f.w, 1, f.in, (S*)f.forward_panels);
    by_vectors::pack(f.out, f.in, f.w, f.in, 1, (S*)f.backward_panels);
}
static void pack_filter(const Linear& f) { f.half ? pack_filter_as<Half>(f) : pack_filter_as<float>(f); }

// y = x W^T + bias, with x (M, in)
template <bool D>
static void filter(const Linear& f, long M, Array x, const Window* windows, Array y) {
    const float *X = written<D>(x), *bias = D ? 0 : f.b;
    float* Y = written<D>(y);
    if (f.half)
        by_vectors::product(M, f.out, f.in, X, f.in, (const Half*)f.forward_panels, bias, false, Y, f.out, windows);
    else
        by_vectors::product(M, f.out, f.in, X, f.in, (const float*)f.forward_panels, bias, false, Y, f.out, windows);
}
// X += Y W, at least the numbers of the windows
static void filter_back(const Linear& f, long M, const float* Y, const Window* windows, float* X) {
    if (f.half)
        by_vectors::product_within(M, f.in, f.out, Y, f.out, (const Half*)f.backward_panels, X, f.in, windows);
    else
        by_vectors::product_within(M, f.in, f.out, Y, f.out, (const float*)f.backward_panels, X, f.in, windows);
}
// The gradients of a filter's weights and bias, from ybar (M, out) and x (M, in).
template <Goal G>
static void filter_gradient(const Linear& f, long M, Array ybar, Array x, const Window* windows) {
    if (!dual(G)) ybar = {0, ybar.v}, x = {x.v, 0};
    by_vectors::outer_within(M, f.out, f.in, ybar.d, f.out, x.v, f.in, f.gw, windows);
    if (x.d) by_vectors::outer_within(M, f.out, f.in, ybar.v, f.out, x.d, f.in, f.gw, windows);
    bias_gradient(f, M, ybar.d);
}
