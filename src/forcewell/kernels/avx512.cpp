// The kernels with vectors of 16 floats.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#endif
#define VL 16
#define KERNEL kernel_avx512
#include "variant.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
