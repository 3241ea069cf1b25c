/* Shorthands of the CPU kernels (included after kernels/cpu/real.h's user: files in kernels/cpu/ops/). */
#ifndef FOLDSCALE_KERNELS_CPU_MATH_H
#define FOLDSCALE_KERNELS_CPU_MATH_H

#include <cblas.h>
#include <string.h>
#include <tgmath.h> /* exp, log, sqrt of the compiled type */

#include "kernels/cpu/real.h"

#define IN(n)  ((const real *)call->in[n])
#define OUT(n) ((real *)call->out[n])

/* Below this many elements a parallel region costs more than it saves. */
enum { PARALLEL_ELEMENTS = 1 << 15 };
#define PRAGMA(text) _Pragma(#text)
#define PARALLEL_IF(work) PRAGMA(omp parallel for if ((work) > PARALLEL_ELEMENTS))

/* C[m,n] = alpha op(A) op(B) + beta C, row-major; op(A) [m,k] is A or, with ta, its transpose. Outside a parallel
 * region the product itself is spread over the threads (gemm.c). */
void FN(gemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t lda, const real *b,
              int64_t ldb, real beta, real *c, int64_t ldc);
#define gemm FN(gemm)

static inline real sigmoid(real x)
{
    return 1 / (1 + exp(-x));
}
/* Of y = sigmoid(g) x, from its gradient d. */
static inline void gate_gradient(real g, real x, real d, real *dg, real *dx)
{
    real s = sigmoid(g);
    *dx = s * d;
    *dg = s * (1 - s) * x * d;
}

/* y[c] = sum over rows of x[r,c]; double accumulators, since there may be 10^5 rows. */
static inline void column_sums(int64_t rows, int64_t columns, const real *x, real *y)
{
    enum { CHUNK = 64 };
    PARALLEL_IF(rows * columns)
    for (int64_t first = 0; first < columns; first += CHUNK) {
        int64_t width = columns - first < CHUNK ? columns - first : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < width; c++) sum[c] += x[r * columns + first + c];
        for (int64_t c = 0; c < width; c++) y[first + c] = (real)sum[c];
    }
}

/* y[c,r] = x[r,c] */
static inline void transpose_matrix(int64_t rows, int64_t columns, const real *x, real *y)
{
    enum { TILE = 32 };
    PARALLEL_IF(rows * columns)
    for (int64_t r0 = 0; r0 < rows; r0 += TILE) {
        int64_t r1 = r0 + TILE < rows ? r0 + TILE : rows;
        for (int64_t c0 = 0; c0 < columns; c0 += TILE) {
            int64_t c1 = c0 + TILE < columns ? c0 + TILE : columns;
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++) y[c * rows + r] = x[r * columns + c];
        }
    }
}

#endif
