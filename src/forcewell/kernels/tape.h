// Working memory of a tape in one block, and each thread's view of it.

struct Arena {
    char* base;
    long used;
    bool dual;
    float* floats(long n) {
        float* p = base ? (float*)(base + used) : 0;
        used += (n * 4 + 64 + 63) / 64 * 64;  // 64 spare bytes: whole vectors may be read at the end
        return p;
    }
    Array array(long n) {
        float* v = floats(n);
        float* d = dual ? floats(n) : 0;
        return {v, d};
    }
};

// Every array of a layer with its numbers per atom, or per pair. `below`: are there vectors before it?
template <class Atoms, class Pairs>
void walk(LayerTape& l, const Sizes& s, bool below, bool train, Atoms atoms, Pairs pairs) {
    const long C = s.channels;
    atoms(l.xhat, C), atoms(l.rstd, 1), atoms(l.qkv, 5 * C), atoms(l.own_logits, heads_row(s.heads)), atoms(l.summed, C), atoms(l.out, 3 * C);
    atoms(l.vectors, 3 * C), atoms(l.mapped, below ? 9 * C : 0);
    pairs(l.logits, heads_row(2 * s.heads)), pairs(l.filter, keeps_filters(train, s) ? 4 * C : 0);
}

template <class Atoms>
void walk_adjoints(LayerTape& l, const Sizes& s, Atoms atoms) {
    const long C = s.channels;
    atoms(l.vectors_bar, 3 * C), atoms(l.out_bar, 3 * C), atoms(l.mapped_bar, 9 * C), atoms(l.summed_bar, C), atoms(l.qkv_bar, 5 * C), atoms(l.norm_bar, C);
}

// The same for what is not a layer's. t.zero is placed apart, and what is of one pair is each part's.
template <class Atoms, class Pairs>
void walk(Tape& t, const Sizes& s, Atoms atoms, Pairs pairs) {
    const long C = s.channels, C2 = C / 2, R = s.radial;
    pairs(t.envelope, 1), pairs(t.direction, 3), pairs(t.basis, R), pairs(t.neighbour_filter, C);
    atoms(t.neighbour, C), atoms(t.mixed, 2 * C), atoms(t.mixed_bar, 2 * C), atoms(t.neighbour_bar, C);
    atoms(t.x, C), atoms(t.x_bar, C), atoms(t.xhat, C), atoms(t.rstd, 1);
    Array* wide[] = {&t.read1, &t.pre1, &t.gate1, &t.read2, &t.pre2};
    const long width[] = {2 * C, C, C, C, C2};
    Array* wide_bar[] = {&t.read1_bar, &t.pre1_bar, &t.gate1_bar, &t.read2_bar, &t.pre2_bar};
    for (int i = 0; i < 5; i++) atoms(*wide[i], width[i]), atoms(*wide_bar[i], width[i]);
    atoms(t.map1, 3 * C), atoms(t.map1_bar, 3 * C);
    Array* half[] = {&t.vec1, &t.vout1, &t.map2, &t.vec1_bar, &t.vout1_bar, &t.map2_bar};
    for (Array* h : half) atoms(*h, 3 * C2);
    atoms(t.act1_bar, C), atoms(t.seed, 1), atoms(t.y, C);
    atoms(t.start, t.given ? 3 * C : 0), atoms(t.start_bar, t.given ? 3 * C : 0);
}

