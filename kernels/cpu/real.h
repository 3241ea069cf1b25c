/* One source, two types: files in kernels/cpu/ops/ are compiled once with REAL_IS_f32 and once with REAL_IS_f64.
 * FN(name) is the symbol of this compilation. bf16 operands never reach them: the backend widens and rounds around the
 * call. */
#ifndef FOLDSCALE_KERNELS_CPU_REAL_H
#define FOLDSCALE_KERNELS_CPU_REAL_H

#include "kernels/cpu/entry.h"

#ifdef REAL_IS_f64
typedef double real;
#define FN(name) name##_f64
#define REAL(x)  x
#else
typedef float real;
#define FN(name) name##_f32
#define REAL(x)  x##f
#endif

#endif
