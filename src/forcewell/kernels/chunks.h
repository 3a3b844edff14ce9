// Molecules in chunks that stay in cache, pairs within the cutoff, threads, and what is kept of a chunk for its gradients.

struct Run {  // what a differentiable call keeps
    std::vector<Tape> tapes;
    std::vector<long> start;  // first atom of each chunk
};

// Walks through all parameters in the one order that both sides know; `visit` gets (weight, bias or null) places.
template <class Visit>
void parameters(Weights& w, Visit visit) {
    auto linear = [&](Linear& f, bool bias) { visit(f.w, f.gw, f.in * f.out); if (bias) visit(f.b, f.gb, f.out); };
    const long C = w.s.channels;
    linear(w.neighbour_filter, true);
    linear(w.combine, true);
    for (long l = 0; l < w.s.layers; l++) {
        Layer& f = w.layer[l];
        visit(f.norm_w, f.norm_gw, C), visit(f.norm_b, f.norm_gb, C);
        linear(f.qkv, true), linear(f.filters, true), linear(f.vectors, false), linear(f.output, true);
    }
    visit(w.norm_w, w.norm_gw, C), visit(w.norm_b, w.norm_gb, C);
    linear(w.norm_map1, false), linear(w.vector_map1, false), linear(w.mix1, true), linear(w.gate1, true);
    linear(w.norm_map2, false), linear(w.mix2, true);
    visit(w.gate2_w, w.gate2_gw, C), visit(w.gate2_b, w.gate2_gb, 2);
}

// Tries every pair of a molecule, or with many atoms only those of neighbouring cells. Order: by first atom, then second.
void find_pairs(const double* r, long n, double cutoff, std::vector<int>& first, std::vector<int>& second, int shift) {
    const double square = cutoff * cutoff;
    auto close = [&](long i, long j) {
        const double x = r[3 * i] - r[3 * j], y = r[3 * i + 1] - r[3 * j + 1], z = r[3 * i + 2] - r[3 * j + 2];
        return x * x + y * y + z * z < square;
    };
    if (n <= 400) {
        for (long i = 0; i < n; i++)
            for (long j = i + 1; j < n; j++)
                if (close(i, j)) first.push_back(shift + i), second.push_back(shift + j);
        return;
    }
    double low[3], high[3];
    for (int k = 0; k < 3; k++) {
        low[k] = high[k] = r[k];
        for (long i = 1; i < n; i++) low[k] = std::fmin(low[k], r[3 * i + k]), high[k] = std::fmax(high[k], r[3 * i + k]);
    }
    long cells[3];
    for (int k = 0; k < 3; k++) cells[k] = std::max(1L, std::min(1024L, (long)((high[k] - low[k]) / cutoff)));
    while (cells[0] * cells[1] * cells[2] > 8 * n)
        for (int k = 0; k < 3; k++) cells[k] = (cells[k] + 1) / 2;
    std::vector<std::vector<int>> members(cells[0] * cells[1] * cells[2]);
    std::vector<long> place(3 * n);
    for (long i = 0; i < n; i++) {
        for (int k = 0; k < 3; k++) {
            const double width = (high[k] - low[k]) / cells[k];
            place[3 * i + k] = width > 0 ? std::min(cells[k] - 1, (long)((r[3 * i + k] - low[k]) / width)) : 0;
        }
        members[(place[3 * i] * cells[1] + place[3 * i + 1]) * cells[2] + place[3 * i + 2]].push_back((int)i);
    }
    std::vector<int> found;
    for (long i = 0; i < n; i++) {
        found.clear();
        for (long a = std::max(0L, place[3 * i] - 1); a <= std::min(cells[0] - 1, place[3 * i] + 1); a++)
            for (long b = std::max(0L, place[3 * i + 1] - 1); b <= std::min(cells[1] - 1, place[3 * i + 1] + 1); b++)
                for (long c = std::max(0L, place[3 * i + 2] - 1); c <= std::min(cells[2] - 1, place[3 * i + 2] + 1); c++)
                    for (int j : members[(a * cells[1] + b) * cells[2] + c])
                        if (j > i && close(i, j)) found.push_back(j);
        std::sort(found.begin(), found.end());
        for (int j : found) first.push_back(shift + (int)i), second.push_back(shift + j);
    }
}

