// Working memory of a tape in one block.

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

// Places every array of the tape; with a null base only measures. Where nothing is to be trained, layers share their adjoints.
static long place(Tape& t, const Sizes& s, char* base) {
    Arena a = {base, 0, t.train};
    const long N = t.atoms, P = t.pairs, C = s.channels, R = s.radial, C2 = C / 2;
    t.first = (int*)a.floats(P), t.second = (int*)a.floats(P), t.distance = a.floats(P);
    t.envelope = a.array(P), t.direction = a.array(3 * P), t.basis = a.array(P * R);
    t.envelope_slope = a.floats(P), t.basis_slope = a.floats(P * R);
    t.neighbour = a.array(N * C), t.neighbour_filter = a.array(P * C);
    t.mixed = a.array(N * 2 * C), t.mixed_bar = a.array(N * 2 * C), t.neighbour_bar = a.array(N * C);
    LayerTape* layer = (LayerTape*)a.floats(s.layers * sizeof(LayerTape) / 4);
    LayerTape sink;
    for (long l = 0; l < s.layers; l++) {
        LayerTape& k = base ? layer[l] : sink;
        k.xhat = a.array(N * C), k.rstd = a.array(N), k.qkv = a.array(N * 5 * C), k.logits = a.array((2 * P + N) * s.heads);
        k.filter = a.array(P * 4 * C), k.summed = a.array(N * C), k.out = a.array(N * 3 * C);
        k.vectors = a.array(N * 3 * C), k.mapped = a.array(l ? N * 9 * C : 0);
        if (t.train || l < 2) {
            k.vectors_bar = a.array(N * 3 * C), k.out_bar = a.array(N * 3 * C), k.mapped_bar = a.array(N * 9 * C);
            k.summed_bar = a.array(N * C), k.qkv_bar = a.array(N * 5 * C), k.norm_bar = a.array(N * C);
        } else if (base) {
            LayerTape& o = layer[l - 2];
            k.vectors_bar = o.vectors_bar, k.out_bar = o.out_bar, k.mapped_bar = o.mapped_bar;
            k.summed_bar = o.summed_bar, k.qkv_bar = o.qkv_bar, k.norm_bar = o.norm_bar;
        }
    }
    t.layer = layer;
    t.x = a.array(N * C), t.x_bar = a.array(N * C), t.xhat = a.array(N * C), t.rstd = a.array(N);
    Array* wide[] = {&t.read1, &t.pre1, &t.gate1, &t.read2, &t.pre2};
    const long width[] = {2 * C, C, C, C, C2};
    Array* wide_bar[] = {&t.read1_bar, &t.pre1_bar, &t.gate1_bar, &t.read2_bar, &t.pre2_bar};
    for (int i = 0; i < 5; i++) *wide[i] = a.array(N * width[i]), *wide_bar[i] = a.array(N * width[i]);
    t.map1 = a.array(3 * N * C), t.map1_bar = a.array(3 * N * C);
    Array* half[] = {&t.vec1, &t.vout1, &t.map2, &t.vec1_bar, &t.vout1_bar, &t.map2_bar};
    for (Array* h : half) *h = a.array(3 * N * C2);
    t.norm_bar = a.array(N * C), t.act1_bar = a.array(N * C), t.seed = a.array(N), t.zero = a.array((3 * N + 4) * C), t.y = a.array(N * C);
    t.filters = a.array(4 * C), t.filter_bar = a.array(BLOCK * 4 * C);
    t.basis_bar = a.floats(P * R), t.envelope_bar = a.floats(P), t.direction_bar = a.floats(3 * P);
    return a.used;
}
