// The kernels with vectors of 4 floats.

#define VL 4
#define KERNEL kernel_portable
#include "variant.h"