// A tape for N atoms and P pairs in memory that a finished one left, if it is large enough.
Tape open_tape(Model& m, long atoms, long pairs, bool train, bool given, long threads) {
    Tape t;
    memset((void*)&t, 0, sizeof t);
    t.atoms = atoms, t.pairs = pairs, t.train = train, t.given = given, t.threads = threads;
    const long need = place(t, m.w.s, nullptr);
    {
        std::lock_guard<std::mutex> guard(m.lock);
        long best = -1;
        for (long k = 0; k < (long)m.spare.size(); k++)
            if (m.spare[k].capacity >= need && (best < 0 || m.spare[k].capacity < m.spare[best].capacity)) best = k;
        if (best >= 0) {
            t.memory = m.spare[best].memory, t.capacity = m.spare[best].capacity;
            m.spare.erase(m.spare.begin() + best);
        }
    }
    if (!t.memory) t.capacity = need + need / 4, t.memory = aligned(t.capacity);
    if (t.memory) place(t, m.w.s, (char*)t.memory);
    return t;
}

void close_tape(Model& m, const Tape& t) {
    std::lock_guard<std::mutex> guard(m.lock);
    m.spare.push_back(t);
    if (m.spare.size() > Model::SPARE) free(m.spare.front().memory), m.spare.erase(m.spare.begin());
}

// First molecules of groups of about as many atoms as stay in cache together, and the number of molecules at the end.
std::vector<long> split(const Model& m, long molecules, const long* offsets) {
    const long C = m.w.s.channels, target = C <= 64 ? 32 : C <= 128 ? 64 : 128;
    std::vector<long> chunk{0};
    for (long k = 0; k < molecules; k++)
        if (k > chunk.back() && offsets[k + 1] - offsets[chunk.back()] > target) chunk.push_back(k);
    if (molecules) chunk.push_back(molecules);
    return chunk;
}

struct Pairs {  // atoms counted from the chunk's first; lattice offsets (P, 3), or none where nothing is periodic
    std::vector<int> first, second;
    std::vector<double> offsets;
};

// Puts a molecule's pairs, from `begin` on, in the order of their distances, BLOCK after BLOCK: the same radial functions are then not
// zero for many rows together. The order is that of the molecule alone, so that its forces are the same to the last bit in any batch.
void sort_pairs(const double* r, long begin, Pairs& pairs) {
    for (long from = begin, end = (long)pairs.first.size(); from < end; from += BLOCK) {
        const long count = std::min((long)BLOCK, end - from);
        struct Pair {
            double square, offset[3];
            int first, second;
        } sorted[BLOCK];
        for (long p = from; p < from + count; p++) {
            Pair pair = {0, {0, 0, 0}, pairs.first[p], pairs.second[p]};
            for (int k = 0; k < 3; k++) {
                if (!pairs.offsets.empty()) pair.offset[k] = pairs.offsets[3 * p + k];
                const double x = r[3 * pair.second + k] - r[3 * pair.first + k] + pair.offset[k];
                pair.square += x * x;
            }
            long at = p - from;
            for (; at > 0 && sorted[at - 1].square > pair.square; at--) sorted[at] = sorted[at - 1];
            sorted[at] = pair;
        }
        for (long q = 0; q < count; q++) {
            pairs.first[from + q] = sorted[q].first, pairs.second[from + q] = sorted[q].second;
            if (!pairs.offsets.empty()) std::copy_n(sorted[q].offset, 3, &pairs.offsets[3 * (from + q)]);
        }
    }
}

