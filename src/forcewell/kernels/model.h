#pragma once
// Sizes, weights and working memory of the Equivariant Transformer with its scalar read-out.

// An array of values and, for training, of their derivatives. A plain pass writes values, a dual pass derivatives only.
struct Array {
    float *v, *d;
    __attribute__((always_inline)) Array at(long offset) const { return {v + offset, d ? d + offset : 0}; }
};

// y = W x + b, with W (out, in) as PyTorch stores it, packed for both directions; gradients where training. half: packed as
// bfloat16, the upper halves of float32 numbers, rounded to the nearest.
struct Linear {
    long in, out;
    const float *w, *b;
    bool half;
    void *forward_panels, *backward_panels;
    float *gw, *gb;
};

// Where a row of numbers is not zero: from low up to high.
struct Window {
    int low, high;
};

struct Sizes {
    long channels, layers, heads, radial;
    double cutoff, softening;
};

struct Layer {
    const float *norm_w, *norm_b;
    float *norm_gw, *norm_gb;
    Linear qkv, filters, vectors, output;
    float* own;  // (4C) filter pre-activations of an atom's message to itself, r = 0
};

struct Weights {
    Sizes s;
    const float *means, *betas;
    float* own_basis;  // (R) radial basis at r = 0
    Linear neighbour_filter, combine;
    Layer* layer;
    const float *norm_w, *norm_b;
    float *norm_gw, *norm_gb;
    Linear norm_map1, vector_map1, mix1, gate1, norm_map2, mix2;
    const float *gate2_w, *gate2_b;
    float *gate2_gw, *gate2_gb;
};

// What a reverse pass is for: forces, from an energy; the derivatives of all that is done for them along a displacement of the atoms,
// which training on forces needs (a dual pass); or the parameters' gradients of a function of the features (a plain one).
enum Goal { FORCES, ALONG, PARAMETERS };
constexpr bool dual(Goal goal) { return goal == ALONG; }

enum { BLOCK = 64 };  // pairs whose filters are in cache together

// Length of a row of so many numbers, one per head: whole vectors of any instruction set, so that no thread reads another's row.
static inline long heads_row(long heads) { return (heads + 15) / 16 * 16; }

// What a layer keeps: activations for its reverse pass, and adjoints ("bar") for the dual one. Shapes: N atoms, P pairs.
struct LayerTape {
    Array xhat, rstd;        // (N, C), (N) layer norm without its affine part
    Array qkv;               // (N, 5C) query, key, three values
    Array logits;            // (P, heads_row(2H)): i <- j, then j <- i
    Array own_logits;        // (N, heads_row(H)) of each atom to itself
    Array filter;            // (P, 4C) before SiLU, where they are kept
    Array summed;            // (N, C) scalar messages
    Array out;               // (N, 3C)
    Array vectors;           // (N, 3, C) after the layer
    Array mapped;            // (N, 3, 3C) linear maps of the vectors before the layer
    Array vectors_bar, out_bar, mapped_bar, summed_bar, qkv_bar, norm_bar;
};

struct Tape {
    long atoms, pairs, threads;
    bool train, given;       // with derivatives; with vectors before the first layer
    int *first, *second;     // (P) atoms of each pair
    float *distance;         // (P)
    Array envelope, direction, basis;         // (P), (P, 3) from first to second, (P, R)
    Window *windows;         // (P) of each pair's radial functions
    float *envelope_slope, *basis_slope;      // by distance
    Array neighbour;         // (N, C) neighbour embeddings (input; no derivative)
    Array neighbour_filter;  // (P, C)
    Array mixed, mixed_bar;  // (N, 2C) atom embedding and summed neighbours
    Array neighbour_bar;     // (N, C)
    LayerTape* layer;
    Array x, x_bar;          // (N, C) running scalars
    Array xhat, rstd;        // final norm
    Array read1, map1, vec1, pre1, gate1, vout1, read2, map2, pre2;  // the two gated blocks
    Array read1_bar, map1_bar, vec1_bar, pre1_bar, gate1_bar, vout1_bar, read2_bar, map2_bar, pre2_bar, act1_bar;
    Array seed;              // (N) adjoint of each atom's energy
    Array zero;              // (N, 3, C) of zeros
    Array start, start_bar;  // (N, 3, C) vectors before the first layer (input; no derivative), where they are given
    Array y;                 // (N, C) scratch
    Array filters, slopes, filter_bar;  // (4C) SiLU of a pair's and its slope, (BLOCK, 4C): scratch
    float *basis_bar, *envelope_bar, *direction_bar;
    struct Part* part;       // one for each thread
    void* memory;
    long capacity;
};

// Are filters of pairs kept for the reverse pass? Of large models that are not trained they are computed once more, which takes less
// time than to write and read them, most of a tape; with 64 channels and AVX2 it took 7 % more.
static inline bool keeps_filters(bool train, const Sizes& s) { return train || s.channels < 128; }

// Threads that compute one tape together wait for each other between passes over atoms and passes over pairs.
struct Team {
    long count;
    int arrived, round;
};

// A thread's share: views of the tape in which only its own pairs are (with all atoms), and only its own atoms.
struct Part {
    Tape pairs, atoms;
    LayerTape *pair_layers, *atom_layers;
    long rank, first_atom, first_pair;
    Team* team;
    Array sums;  // (N, 8C) what its pairs add to atoms; the first thread adds to the tape itself
    Array filters, slopes, filter_bar;
};

// One instruction set's kernels; weights and parts as above. Each thread of a tape calls them with its part; positions, lattice
// offsets, energies and forces are those of the whole tape.
struct Kernel {
    long width;  // floats per vector
    void (*load)(Weights& weights, const double* own_basis);
    void (*forward)(const Weights& weights, Part& part, const double* positions, const double* offsets, float* energies);
    void (*forces)(const Weights& weights, Part& part, float* forces);
    void (*train)(const Weights& weights, Part& part, const float* displacement);
    void (*features)(const Weights& weights, Part& part, const double* positions, const double* offsets, float* scalars, float* vectors);
    void (*train_features)(const Weights& weights, Part& part, const float* scalars_bar, const float* vectors_bar);
};
