// Sums over samples by AMX tiles, part of tiles.h: A is turned, and B what the layer had as its input.

#define LANES(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
// Of 2 d lanes, exchanges the second half of each d in a with the first of b: with d = 8, 4, 2 and 1, a 16 x 16 matrix is turned.
template <int d>
static inline void exchange(vu& a, vu& b) {
#define LOW(l) ((l) & d ? 16 + (l) - d : (l))
#define HIGH(l) ((l) & d ? 16 + (l) : (l) + d)
    const vu low = __builtin_shufflevector(a, b, LANES(LOW)), high = __builtin_shufflevector(a, b, LANES(HIGH));
#undef LOW
#undef HIGH
    a = low, b = high;
}
#undef LANES
template <int d>
static inline void exchange_all(vu* v) {
#pragma GCC unroll 16
    for (int k = 0; k < 16; k++)
        if (!(k & d)) exchange<d>(v[k], v[k + d]);
}
static inline void turn(vu* v) { exchange_all<8>(v), exchange_all<4>(v), exchange_all<2>(v), exchange_all<1>(v); }

// Samples of two arrays, one after the other.
struct Samples {
    const float *one, *two;
    long each, total, row;
    const float* at(long m) const { return m < each ? one + m * row : two + (m - each) * row; }
};

// Into `left` the columns of A, samples from m on, in three parts, filled up with zeros.
static void split_turned(Scratch& s, const Rows& r, const Samples& A, long from, long depth, long column) {
    for (long n = 0; n < r.count; n += 16)
        for (long x = 0; x < depth; x++) {
            vu parts[3][16];
#pragma GCC unroll 16
            for (int p = 0; p < 16; p++) {
                const long m = from + x * SPAN + 2 * p;
                vf a = m < A.total ? load(A.at(m) + column + n) : vf{}, b = m + 1 < A.total ? load(A.at(m + 1) + column + n) : vf{};
                parts[0][p] = pair(a, b);
                a = rest(a), b = rest(b);
                parts[1][p] = pair(a, b), parts[2][p] = pair(rest(a), rest(b));
            }
            for (int part = 0; part < 3; part++) {
                turn(parts[part]);
                for (int k = 0; k < 16; k++) put(s.left + ((x * r.tiles + n / SIDE) * PARTS + 2 - part) * TILE + k * SPAN, parts[part][k]);
            }
        }
}

static void pack_samples(Scratch& s, const Samples& B, long from, long depth, long column, long width) {
    for (long m = 0; m < depth * SPAN; m++)
        for (long n = 0; n < width; n += SIDE)
            store(s.samples + n * depth * SPAN + m * SIDE, from + m < B.total ? load(B.at(from + m) + column + n) : vf{});
}

// G (N, K) += the sum over samples of ybar and x and its derivative: ybar.d x.v + ybar.v x.d, the latter where there is x.d.
static void outer(long M, long N, long K, Array y, long ldy, Array x, long ldx, float* G) {
    const long total = x.d ? 2 * M : M;
    if (total < SPAN || K < 8 * SIDE) return by_vectors::outer(M, N, K, y, ldy, x, ldx, G);
    const Samples A = {y.d, y.v, M, total, ldy}, B = {x.v, x.d, M, total, ldx};
    Scratch& s = scratch();
    for (long k = 0; k < K; k += WIDTH)
        for (long m = 0; m < total; m += DEPTH * SPAN) {
            const long width = K - k < WIDTH ? K - k : WIDTH, depth = blocks_of(total - m < DEPTH * SPAN ? total - m : DEPTH * SPAN);
            pack_samples(s, B, m, depth, k, width);
            for (long n = 0; n < N; n += GROUP) {
                const Rows r = configure(N - n < GROUP ? N - n : GROUP);
                split_turned(s, r, A, m, depth, n);
                multiply(s, r, width, Blocks<float>{s.samples, depth, depth * TILE}, 0, true, G + n * K + k, K);
            }
        }
}
