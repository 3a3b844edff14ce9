// The forward and reverse passes of one chunk of molecules.

template <bool D>
static inline void fill(Array a, long n) {
    __builtin_memset(written<D>(a), 0, n * sizeof(float));
}

// Distances, envelopes, radial basis and their slopes, from pairs and float64 positions (and lattice offsets, if any).
static void geometry(const Weights& w, Tape& t, const double* positions, const double* offsets) {
    const long R = w.s.radial;
    const double alpha = 5.0 / w.s.cutoff, turn = 3.14159265358979323846 / w.s.cutoff;
    for (long p = 0; p < t.pairs; p++) {
        double v[3], square = 0;
        for (int k = 0; k < 3; k++) {
            v[k] = positions[3 * t.second[p] + k] - positions[3 * t.first[p] + k] + (offsets ? offsets[3 * p + k] : 0.0);
            square += v[k] * v[k];
        }
        const double r = __builtin_sqrt(square);
        t.distance[p] = r;
        for (int k = 0; k < 3; k++) t.direction.v[3 * p + k] = v[k] / r;
        const double wave = 0.5 * (__builtin_cos(turn * r) + 1.0), slope = -0.5 * turn * __builtin_sin(turn * r);
        t.envelope.v[p] = wave, t.envelope_slope[p] = slope;
        const float scaled = __builtin_exp(-alpha * r), fw = wave, fs = slope, fa = -alpha * scaled;
        for (long k = 0; k < R; k += VL) {
            const vf beta = load(w.betas + k), gap = scaled - load(w.means + k), exponent = -beta * gap * gap;
            vf e = exponential(exponent);
            e = exponent < -40.0f ? vf{} : e;  // as the PyTorch path: no denormal numbers
            store(t.basis.v + p * R + k, fw * e);
            store(t.basis_slope + p * R + k, e * (fs - 2.0f * fw * beta * gap * fa));
        }
    }
}

// Derivatives of the geometry along displacements (N, 3) of the atoms.
static void displace(const Weights& w, Tape& t, const float* displacement) {
    const long R = w.s.radial;
    for (long p = 0; p < t.pairs; p++) {
        float d[3], along = 0;
        for (int k = 0; k < 3; k++) {
            d[k] = displacement[3 * t.second[p] + k] - displacement[3 * t.first[p] + k];
            along += d[k] * t.direction.v[3 * p + k];
        }
        for (int k = 0; k < 3; k++) t.direction.d[3 * p + k] = (d[k] - along * t.direction.v[3 * p + k]) / t.distance[p];
        t.envelope.d[p] = t.envelope_slope[p] * along;
        for (long k = 0; k < R; k += VL) store(t.basis.d + p * R + k, load(t.basis_slope + p * R + k) * along);
    }
}

template <bool D, bool vec>
static void messages(const Sizes& s, const Layer& f, Tape& t, LayerTape& l, Array before) {
    const long C = s.channels, H = s.heads, P = t.pairs;
    Heads<D> heads;
    Num<D> u[3], back[3];
    for (long p = 0; p < P; p++) {
        const long i = t.first[p], j = t.second[p], at = 2 * p * H;
        if (p % BLOCK == 0) {
            const long count = P - p < BLOCK ? P - p : BLOCK;
            apply<D>(f.filters, count, t.basis.at(p * s.radial), s.radial, l.filter.at(p * 4 * C));
        }
        activate_filters<D>(C, l.filter, p * 4 * C, t.filters);
        logits<D>(s, l.qkv, t.filters, i, j, l.logits, at);
        logits<D>(s, l.qkv, t.filters, j, i, l.logits, at + H);
        const Num<D> envelope = one<D>(t.envelope, p);
        activate<D>(2 * H, l.logits, at, envelope, heads.array());
        for (int k = 0; k < 3; k++) u[k] = one<D>(t.direction, 3 * p + k), back[k] = constant<D>(vf{}) - u[k];
        message<D, vec>(s, l.qkv, t.filters, heads.array(), envelope, u, before, i, j, l.summed, l.vectors);
        message<D, vec>(s, l.qkv, t.filters, heads.array().at(H), envelope, back, before, j, i, l.summed, l.vectors);
    }
    activate_filters<D>(C, {f.own, t.zero.d}, 0, t.filters);
    const Num<D> whole = constant<D>(splat(1.0f));
    for (int k = 0; k < 3; k++) u[k] = constant<D>(vf{});
    for (long n = 0; n < t.atoms; n++) {
        const long at = (2 * P + n) * H;
        logits<D>(s, l.qkv, t.filters, n, n, l.logits, at);
        activate<D>(H, l.logits, at, whole, heads.array());
        message<D, vec>(s, l.qkv, t.filters, heads.array(), whole, u, before, n, n, l.summed, l.vectors);
    }
}