// Pairs of molecules whose first atoms are at `offsets`, of which the first one's positions begin at r.
void search(const double* r, const long* offsets, long molecules, double cutoff, Pairs& pairs) {
    pairs.first.clear(), pairs.second.clear();
    for (long k = 0; k < molecules; k++) {
        const long before = offsets[k] - offsets[0], begin = (long)pairs.first.size();
        find_pairs(r + 3 * before, offsets[k + 1] - offsets[k], cutoff, pairs.first, pairs.second, (int)before);
        sort_pairs(r, begin, pairs);
    }
}

// The same of given pairs (first, second, lattice offsets), which are sorted by molecule.
void take_pairs(const double* r, const long* offsets, long molecules, long count, const int* first, const int* second, const double* shifts, Pairs& pairs) {
    for (long k = 0, p = 0; k < molecules; k++) {
        const long begin = p;
        for (; p < count && first[p] < offsets[k + 1]; p++) {
            pairs.first.push_back(first[p] - (int)offsets[0]), pairs.second.push_back(second[p] - (int)offsets[0]);
            pairs.offsets.insert(pairs.offsets.end(), shifts + 3 * p, shifts + 3 * p + 3);
        }
        sort_pairs(r, begin, pairs);
    }
}

// While one lives, numbers below 1.2e-38 count as zero in its thread. All forces of a network that a high learning rate has killed are
// such numbers, and multiplying them takes a processor up to a hundred times as long.
struct NoDenormals {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    NoDenormals() { _mm_setcsr(before | 0x8040); }  // flush to zero, denormals are zero
    ~NoDenormals() { _mm_setcsr(before); }
#endif
};

template <class Work>
void in_threads(long count, Work work) {
    std::vector<std::thread> threads;
    const auto part = [&work](long k) {
        [[maybe_unused]] NoDenormals here;
        work(k);
    };
    for (long k = 1; k < count; k++) threads.emplace_back(part, k);
    part(0);
    for (std::thread& t : threads) t.join();
}

// Calls work(part) for each thread's part of a chunk's N atoms; leaves the tape open. vectors: (N, 3, C) before the first layer, or
// null. False without memory.
template <class Work>
bool evaluate(Model& m, long atoms, const float* embedded, const float* neighbours, const float* vectors, const Pairs& pairs, bool train, long together, Tape& t, Work work) {
    const long C = m.w.s.channels, P = (long)pairs.first.size();
    t = open_tape(m, atoms, P, train, vectors, together);
    if (!t.memory) return false;
    memcpy(t.first, pairs.first.data(), P * sizeof(int)), memcpy(t.second, pairs.second.data(), P * sizeof(int));
    memcpy(t.neighbour.v, neighbours, atoms * C * sizeof(float));
    for (long n = 0; n < atoms; n++) memcpy(t.mixed.v + n * 2 * C, embedded + n * C, C * sizeof(float));
    if (vectors) memcpy(t.start.v, vectors, 3 * atoms * C * sizeof(float));
    in_threads(together, [&](long k) { work(t.part[k]); });
    return true;
}

// How many of the threads pay for one chunk: each needs work for a millisecond, since they wait for each other four times a layer
// (and long, where other programs take the cores), and five atoms, since each reads all weights. About ten pairs per atom, with some 16
// radial functions each; a core does some 12 multiplications and additions in a nanosecond.
long pay(const Model& m, long atoms, long threads) {
    const Sizes& s = m.w.s;
    const double work = double(atoms) * s.layers * s.channels * (17 * s.channels + 40 * (std::min(s.radial, 16L) + 32)) / 12;  // ns
    return std::max(1L, std::min({threads, atoms / 5, (long)(work / 1e6)}));
}

// Calls work(chunk, threads) for every chunk: many chunks side by side, a thread each; of few, those for which helpers(chunk) gives
// several threads one after the other. What is done how depends on nothing but the sizes and the number of threads.
template <class Helpers, class Work>
void by_chunks(long chunks, long threads, Helpers helpers, Work work) {
    std::vector<long> alone;
    for (long c = 0; c < chunks; c++)
        if (chunks < 2 * threads && helpers(c) > 1)
            work(c, helpers(c));
        else
            alone.push_back(c);
    std::atomic<long> next{0};
    in_threads(std::min(threads, std::max(1L, (long)alone.size())), [&](long) {
        for (long k; (k = next++) < (long)alone.size();) work(alone[k], 1);
    });
}

