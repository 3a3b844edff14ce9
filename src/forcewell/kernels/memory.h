// A model's weights and the memory they lie in. Included within a namespace.
#pragma once

// 2 MiB and more lie in pages of that size where Linux has them: what reads tens of megabytes once, as one small molecule does a large
// model's weights, would otherwise look up a page for every 4 KiB.
const long PAGE = 1L << 21;

void* aligned(long bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, bytes < PAGE ? 64 : PAGE, bytes < 64 ? 64 : bytes)) return nullptr;
#if defined(MADV_HUGEPAGE)
    if (bytes >= PAGE) madvise(p, bytes / PAGE * PAGE, MADV_HUGEPAGE);
#endif
    return p;
}

struct Model {
    const Kernel* kernel;
    Weights w;
    std::vector<double> own_basis;
    std::vector<void*> owned;
    char* rest = nullptr;  // of the last of them, not given away yet
    long left = 0;
    std::mutex lock;
    std::vector<Tape> spare;  // memory of finished tapes
    static const long SPARE = 512;
    Model() { spare.reserve(SPARE + 1); }

    float* floats(long n) {
        const long bytes = (n * (long)sizeof(float) + 63) / 64 * 64;
        if (bytes > left) {
            left = std::max(bytes, 16 * PAGE);  // only what is written to takes memory
            if (!(rest = (char*)aligned(left))) throw std::bad_alloc();
            owned.push_back(rest);
        }
        rest += bytes, left -= bytes;
        return (float*)(rest - bytes);
    }
    ~Model() {
        for (void* p : owned) free(p);
        for (Tape& t : spare) free(t.memory);
    }
};
