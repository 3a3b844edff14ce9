// Element-wise parts: layer norm, messages over pairs, node updates, read-out. Each is written once, for plain numbers and for
// dual ones: a dual forward pass carries the derivative along a displacement of the atoms, and a dual reverse pass therefore
// gives the derivative of the energy's gradients along it, which is what training on forces needs.

template <bool D>
static void normalise(long N, long C, Array x, Array xhat, Array rstd, const float* w, const float* b, Array y, long ldy) {
    for (long n = 0; n < N; n++) {
        const long row = n * C;
        if constexpr (D) {
            vf a = {}, c = {};
            for (long k = 0; k < C; k += VL) a += load(x.d + row + k), c += load(x.d + row + k) * load(xhat.v + row + k);
            const float mean = sum(a) / C, along = sum(c) / C, scale = rstd.v[n];
            rstd.d[n] = -scale * scale * along;
            for (long k = 0; k < C; k += VL) {
                vf h = (load(x.d + row + k) - mean - load(xhat.v + row + k) * along) * scale;
                store(xhat.d + row + k, h);
                store(y.d + n * ldy + k, h * load(w + k));
            }
        } else {
            vf a = {}, c = {};
            for (long k = 0; k < C; k += VL) a += load(x.v + row + k);
            const float mean = sum(a) / C;
            for (long k = 0; k < C; k += VL) {
                vf h = load(x.v + row + k) - mean;
                c += h * h;
            }
            const float scale = 1.0f / __builtin_sqrtf(sum(c) / C + 1e-5f);
            rstd.v[n] = scale;
            for (long k = 0; k < C; k += VL) {
                vf h = (load(x.v + row + k) - mean) * scale;
                store(xhat.v + row + k, h);
                store(y.v + n * ldy + k, h * load(w + k) + load(b + k));
            }
        }
    }
}

// xbar += adjoint of the norm's input, from ybar (row length ldy); for training also the gradients of its scale and shift.
template <Goal G>
static void normalise_back(long N, long C, Array ybar, long ldy, Array xhat, Array rstd, const float* w, float* gw, float* gb, Array xbar) {
    constexpr bool D = dual(G);
    for (long n = 0; n < N; n++) {
        const long row = n * C, from = n * ldy;
        Num<D> mean = constant<D>(vf{}), along = constant<D>(vf{});
        for (long k = 0; k < C; k += VL) {
            Num<D> z = get<D>(ybar, from + k) * constant<D>(load(w + k));
            mean = mean + z;
            along = along + z * get<D>(xhat, row + k);
        }
        float mv, md = 0, av, ad = 0;
        sum_into<D>(&mv, &md, 0, mean);
        sum_into<D>(&av, &ad, 0, along);
        mv /= C, md /= C, av /= C, ad /= C;
        const Num<D> m = one<D>({&mv, &md}, 0), a = one<D>({&av, &ad}, 0), scale = one<D>(rstd, n);
        for (long k = 0; k < C; k += VL) {
            Num<D> g = get<D>(ybar, from + k), h = get<D>(xhat, row + k);
            add<D>(xbar, row + k, scale * (g * constant<D>(load(w + k)) - m - h * a));
            if constexpr (G != FORCES) {
                store(gw + k, load(gw + k) + written(g * h));
                store(gb + k, load(gb + k) + written(g));
            }
        }
    }
}

// The shifted and scaled norm once more, values and derivatives, for weight gradients.
template <bool D>
static void renormalise(long N, long C, Array xhat, const float* w, const float* b, Array y) {
    for (long n = 0; n < N; n++)
        for (long k = 0; k < C; k += VL) {
            store(y.v + n * C + k, load(xhat.v + n * C + k) * load(w + k) + load(b + k));
            if constexpr (D) store(y.d + n * C + k, load(xhat.d + n * C + k) * load(w + k));
        }
}

enum { MAX_HEADS = 64 };

template <bool D>
struct Heads {  // numbers per direction and head, two directions side by side
    float v[2 * MAX_HEADS], d[2 * MAX_HEADS];
    Array array() { return {v, d}; }
};

template <bool D>
static inline void logits(const Sizes& s, Array qkv, Array filters, long to, long from, Array a, long at) {
    const long C = s.channels, width = C / s.heads;
    for (long h = 0; h < s.heads; h++) {
        Num<D> total = constant<D>(vf{});
        for (long c = h * width; c < (h + 1) * width; c += VL)
            total = total + get<D>(qkv, to * 5 * C + c) * get<D>(qkv, from * 5 * C + C + c) * get<D>(filters, c);
        if constexpr (D)
            a.d[at + h] = sum(total.d);
        else
            a.v[at + h] = sum(total.v);
    }
}

template <bool D>
static inline void activate(long count, Array a, long at, Num<D> scale, Array attention) {
    for (long h = 0; h < count; h += VL) {
        Num<D> w = silu(get<D>(a, at + h)).value * scale;
        store(attention.v + h, w.v);
        if constexpr (D) store(attention.d + h, w.d);
    }
}

