// Equations of motion in float64 of a few molecules, many steps in one call. integrators.py says the same, with sources, for a
// whole batch and is the reference; letters are those of its table. Molecules do not meet, so each group of them goes its own way.

enum Ensemble { VERLET, LANGEVIN, NOSE_HOOVER };

// One State and how it moves; the same fields in the same order as _Motion in compiled.py. N atoms, M molecules, C links.
struct Motion {
    long molecules, links, drawn, ensemble;
    double h, kT, gamma, tau, acceleration, longest;
    double weights[3];          // Suzuki-Yoshida
    const long *offsets, *rows; // (M + 1), (N): a molecule's first atom; an atom's row in the noise
    double *r, *v, *F;          // (N, 3)
    const double *m, *share;    // (N)
    double* energy;             // (M)
    const double *zero, *f;     // (M)
    double *eta, *nu;           // (M, C)
    float* seen;                // (N, 3) what the model sees of r
    const float* scale;         // (M) factor of the network's energies and forces, or null
    const float *embedded, *neighbours;
    const double* noise;        // (steps, drawn, 3)
};

struct Group {  // molecules first..last, whose atoms are begin..end
    long first, last, begin, end;
};

// v += span F/m
void kick(const Motion& s, const Group& g, double span) {
    for (long n = g.begin; n < g.end; n++)
        for (long k = 3 * n; k < 3 * n + 3; k++) s.v[k] += span * s.acceleration * s.F[k] / s.m[n];
}

// r += span v
void drift(const Motion& s, const Group& g, double span) {
    for (long k = 3 * g.begin; k < 3 * g.end; k++) s.r[k] += span * s.v[k];
}

// O of BAOAB: v = e^(-γh) v + sqrt(kT/m (1 - e^(-2γh))) ξ, less the velocity of the centre.
void collide(const Motion& s, const Group& g, const double* noise) {
    const double kept = std::exp(-s.gamma * s.h), heat = std::sqrt(s.kT * s.acceleration * -std::expm1(-2 * s.gamma * s.h));
    for (long q = g.first; q < g.last; q++) {
        double center[3] = {};
        for (long n = s.offsets[q]; n < s.offsets[q + 1]; n++) {
            const double spread = heat / std::sqrt(s.m[n]);
            for (int k = 0; k < 3; k++) {
                double& v = s.v[3 * n + k];
                v = kept * v + spread * noise[3 * s.rows[n] + k];
                center[k] += s.share[n] * v;
            }
        }
        for (long n = s.offsets[q]; n < s.offsets[q + 1]; n++)
            for (int k = 0; k < 3; k++) s.v[3 * n + k] -= center[k];
    }
}

// One chain, its rates ν and angles η, for `span` fs. `heat` is 2 E_kin/(f kT); returns the factor of the velocities.
double turn_chain(const Motion& s, double* eta, double* nu, double heat, double f, double span) {
    const double pull = 1 / (s.tau * s.tau);
    double scale = 1;
    auto push = [&](long j, double step) {  // one link for half a step, between two quarters of its friction from the next
        double drive = j ? nu[j - 1] * nu[j - 1] : heat * (scale * scale) * pull;
        if (j == 1) drive *= f;
        const double damping = j + 1 < s.links ? std::exp(-step / 4 * nu[j + 1]) : 1.0;
        nu[j] = (nu[j] * damping + step / 2 * (drive - pull)) * damping;
    };
    for (double weight : s.weights) {
        const double step = weight * span;
        for (long j = s.links; j-- > 0;) push(j, step);
        for (long j = 0; j < s.links; j++) eta[j] += step * nu[j];
        scale *= std::exp(-step * nu[0]);
        for (long j = 0; j < s.links; j++) push(j, step);
    }
    return scale;
}

void thermostat(const Motion& s, const Group& g, double span) {
    for (long q = g.first; q < g.last; q++) {
        double twice = 0;  // 2 E_kin
        for (long n = s.offsets[q]; n < s.offsets[q + 1]; n++)
            for (long k = 3 * n; k < 3 * n + 3; k++) twice += s.m[n] * s.v[k] * s.v[k] / s.acceleration;
        const double factor = turn_chain(s, s.eta + q * s.links, s.nu + q * s.links, twice / (s.f[q] * s.kT), s.f[q], span);
        for (long k = 3 * s.offsets[q]; k < 3 * s.offsets[q + 1]; k++) s.v[k] *= factor;
    }
}

// The model goes on seeing the last sane value of a coordinate that has jumped or is no number.
void look(const Motion& s, const Group& g) {
    for (long k = 3 * g.begin; k < 3 * g.end; k++) {
        const float wanted = (float)s.r[k];
        if (std::fabs(wanted - s.seen[k]) < s.longest) s.seen[k] = wanted;
    }
}

// From the network's atomic energies and forces of the group, float32 as the Potential's.
void take(const Motion& s, const Group& g, const float* energies, const float* forces) {
    for (long q = g.first; q < g.last; q++) {
        const float scale = s.scale ? s.scale[q] : 1.0f;
        float total = 0;
        for (long n = s.offsets[q]; n < s.offsets[q + 1]; n++) {
            total += energies[n - g.begin];
            for (int k = 0; k < 3; k++) s.F[3 * n + k] = scale * forces[3 * (n - g.begin) + k];
        }
        s.energy[q] = (double)(scale * total) + s.zero[q];
    }
}

// `evaluate` writes the energies and forces of what the model sees; false where it could not.
template <class Evaluate>
bool advance(const Motion& s, const Group& g, long steps, Evaluate evaluate) {
    for (long step = 0; step < steps; step++) {
        if (s.ensemble == NOSE_HOOVER) thermostat(s, g, s.h / 2);
        kick(s, g, s.h / 2);
        if (s.ensemble == LANGEVIN) {
            drift(s, g, s.h / 2);
            collide(s, g, s.noise + step * 3 * s.drawn);
            drift(s, g, s.h / 2);
        } else
            drift(s, g, s.h);
        look(s, g);
        if (!evaluate()) return false;
        kick(s, g, s.h / 2);
        if (s.ensemble == NOSE_HOOVER) thermostat(s, g, s.h / 2);
    }
    return true;
}
