// The kernels with vectors of 8 floats.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VL 8
#define KERNEL kernel_avx2
#include "variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