template <bool D>
static void read_out(const Weights& w, Tape& t, Array vectors, float* energies) {
    const long N = t.atoms, C = w.s.channels, C2 = C / 2;
    const float soft = w.s.softening;
    apply<D>(w.norm_map1, 3 * N, vectors, C, t.map1);
    apply<D>(w.vector_map1, 3 * N, vectors, C, t.vec1);
    lengths<D>(N, C, soft, t.map1, t.read1.at(C), 2 * C);
    apply<D>(w.mix1, N, t.read1, 2 * C, t.pre1);
    for (long i = 0; i < N * C; i += VL) put<D>(t.y, i, silu(get<D>(t.pre1, i)).value);
    apply<D>(w.gate1, N, t.y, C, t.gate1);
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C2; c += VL) {
            put<D>(t.read2, n * C + c, silu(get<D>(t.gate1, n * C + c)).value);
            const Num<D> gate = get<D>(t.gate1, n * C + C2 + c);
            for (int k = 0; k < 3; k++) put<D>(t.vout1, (3 * n + k) * C2 + c, get<D>(t.vec1, (3 * n + k) * C2 + c) * gate);
        }
    apply<D>(w.norm_map2, 3 * N, t.vout1, C2, t.map2);
    lengths<D>(N, C2, soft, t.map2, t.read2.at(C2), C);
    apply<D>(w.mix2, N, t.read2, C, t.pre2);
    if (D) return;
    for (long n = 0; n < N; n++) {
        vf total = {};
        for (long c = 0; c < C2; c += VL) total += silu(get<false>(t.pre2, n * C2 + c)).value.v * load(w.gate2_w + c);
        energies[n] = sum(total) + w.gate2_b[0];
    }
}

template <bool D>
static void forward(const Weights& w, Tape& t, float* energies) {
    const long N = t.atoms, P = t.pairs, C = w.s.channels;
    apply<D>(w.neighbour_filter, P, t.basis, w.s.radial, t.neighbour_filter);
    for (long n = 0; n < N; n++) {
        __builtin_memset(written<D>(t.mixed) + n * 2 * C + C, 0, C * sizeof(float));
        if (D) __builtin_memset(t.mixed.d + n * 2 * C, 0, C * sizeof(float));
    }
    for (long p = 0; p < P; p++) {
        const Num<D> envelope = one<D>(t.envelope, p);
        const long i = t.first[p], j = t.second[p];
        for (long c = 0; c < C; c += VL) {
            const Num<D> f = get<D>(t.neighbour_filter, p * C + c) * envelope;
            add<D>(t.mixed, i * 2 * C + C + c, f * get<D>(t.neighbour, j * C + c));
            add<D>(t.mixed, j * 2 * C + C + c, f * get<D>(t.neighbour, i * C + c));
        }
    }
    apply<D>(w.combine, N, t.mixed, 2 * C, t.x);
    Array vectors = t.zero;
    for (long k = 0; k < w.s.layers; k++) {
        const Layer& f = w.layer[k];
        LayerTape& l = t.layer[k];
        normalise<D>(N, C, t.x, l.xhat, l.rstd, f.norm_w, f.norm_b, t.y, C);
        apply<D>(f.qkv, N, t.y, C, l.qkv);
        fill<D>(l.summed, N * C);
        fill<D>(l.vectors, 3 * N * C);
        if (k)
            messages<D, true>(w.s, f, t, l, vectors);
        else
            messages<D, false>(w.s, f, t, l, vectors);
        apply<D>(f.output, N, l.summed, C, l.out);
        if (k) apply<D>(f.vectors, 3 * N, vectors, C, l.mapped);
        update<D>(N, C, k > 0, l.out, l.mapped, vectors, t.x, l.vectors);
        vectors = l.vectors;
    }
    normalise<D>(N, C, t.x, t.xhat, t.rstd, w.norm_w, w.norm_b, t.read1, 2 * C);
    read_out<D>(w, t, vectors, energies);
}

