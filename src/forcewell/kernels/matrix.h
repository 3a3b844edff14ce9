// Matrix products with small row counts: C (M, N) = A (M, K) B (K, N), B in panels of TILE vectors of columns, floats or
// bfloat16 (S), which is widened on loading.

namespace by_vectors {
// Tiles of 6 rows: 24 accumulators of 32 registers with AVX-512, 12 of 16 elsewhere. Of a single vector more, as a sum takes 4 cycles
// and there are two at a time; but rows of a matrix may lie 4 KiB apart, and a first cache holds eight such lines.
enum { TILE = VL == 16 ? 4 : 2, PANEL = TILE * VL };
constexpr int rows_of(int vectors, bool turned) { return vectors > 1 ? 6 : turned ? 12 : 8; }

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

// rows x (vectors * VL) of C. `turned`: A is given as (K, M) with row length lda, as in a sum over samples. ahead: from one panel to the next.
template <int rows, int vectors, bool turned, class S>
static inline void tile(long K, const float* A, long lda, const S* B, long ldb, long ahead, const float* bias, bool accumulate, float* C, long ldc) {
    vf c[rows][vectors];  // every loop over it is unrolled, or the compiler keeps it in memory
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int w = 0; w < vectors; w++) c[r][w] = bias ? load(bias + w * VL) : vf{};
    for (long k = 0; k < K; k++) {
        if (!turned) __builtin_prefetch(B + k * ldb + ahead, 0, 2);  // the next panel, while rows go through this one
        vf b[vectors];
        widen<vectors>(B + k * ldb, b);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            float a = turned ? A[k * lda + r] : A[r * lda + k];
#pragma GCC unroll 4
            for (int w = 0; w < vectors; w++) c[r][w] += a * b[w];
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int w = 0; w < vectors; w++) {
            float* to = C + r * ldc + w * VL;
            store(to, accumulate ? load(to) + c[r][w] : c[r][w]);
        }
}

// The tile of so many rows, at most `rows`.
template <int rows, int vectors, bool turned, class S>
static inline void tile_of(long wanted, long K, const float* A, long lda, const S* B, long ldb, long ahead, const float* bias, bool accumulate, float* C, long ldc) {
    if constexpr (rows > 1)
        if (wanted < rows) return tile_of<rows - 1, vectors, turned>(wanted, K, A, lda, B, ldb, ahead, bias, accumulate, C, ldc);
    tile<rows, vectors, turned>(K, A, lda, B, ldb, ahead, bias, accumulate, C, ldc);
}

// windows: of the rows of A as it lies, or null.
template <int vectors, bool turned, class S>
static void strip(long M, long K, const float* A, long lda, const S* B, long ldb, const float* bias, bool accumulate, float* C, long ldc, const Window* windows = 0) {
    constexpr int most = rows_of(vectors, turned);
    const long blocks = (M + most - 1) / most;
    for (long block = 0, done = 0; block < blocks; block++) {
        const long rows = (M - done + (blocks - block) - 1) / (blocks - block);  // blocks of nearly equal height
        long low = 0, high = K;
        if (!turned && windows) {
            low = windows[done].low, high = windows[done].high;
            for (long m = done + 1; m < done + rows; m++) low = windows[m].low < low ? windows[m].low : low, high = windows[m].high > high ? windows[m].high : high;
        }
        const float* a = A + (turned ? done : done * lda + low);
        tile_of<most, vectors, turned>(rows, high - low, a, lda, B + low * ldb, ldb, K * ldb, bias, accumulate, C + done * ldc, ldc);
        done += rows;
    }
}

template <bool turned, class S>
static inline void panel(int vectors, long M, long K, const float* A, long lda, const S* B, long ldb, const float* bias, bool accumulate, float* C, long ldc, const Window* windows = 0) {
    switch (vectors) {
        case 1: strip<1, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc, windows); break;
        case 2: strip<2, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc, windows); break;
#if VL == 16
        case 3: strip<3, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc, windows); break;
        case 4: strip<4, turned>(M, K, A, lda, B, ldb, bias, accumulate, C, ldc, windows); break;
#endif
    }
}

// B in panels, one after the other: (K, width) each. windows: rows of A are zero outside of them, and not multiplied there.
template <class S>
static void product(long M, long N, long K, const float* A, long lda, const S* packed, const float* bias, bool accumulate, float* C, long ldc, const Window* windows = 0) {
    for (long n = 0; n < N; n += PANEL) {
        int width = N - n < PANEL ? N - n : PANEL;
        panel<false>(width / VL, M, K, A, lda, packed + n * K, width, bias ? bias + n : 0, accumulate, C + n, ldc, windows);
    }
}

// C += A B, of each row at least the columns of its window.
template <class S>
static void product_within(long M, long N, long K, const float* A, long lda, const S* packed, float* C, long ldc, const Window* windows) {
    constexpr long step = sizeof(S) == 2 ? 2 * VL : VL;  // vectors of bfloat16 are packed by twos
    for (long m = 0, end; m < M; m = end) {
        const long low = windows[m].low / step, high = (windows[m].high + step - 1) / step;
        for (end = m + 1; end < M && windows[end].low / step == low && (windows[end].high + step - 1) / step == high;) end++;
        for (long n = low * step / PANEL * PANEL; n < high * step; n += PANEL) {
            const long width = N - n < PANEL ? N - n : PANEL;
            long from = low * step < n ? 0 : low * step - n, to = high * step - n < width ? high * step - n : width;
            if (sizeof(S) == 2 && width / VL % 2) from = 0, to = width;  // but those of an odd panel
            panel<false>((to - from) / VL, end - m, K, A + m * lda, lda, packed + n * K + from, width, 0, true, C + m * ldc + n + from, ldc);
        }
    }
}

static void outer(long M, long N, long K, const float* Y, long ldy, const float* X, long ldx, float* G) {
    for (long k = 0; k < K; k += PANEL) {
        int width = K - k < PANEL ? K - k : PANEL;
        panel<true>(width / VL, N, M, Y, ldy, X + k, ldx, 0, true, G + k, K);
    }
}

// G (N, K) += Y (M, N)^T X (M, K), where rows of X are zero outside of their windows. Those that are alike follow each other, mostly.
static void outer_within(long M, long N, long K, const float* Y, long ldy, const float* X, long ldx, float* G, const Window* windows) {
    for (long k = 0; k < K; k += VL) {
        const auto outside = [&](long m) { return windows[m].low >= k + VL || windows[m].high <= k; };
        long from = 0, to = M;
        while (from < to && outside(from)) from++;
        while (from < to && outside(to - 1)) to--;
        if (from < to) strip<1, true>(N, to - from, Y + from * ldy, ldy, X + from * ldx + k, ldx, 0, true, G + k, K);
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
