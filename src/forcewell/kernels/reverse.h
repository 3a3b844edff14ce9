// The reverse passes over messages, layers and the embedding; then forces.

// From adjoints of filters before SiLU, of a block of pairs from p on, in t.filter_bar: for forces into basis_bar, else into the filter's gradients.
template <Goal G>
static inline void filters_back(const Linear& f, const Tape& t, long p, long count) {
    if constexpr (G != FORCES)
        filter_gradient<G>(f, count, t.filter_bar, t.basis.at(p * f.in), t.windows + p);
    else
        filter_back(f, count, t.filter_bar.v, t.windows + p, t.basis_bar + p * f.in);
}

template <bool D>
static inline void clear_both(Array a, long n) {
    __builtin_memset(a.v, 0, n * sizeof(float));
    if (D) __builtin_memset(a.d, 0, n * sizeof(float));
}

template <bool D>
static inline void put_both(Array a, long i, Num<D> x) {
    store(a.v + i, x.v);
    if constexpr (D) store(a.d + i, x.d);
}

// Adjoints of the messages along the part's pairs. t: those pairs with all atoms; r: places of what atoms receive.
template <Goal G, bool vec>
static void messages_back(const Sizes& s, const Layer& f, Tape& t, LayerTape& l, Reverse<dual(G)>& r) {
    constexpr bool D = dual(G);
    const long C = s.channels, H = s.heads, P = t.pairs;
    Heads<D> attention, bar, logit_bar;
    Num<D> u[3], back[3];
    for (long p = 0; p < P; p++) {
        const long i = t.first[p], j = t.second[p], at = p * heads_row(2 * H), place = p % BLOCK;
        const Array filter = block_filters<D>(s, f, t, l, p - place, !place && !keeps_filters(t.train, s));
        r.filters_bar = t.filter_bar.at(place * 4 * C);
        r.envelope_bar = vf{};
        for (int k = 0; k < 3; k++) r.direction_bar[k] = vf{};
        for (long c = 0; c < 4 * C; c += VL) {
            const Silu<D> a = silu(get<D>(filter, place * 4 * C + c));
            put_both<D>(t.filters, c, a.value);
            put_both<D>(t.slopes, c, a.slope);
        }
        clear_both<D>(r.filters_bar, 4 * C);  // which may have been the filter's place
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
            if constexpr (G == FORCES)
                for (long k = 0; k < VL && h + k < 2 * H; k++) through += g.v[k] * a.value.v[k];
        }
        for (int k = 0; k < 3; k++) u[k] = one<D>(t.direction, 3 * p + k), back[k] = constant<D>(vf{}) - u[k];
        message_back<G, vec>(s, r, attention.array(), logit_bar.array(), envelope, u, 1.0f, i, j);
        message_back<G, vec>(s, r, attention.array().at(H), logit_bar.array().at(H), envelope, back, -1.0f, j, i);
        for (long c = 0; c < 4 * C; c += VL) put_both<D>(r.filters_bar, c, get<D>(r.filters_bar, c) * get<D>(t.slopes, c));
        if constexpr (G == FORCES) {
            t.envelope_bar[p] += through + sum(r.envelope_bar);
            for (int k = 0; k < 3; k++) t.direction_bar[3 * p + k] += sum(r.direction_bar[k]);
        }
        if (place == BLOCK - 1 || p == P - 1) filters_back<G>(f.filters, t, p - place, place + 1);
    }
}

