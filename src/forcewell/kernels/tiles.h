// Matrix products by AMX tiles: up to 64 rows of A times blocks of 32 x 16 of B, each number in three bfloat16 that add up to it
// exactly (8 + 8 + 8 bits). Of the nine products of parts six are summed, in float32; the others are below 2^-23 of the result.

namespace by_tiles {
enum { SIDE = 16, SPAN = 32, TILE = SIDE * SPAN, PARTS = 3, DEPTH = 8, GROUP = 4 * SIDE, WIDTH = 16 * SIDE };

struct Scratch {                            // what a thread's products work on
    Half left[DEPTH * 4 * PARTS * TILE];    // A: block, tile of rows, part (the least first), (row, 32)
    Half right[2 * PARTS * TILE];           // B: two blocks in turns, part (the least first), (pair of rows, column, 2)
    float samples[DEPTH * SPAN * WIDTH];    // B of a sum over samples
};
struct Owner {  // frees it with the thread
    void* memory = nullptr;
    ~Owner() { free(memory); }
};
static thread_local Owner owner;
static Scratch& scratch() {
    if (!owner.memory && posix_memalign(&owner.memory, 64, sizeof(Scratch))) abort();
    return *(Scratch*)owner.memory;
}

// Tiles 0 to 3 are C's, 4 is A's, and 5 to 7 the parts of B, the least first. The time of a product follows the rows of tiles, which
// are no more than needed; the last tile of rows ends with A and may share rows with the one before, which come out the same.
struct Rows {
    long count, tiles, height;
    long start(long tile) const { return tile + 1 < tiles ? tile * height : count - height; }
};
static Rows configure(long count) {
    const long tiles = (count + SIDE - 1) / SIDE, height = (count + tiles - 1) / tiles;
    struct alignas(64) {
        unsigned char palette = 1, start = 0, zeros[14] = {};
        unsigned short bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        unsigned char rows[16] = {};
    } setting;
    for (int k = 0; k < 8; k++) setting.rows[k] = k < 5 ? height : SIDE;
    __asm__ volatile("" : : "r"(&setting) : "memory");
    _tile_loadconfig(&setting);
    return {count, tiles, height};
}

static inline vu upper(vf x) { return (vu)x & 0xffff0000u; }
// What is left of numbers after their first part, and the first parts of two numbers in one lane.
static inline vf rest(vf x) { return x - (vf)upper(x); }
static inline vu pair(vf a, vf b) { return (vu)a >> 16 | upper(b); }
static inline void put(Half* to, vu x) { __builtin_memcpy(__builtin_assume_aligned(to, 64), &x, 64); }

// Rows 2p and 2p + 1 of a block of B in their parts.
static inline void split(const float* from, Half* to, int p) {
    vf a = load(from + 2 * p * SIDE), b = load(from + (2 * p + 1) * SIDE);
    put(to + 2 * TILE + p * SPAN, pair(a, b));
    a = rest(a), b = rest(b);
    put(to + TILE + p * SPAN, pair(a, b));
    put(to + p * SPAN, pair(rest(a), rest(b)));
}

// What is done between tile instructions, which take 16 cycles each: splits the next block of B, early enough that it is in the
// first cache when it is wanted. Left to the processor's own reordering, all this took half as long again.
struct Split {
    const float* from;
    Half* to;
    template <int tiles, int slot>
    inline __attribute__((always_inline)) void run() const {
        constexpr int each = tiles < 3 ? 4 / tiles : 1;
#pragma GCC unroll 4
        for (int p = slot * each; p < (slot + 1) * each; p++)
            if (p < SIDE) {
                const float* row = from + 2 * p * SIDE;
                __builtin_prefetch(row + 4 * TILE, 0, 2), __builtin_prefetch(row + SIDE + 4 * TILE, 0, 2);  // four blocks ahead, from far away
                split(from, to, p);
            }
        __asm__ volatile("" : : : "memory");
    }
};
struct Nothing {
    template <int, int>
    void run() const {}
};

// The compiler's tile instructions may be statements and want numbers, so that each tile of C has its own text.
#define TILE_OF_C(number)                                                                            \
    template <int tiles, class Between>                                                              \
    static inline __attribute__((always_inline)) void rows_##number(const Half* A, const Between& between) { \
        enum { SLOT = 6 * number };                                                                  \
        _tile_loadd(4, A, 64);                                                                       \
        _tile_dpbf16ps(number, 4, 7);                                                                \
        between.template run<tiles, SLOT>();                                                         \
        _tile_loadd(4, A + TILE, 64);                                                                \
        _tile_dpbf16ps(number, 4, 6);                                                                \
        between.template run<tiles, SLOT + 1>();                                                     \
        _tile_dpbf16ps(number, 4, 7);                                                                \
        between.template run<tiles, SLOT + 2>();                                                     \
        _tile_loadd(4, A + 2 * TILE, 64);                                                            \
        _tile_dpbf16ps(number, 4, 5);                                                                \
        between.template run<tiles, SLOT + 3>();                                                     \
        _tile_dpbf16ps(number, 4, 6);                                                                \
        between.template run<tiles, SLOT + 4>();                                                     \
        _tile_dpbf16ps(number, 4, 7);                                                                \
        between.template run<tiles, SLOT + 5>();                                                     \
    }                                                                                                \
    static inline void load_##number(const float* from, long bytes) { _tile_loadd(number, from, bytes); } \
    static inline void store_##number(float* to, long bytes) { _tile_stored(number, to, bytes); }