// Molecules with atoms offsets[m]..offsets[m+1], positions (N, 3) in float64, atom and neighbour embeddings (N, C), vectors before the
// first layer (N, 3, C) or null. Pairs: given ones (first, second, lattice offsets (P, 3) in Å, sorted by molecule), or null: no
// periodic images.
struct Molecules {
    long count;
    const long* offsets;
    const double* positions;
    const float *embedded, *neighbours, *vectors;
    long pair_count;
    const int *first, *second;
    const double* shifts;
};

// 1 where work() ran out of memory, else what it returns.
template <class Work>
long without_memory(Work work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Calls work(part, first atom, positions, lattice offsets) for every part of every chunk of molecules. keep: returns the tapes.
template <class Work>
Run* run(Model& m, const Molecules& s, bool dual, long threads, bool keep, long* failed, Work work) {
    const long C = m.w.s.channels;
    std::unique_ptr<Run> run;
    std::atomic<long> bad{0};
    bad |= without_memory([&] {
        const std::vector<long> chunk = split(m, s.count, s.offsets);
        const long chunks = (long)chunk.size() - 1;
        if (keep) run = std::make_unique<Run>(), run->tapes.resize(chunks), run->start.resize(chunks);
        std::vector<long> pair_start(chunks + 1, 0);
        if (s.first)
            for (long c = 0, p = 0; c < chunks; c++) {
                while (p < s.pair_count && s.first[p] < s.offsets[chunk[c + 1]]) p++;
                pair_start[c + 1] = p;
            }
        auto of_chunk = [&](long c, long together) -> long {
            Pairs pairs;
            const long begin = s.offsets[chunk[c]], atoms = s.offsets[chunk[c + 1]] - begin;
            const double* positions = s.positions + 3 * begin;
            const long *own = s.offsets + chunk[c], p = pair_start[c], molecules = chunk[c + 1] - chunk[c];
            if (s.first)
                take_pairs(positions, own, molecules, pair_start[c + 1] - p, s.first + p, s.second + p, s.shifts + 3 * p, pairs);
            else
                search(positions, own, molecules, m.w.s.cutoff, pairs);
            Tape t;
            auto of_part = [&](Part& p) { work(p, begin, positions, pairs.offsets.empty() ? nullptr : pairs.offsets.data()); };
            const float* vectors = s.vectors ? s.vectors + 3 * begin * C : nullptr;
            if (!evaluate(m, atoms, s.embedded + begin * C, s.neighbours + begin * C, vectors, pairs, dual, together, t, of_part)) return 1;
            if (run)
                run->tapes[c] = t, run->start[c] = begin;
            else
                close_tape(m, t);
            return 0;
        };
        auto helpers = [&](long c) { return pay(m, s.offsets[chunk[c + 1]] - s.offsets[chunk[c]], threads); };
        by_chunks(chunks, threads, helpers, [&](long c, long together) { bad |= without_memory([&] { return of_chunk(c, together); }); });
        return 0L;
    });
    *failed = bad;
    return run.release();
}

struct Inputs {  // gradients by the embeddings (N, C) and by the vectors before the first layer (N, 3, C), the last or null
    float *embedded, *neighbours, *vectors;
};

// Calls work(weights with places for gradients, part, first atom of its chunk) for every kept part, and adds up what it leaves there.
// Returns 1 without memory.
template <class Work>
long gradients_of(Model& m, Run& run, long threads, float* const* gradients, const Inputs& bar, Work work) {
    const long C = m.w.s.channels, chunks = (long)run.tapes.size();
    long workers = std::min(threads, std::max(1L, chunks)), total = 0, atoms = 0;
    for (const Tape& t : run.tapes) workers = std::max(workers, t.threads), atoms += t.atoms + t.pairs / 4;
    parameters(m.w, [&](const float*&, float*&, long n) { total += n; });
    std::vector<std::vector<float>> sums;
    std::vector<std::vector<Layer>> layers;
    const long failed = without_memory([&] {  // all of it now: no thread may leave those that wait for it
        sums.assign(workers, std::vector<float>(total + 16, 0.0f));
        layers.assign(workers, std::vector<Layer>(m.w.layer, m.w.layer + m.w.s.layers));
        return 0L;
    });
    if (failed) return failed;
    in_threads(workers, [&](long k) {
        Weights w = m.w;
        w.layer = layers[k].data();
        float* place = sums[k].data();
        parameters(w, [&](const float*&, float*& gradient, long n) { gradient = place, place += n; });
        long before = 0;
        for (long c = 0; c < chunks; c++) {  // each worker a run of chunks of about equal size: the same for every call
            Tape& t = run.tapes[c];
            const long mine = before * workers / std::max(1L, atoms), start = run.start[c];
            before += t.atoms + t.pairs / 4;
            if (t.threads > 1 ? k >= t.threads : mine != k) continue;  // or a part of a chunk that threads share
            Part& p = t.part[t.threads > 1 ? k : 0];
            const long from = start + p.first_atom, own = p.atoms.atoms;
            work(w, p, start);
            auto found = [&](Array bar) { return t.train ? bar.d : bar.v; };
            memcpy(bar.neighbours + from * C, found(p.atoms.neighbour_bar), own * C * sizeof(float));
            for (long n = 0; n < own; n++) memcpy(bar.embedded + (from + n) * C, found(p.atoms.mixed_bar) + n * 2 * C, C * sizeof(float));
            if (t.given) memcpy(bar.vectors + 3 * from * C, found(p.atoms.start_bar), 3 * own * C * sizeof(float));
        }
    });
    for (long k = 0; k < workers; k++) {
        const float* place = sums[k].data();
        float* const* to = gradients;
        parameters(m.w, [&](const float*&, float*&, long n) {
            for (long i = 0; i < n; i++) (*to)[i] += place[i];
            place += n, to++;
        });
    }
    return 0;
}

// Takes steps of molecules without periodic images. Returns 1 without memory, else 0.
long move(Model& m, const Motion& s, long steps, long threads) {
    const long C = m.w.s.channels;
    const std::vector<long> chunk = split(m, s.molecules, s.offsets);
    std::atomic<long> bad{0};
    auto of_chunk = [&](long c, long together) -> long {
        Pairs pairs;
        const Group g = {chunk[c], chunk[c + 1], s.offsets[chunk[c]], s.offsets[chunk[c + 1]]};
        const long atoms = g.end - g.begin;
        std::vector<double> positions;
        std::vector<float> energies(atoms), forces;
        return !advance(s, g, steps, [&] {
            positions.assign(s.seen + 3 * g.begin, s.seen + 3 * g.end), forces.assign(3 * atoms, 0.0f);
            search(positions.data(), s.offsets + g.first, g.last - g.first, m.w.s.cutoff, pairs);
            Tape t;
            const float *embedded = s.embedded + g.begin * C, *neighbours = s.neighbours + g.begin * C;
            auto of_part = [&](Part& p) {
                m.kernel->forward(m.w, p, positions.data(), nullptr, energies.data());
                m.kernel->forces(m.w, p, forces.data());
            };
            if (!evaluate(m, atoms, embedded, neighbours, nullptr, pairs, false, together, t, of_part)) return false;
            close_tape(m, t);
            take(s, g, energies.data(), forces.data());
            return true;
        });
    };
    auto helpers = [&](long c) { return pay(m, s.offsets[chunk[c + 1]] - s.offsets[chunk[c]], threads); };
    by_chunks((long)chunk.size() - 1, threads, helpers, [&](long c, long together) { bad |= without_memory([&] { return of_chunk(c, together); }); });
    return bad;
}
