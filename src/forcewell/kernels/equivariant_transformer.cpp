// Plain C functions over the kernels. Called from Python by ctypes.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <memory>
#include <new>
#include <sys/mman.h>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "model.h"
#include "tape.h"
#include "machine.h"
namespace {
#include "dynamics.h"
#include "memory.h"
#include "chunks.h"
}

extern "C" {

// Counts the changes to what these functions take; a library of other sources is not called (fused.py).
long forcewell_interface() { return 2; }

// The best instruction set here, at most `most`, that the sizes are multiples of; 0 where none is.
long forcewell_instructions(const long* sizes, long most) {
    const long channels = sizes[0], heads = sizes[2], radial = sizes[3];
    auto fits = [&](long width) { return channels / heads % width == 0 && channels % (2 * width) == 0 && radial % width == 0 && heads <= 64; };
    for (const long set : {AMX, AVX512, AVX2, PORTABLE})
        if (set <= most && fits(floats_of(set)) && kernel_of(set)) return set;
    return 0;
}

// sizes: channels, layers, heads, radial. `own_basis`: the radial basis at r = 0. means and betas are copied. half: the weights of
// all linear maps but the read-out's are rounded to bfloat16. Null without memory.
void* forcewell_create(long instructions, const long* sizes, double cutoff, double softening, const float* means, const float* betas, const double* own_basis, long half) try {
    auto owner = std::make_unique<Model>();
    Model* m = owner.get();
    m->kernel = kernel_of(instructions);
    Weights& w = m->w;
    memset((void*)&w, 0, sizeof w);
    w.s = {sizes[0], sizes[1], sizes[2], sizes[3], cutoff, softening};
    const long C = sizes[0], R = sizes[3], C2 = C / 2;
    float* copies[2] = {m->floats(R), m->floats(R)};
    memcpy(copies[0], means, R * sizeof(float)), memcpy(copies[1], betas, R * sizeof(float));
    w.means = copies[0], w.betas = copies[1], w.own_basis = m->floats(R);
    m->own_basis.assign(own_basis, own_basis + R);
    auto linear = [&](Linear& f, long in, long out) {
        const long whole = (in + 31) / 32 * 32 * ((out + 31) / 32 * 32), space = half ? whole / 2 : whole;
        f.in = in, f.out = out, f.half = half;
        f.forward_panels = m->floats(space), f.backward_panels = m->floats(space);
    };
    linear(w.neighbour_filter, R, C), linear(w.combine, 2 * C, C);
    w.layer = (Layer*)m->floats(sizes[1] * sizeof(Layer) / sizeof(float));
    memset((void*)w.layer, 0, sizes[1] * sizeof(Layer));
    for (long l = 0; l < sizes[1]; l++) {
        Layer& f = w.layer[l];
        linear(f.qkv, C, 5 * C), linear(f.filters, R, 4 * C), linear(f.vectors, C, 3 * C), linear(f.output, C, 3 * C);
        f.own = m->floats(4 * C);
    }
    half = 0;  // an energy needs more than three digits
    linear(w.norm_map1, C, C), linear(w.vector_map1, C, C2), linear(w.mix1, 2 * C, C), linear(w.gate1, C, C);
    linear(w.norm_map2, C2, C2), linear(w.mix2, C, C2);
    return owner.release();
} catch (const std::bad_alloc&) {
    return nullptr;
}

void forcewell_destroy(void* model) { delete (Model*)model; }

// Takes the parameters' addresses (which must stay valid) and packs the matrices.
void forcewell_load(void* model, const float* const* given) {
    Model& m = *(Model*)model;
    parameters(m.w, [&](const float*& value, float*&, long) { value = *given++; });
    m.kernel->load(m.w, m.own_basis.data());
}

// Some bits of every parameter in one number: whoever changes weights changes it, but by a rare chance.
long forcewell_sample(void* model, const float* const* given) {
    unsigned long hash = 14695981039346656037ul;
    parameters(((Model*)model)->w, [&](const float*&, float*&, long n) {
        const float* values = *given++;
        const long step = n / 16 | 1;  // odd, and so not a column of a matrix
        for (long i = 0; i < n; i += step) {
            unsigned bits;
            memcpy(&bits, values + i, sizeof bits);
            hash = (hash ^ bits) * 1099511628211ul;
        }
    });
    return (long)hash;
}

// Atomic energies (N) and forces (N, 3). keep: returns a handle for forcewell_gradient; else null. failed: 1 without memory.
void* forcewell_run(void* model, const Molecules* given, long threads, long keep, float* energies, float* forces, long* failed) {
    Model& m = *(Model*)model;
    memset(forces, 0, 3 * given->offsets[given->count] * sizeof(float));
    return run(m, *given, keep, threads, keep, failed, [&](Part& p, long begin, const double* r, const double* shifts) {
        m.kernel->forward(m.w, p, r, shifts, energies + begin);
        m.kernel->forces(m.w, p, forces + 3 * begin);
    });
}

// The same of features: scalars (N, C) and vectors (N, 3, C). keep: for forcewell_features_gradient.
void* forcewell_features(void* model, const Molecules* given, long threads, long keep, float* scalars, float* vectors, long* failed) {
    Model& m = *(Model*)model;
    const long C = m.w.s.channels;
    return run(m, *given, false, threads, keep, failed, [&](Part& p, long begin, const double* r, const double* shifts) {
        m.kernel->features(m.w, p, r, shifts, scalars + begin * C, vectors + 3 * begin * C);
    });
}

// Takes `steps` steps of molecular dynamics of molecules without periodic images. Returns 1 without memory, else 0.
long forcewell_advance(void* model, const Motion* motion, long steps, long threads) {
    return without_memory([&] { return move(*(Model*)model, *motion, steps, threads); });
}

// Gradients of sum_n seeds_n E_n + sum displacement . dE/dr: by the parameters (added to `gradients`, in their order), the
// atom embeddings and the neighbour embeddings (N, C), and the vectors before the first layer, if they were given (N, 3, C).
// With displacement = -dL/dF this is what a loss L on forces needs. Returns 1 without memory, else 0.
long forcewell_gradient(void* model, void* kept, const float* displacement, const float* seeds, long threads, float* const* gradients,
                        const Inputs* bar) {
    Model& m = *(Model*)model;
    return gradients_of(m, *(Run*)kept, threads, gradients, *bar, [&](const Weights& w, Part& p, long start) {
        memcpy(p.atoms.seed.d, seeds + start + p.first_atom, p.atoms.atoms * sizeof(float));
        m.kernel->train(w, p, displacement + 3 * start);
    });
}

// The same of a function of the features, from its derivatives by the scalars (N, C) and vectors (N, 3, C).
long forcewell_features_gradient(void* model, void* kept, const float* scalars_bar, const float* vectors_bar, long threads, float* const* gradients,
                                 const Inputs* bar) {
    Model& m = *(Model*)model;
    const long C = m.w.s.channels;
    return gradients_of(m, *(Run*)kept, threads, gradients, *bar, [&](const Weights& w, Part& p, long start) {
        m.kernel->train_features(w, p, scalars_bar + start * C, vectors_bar + 3 * start * C);
    });
}

void forcewell_release(void* model, void* kept) {
    Run* run = (Run*)kept;
    for (const Tape& t : run->tapes) close_tape(*(Model*)model, t);
    delete run;
}
}