// Those of the part's atoms to themselves.
template <Goal G, bool vec>
static void own_messages_back(const Weights& w, const Layer& f, Tape& t, LayerTape& l, Reverse<dual(G)>& r, float* zero) {
    constexpr bool D = dual(G);
    const Sizes& s = w.s;
    const long C = s.channels, H = s.heads;
    Heads<D> attention, bar, logit_bar;
    Num<D> u[3];
    r.filters_bar = t.filter_bar;
    clear_both<D>(r.filters_bar, 4 * C);
    const Array own = {f.own, zero};
    activate_filters<D>(C, own, 0, t.filters);
    const Num<D> whole = constant<D>(splat(1.0f));
    for (int k = 0; k < 3; k++) u[k] = constant<D>(vf{});
    for (long n = 0; n < t.atoms; n++) {
        attention_back<D>(s, l.qkv, t.filters, l.summed_bar, n, n, bar.array(), 0);
        for (long h = 0; h < H; h += VL) {
            const Silu<D> a = silu(get<D>(l.own_logits, n * heads_row(H) + h));
            const Num<D> g = get<D>(bar.array(), h) * a.slope;
            store(attention.v + h, a.value.v), store(logit_bar.v + h, g.v);
            if constexpr (D) store(attention.d + h, a.value.d), store(logit_bar.d + h, g.d);
        }
        message_back<G, vec>(s, r, attention.array(), logit_bar.array(), whole, u, 0.0f, n, n);
    }
    if constexpr (G != FORCES) {
        for (long c = 0; c < 4 * C; c += VL) put<D>(t.filter_bar, c, get<D>(t.filter_bar, c) * silu(get<D>(own, c)).slope);
        float* const adjoint = written<D>(t.filter_bar);
        products::outer(1, 4 * C, s.radial, {0, adjoint}, 4 * C, {w.own_basis, 0}, s.radial, f.filters.gw);
        for (long c = 0; c < 4 * C; c += VL) store(f.filters.gb + c, load(f.filters.gb + c) + load(adjoint + c));
    }
}

template <bool D>
static Reverse<D> reverse(Tape& t, LayerTape& l, Array before, Array qkv_bar, Array before_bar) {
    Reverse<D> r;
    r.qkv = l.qkv, r.filters = t.filters, r.before = before, r.summed_bar = l.summed_bar, r.vectors_bar = l.vectors_bar;
    r.qkv_bar = qkv_bar, r.before_bar = before_bar;
    return r;
}

template <Goal G, bool vec>
static void exchange_back(const Weights& w, Part& p, long k) {
    constexpr bool D = dual(G);
    Tape &t = p.pairs, &a = p.atoms;
    const long N = t.atoms, C = w.s.channels;
    LayerTape &l = t.layer[k], &o = a.layer[k];
    // The tape's own adjoint of the vectors before already holds what came through their maps.
    const Array qkv_bar = target(p, l.qkv_bar, 0), sum = vec ? target(p, before_bar(t, k), 5 * N * C) : t.zero;
    wait(p);
    fill<D>(qkv_bar, N * 5 * C);
    if (vec && p.rank) fill<D>(sum, N * 3 * C);
    Reverse<D> r = reverse<D>(t, l, before(t, k), qkv_bar, sum);
    messages_back<G, vec>(w.s, w.layer[k], t, l, r);
    wait(p);
    collect<D>(p, o.qkv_bar, 0, 5 * C);
    if (vec) collect<D>(p, before_bar(a, k), 5 * N * C, 3 * C);
    Reverse<D> own = reverse<D>(a, o, before(a, k), o.qkv_bar, before_bar(a, k));
    own_messages_back<G, vec>(w, w.layer[k], a, o, own, t.zero.d);
}

template <Goal G>
static void layer_back(const Weights& w, Part& p, long k) {
    constexpr bool D = dual(G);
    Tape& a = p.atoms;
    const long N = a.atoms, C = w.s.channels;
    const Layer& f = w.layer[k];
    LayerTape& l = a.layer[k];
    const bool vec = carried(a, k);
    update_back<D>(N, C, vec, l.out, l.mapped, a.x_bar, l.vectors_bar, l.out_bar, l.mapped_bar);
    apply_back<D>(f.output, N, l.out_bar, l.summed_bar, C, false);
    if (vec) {
        const Array carry = before_bar(a, k);
        for (long i = 0; i < 3 * N * C; i += VL) put<D>(carry, i, get<D>(l.vectors_bar, i));
        apply_back<D>(f.vectors, 3 * N, l.mapped_bar, carry, C, true);
        exchange_back<G, true>(w, p, k);
    } else
        exchange_back<G, false>(w, p, k);
    apply_back<D>(f.qkv, N, l.qkv_bar, l.norm_bar, C, false);
    normalise_back<G>(N, C, l.norm_bar, C, l.xhat, l.rstd, f.norm_w, f.norm_gw, f.norm_gb, a.x_bar);
    if constexpr (G != FORCES) {
        gradient<G>(f.output, N, l.out_bar, l.summed, C);
        if (vec) gradient<G>(f.vectors, 3 * N, l.mapped_bar, before(a, k), C);
        renormalise<D>(N, C, l.xhat, f.norm_w, f.norm_b, a.y);
        gradient<G>(f.qkv, N, l.qkv_bar, a.y, C);
    }
}

