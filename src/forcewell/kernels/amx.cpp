// The kernels with vectors of 16 floats, and matrix products by AMX tiles, where the compiler knows them.

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#include <immintrin.h>  // before the target is set: its functions have targets of their own
#include <stdlib.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,amx-tile,amx-bf16,prefer-vector-width=512")
#endif
#define VL 16
#define TILES
#define KERNEL kernel_amx
#include "variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
