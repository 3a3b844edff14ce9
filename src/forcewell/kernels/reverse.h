// The reverse passes over messages, layers and the embedding; then forces.

// filter_bar block -> adjoint of the pre-activations in place; plain: into basis_bar, dual: into the filter's gradients.
template <bool D>
static inline void filters_back(const Linear& f, long count, Array pre, Array bar, Array basis, float* basis_bar) {
    for (long i = 0; i < count * f.out; i += VL) {
        const Num<D> g = get<D>(bar, i) * silu(get<D>(pre, i)).slope;
        store(bar.v + i, g.v);
        if constexpr (D) store(bar.d + i, g.d);
    }
    if constexpr (D)
        gradient(f, count, bar, basis, f.in);
    else
        product(count, f.in, f.out, bar.v, f.out, f.backward_panels, 0, true, basis_bar, f.in);
}

template <bool D>
static inline void clear_both(Array a, long n) {
    __builtin_memset(a.v, 0, n * sizeof(float));
    if (D) __builtin_memset(a.d, 0, n * sizeof(float));
}

template <bool D, bool vec>
static void messages_back(const Weights& w, const Layer& f, Tape& t, LayerTape& l, Array before, Array before_bar) {
    const Sizes& s = w.s;
    const long C = s.channels, H = s.heads, P = t.pairs;
    Heads<D> attention, bar, logit_bar;
    Num<D> u[3], back[3];
    Reverse<D> r;
    r.qkv = l.qkv, r.filters = t.filters, r.before = before, r.summed_bar = l.summed_bar, r.vectors_bar = l.vectors_bar;
    r.qkv_bar = l.qkv_bar, r.before_bar = before_bar;
    for (long p = 0; p < P; p++) {
        const long i = t.first[p], j = t.second[p], at = 2 * p * H, place = p % BLOCK;
        r.filters_bar = t.filter_bar.at(place * 4 * C);
        clear_both<D>(r.filters_bar, 4 * C);
        r.envelope_bar = vf{};
        for (int k = 0; k < 3; k++) r.direction_bar[k] = vf{};
        activate_filters<D>(C, l.filter, p * 4 * C, t.filters);
        attention_back<D>(s, l.qkv, t.filters, l.summed_bar, i, j, bar.array(), 0);
        attention_back<D>(s, l.qkv, t.filters, l.summed_bar, j, i, bar.array(), H);
        const Num<D> envelope = one<D>(t.envelope, p);
        float through = 0;
        for (long h = 0; h < 2 * H; h += VL) {
            const Silu<D> a = silu(get<D>(l.logits, at + h));
            const Num<D> attended = a.value * envelope, g = get<D>(bar.array(), h);
            const Num<D> back_to_logit = g * envelope * a.slope;
            store(attention.v + h, attended.v), store(logit_bar.v + h, back_to_logit.v);
            if constexpr (D) store(attention.d + h, attended.d), store(logit_bar.d + h, back_to_logit.d);
            if constexpr (!D)
                for (long k = 0; k < VL && h + k < 2 * H; k++) through += g.v[k] * a.value.v[k];
        }
        for (int k = 0; k < 3; k++) u[k] = one<D>(t.direction, 3 * p + k), back[k] = constant<D>(vf{}) - u[k];
        message_back<D, vec>(s, r, attention.array(), logit_bar.array(), envelope, u, 1.0f, i, j);
        message_back<D, vec>(s, r, attention.array().at(H), logit_bar.array().at(H), envelope, back, -1.0f, j, i);
        if constexpr (!D) {
            t.envelope_bar[p] += through + sum(r.envelope_bar);
            for (int k = 0; k < 3; k++) t.direction_bar[3 * p + k] += sum(r.direction_bar[k]);
        }
        if (place == BLOCK - 1 || p == P - 1) {
            const long from = p - place;
            filters_back<D>(f.filters, place + 1, l.filter.at(from * 4 * C), t.filter_bar, t.basis.at(from * s.radial), t.basis_bar + from * s.radial);
        }
    }
    r.filters_bar = t.filter_bar;
    clear_both<D>(r.filters_bar, 4 * C);
    const Array own = {f.own, t.zero.d};
    activate_filters<D>(C, own, 0, t.filters);
    const Num<D> whole = constant<D>(splat(1.0f));
    for (int k = 0; k < 3; k++) u[k] = constant<D>(vf{});
    for (long n = 0; n < t.atoms; n++) {
        attention_back<D>(s, l.qkv, t.filters, l.summed_bar, n, n, bar.array(), 0);
        for (long h = 0; h < H; h += VL) {
            const Silu<D> a = silu(get<D>(l.logits, (2 * P + n) * H + h));
            const Num<D> g = get<D>(bar.array(), h) * a.slope;
            store(attention.v + h, a.value.v), store(logit_bar.v + h, g.v);
            if constexpr (D) store(attention.d + h, a.value.d), store(logit_bar.d + h, g.d);
        }
        message_back<D, vec>(s, r, attention.array(), logit_bar.array(), whole, u, 0.0f, n, n);
    }
    if constexpr (D) {
        for (long c = 0; c < 4 * C; c += VL) {
            const Dual g = get<true>(t.filter_bar, c) * silu(get<true>(own, c)).slope;
            store(t.filter_bar.d + c, g.d);
        }
        outer(1, 4 * C, s.radial, t.filter_bar.d, 4 * C, w.own_basis, s.radial, f.filters.gw);
        for (long c = 0; c < 4 * C; c += VL) store(f.filters.gb + c, load(f.filters.gb + c) + load(t.filter_bar.d + c));
    }
}