// Message from -> to: scalars into summed, vectors into `vectors`. turn: +1 or -1 times the pair's direction, 0 for an atom to itself.
template <bool D, bool vec>
static inline void message(const Sizes& s, Array qkv, Array filters, Array attention, Num<D> envelope, const Num<D>* u, Array before, long to, long from,
                           Array summed, Array vectors) {
    const long C = s.channels, width = C / s.heads, value = from * 5 * C + 2 * C;
    for (long h = 0; h < s.heads; h++) {
        const Num<D> a = one<D>(attention, h);
        for (long c = h * width; c < (h + 1) * width; c += VL) {
            add<D>(summed, to * C + c, get<D>(qkv, value + c) * get<D>(filters, C + c) * a);
            Num<D> along = get<D>(qkv, value + 2 * C + c) * get<D>(filters, 3 * C + c) * envelope, carried;
            if constexpr (vec) carried = get<D>(qkv, value + C + c) * get<D>(filters, 2 * C + c) * envelope;
            for (int k = 0; k < 3; k++) {
                Num<D> m = u[k] * along;
                if constexpr (vec) m = m + carried * get<D>(before, (3 * from + k) * C + c);
                add<D>(vectors, (3 * to + k) * C + c, m);
            }
        }
    }
}

template <bool D>
static inline void activate_filters(long C, Array pre, long at, Array filters) {
    for (long c = 0; c < 4 * C; c += VL) {
        Num<D> f = silu(get<D>(pre, at + c)).value;
        store(filters.v + c, f.v);
        if constexpr (D) store(filters.d + c, f.d);
    }
}

// Adjoint of attention: sum over a head's channels of value, filter and the receiver's adjoint.
template <bool D>
static inline void attention_back(const Sizes& s, Array qkv, Array filters, Array summed_bar, long to, long from, Array bar, long at) {
    const long C = s.channels, width = C / s.heads;
    for (long h = 0; h < s.heads; h++) {
        Num<D> total = constant<D>(vf{});
        for (long c = h * width; c < (h + 1) * width; c += VL)
            total = total + get<D>(qkv, from * 5 * C + 2 * C + c) * get<D>(filters, C + c) * get<D>(summed_bar, to * C + c);
        sum_into<D>(bar.v, bar.d, at + h, total);
    }
}

// What the reverse pass of a message needs and gives, for one direction of a pair.
template <bool D>
struct Reverse {
    Array qkv, filters, before, summed_bar, vectors_bar;  // given
    Array qkv_bar, before_bar, filters_bar;                // added to (filters_bar: values and derivatives)
    vf envelope_bar, direction_bar[3];                     // for forces only
};

template <bool D>
static inline void add_both(Array a, long i, Num<D> x) {
    store(a.v + i, load(a.v + i) + x.v);
    if constexpr (D) store(a.d + i, load(a.d + i) + x.d);
}

template <Goal G, bool vec>
static inline void message_back(const Sizes& s, Reverse<dual(G)>& r, Array attention, Array logit_bar, Num<dual(G)> envelope, const Num<dual(G)>* u, float turn, long to, long from) {
    constexpr bool D = dual(G);
    const long C = s.channels, width = C / s.heads, value = from * 5 * C + 2 * C;
    for (long h = 0; h < s.heads; h++) {
        const Num<D> a = one<D>(attention, h), ab = one<D>(logit_bar, h);
        for (long c = h * width; c < (h + 1) * width; c += VL) {
            const Num<D> sb = get<D>(r.summed_bar, to * C + c), s1 = get<D>(r.qkv, value + c), f1 = get<D>(r.filters, C + c);
            add<D>(r.qkv_bar, value + c, f1 * a * sb);
            add_both<D>(r.filters_bar, C + c, s1 * a * sb);
            const Num<D> q = get<D>(r.qkv, to * 5 * C + c), k = get<D>(r.qkv, from * 5 * C + C + c), fk = get<D>(r.filters, c);
            const Num<D> kb = ab * k, qb = ab * q;
            add<D>(r.qkv_bar, to * 5 * C + c, kb * fk);
            add<D>(r.qkv_bar, from * 5 * C + C + c, qb * fk);
            add_both<D>(r.filters_bar, c, qb * k);
            Num<D> tb[3];
            for (int x = 0; x < 3; x++) tb[x] = get<D>(r.vectors_bar, (3 * to + x) * C + c);
            const Num<D> t3 = u[0] * tb[0] + u[1] * tb[1] + u[2] * tb[2];
            const Num<D> s3 = get<D>(r.qkv, value + 2 * C + c), f3 = get<D>(r.filters, 3 * C + c);
            const Num<D> p3 = envelope * t3;
            add<D>(r.qkv_bar, value + 2 * C + c, f3 * p3);
            add_both<D>(r.filters_bar, 3 * C + c, s3 * p3);
            if constexpr (G == FORCES) {
                const vf w3 = s3.v * f3.v;
                r.envelope_bar += w3 * t3.v;
                for (int x = 0; x < 3; x++) r.direction_bar[x] += turn * (w3 * envelope.v) * tb[x].v;
            }
            if constexpr (vec) {
                Num<D> v[3];
                for (int x = 0; x < 3; x++) v[x] = get<D>(r.before, (3 * from + x) * C + c);
                const Num<D> t2 = v[0] * tb[0] + v[1] * tb[1] + v[2] * tb[2];
                const Num<D> s2 = get<D>(r.qkv, value + C + c), f2 = get<D>(r.filters, 2 * C + c), p2 = envelope * t2;
                add<D>(r.qkv_bar, value + C + c, f2 * p2);
                add_both<D>(r.filters_bar, 2 * C + c, s2 * p2);
                const Num<D> w2 = s2 * f2 * envelope;
                for (int x = 0; x < 3; x++) add<D>(r.before_bar, (3 * from + x) * C + c, w2 * tb[x]);
                if constexpr (G == FORCES) r.envelope_bar += s2.v * f2.v * t2.v;
            }
        }
    }
}

