/* Matrix products through cuBLASLt. */
#ifndef FOLDSCALE_KERNELS_CUDA_GEMM_H
#define FOLDSCALE_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/entry.h"

/* All row-major: D[m, n] = A[m, k] B[k, n]; a_t: A is stored [k, m]; b_t: B is stored [n, k]. Leading dimensions and
 * strides in elements; stride 0 shares an operand in a batch. */
typedef struct GemmShape {
    int64_t m, n, k, lda, ldb, ldd;
    int64_t batch, stride_a, stride_b, stride_d;
    int32_t a_t, b_t;
    int32_t type_ab, type_d; /* DT_F32 or DT_BF16; products of f32 are f32 throughout (no TF32) */
    int32_t accumulate;      /* D += A B */
    int32_t bias, relu;      /* D = relu(A B + bias[n]); the bias has the type of D */
    int64_t stride_bias;     /* of a batch */
    int32_t align;           /* bytes to which all addresses are aligned, at most 16; set by gemm_run */
} GemmShape;

/* A shape with the leading dimensions of contiguous matrices, one product. */
GemmShape gemm_shape(int64_t m, int64_t n, int64_t k, bool a_t, bool b_t, DType type_ab, DType type_d);

/* What becomes of a shape met for the first time: it takes the library's first proposal, so that two runs give the same
 * bits; or the fastest of a few; or the first one, and the fastest from the next start on: ranks have to choose alike,
 * and one of them measures for all. */
typedef enum GemmMeasure { GEMM_FIRST, GEMM_FASTEST, GEMM_FASTEST_LATER } GemmMeasure;

/* tune_cache: file of measured choices, read at once and, where measured, appended to, on a file system that all ranks
 * share; NULL: none. */
Status gemm_create(const char *tune_cache, GemmMeasure measure, Gemm **gemm_out);
void gemm_destroy(Gemm **gemm);

/* Enqueues the product. What is measured runs on a stream of its own, also while ctx->stream is being captured. */
Status gemm_run(CudaContext *ctx, const GemmShape *shape, const void *a, const void *b, const void *bias, void *d);
/* D = C + A B, C laid out like D (may be D itself); shape->accumulate is set. */
Status gemm_run_onto(CudaContext *ctx, const GemmShape *shape, const void *a, const void *b, const void *c, void *d);
/* D = alpha A B (+ C, laid out like D, unless it is NULL). */
Status gemm_run_scaled(CudaContext *ctx, const GemmShape *shape, float alpha, const void *a, const void *b,
                       const void *c, void *d);

#endif
