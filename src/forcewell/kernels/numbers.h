// Vectors of VL floats, plain or with a derivative along one direction ("dual"), and the functions of them that the kernels use.
// Included once per instruction set, inside that set's namespace, after VL is defined. No standard templates here: their weak
// symbols would be shared between instruction sets.

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int vi __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));

static inline vf load(const float* p) { return *(const vf_unaligned*)p; }
static inline void store(float* p, vf x) { *(vf_unaligned*)p = x; }

// bfloat16, the upper half of a float.
typedef unsigned short Half;
typedef Half vh __attribute__((vector_size(VL * 2)));
typedef Half vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef unsigned vu __attribute__((vector_size(VL * 4)));
static inline vf load(const Half* p) { return (vf)(__builtin_convertvector((vh)*(const vh_unaligned*)p, vu) << 16); }
// To the nearest, of two as near the even one. NaN and infinity do not occur among weights.
static inline Half to_half(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    return (Half)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline vf splat(float x) { return vf{} + x; }

// Sum of the lanes, as a tree.
static inline float sum(vf x) {
#if VL == 16
    typedef float v8 __attribute__((vector_size(32)));
    v8 y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#elif VL == 8
    vf y = x;
#endif
#if VL >= 8
    typedef float v4 __attribute__((vector_size(16)));
    v4 z = __builtin_shufflevector(y, y, 0, 1, 2, 3) + __builtin_shufflevector(y, y, 4, 5, 6, 7);
#else
    vf z = x;
#endif
    z += __builtin_shufflevector(z, z, 2, 3, 0, 1);
    return z[0] + z[1];
}

// exp to 2 units in the last place; arguments are clamped to the range of normal numbers.
static inline vf exponential(vf x) {
    const vf most = splat(88.0f), least = splat(-87.0f);
    x = x > most ? most : x;
    x = x < least ? least : x;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
    vf t = x * 1.44269504f + magic;
    vf n = t - magic;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi bits = ((vi)t - (vi)magic + 127) << 23;
    return p * (vf)bits;
}

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

// A number, or with D its value and its derivative.
template <bool D>
struct Num {
    vf v;
};
template <>
struct Num<true> {
    vf v, d;
};
typedef Num<false> Plain;
typedef Num<true> Dual;

static inline Plain operator*(Plain a, Plain b) { return {a.v * b.v}; }
static inline Plain operator+(Plain a, Plain b) { return {a.v + b.v}; }
static inline Plain operator-(Plain a, Plain b) { return {a.v - b.v}; }
static inline Dual operator*(Dual a, Dual b) { return {a.v * b.v, a.v * b.d + a.d * b.v}; }
static inline Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.d + b.d}; }
static inline Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.d - b.d}; }

template <bool D>
static inline Num<D> get(Array a, long i) {
    if constexpr (D)
        return {load(a.v + i), load(a.d + i)};
    else
        return {load(a.v + i)};
}
template <bool D>
static inline void put(Array a, long i, Num<D> x) {
    if constexpr (D)
        store(a.d + i, x.d);
    else
        store(a.v + i, x.v);
}
template <bool D>
static inline void add(Array a, long i, Num<D> x) {
    if constexpr (D)
        store(a.d + i, load(a.d + i) + x.d);
    else
        store(a.v + i, load(a.v + i) + x.v);
}
// One scalar of an array in all lanes.
template <bool D>
static inline Num<D> one(Array a, long i) {
    if constexpr (D)
        return {splat(a.v[i]), splat(a.d[i])};
    else
        return {splat(a.v[i])};
}
template <bool D>
static inline Num<D> constant(vf x) {
    if constexpr (D)
        return {x, vf{}};
    else
        return {x};
}
// Sums of the lanes into place i.
template <bool D>
static inline void sum_into(float* v, float* d, int i, Num<D> x) {
    v[i] = sum(x.v);
    if constexpr (D) d[i] = sum(x.d);
}
template <bool D>
static inline float* written(Array a) {
    return D ? a.d : a.v;
}
static inline vf written(Plain x) { return x.v; }
static inline vf written(Dual x) { return x.d; }

// SiLU and its derivative of one argument; with D, each with its own derivative.
template <bool D>
struct Silu {
    Num<D> value, slope;
};
template <bool D>
static inline Silu<D> silu(Num<D> x) {
    vf s = sigmoid(x.v);
    vf slope = s * (1.0f + x.v * (1.0f - s));
    if constexpr (D) {
        vf curvature = s * (1.0f - s) * (2.0f + x.v * (1.0f - 2.0f * s));
        return {{x.v * s, slope * x.d}, {slope, curvature * x.d}};
    } else
        return {{x.v * s}, {slope}};
}
