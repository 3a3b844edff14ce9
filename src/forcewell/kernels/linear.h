// Linear maps, their reverse and their gradients, by whichever products the instruction set has.

static void pack_linear(const Linear& f) {
    if (f.half) {
        products::pack(f.in, f.out, f.w, 1, f.in, (Half*)f.forward_panels);
        products::pack(f.out, f.in, f.w, f.in, 1, (Half*)f.backward_panels);
    } else {
        products::pack(f.in, f.out, f.w, 1, f.in, (float*)f.forward_panels);
        products::pack(f.out, f.in, f.w, f.in, 1, (float*)f.backward_panels);
    }
}

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
// The gradients of a weight matrix and of its bias.
template <Goal G>
static inline void gradient(const Linear& f, long M, Array ybar, Array x, long ldx) {
    if (!dual(G)) ybar = {0, ybar.v}, x = {x.v, 0};
    products::outer(M, f.out, f.in, ybar, f.out, x, ldx, f.gw);
    if (!f.b) return;
    for (long m = 0; m < M; m++)
        for (long n = 0; n < f.out; n += VL) store(f.gb + n, load(f.gb + n) + load(ybar.d + m * f.out + n));
}