// Points the part's views at its rows, atoms and pairs being divided evenly.
static void look(const Tape& t, const Sizes& s, Part& p) {
    const long k = p.rank, C = s.channels, R = s.radial;
    const long atom = t.atoms * k / t.threads, pair = t.pairs * k / t.threads;
    auto none = [](Array&, long) {};
    auto atoms = [&](Array& to, long width) { to = to.at(atom * width); };
    auto pairs = [&](Array& to, long width) { to = to.at(pair * width); };
    p.first_atom = atom, p.first_pair = pair, p.atoms = p.pairs = t;
    Tape &a = p.atoms, &b = p.pairs;
    a.atoms = t.atoms * (k + 1) / t.threads - atom, b.pairs = t.pairs * (k + 1) / t.threads - pair;
    walk(a, s, atoms, none), walk(b, s, none, pairs);
    a.zero = t.zero.at(3 * atom * C);
    b.first += pair, b.second += pair, b.distance += pair, b.envelope_slope += pair, b.basis_slope += pair * R, b.windows += pair;
    b.basis_bar += pair * R, b.envelope_bar += pair, b.direction_bar += 3 * pair;
    a.filters = b.filters = p.filters, a.slopes = b.slopes = p.slopes, a.filter_bar = b.filter_bar = p.filter_bar;
    a.layer = p.atom_layers, b.layer = p.pair_layers;
    for (long l = 0; l < s.layers; l++) {
        a.layer[l] = b.layer[l] = t.layer[l];
        const bool below = l > 0 || t.given;
        walk(a.layer[l], s, below, t.train, atoms, none), walk(b.layer[l], s, below, t.train, none, pairs);
        walk_adjoints(a.layer[l], s, atoms);
    }
}

// Places every array of the tape; with a null base only measures. Where nothing is to be trained, layers share their adjoints.
static long place(Tape& t, const Sizes& s, char* base) {
    Arena a = {base, 0, t.train};
    const long N = t.atoms, P = t.pairs, C = s.channels, R = s.radial;
    auto atoms = [&](Array& to, long width) { to = a.array(N * width); };
    auto pairs = [&](Array& to, long width) { to = a.array(P * width); };
    t.first = (int*)a.floats(P), t.second = (int*)a.floats(P), t.distance = a.floats(P);
    t.envelope_slope = a.floats(P), t.basis_slope = a.floats(P * R), t.windows = (Window*)a.floats(2 * P);
    t.basis_bar = a.floats(P * R), t.envelope_bar = a.floats(P), t.direction_bar = a.floats(3 * P);
    walk(t, s, atoms, pairs);
    const long layers = s.layers * sizeof(LayerTape) / sizeof(float);
    LayerTape* layer = (LayerTape*)a.floats(layers);
    LayerTape sink;
    for (long l = 0; l < s.layers; l++) {
        LayerTape& k = base ? layer[l] : sink;
        walk(k, s, l > 0 || t.given, t.train, atoms, pairs);
        if (t.train || l < 2)
            walk_adjoints(k, s, atoms);
        else if (base) {
            LayerTape& o = layer[l - 2];
            k.vectors_bar = o.vectors_bar, k.out_bar = o.out_bar, k.mapped_bar = o.mapped_bar;
            k.summed_bar = o.summed_bar, k.qkv_bar = o.qkv_bar, k.norm_bar = o.norm_bar;
        }
    }
    t.layer = layer;
    t.zero = a.array((3 * N + 4) * C);
    Team* team = (Team*)a.floats(sizeof(Team) / sizeof(float));
    t.part = (Part*)a.floats(t.threads * sizeof(Part) / sizeof(float));
    for (long k = 0; k < t.threads; k++) {
        Part sunk, &p = base ? t.part[k] : sunk;
        float* sums = k ? a.floats(N * 8 * C) : 0;
        p.sums = {sums, sums}, p.team = team, p.rank = k;  // a pass adds up values or derivatives, never both
        p.filters = a.array(4 * C), p.slopes = a.array(4 * C), p.filter_bar = a.array(BLOCK * 4 * C);
        p.pair_layers = (LayerTape*)a.floats(layers), p.atom_layers = (LayerTape*)a.floats(layers);
    }
    if (base) {
        *team = {t.threads, 0, 0};
        for (long k = 0; k < t.threads; k++) look(t, s, t.part[k]);
    }
    return a.used;
}
