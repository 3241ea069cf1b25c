/* Small products of float matrices, summed in double. Training at tiny sizes and checks against float64 live in them;
 * they cost little either way, and rounding the sums once instead of k times halves the distance of a whole float32
 * step from float64. */
#include "kernels/cpu/math.h"

#ifdef REAL_IS_f32
enum { SMALL_PRODUCT = 1 << 20, PANEL = 8192 }; /* multiplications; doubles of a packed panel */

/* op(X)[first.., :] as `rows` x `columns` doubles */
static void pack(bool transposed, const real *x, int64_t ld, int64_t first, int64_t rows, int64_t columns, double *out)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            out[i * columns + j] = (double)(transposed ? x[j * ld + first + i] : x[(first + i) * ld + j]);
}

bool FN(gemm_small)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t lda,
                    const real *b, int64_t ldb, real beta, real *c, int64_t ldc)
{
    double left[PANEL], right[PANEL], sums[PANEL];
    if (m * n * k >= SMALL_PRODUCT || k * n > PANEL || k < 1) return false;
    int64_t widest = k > n ? k : n, step = PANEL / widest;
    if (step < 1) return false;
    pack(tb, b, ldb, 0, k, n, right);
    for (int64_t first = 0; first < m; first += step) {
        int64_t rows = m - first < step ? m - first : step;
        pack(ta, a, lda, first, rows, k, left);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)n, (int)k, (double)alpha, left, (int)k,
                    right, (int)n, 0, sums, (int)n);
        for (int64_t i = 0; i < rows; i++) {
            real *row = c + (first + i) * ldc;
            for (int64_t j = 0; j < n; j++)
                row[j] = (real)(sums[i * n + j] + (beta != 0 ? (double)beta * (double)row[j] : 0));
        }
    }
    return true;
}
#endif
