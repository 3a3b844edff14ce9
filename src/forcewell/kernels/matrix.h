// Matrix products with small row counts: C (M, N) = A (M, K) B (K, N), B in panels of TILE vectors of columns, floats or
// bfloat16 (S), which is widened on loading.

namespace by_vectors {
// Tiles of 6 rows: 24 accumulators of 32 registers with AVX-512, 12 of 16 elsewhere.
enum { TILE = VL == 16 ? 4 : 2, PANEL = TILE * VL, ROWS = 6 };

// A row of a panel. Two vectors of bfloat16 lie in one of whole floats, the first in its lower halves: to widen them is a shift
// and a mask, and no shuffle, which would compete with multiplications.
template <int vectors>
static inline void widen(const float* from, vf* b) {
#pragma GCC unroll 4
    for (int w = 0; w < vectors; w++) b[w] = load(from + w * VL);
}
template <int vectors>
static inline void widen(const Half* from, vf* b) {
    if constexpr (vectors % 2)
        for (int w = 0; w < vectors; w++) b[w] = load(from + w * VL);
    else
#pragma GCC unroll 2
        for (int w = 0; w < vectors; w += 2) {
            const vu both = (vu)load((const float*)(from + w * VL));
            b[w] = (vf)(both << 16), b[w + 1] = (vf)(both & 0xffff0000u);
        }
}

// rows x (vectors * VL) of C. `turned`: A is given as (K, M) with row length lda, as in a sum over samples.
template <int rows, int vectors, bool turned, class S>
static inline void tile(long K, const float* A, long lda, const S* B, long ldb, const float* bias, bool accumulate, float* C, long ldc) {
    vf c[rows][vectors];  // every loop over it is unrolled, or the compiler keeps it in memory
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int w = 0; w < vectors; w++) c[r][w] = bias ? load(bias + w * VL) : vf{};
    for (long k = 0; k < K; k++) {
        if (!turned) __builtin_prefetch(B + (K + k) * ldb, 0, 2);  // the next panel, while rows go through this one
        vf b[vectors];
        widen<vectors>(B + k * ldb, b);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            float a = turned ? A[k * lda + r] : A[r * lda + k];
#pragma GCC unroll 4
            for (int w = 0; w < vectors; w++) c[r][w] += a * b[w];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int w = 0; w < vectors; w++) {
            float* to = C + r * ldc + w * VL;
            store(to, accumulate ? load(to) + c[r][w] : c[r][w]);
        }
}

template <int vectors, bool turned, class S>
static void strip(long M, long K, const float* A, long lda, const S* B, long ldb, const float* bias, bool accumulate, float* C, long ldc) {
    long blocks = (M + ROWS - 1) / ROWS, done = 0;
    for (long block = 0; block < blocks; block++) {
        long rows = (M - done + (blocks - block) - 1) / (blocks - block);  // blocks of nearly equal height
        const float* a = A + (turned ? done : done * lda);
        float* c = C + done * ldc;
        switch (rows) {
            case 1: tile<1, vectors, turned>(K, a, lda, B, ldb, bias, accumulate, c, ldc); break;
            case 2: tile<2, vectors, turned>(K, a, lda, B, ldb, bias, accumulate, c, ldc); break;
            case 3: tile<3, vectors, turned>(K, a, lda, B, ldb, bias, accumulate, c, ldc); break;
            case 4: tile<4, vectors, turned>(K, a, lda, B, ldb, bias, accumulate, c, ldc); break;
            case 5: tile<5, vectors, turned>(K, a, lda, B, ldb, bias, accumulate, c, ldc); break;
            case 6: tile<6, vectors, turned>(K, a, lda, B, ldb, bias, accumulate, c, ldc); break;
        }
        done += rows;
    }
}

template <bool turned, class S>
static inline void panel(int vectors, long M, long K, const float* A, long lda, const S* B, long ldb, const float* bias, bool accumulate, float* C, long ldc) {
    switch (vectors) {
        case 1: strip<1, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc); break;
        case 2: strip<2, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc); break;
#if VL == 16
        case 3: strip<3, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc); break;
        case 4: strip<4, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc); break;
#endif
    }
}

// B in panels, one after the other: (K, width) each.
template <class S>
static void product(long M, long N, long K, const float* A, long lda, const S* packed, const float* bias, bool accumulate, float* C, long ldc) {
    for (long n = 0; n < N; n += PANEL) {
        int width = N - n < PANEL ? N - n : PANEL;
        panel<false>(width / VL, M, K, A, lda, packed + n * K, width, bias ? bias + n : 0, accumulate, C + n, ldc);
    }
}

static void outer(long M, long N, long K, const float* Y, long ldy, const float* X, long ldx, float* G) {
    for (long k = 0; k < K; k += PANEL) {
        int width = K - k < PANEL ? K - k : PANEL;
        panel<true>(width / VL, N, M, Y, ldy, X + k, ldx, 0, true, G + k, K);
    }
}

// G (N, K) += ybar (M, N)^T x (M, K): the derivative of a weight matrix's gradient, ybar.d^T x.v + ybar.v^T x.d, the latter where
// there is x.d.
static inline void outer(long M, long N, long K, Array ybar, long ldy, Array x, long ldx, float* G) {
    outer(M, N, K, ybar.d, ldy, x.v, ldx, G);
    if (x.d) outer(M, N, K, ybar.v, ldy, x.d, ldx, G);
}

static inline void write(float* row, long, long w, float x) { row[w] = x; }
static inline void write(Half* row, long width, long w, float x) {
    row[width / VL % 2 ? w : w / (2 * VL) * (2 * VL) + w % VL * 2 + w / VL % 2] = to_half(x);
}

// Packs B (K, N) given by B[k][n] = from[k * row + n * column].
template <class S>
static void pack(long K, long N, const float* from, long row, long column, S* to) {
    for (long n = 0; n < N; n += PANEL) {
        long width = N - n < PANEL ? N - n : PANEL;
        for (long k = 0; k < K; k++, to += width)
            for (long w = 0; w < width; w++) write(to, width, w, from[k * row + (n + w) * column]);
    }
}
}