// Adjoints of the read-out's inputs: t.norm_bar (N, C) and vectors_bar (N, 3, C).
template <bool D>
static void read_out_back(const Weights& w, Tape& t, Array vectors, Array vectors_bar) {
    const long N = t.atoms, C = w.s.channels, C2 = C / 2;
    for (long n = 0; n < N; n++) {
        const Num<D> seed = one<D>(t.seed, n);
        if constexpr (D) w.gate2_gb[0] += t.seed.d[n];
        for (long c = 0; c < C2; c += VL) {
            const Silu<D> a = silu(get<D>(t.pre2, n * C2 + c));
            put<D>(t.pre2_bar, n * C2 + c, seed * constant<D>(load(w.gate2_w + c)) * a.slope);
            if constexpr (D) store(w.gate2_gw + c, load(w.gate2_gw + c) + (seed * a.value).d);
        }
    }
    apply_back<D>(w.mix2, N, t.pre2_bar, t.read2_bar, C, false);
    lengths_back<D>(N, C2, t.map2, t.read2.at(C2), C, t.read2_bar.at(C2), t.map2_bar);
    apply_back<D>(w.norm_map2, 3 * N, t.map2_bar, t.vout1_bar, C2, false);
    for (long n = 0; n < N; n++)
        for (long c = 0; c < C2; c += VL) {
            const Num<D> gate = get<D>(t.gate1, n * C + C2 + c);
            put<D>(t.gate1_bar, n * C + c, get<D>(t.read2_bar, n * C + c) * silu(get<D>(t.gate1, n * C + c)).slope);
            Num<D> total = constant<D>(vf{});
            for (int k = 0; k < 3; k++) {
                const long at = (3 * n + k) * C2 + c;
                const Num<D> g = get<D>(t.vout1_bar, at);
                total = total + g * get<D>(t.vec1, at);
                put<D>(t.vec1_bar, at, g * gate);
            }
            put<D>(t.gate1_bar, n * C + C2 + c, total);
        }
    apply_back<D>(w.gate1, N, t.gate1_bar, t.act1_bar, C, false);
    if constexpr (D) {  // SiLU(pre1) once more, for the gradient of the gate
        for (long i = 0; i < N * C; i += VL) {
            const Dual a = silu(get<true>(t.pre1, i)).value;
            store(t.y.v + i, a.v), store(t.y.d + i, a.d);
        }
        gradient(w.gate1, N, t.gate1_bar, t.y, C);
    }
    for (long i = 0; i < N * C; i += VL) put<D>(t.pre1_bar, i, get<D>(t.act1_bar, i) * silu(get<D>(t.pre1, i)).slope);
    apply_back<D>(w.mix1, N, t.pre1_bar, t.read1_bar, 2 * C, false);
    lengths_back<D>(N, C, t.map1, t.read1.at(C), 2 * C, t.read1_bar.at(C), t.map1_bar);
    apply_back<D>(w.norm_map1, 3 * N, t.map1_bar, vectors_bar, C, false);
    apply_back<D>(w.vector_map1, 3 * N, t.vec1_bar, vectors_bar, C, true);
    if constexpr (D) {
        gradient(w.mix2, N, t.pre2_bar, t.read2, C);
        gradient(w.norm_map2, 3 * N, t.map2_bar, t.vout1, C2);
        gradient(w.mix1, N, t.pre1_bar, t.read1, 2 * C);
        gradient(w.norm_map1, 3 * N, t.map1_bar, vectors, C);
        gradient(w.vector_map1, 3 * N, t.vec1_bar, vectors, C);
    }
}