// x += (v1 . v2) o2 + o3; vectors (holding the messages) += before + v3 o1.
template <bool D>
static void update(long N, long C, bool vec, Array out, Array mapped, Array before, Array x, Array vectors) {
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C; c += VL) {
            Num<D> o3 = get<D>(out, n * 3 * C + 2 * C + c);
            if (vec) {
                Num<D> dot = constant<D>(vf{}), o1 = get<D>(out, n * 3 * C + c);
                for (int k = 0; k < 3; k++) {
                    const long m = (3 * n + k) * 3 * C + c, v = (3 * n + k) * C + c;
                    dot = dot + get<D>(mapped, m) * get<D>(mapped, m + C);
                    add<D>(vectors, v, get<D>(before, v) + get<D>(mapped, m + 2 * C) * o1);
                }
                o3 = o3 + dot * get<D>(out, n * 3 * C + C + c);
            }
            add<D>(x, n * C + c, o3);
        }
}

template <bool D>
static void update_back(long N, long C, bool vec, Array out, Array mapped, Array x_bar, Array vectors_bar, Array out_bar, Array mapped_bar) {
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C; c += VL) {
            const long o = n * 3 * C + c;
            // The adjoint of the scalars at this layer's output is kept as the third part of out_bar: x_bar goes on changing.
            Num<D> xb;
            if constexpr (D) xb = {load(out_bar.v + o + 2 * C), load(x_bar.d + n * C + c)};
            else xb = get<D>(x_bar, n * C + c);
            Num<D> o1b = constant<D>(vf{}), o2b = o1b;
            if (vec) {
                const Num<D> o1 = get<D>(out, o), db = xb * get<D>(out, o + C);
                Num<D> dot = o1b;
                for (int k = 0; k < 3; k++) {
                    const long m = (3 * n + k) * 3 * C + c;
                    const Num<D> v1 = get<D>(mapped, m), v2 = get<D>(mapped, m + C), vb = get<D>(vectors_bar, (3 * n + k) * C + c);
                    dot = dot + v1 * v2;
                    o1b = o1b + vb * get<D>(mapped, m + 2 * C);
                    put<D>(mapped_bar, m, db * v2);
                    put<D>(mapped_bar, m + C, db * v1);
                    put<D>(mapped_bar, m + 2 * C, vb * o1);
                }
                o2b = xb * dot;
            }
            put<D>(out_bar, o, o1b);
            put<D>(out_bar, o + C, o2b);
            put<D>(out_bar, o + 2 * C, xb);
        }
}

// |v| over the three components, softened, into `norms` (row length ld).
template <bool D>
static void lengths(long N, long C, float softening, Array v, Array norms, long ld) {
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C; c += VL) {
            Num<D> total = constant<D>(splat(softening * softening));
            for (int k = 0; k < 3; k++) total = total + get<D>(v, (3 * n + k) * C + c) * get<D>(v, (3 * n + k) * C + c);
            vf root;
            for (int i = 0; i < VL; i++) root[i] = __builtin_sqrtf(total.v[i]);
            if constexpr (D)
                put<D>(norms, n * ld + c, {root, 0.5f * total.d / root});
            else
                put<D>(norms, n * ld + c, {root});
        }
}

template <bool D>
static void lengths_back(long N, long C, Array v, Array norms, long ld, Array norms_bar, Array v_bar) {
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C; c += VL) {
            Num<D> length = get<D>(norms, n * ld + c), inverse;
            inverse.v = 1.0f / length.v;
            if constexpr (D) inverse.d = -length.d * inverse.v * inverse.v;
            const Num<D> g = get<D>(norms_bar, n * ld + c) * inverse;
            for (int k = 0; k < 3; k++) put<D>(v_bar, (3 * n + k) * C + c, g * get<D>(v, (3 * n + k) * C + c));
        }
}
