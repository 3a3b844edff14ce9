// All kernels for one instruction set. The including file sets VL (floats per vector) and the compiler's target, and exports KERNEL.
// With TILES, matrix products are by AMX tiles.

#include <sched.h>

#include "model.h"

namespace {
#include "numbers.h"
#include "matrix.h"
#if defined(TILES)
#include "tiles.h"
namespace products = by_tiles;
static inline void leave() { _tile_release(); }  // else each change of threads would save 8 KiB
#else
namespace products = by_vectors;
static inline void leave() {}
#endif
#include "linear.h"
#include "layers.h"
#include "passes.h"
#include "reverse.h"

void load_weights(Weights& w, const double* own_basis) {
    const Sizes& s = w.s;
    for (long k = 0; k < s.radial; k++) w.own_basis[k] = own_basis[k];
    const Linear* linears[] = {&w.combine, &w.norm_map1, &w.vector_map1, &w.mix1, &w.gate1, &w.norm_map2, &w.mix2};
    for (const Linear* f : linears) pack_linear(*f);
    pack_filter(w.neighbour_filter);
    const Window whole = {0, (int)s.radial};
    for (long l = 0; l < s.layers; l++) {
        const Layer& f = w.layer[l];
        const Linear* own[] = {&f.qkv, &f.vectors, &f.output};
        for (const Linear* g : own) pack_linear(*g);
        pack_filter(f.filters);
        filter<false>(f.filters, 1, {w.own_basis, 0}, &whole, {f.own, 0});
    }
    leave();
}

void run_forward(const Weights& w, Part& p, const double* positions, const double* offsets, float* energies) {
    geometry(w, p.pairs, positions, offsets ? offsets + 3 * p.first_pair : 0);
    forward<false>(w, p, energies + p.first_atom);
    leave();
}

// Seeds: derivative of the loss by each atom's energy in t.seed.d, the energy's own adjoint (1) in t.seed.v.
void run_forces(const Weights& w, Part& p, float* out) {
    for (long n = 0; n < p.atoms.atoms; n++) p.atoms.seed.v[n] = 1.0f;
    backward<FORCES>(w, p);
    leave();
    forces(w, p, out);
}

void run_training(const Weights& w, Part& p, const float* displacement) {
    Tape& t = p.pairs;
    if (!p.rank) {  // what does not move
        __builtin_memset(t.zero.d, 0, (3 * t.atoms + 4) * w.s.channels * sizeof(float));
        __builtin_memset(t.neighbour.d, 0, t.atoms * w.s.channels * sizeof(float));
        if (t.given) __builtin_memset(t.start.d, 0, 3 * t.atoms * w.s.channels * sizeof(float));
    }
    wait(p);
    displace(w, t, displacement);
    forward<true>(w, p, 0);
    backward<ALONG>(w, p);
    leave();
}

void run_features(const Weights& w, Part& p, const double* positions, const double* offsets, float* scalars, float* vectors) {
    const Tape& a = p.atoms;
    const long C = w.s.channels;
    geometry(w, p.pairs, positions, offsets ? offsets + 3 * p.first_pair : 0);
    encode<false>(w, p);
    leave();
    for (long n = 0; n < a.atoms; n++) __builtin_memcpy(scalars + (p.first_atom + n) * C, a.read1.v + n * 2 * C, C * sizeof(float));
    __builtin_memcpy(vectors + p.first_atom * 3 * C, a.layer[w.s.layers - 1].vectors.v, a.atoms * 3 * C * sizeof(float));
}

void run_training_features(const Weights& w, Part& p, const float* scalars_bar, const float* vectors_bar) {
    Tape& a = p.atoms;
    const long C = w.s.channels;
    for (long n = 0; n < a.atoms; n++) __builtin_memcpy(a.read1_bar.v + n * 2 * C, scalars_bar + (p.first_atom + n) * C, C * sizeof(float));
    __builtin_memcpy(a.layer[w.s.layers - 1].vectors_bar.v, vectors_bar + p.first_atom * 3 * C, a.atoms * 3 * C * sizeof(float));
    backward<PARAMETERS>(w, p);
    leave();
}
}

extern const Kernel KERNEL;
const Kernel KERNEL = {VL, load_weights, run_forward, run_forces, run_training, run_features, run_training_features};