TILE_OF_C(0)
TILE_OF_C(1)
TILE_OF_C(2)
TILE_OF_C(3)
#undef TILE_OF_C

// Of B in bfloat16 there is one part; each tile of A is used for two tiles of columns, 7 and 6.
#define TILES_OF_C(number, other)                                         \
    template <bool both>                                                  \
    static inline void pair_##number(const Half* A) {                     \
        _tile_loadd(4, A, 64);                                            \
        _tile_dpbf16ps(number, 4, 7);                                     \
        if (both) _tile_dpbf16ps(other, 4, 6);                            \
        _tile_loadd(4, A + TILE, 64);                                     \
        _tile_dpbf16ps(number, 4, 7);                                     \
        if (both) _tile_dpbf16ps(other, 4, 6);                            \
        _tile_loadd(4, A + 2 * TILE, 64);                                 \
        _tile_dpbf16ps(number, 4, 7);                                     \
        if (both) _tile_dpbf16ps(other, 4, 6);                            \
    }
TILES_OF_C(0, 2)
TILES_OF_C(1, 3)
#undef TILES_OF_C

// C += A B of one block.
template <int tiles, class Between>
static inline __attribute__((always_inline)) void block(const Half* A, const Half* B, const Between& between) {
    _tile_loadd(7, B + 2 * TILE, 64);
    _tile_loadd(6, B + TILE, 64);
    _tile_loadd(5, B, 64);
    rows_0<tiles>(A, between);
    if (tiles > 1) rows_1<tiles>(A + PARTS * TILE, between);
    if (tiles > 2) rows_2<tiles>(A + 2 * PARTS * TILE, between);
    if (tiles > 3) rows_3<tiles>(A + 3 * PARTS * TILE, between);
}
// C's tiles from memory, or `same` row for all, and to memory.
template <int tiles>
static inline void open(const Rows& r, const float* C, long ldc, bool same) {
    const long bytes = same ? 0 : ldc * 4;
    load_0(C, bytes);
    if (tiles > 1) load_1(same ? C : C + r.start(1) * ldc, bytes);
    if (tiles > 2) load_2(same ? C : C + r.start(2) * ldc, bytes);
    if (tiles > 3) load_3(same ? C : C + r.start(3) * ldc, bytes);
}
template <int tiles>
static inline void close(const Rows& r, float* C, long ldc) {
    store_0(C, ldc * 4);
    if (tiles > 1) store_1(C + r.start(1) * ldc, ldc * 4);
    if (tiles > 2) store_2(C + r.start(2) * ldc, ldc * 4);
    if (tiles > 3) store_3(C + r.start(3) * ldc, ldc * 4);
}

