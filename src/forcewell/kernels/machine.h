// Which instruction sets this machine has, and the kernels of each.

extern const Kernel kernel_portable;
#if defined(__x86_64__)
extern const Kernel kernel_avx2, kernel_avx512;
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)  // as in amx.cpp
#define HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
extern const Kernel kernel_amx;
#endif
#endif

namespace {

// Floats per vector, and one more where matrix products are by AMX tiles: as in fused.py.
enum InstructionSet { PORTABLE = 4, AVX2 = 8, AVX512 = 16, AMX = 17 };

long floats_of(long set) { return set == AMX ? 16 : set; }

#if defined(HAS_AMX)
// Has the processor tiles of bfloat16, and does Linux let this process use them? Their 8 KiB are saved only for those that asked.
bool grants_tiles() {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return false;  // tiles' settings, tiles' data
    const long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

// Null where the machine has no such instructions.
const Kernel* kernel_of(long set) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#if defined(HAS_AMX)
    static const bool tiles = wide && grants_tiles();
    if (set == AMX) return tiles ? &kernel_amx : nullptr;
#endif
    if (set == AVX512) return wide ? &kernel_avx512 : nullptr;
    if (set == AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernel_avx2 : nullptr;
#endif
    return set == PORTABLE ? &kernel_portable : nullptr;
}
}
