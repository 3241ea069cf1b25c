/* Matrix products. OpenBLAS runs on one thread and this file spreads large products over the OpenMP threads, so that
 * one pool of threads serves all kernels (OpenBLAS's own threads would compete with OpenMP's waiting ones). */
#include <omp.h>

#include "kernels/cpu/math.h"

#ifdef REAL_IS_f32
/* Small products of float matrices are summed in double. Training at tiny sizes and checks against float64 live in
 * them; they cost little either way, and rounding the sums once instead of k times halves the distance of a whole
 * float32 step from float64. */
enum { SMALL_PRODUCT = 1 << 22, BLOCK_M = 64, BLOCK_N = 64, BLOCK_K = 128 };

/* The block [rows, columns] at x as doubles */
static void widen(const real *x, int64_t ld, int64_t rows, int64_t columns, double *out)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) out[i * columns + j] = (double)x[i * ld + j];
}

/* The block of op(X) that starts at (row, column), widened as it lies in memory. Returns its leading extent. */
static int64_t widen_block(bool transposed, const real *x, int64_t ld, int64_t row, int64_t column, int64_t rows,
                           int64_t columns, double *out)
{
    if (transposed)
        widen(x + column * ld + row, ld, columns, rows, out);
    else
        widen(x + row * ld + column, ld, rows, columns, out);
    return transposed ? rows : columns;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* False, and nothing done, when the product is not small. */
static bool gemm_small(bool ta, bool tb, int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t lda,
                       const real *b, int64_t ldb, real beta, real *c, int64_t ldc)
{
    double left[BLOCK_M * BLOCK_K], right[BLOCK_K * BLOCK_N], sums[BLOCK_M * BLOCK_N];
    if (m * n * k >= SMALL_PRODUCT || k < 1) return false;
    enum CBLAS_TRANSPOSE op_a = ta ? CblasTrans : CblasNoTrans, op_b = tb ? CblasTrans : CblasNoTrans;
    for (int64_t j0 = 0; j0 < n; j0 += BLOCK_N)
        for (int64_t i0 = 0; i0 < m; i0 += BLOCK_M) {
            int64_t rows = least(BLOCK_M, m - i0), columns = least(BLOCK_N, n - j0);
            for (int64_t k0 = 0; k0 < k; k0 += BLOCK_K) {
                int64_t depth = least(BLOCK_K, k - k0);
                int64_t left_ld = widen_block(ta, a, lda, i0, k0, rows, depth, left);
                int64_t right_ld = widen_block(tb, b, ldb, k0, j0, depth, columns, right);
                cblas_dgemm(CblasRowMajor, op_a, op_b, (int)rows, (int)columns, (int)depth, (double)alpha, left,
                            (int)left_ld, right, (int)right_ld, k0 ? 1 : 0, sums, (int)columns);
            }
            for (int64_t i = 0; i < rows; i++) {
                real *row = c + (i0 + i) * ldc + j0;
                for (int64_t j = 0; j < columns; j++)
                    row[j] = (real)(sums[i * columns + j] + (beta != 0 ? (double)beta * (double)row[j] : 0));
            }
        }
    return true;
}
#endif

static void gemm_one(bool ta, bool tb, int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t lda,
                     const real *b, int64_t ldb, real beta, real *c, int64_t ldc)
{
    enum CBLAS_TRANSPOSE op_a = ta ? CblasTrans : CblasNoTrans, op_b = tb ? CblasTrans : CblasNoTrans;
#ifdef REAL_IS_f64
    cblas_dgemm(CblasRowMajor, op_a, op_b, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
#else
    if (gemm_small(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)) return;
    cblas_sgemm(CblasRowMajor, op_a, op_b, (int)m, (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
#endif
}

/* Every thread takes a range of rows of C, or of columns where there are more of them. */
void FN(gemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, real alpha, const real *a, int64_t lda, const real *b,
              int64_t ldb, real beta, real *c, int64_t ldc)
{
    enum { PARALLEL_PRODUCT = 1 << 21 }; /* multiplications: about 0.1 ms on one core */
    int64_t threads = m * n * k < PARALLEL_PRODUCT || omp_in_parallel() ? 1 : omp_get_max_threads();
    if (threads == 1) {
        gemm_one(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        return;
    }
    bool by_rows = m >= n;
    int64_t extent = by_rows ? m : n;
#pragma omp parallel for
    for (int64_t t = 0; t < threads; t++) {
        int64_t first = extent * t / threads, length = extent * (t + 1) / threads - first;
        if (length == 0) continue;
        if (by_rows)
            gemm_one(ta, tb, length, n, k, alpha, a + (ta ? first : first * lda), lda, b, ldb, beta, c + first * ldc,
                     ldc);
        else
            gemm_one(ta, tb, m, length, k, alpha, a, lda, b + (tb ? first * ldb : first), ldb, beta, c + first, ldc);
    }
}
