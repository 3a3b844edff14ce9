// The forward and reverse passes of one chunk of molecules, each thread with its part of the pairs and of the atoms.

// Returns when every thread of the tape is here. Spins for some microseconds, then lets others have the core.
static void wait(Part& p) {
    Team& team = *p.team;
    if (team.count == 1) return;
    const int round = __atomic_load_n(&team.round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.count) {
        __atomic_store_n(&team.arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&team.round, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&team.round, __ATOMIC_ACQUIRE) == round; spins++)
        if (spins > 1000)
            sched_yield();
        else {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
}

template <bool D>
static inline void fill(Array a, long n) {
    __builtin_memset(written<D>(a), 0, n * sizeof(float));
}

// Where a part's pairs add up (N, width) numbers of the atoms: the tape's array, or from `offset` on the thread's own sums.
static inline Array target(const Part& p, Array whole, long offset) { return p.rank ? p.sums.at(offset) : whole; }

// After all threads' pairs: adds to rows of `own`, the part's atoms, what the other threads have for them.
template <bool D>
static void collect(const Part& p, Array own, long offset, long width) {
    const long n = p.atoms.atoms * width, from = offset + p.first_atom * width;
    float* to = written<D>(own);
    for (long k = 1; k < p.team->count; k++) {
        const float* sums = written<D>(p.atoms.part[k].sums) + from;
        for (long i = 0; i < n; i++) to[i] += sums[i];
    }
}

// What depends on a pair's vector from its first atom to its second: distance, direction, envelope, radial basis, and slopes.
static void measure(const Weights& w, Tape& t, long p, const double* v, double r) {
    const long R = w.s.radial;
    const double alpha = 5.0 / w.s.cutoff, turn = 3.14159265358979323846 / w.s.cutoff;
    t.distance[p] = r;
    for (int k = 0; k < 3; k++) t.direction.v[3 * p + k] = v[k] / r;
    const double wave = 0.5 * (__builtin_cos(turn * r) + 1.0), slope = -0.5 * turn * __builtin_sin(turn * r);
    t.envelope.v[p] = wave, t.envelope_slope[p] = slope;
    const float scaled = __builtin_exp(-alpha * r), fw = wave, fs = slope, fa = -alpha * scaled;
    float *basis = t.basis.v + p * R, *slopes = t.basis_slope + p * R;
    // Below e^-18 = 1.5e-8 a function is less than what the sums it goes into are rounded by; with short cutoffs a pair may have none.
    const float least = -18.0f;
    Window window = {0, (int)R};
    for (long k = 0; k < R; k += VL) {
        const vf gap = scaled - load(w.means + k);
        store(basis + k, -load(w.betas + k) * gap * gap);
    }
    while (window.low < window.high && basis[window.high - 1] < least) window.high--;
    while (window.low < window.high && basis[window.low] < least) window.low++;
    t.windows[p] = window;
    for (long k = 0; k < R; k += VL) {
        vf e = {}, s = {};
        if (k < window.high && k + VL > window.low) {
            const vf exponent = load(basis + k), beta = load(w.betas + k), gap = scaled - load(w.means + k);
            e = exponential(exponent);
            e = exponent < least ? vf{} : e;
            s = e * (fs - 2.0f * fw * beta * gap * fa);
        }
        store(basis + k, fw * e);
        store(slopes + k, s);
    }
}

// The geometry of pairs, from float64 positions (and lattice offsets, if any).
static void geometry(const Weights& w, Tape& t, const double* positions, const double* offsets) {
    for (long p = 0; p < t.pairs; p++) {
        double v[3], square = 0;
        for (int k = 0; k < 3; k++) {
            v[k] = positions[3 * t.second[p] + k] - positions[3 * t.first[p] + k] + (offsets ? offsets[3 * p + k] : 0.0);
            square += v[k] * v[k];
        }
        measure(w, t, p, v, __builtin_sqrt(square));
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

// Filters before SiLU of a block of pairs, computed or as they were kept.
template <bool D>
static inline Array block_filters(const Sizes& s, const Layer& f, Tape& t, LayerTape& l, long p, bool compute) {
    const long count = t.pairs - p < BLOCK ? t.pairs - p : BLOCK;
    const Array to = keeps_filters(t.train, s) ? l.filter.at(p * 4 * s.channels) : t.filter_bar;
    if (compute) filter<D>(f.filters, count, t.basis.at(p * s.radial), t.windows + p, to);
    return to;
}

// Messages along the part's pairs, into `summed` (N, C) and `vectors` (N, 3, C). t: those pairs with all atoms.
template <bool D, bool vec>
static void messages(const Sizes& s, const Layer& f, Tape& t, LayerTape& l, Array before, Array summed, Array vectors) {
    const long C = s.channels, H = s.heads, P = t.pairs;
    Heads<D> heads;
    Num<D> u[3], back[3];
    for (long p = 0; p < P; p++) {
        const long i = t.first[p], j = t.second[p], at = p * heads_row(2 * H), place = p % BLOCK;
        activate_filters<D>(C, block_filters<D>(s, f, t, l, p - place, !place), place * 4 * C, t.filters);
        logits<D>(s, l.qkv, t.filters, i, j, l.logits, at);
        logits<D>(s, l.qkv, t.filters, j, i, l.logits, at + H);
        const Num<D> envelope = one<D>(t.envelope, p);
        activate<D>(2 * H, l.logits, at, envelope, heads.array());
        for (int k = 0; k < 3; k++) u[k] = one<D>(t.direction, 3 * p + k), back[k] = constant<D>(vf{}) - u[k];
        message<D, vec>(s, l.qkv, t.filters, heads.array(), envelope, u, before, i, j, summed, vectors);
        message<D, vec>(s, l.qkv, t.filters, heads.array().at(H), envelope, back, before, j, i, summed, vectors);
    }
}

// Messages of the part's atoms to themselves. zero: (4C) derivatives of their filters.
template <bool D, bool vec>
static void own_messages(const Sizes& s, const Layer& f, Tape& t, LayerTape& l, Array before, float* zero) {
    const long C = s.channels, H = s.heads;
    Heads<D> heads;
    Num<D> u[3];
    activate_filters<D>(C, {f.own, zero}, 0, t.filters);
    const Num<D> whole = constant<D>(splat(1.0f));
    for (int k = 0; k < 3; k++) u[k] = constant<D>(vf{});
    for (long n = 0; n < t.atoms; n++) {
        const long at = n * heads_row(H);
        logits<D>(s, l.qkv, t.filters, n, n, l.own_logits, at);
        activate<D>(H, l.own_logits, at, whole, heads.array());
        message<D, vec>(s, l.qkv, t.filters, heads.array(), whole, u, before, n, n, l.summed, l.vectors);
    }
}

// Are there vectors before layer k, which are they, and where do their adjoints go?
static inline bool carried(const Tape& t, long k) { return k || t.given; }
static inline Array before(const Tape& t, long k) { return k ? t.layer[k - 1].vectors : t.given ? t.start : t.zero; }
static inline Array before_bar(const Tape& t, long k) { return k ? t.layer[k - 1].vectors_bar : t.given ? t.start_bar : t.zero; }

// All messages of a layer: sums over the part's pairs, and after all threads' pairs the sums of the part's atoms.
template <bool D, bool vec>
static void exchange(const Weights& w, Part& p, long k) {
    const Sizes& s = w.s;
    Tape &t = p.pairs, &a = p.atoms;
    const long N = t.atoms, C = s.channels;
    LayerTape &l = t.layer[k], &o = a.layer[k];
    const Array summed = target(p, l.summed, 0), vectors = target(p, l.vectors, N * C);
    wait(p);
    fill<D>(summed, N * C);
    fill<D>(vectors, 3 * N * C);
    messages<D, vec>(s, w.layer[k], t, l, before(t, k), summed, vectors);
    wait(p);
    collect<D>(p, o.summed, 0, C);
    collect<D>(p, o.vectors, N * C, 3 * C);
    own_messages<D, vec>(s, w.layer[k], a, o, before(a, k), t.zero.d);
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
static void embed(const Weights& w, Part& p) {
    Tape &t = p.pairs, &a = p.atoms;
    const long N = t.atoms, C = w.s.channels;
    const Array mixed = target(p, t.mixed, 0);
    filter<D>(w.neighbour_filter, t.pairs, t.basis, t.windows, t.neighbour_filter);
    for (long n = 0; n < N; n++) {
        __builtin_memset(written<D>(mixed) + n * 2 * C + C, 0, C * sizeof(float));
        if (D || p.rank) __builtin_memset(written<D>(mixed) + n * 2 * C, 0, C * sizeof(float));
    }
    for (long q = 0; q < t.pairs; q++) {
        const Num<D> envelope = one<D>(t.envelope, q);
        const long i = t.first[q], j = t.second[q];
        for (long c = 0; c < C; c += VL) {
            const Num<D> f = get<D>(t.neighbour_filter, q * C + c) * envelope;
            add<D>(mixed, i * 2 * C + C + c, f * get<D>(t.neighbour, j * C + c));
            add<D>(mixed, j * 2 * C + C + c, f * get<D>(t.neighbour, i * C + c));
        }
    }
    wait(p);
    collect<D>(p, a.mixed, 0, 2 * C);
    apply<D>(w.combine, a.atoms, a.mixed, 2 * C, a.x);
}

// The features of the part's atoms: scalars in the first halves of t.read1's rows, vectors in the last layer's.
template <bool D>
static void encode(const Weights& w, Part& p) {
    Tape& a = p.atoms;
    const long N = a.atoms, C = w.s.channels;
    embed<D>(w, p);
    for (long k = 0; k < w.s.layers; k++) {
        const Layer& f = w.layer[k];
        LayerTape& l = a.layer[k];
        const bool vec = carried(a, k);
        normalise<D>(N, C, a.x, l.xhat, l.rstd, f.norm_w, f.norm_b, a.y, C);
        apply<D>(f.qkv, N, a.y, C, l.qkv);
        if (vec)
            exchange<D, true>(w, p, k);
        else
            exchange<D, false>(w, p, k);
        apply<D>(f.output, N, l.summed, C, l.out);
        if (vec) apply<D>(f.vectors, 3 * N, before(a, k), C, l.mapped);
        update<D>(N, C, vec, l.out, l.mapped, before(a, k), a.x, l.vectors);
    }
    normalise<D>(N, C, a.x, a.xhat, a.rstd, w.norm_w, w.norm_b, a.read1, 2 * C);
}

// energies: of the part's atoms.
template <bool D>
static void forward(const Weights& w, Part& p, float* energies) {
    encode<D>(w, p);
    read_out<D>(w, p.atoms, p.atoms.layer[w.s.layers - 1].vectors, energies);
}

// Adjoints of the read-out's inputs: t.read1_bar (N, 2C), of which the first C are the norm's, and vectors_bar (N, 3, C).
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
        gradient<ALONG>(w.gate1, N, t.gate1_bar, t.y, C);
    }
    for (long i = 0; i < N * C; i += VL) put<D>(t.pre1_bar, i, get<D>(t.act1_bar, i) * silu(get<D>(t.pre1, i)).slope);
    apply_back<D>(w.mix1, N, t.pre1_bar, t.read1_bar, 2 * C, false);
    lengths_back<D>(N, C, t.map1, t.read1.at(C), 2 * C, t.read1_bar.at(C), t.map1_bar);
    apply_back<D>(w.norm_map1, 3 * N, t.map1_bar, vectors_bar, C, false);
    apply_back<D>(w.vector_map1, 3 * N, t.vec1_bar, vectors_bar, C, true);
    if constexpr (D) {
        gradient<ALONG>(w.mix2, N, t.pre2_bar, t.read2, C);
        gradient<ALONG>(w.norm_map2, 3 * N, t.map2_bar, t.vout1, C2);
        gradient<ALONG>(w.mix1, N, t.pre1_bar, t.read1, 2 * C);
        gradient<ALONG>(w.norm_map1, 3 * N, t.map1_bar, vectors, C);
        gradient<ALONG>(w.vector_map1, 3 * N, t.vec1_bar, vectors, C);
    }
}