static const float zeros[SIDE] = {};

// Fetches 16 columns of C to be written, which are far apart.
static inline void fetch(const Rows& r, const float* C, long ldc) {
    for (long m = 0; m < r.count; m++) __builtin_prefetch(C + m * ldc, 1);
}

// B's blocks of `depth` times 32 summed indices; from one 16 columns to the next `strip` numbers.
template <class S>
struct Blocks {
    const S* from;
    long depth, strip;
};

template <int tiles>
static inline void strip(Scratch& s, const Blocks<float>& B, long n, bool last) {
    const Half* A = s.left;
    for (long x = 0; x < B.depth; x++, A += tiles * PARTS * TILE) {
        const bool turn = x + 1 == B.depth;
        const float* next = B.from + (turn ? n + !last : n) * B.strip + (turn ? 0 : x + 1) * TILE;
        const long here = (n * B.depth + x) & 1;
        block<tiles>(A, s.right + here * PARTS * TILE, Split{next, s.right + (1 - here) * PARTS * TILE});
    }
}

// C (rows, N) = bias, or C itself where `more` comes, + what is in `left` times B.
template <int tiles>
static void multiply(Scratch& s, const Rows& r, long N, const Blocks<float>& B, const float* bias, bool more, float* C, long ldc) {
    for (int p = 0; p < SIDE; p++) split(B.from, s.right, p);
    __asm__ volatile("" : : : "memory");
    for (long n = 0; n < N; n += SIDE) {
        fetch(r, C + n + 2 * SIDE, ldc);
        open<tiles>(r, more ? C + n : bias ? bias + n : zeros, ldc, !more);
        strip<tiles>(s, B, n / SIDE, n + SIDE >= N);
        close<tiles>(r, C + n, ldc);
    }
}
// The same for 16 columns, or for 32 where `both`.
template <int tiles, bool both>
static inline void strip(Scratch& s, const Rows& r, const Blocks<Half>& B, const float* bias, bool more, float* C, long ldc) {
    const float *from = more ? C : bias ? bias : zeros, *second = from + (more || bias ? SIDE : 0);
    const long bytes = more ? ldc * 4 : 0, down = tiles > 1 ? r.start(1) * ldc : 0;
    fetch(r, C + 2 * SIDE, ldc), fetch(r, C + 3 * SIDE, ldc);
    load_0(from, bytes);
    if (tiles > 1) load_1(more ? from + down : from, bytes);
    if (both) load_2(second, bytes);
    if (both && tiles > 1) load_3(more ? second + down : second, bytes);
    for (long x = 0; x < B.depth; x++) {
        const Half *A = s.left + x * tiles * PARTS * TILE, *b = B.from + x * TILE;
        _tile_loadd(7, b, 64);
        if (both) _tile_loadd(6, b + B.strip, 64);
        pair_0<both>(A);
        if (tiles > 1) pair_1<both>(A + PARTS * TILE);
    }
    store_0(C, ldc * 4);
    if (tiles > 1) store_1(C + down, ldc * 4);
    if (both) store_2(C + SIDE, ldc * 4);
    if (both && tiles > 1) store_3(C + SIDE + down, ldc * 4);
}
template <int tiles>
static void multiply(Scratch& s, const Rows& r, long N, Blocks<Half> B, const float* bias, bool more, float* C, long ldc) {
    long n = 0;
    __asm__ volatile("" : : : "memory");
    for (; n + 2 * SIDE <= N; n += 2 * SIDE, B.from += 2 * B.strip) strip<tiles, true>(s, r, B, bias ? bias + n : 0, more, C + n, ldc);
    if (n < N) strip<tiles, false>(s, r, B, bias ? bias + n : 0, more, C + n, ldc);
}
static void multiply(Scratch& s, const Rows& r, long N, const Blocks<float>& B, const float* bias, bool more, float* C, long ldc) {
    switch (r.tiles) {
        case 1: multiply<1>(s, r, N, B, bias, more, C, ldc); break;
        case 2: multiply<2>(s, r, N, B, bias, more, C, ldc); break;
        case 3: multiply<3>(s, r, N, B, bias, more, C, ldc); break;
        case 4: multiply<4>(s, r, N, B, bias, more, C, ldc); break;
    }
}
static void multiply(Scratch& s, const Rows& r, long N, const Blocks<Half>& B, const float* bias, bool more, float* C, long ldc) {
    r.tiles == 1 ? multiply<1>(s, r, N, B, bias, more, C, ldc) : multiply<2>(s, r, N, B, bias, more, C, ldc);
}