template <Goal G>
static void embedding_back(const Weights& w, Part& p) {
    constexpr bool D = dual(G), train = G != FORCES;
    Tape &t = p.pairs, &a = p.atoms;
    const long N = t.atoms, C = w.s.channels;
    if constexpr (train) gradient<G>(w.combine, a.atoms, a.x_bar, a.mixed, 2 * C);
    apply_back<D>(w.combine, a.atoms, a.x_bar, a.mixed_bar, 2 * C, false);
    const Array neighbour_bar = target(p, t.neighbour_bar, 0);
    wait(p);
    if (train) fill<D>(neighbour_bar, N * C);
    for (long q = 0; q < t.pairs; q++) {
        const long i = t.first[q], j = t.second[q], place = q % BLOCK;
        const Num<D> envelope = one<D>(t.envelope, q);
        vf through = {};
        for (long c = 0; c < C; c += VL) {
            const Num<D> bi = get<D>(t.mixed_bar, i * 2 * C + C + c), bj = get<D>(t.mixed_bar, j * 2 * C + C + c);
            const Num<D> f = get<D>(t.neighbour_filter, q * C + c);
            const Num<D> g = bi * get<D>(t.neighbour, j * C + c) + bj * get<D>(t.neighbour, i * C + c), h = envelope * g;
            put_both<D>(t.filter_bar, place * C + c, h);
            if constexpr (train) {
                add<D>(neighbour_bar, j * C + c, f * envelope * bi);
                add<D>(neighbour_bar, i * C + c, f * envelope * bj);
            } else
                through += f.v * g.v;
        }
        if constexpr (!train) t.envelope_bar[q] += sum(through);
        if (place == BLOCK - 1 || q == t.pairs - 1) filters_back<G>(w.neighbour_filter, t, q - place, place + 1);
    }
    if constexpr (train) {
        wait(p);
        collect<D>(p, a.neighbour_bar, 0, C);
    }
}

// For the goal PARAMETERS the adjoints of the features are given, in t.read1_bar and the last layer's vectors_bar.
template <Goal G>
static void backward(const Weights& w, Part& p) {
    constexpr bool D = dual(G);
    Tape &t = p.pairs, &a = p.atoms;
    const long P = t.pairs, C = w.s.channels, L = w.s.layers;
    if constexpr (G == FORCES) {
        __builtin_memset(t.basis_bar, 0, P * w.s.radial * sizeof(float));
        __builtin_memset(t.envelope_bar, 0, P * sizeof(float));
        __builtin_memset(t.direction_bar, 0, 3 * P * sizeof(float));
    }
    if constexpr (G != PARAMETERS) read_out_back<D>(w, a, a.layer[L - 1].vectors, a.layer[L - 1].vectors_bar);
    fill<D>(a.x_bar, a.atoms * C);
    normalise_back<G>(a.atoms, C, a.read1_bar, 2 * C, a.xhat, a.rstd, w.norm_w, w.norm_gw, w.norm_gb, a.x_bar);
    for (long k = L - 1; k >= 0; k--) layer_back<G>(w, p, k);
    embedding_back<G>(w, p);
}

// Forces (N, 3) += from the adjoints of the pairs' geometry.
static void forces(const Weights& w, Part& part, float* out) {
    const Tape& t = part.pairs;
    const long R = w.s.radial, N = t.atoms;
    float* to = part.rank ? part.sums.v : out;
    if (part.rank) __builtin_memset(to, 0, 3 * N * sizeof(float));
    for (long p = 0; p < t.pairs; p++) {
        vf total = {};
        for (long k = 0; k < R; k += VL) total += load(t.basis_bar + p * R + k) * load(t.basis_slope + p * R + k);
        const float stretch = sum(total) + t.envelope_bar[p] * t.envelope_slope[p];
        const float *u = t.direction.v + 3 * p, *b = t.direction_bar + 3 * p;
        const float along = u[0] * b[0] + u[1] * b[1] + u[2] * b[2];
        float g[3];
        for (int k = 0; k < 3; k++) {
            g[k] = stretch * u[k] + (b[k] - along * u[k]) / t.distance[p];  // dE / d(second - first)
            to[3 * t.first[p] + k] += g[k];
            to[3 * t.second[p] + k] -= g[k];
        }
    }
    wait(part);
    collect<false>(part, {out + 3 * part.first_atom, 0}, 0, 3);
}
