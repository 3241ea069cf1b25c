/* The two products that the CPU reference needs, as loops: the CUDA benchmarks then run where there is no OpenBLAS. */
#include <cblas.h>
#include <stdlib.h>

void cblas_dgemm(const enum CBLAS_ORDER order, const enum CBLAS_TRANSPOSE ta, const enum CBLAS_TRANSPOSE tb,
                 const blasint m, const blasint n, const blasint k, const double alpha, const double *a,
                 const blasint lda, const double *b, const blasint ldb, const double beta, double *c, const blasint ldc)
{
    if (order != CblasRowMajor) abort();
#pragma omp parallel for if ((double)m * n * k > 1e5)
    for (int i = 0; i < m; i++) {
        double *row = c + (size_t)i * (size_t)ldc;
        for (int j = 0; j < n; j++) row[j] = beta == 0 ? 0 : beta * row[j];
        for (int l = 0; l < k; l++) {
            double x = alpha * (ta == CblasNoTrans ? a[(size_t)i * (size_t)lda + (size_t)l]
                                                   : a[(size_t)l * (size_t)lda + (size_t)i]);
            if (tb == CblasNoTrans)
                for (int j = 0; j < n; j++) row[j] += x * b[(size_t)l * (size_t)ldb + (size_t)j];
            else
                for (int j = 0; j < n; j++) row[j] += x * b[(size_t)j * (size_t)ldb + (size_t)l];
        }
    }
}