template <bool D>
static void layer_back(const Weights& w, Tape& t, long k, Array before, Array before_bar) {
    const long N = t.atoms, C = w.s.channels;
    const Layer& f = w.layer[k];
    LayerTape& l = t.layer[k];
    update_back<D>(N, C, k > 0, l.out, l.mapped, t.x_bar, l.vectors_bar, l.out_bar, l.mapped_bar);
    apply_back<D>(f.output, N, l.out_bar, l.summed_bar, C, false);
    fill<D>(l.qkv_bar, N * 5 * C);
    if (k) {
        for (long i = 0; i < 3 * N * C; i += VL) put<D>(before_bar, i, get<D>(l.vectors_bar, i));
        apply_back<D>(f.vectors, 3 * N, l.mapped_bar, before_bar, C, true);
        messages_back<D, true>(w, f, t, l, before, before_bar);
    } else
        messages_back<D, false>(w, f, t, l, before, before_bar);
    apply_back<D>(f.qkv, N, l.qkv_bar, l.norm_bar, C, false);
    normalise_back<D>(N, C, l.norm_bar, C, l.xhat, l.rstd, f.norm_w, f.norm_gw, f.norm_gb, t.x_bar);
    if constexpr (D) {
        gradient(f.output, N, l.out_bar, l.summed, C);
        if (k) gradient(f.vectors, 3 * N, l.mapped_bar, before, C);
        renormalise(N, C, l.xhat, f.norm_w, f.norm_b, t.y);
        gradient(f.qkv, N, l.qkv_bar, t.y, C);
    }
}

template <bool D>
static void embedding_back(const Weights& w, Tape& t) {
    const long N = t.atoms, C = w.s.channels;
    if constexpr (D) gradient(w.combine, N, t.x_bar, t.mixed, 2 * C);
    apply_back<D>(w.combine, N, t.x_bar, t.mixed_bar, 2 * C, false);
    if (D) fill<D>(t.neighbour_bar, N * C);
    for (long p = 0; p < t.pairs; p++) {
        const long i = t.first[p], j = t.second[p], place = p % BLOCK;
        const Num<D> envelope = one<D>(t.envelope, p);
        vf through = {};
        for (long c = 0; c < C; c += VL) {
            const Num<D> bi = get<D>(t.mixed_bar, i * 2 * C + C + c), bj = get<D>(t.mixed_bar, j * 2 * C + C + c);
            const Num<D> f = get<D>(t.neighbour_filter, p * C + c);
            const Num<D> g = bi * get<D>(t.neighbour, j * C + c) + bj * get<D>(t.neighbour, i * C + c), h = envelope * g;
            store(t.filter_bar.v + place * C + c, h.v);
            if constexpr (D) {
                store(t.filter_bar.d + place * C + c, h.d);
                add<D>(t.neighbour_bar, j * C + c, f * envelope * bi);
                add<D>(t.neighbour_bar, i * C + c, f * envelope * bj);
            } else
                through += f.v * g.v;
        }
        if constexpr (!D) t.envelope_bar[p] += sum(through);
        if (place == BLOCK - 1 || p == t.pairs - 1) {
            const long from = p - place, R = w.s.radial;
            if constexpr (D)
                gradient(w.neighbour_filter, place + 1, t.filter_bar, t.basis.at(from * R), R);
            else
                product(place + 1, R, C, t.filter_bar.v, C, w.neighbour_filter.backward_panels, 0, true, t.basis_bar + from * R, R);
        }
    }
}

template <bool D>
static void backward(const Weights& w, Tape& t) {
    const long N = t.atoms, P = t.pairs, C = w.s.channels, L = w.s.layers;
    if constexpr (!D) {
        __builtin_memset(t.basis_bar, 0, P * w.s.radial * sizeof(float));
        __builtin_memset(t.envelope_bar, 0, P * sizeof(float));
        __builtin_memset(t.direction_bar, 0, 3 * P * sizeof(float));
    }
    read_out_back<D>(w, t, t.layer[L - 1].vectors, t.layer[L - 1].vectors_bar);
    fill<D>(t.x_bar, N * C);
    normalise_back<D>(N, C, t.read1_bar, 2 * C, t.xhat, t.rstd, w.norm_w, w.norm_gw, w.norm_gb, t.x_bar);
    for (long k = L - 1; k >= 0; k--) layer_back<D>(w, t, k, k ? t.layer[k - 1].vectors : t.zero, k ? t.layer[k - 1].vectors_bar : t.zero);
    embedding_back<D>(w, t);
}

// Forces (N, 3) += from the adjoints of the pairs' geometry.
static void forces(const Weights& w, Tape& t, float* out) {
    const long R = w.s.radial;
    for (long p = 0; p < t.pairs; p++) {
        vf total = {};
        for (long k = 0; k < R; k += VL) total += load(t.basis_bar + p * R + k) * load(t.basis_slope + p * R + k);
        const float stretch = sum(total) + t.envelope_bar[p] * t.envelope_slope[p];
        const float *u = t.direction.v + 3 * p, *b = t.direction_bar + 3 * p;
        const float along = u[0] * b[0] + u[1] * b[1] + u[2] * b[2];
        float g[3];
        for (int k = 0; k < 3; k++) {
            g[k] = stretch * u[k] + (b[k] - along * u[k]) / t.distance[p];  // dE / d(second - first)
            out[3 * t.first[p] + k] += g[k];
            out[3 * t.second[p] + k] -= g[k];
        }
    }
}