typedef Half vhh __attribute__((vector_size(64)));
// The upper halves of two vectors in a row.
static inline vu follow(vf a, vf b) {
    return (vu)__builtin_shufflevector((vhh)a, (vhh)b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63);
}

// K numbers of each row of A into `left`, in three parts, filled up with zeros.
static void split_rows(Scratch& s, const Rows& r, long K, const float* A, long lda) {
    for (long tile = 0; tile < r.tiles; tile++)
        for (long m = 0; m < r.height; m++) {
            const float* from = A + (r.start(tile) + m) * lda;
            Half* to = s.left + tile * PARTS * TILE + m * SPAN;
            for (long k = 0; k < K; k += SPAN, to += r.tiles * PARTS * TILE) {
                vf a = load(from + k), b = k + SIDE < K ? load(from + k + SIDE) : vf{};
                put(to + 2 * TILE, follow(a, b));
                a = rest(a), b = rest(b);
                put(to + TILE, follow(a, b));
                put(to, follow(rest(a), rest(b)));
            }
        }
}

static inline long blocks_of(long n) { return (n + SPAN - 1) / SPAN; }

// B packed in blocks: 16 columns, 32 rows.
template <class S>
static void product(long M, long N, long K, const float* A, long lda, const S* packed, const float* bias, bool accumulate, float* C, long ldc) {
    Scratch& s = scratch();
    const long most = sizeof(S) == 2 ? GROUP / 2 : GROUP, groups = (M + most - 1) / most;
    for (long g = 0, m = 0; g < groups; g++) {
        const long count = (M - m + (groups - g) - 1) / (groups - g);
        const Rows r = configure(count);
        for (long k = 0; k < K; k += DEPTH * SPAN) {
            const long depth = K - k < DEPTH * SPAN ? K - k : DEPTH * SPAN;
            split_rows(s, r, depth, A + m * lda + k, lda);
            multiply(s, r, N, Blocks<S>{packed + k * SIDE, blocks_of(depth), blocks_of(K) * TILE}, bias, accumulate || k, C + m * ldc, ldc);
        }
        m += count;
    }
}

static inline void write(float* block, long k, long n, float x) { block[k * SIDE + n] = x; }
static inline void write(Half* block, long k, long n, float x) { block[k / 2 * SPAN + n * 2 + k % 2] = to_half(x); }

// Packs B (K, N) given by B[k][n] = from[k * row + n * column], filled up with zeros.
template <class S>
static void pack(long K, long N, const float* from, long row, long column, S* to) {
    for (long n = 0; n < N; n += SIDE)
        for (long k = 0; k < K; k += SPAN, to += TILE)
            for (long i = 0; i < SPAN; i++)
                for (long j = 0; j < SIDE; j++) write(to, i, j, k + i < K ? from[(k + i) * row + (n + j) * column] : 0.0f);
}
#include "samples.h"
}
