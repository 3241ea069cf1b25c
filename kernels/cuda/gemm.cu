/* cuBLASLt with one algorithm per shape, measured once and kept in a file. */
#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/contract.cuh"
#include "kernels/cuda/gemm.h"

enum { TRIED = 12, TIMED_RUNS = 8, WORKSPACE_MIB = 64 };

typedef struct GemmPlan {
    GemmShape shape;
    cublasLtMatmulAlgo_t algo;
    float microseconds; /* 0: not measured */
} GemmPlan;

struct Gemm {
    cublasLtHandle_t handle;
    void *workspace[2]; /* of the computation, of the ops that run beside it */
    size_t workspace_bytes;
    cudaStream_t stream; /* for measurements */
    cudaEvent_t from, to;
    char *cache_path;
    char device[256];
    GemmMeasure measure;
    int plans, capacity;
    GemmPlan *plan;
};

typedef struct GemmDesc {
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, d;
} GemmDesc;

static Status lt_check(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return OK;
    cudaGetLastError(); /* told here, or passed over: the next launch is not to tell it again */
    return status_fail(ERR_INTERNAL, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(status));
}
#define LT_TRY(call) TRY(lt_check((call), #call))

GemmShape gemm_shape(int64_t m, int64_t n, int64_t k, bool a_t, bool b_t, DType type_ab, DType type_d)
{
    GemmShape s;
    memset(&s, 0, sizeof s); /* padding too: plans are found by memcmp */
    s.m = m, s.n = n, s.k = k;
    s.lda = a_t ? m : k, s.ldb = b_t ? k : n, s.ldd = n;
    s.batch = 1;
    s.a_t = a_t, s.b_t = b_t;
    s.type_ab = type_ab, s.type_d = type_d;
    return s;
}

static cudaDataType_t lt_type(int32_t type)
{
    return type == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static void desc_destroy(GemmDesc *desc)
{
    if (desc->a) cublasLtMatrixLayoutDestroy(desc->a);
    if (desc->b) cublasLtMatrixLayoutDestroy(desc->b);
    if (desc->d) cublasLtMatrixLayoutDestroy(desc->d);
    if (desc->op) cublasLtMatmulDescDestroy(desc->op);
    memset(desc, 0, sizeof *desc);
}

static Status layout_create(cublasLtMatrixLayout_t *layout, int32_t type, int64_t rows, int64_t columns, int64_t ld,
                            int64_t batch, int64_t stride)
{
    int32_t count = (int32_t)batch;
    LT_TRY(cublasLtMatrixLayoutCreate(layout, lt_type(type), (uint64_t)rows, (uint64_t)columns, ld));
    if (batch == 1) return OK;
    LT_TRY(cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    return lt_check(
        cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
        "batch stride");
}

/* The library is column-major: it computes D^T = B^T A^T, so B is its first operand. */
static Status desc_create(const GemmShape *s, GemmDesc *desc)
{
    cublasOperation_t first = s->b_t ? CUBLAS_OP_T : CUBLAS_OP_N, second = s->a_t ? CUBLAS_OP_T : CUBLAS_OP_N;
    memset(desc, 0, sizeof *desc);
    LT_TRY(cublasLtMatmulDescCreate(&desc->op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_TRY(cublasLtMatmulDescSetAttribute(desc->op, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    LT_TRY(cublasLtMatmulDescSetAttribute(desc->op, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    TRY(layout_create(&desc->b, s->type_ab, s->b_t ? s->k : s->n, s->b_t ? s->n : s->k, s->ldb, s->batch, s->stride_b));
    TRY(layout_create(&desc->a, s->type_ab, s->a_t ? s->m : s->k, s->a_t ? s->k : s->m, s->lda, s->batch, s->stride_a));
    return layout_create(&desc->d, s->type_d, s->n, s->m, s->ldd, s->batch, s->stride_d);
}

static Status epilogue_set(const GemmDesc *desc, const GemmShape *s, const void *bias)
{
    cublasLtEpilogue_t epilogue = s->bias   ? (s->relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS)
                                  : s->relu ? CUBLASLT_EPILOGUE_RELU
                                            : CUBLASLT_EPILOGUE_DEFAULT;
    LT_TRY(cublasLtMatmulDescSetAttribute(desc->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (!s->bias) return OK;
    int32_t type = lt_type(s->type_d);
    LT_TRY(cublasLtMatmulDescSetAttribute(desc->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
    LT_TRY(cublasLtMatmulDescSetAttribute(desc->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    if (s->batch == 1) return OK;
    return lt_check(cublasLtMatmulDescSetAttribute(desc->op, CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE, &s->stride_bias,
                                                   sizeof s->stride_bias),
                    "bias stride");
}

static Status matmul(Gemm *gemm, const GemmDesc *desc, const GemmShape *s, float alpha, const void *a, const void *b,
                     const void *c, void *d, const cublasLtMatmulAlgo_t *algo, void *workspace, cudaStream_t stream)
{
    float beta = s->accumulate ? 1.0f : 0.0f;
    return lt_check(cublasLtMatmul(gemm->handle, desc->op, &alpha, b, desc->b, a, desc->a, &beta, c, desc->d, d,
                                   desc->d, algo, workspace, gemm->workspace_bytes, stream),
                    "cublasLtMatmul");
}

static Status proposals(Gemm *gemm, const GemmDesc *desc, const GemmShape *s, cublasLtMatmulHeuristicResult_t *result,
                        int *found_out)
{
    cublasLtMatmulPreference_t preference;
    uint32_t align = (uint32_t)s->align;
    /* a reduction in the order of arrival would change bits from run to run: allow the ordered ones */
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    Status status;
    LT_TRY(cublasLtMatmulPreferenceCreate(&preference));
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &gemm->workspace_bytes,
                                         sizeof gemm->workspace_bytes);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                         sizeof schemes);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align, sizeof align);
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align, sizeof align);
    status = lt_check(cublasLtMatmulAlgoGetHeuristic(gemm->handle, desc->op, desc->b, desc->a, desc->d, desc->d,
                                                     preference, TRIED, result, found_out),
                      "cublasLtMatmulAlgoGetHeuristic");
    cublasLtMatmulPreferenceDestroy(preference);
    if (status == OK && *found_out == 0)
        return status_fail(ERR_UNSUPPORTED, "cuBLASLt has no algorithm for [%lld, %lld] x %lld", (long long)s->m,
                           (long long)s->n, (long long)s->k);
    return status;
}

/* Distance of matrices of a batch with nothing in between, unless they lie closer (beside or upon each other). */
static int64_t stride_without_gap(int64_t rows, int64_t ld, int64_t stride)
{
    enum { ALIGNED = 128 }; /* elements: no less than matrices in the arena */
    int64_t own = (rows * ld + ALIGNED - 1) / ALIGNED * ALIGNED;
    return stride >= 0 && stride < own ? stride : own;
}

/* What an algorithm is measured with and kept for. The matrices of a batch can be outputs anywhere in the arena, tens
 * of GiB apart; the algorithm does not depend on what lies between them. */
static GemmShape without_gaps(const GemmShape *shape)
{
    GemmShape s = *shape;
    if (s.batch == 1) return s;
    s.stride_a = stride_without_gap(s.a_t ? s.k : s.m, s.lda, s.stride_a);
    s.stride_b = stride_without_gap(s.b_t ? s.n : s.k, s.ldb, s.stride_b);
    s.stride_d = stride_without_gap(s.m, s.ldd, s.stride_d);
    return s;
}

/* Elements that an operand touches. */
static int64_t extent(int64_t rows, int64_t ld, int64_t batch, int64_t stride)
{
    return rows * ld + (batch - 1) * stride;
}

/* Uniform values of both signs: products of zeros run faster than real ones. */
__global__ void noise_kernel(uint32_t *p, int64_t words, bool half)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= words) return;
    uint32_t h = (uint32_t)e * 2654435761u;
    h ^= h >> 15;
    h *= 2246822519u;
    h ^= h >> 13;
    float x = (float)(h & 0xffff) / 32768.0f - 1.0f, y = (float)(h >> 16) / 32768.0f - 1.0f;
    if (half) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
        p[e] = *reinterpret_cast<uint32_t *>(&pair);
    } else {
        p[e] = __float_as_uint(x);
    }
}

static Status measure_one(Gemm *gemm, const GemmDesc *desc, const GemmShape *s, void *const memory[4],
                          const cublasLtMatmulAlgo_t *algo, float *microseconds_out)
{
    float best = 0;
    TRY(matmul(gemm, desc, s, 1, memory[0], memory[1], memory[2], memory[2], algo, memory[3], gemm->stream));
    for (int trial = 0; trial < 3; trial++) {
        float milliseconds = 0;
        CUDA_TRY(cudaEventRecord(gemm->from, gemm->stream));
        for (int run = 0; run < TIMED_RUNS; run++)
            TRY(matmul(gemm, desc, s, 1, memory[0], memory[1], memory[2], memory[2], algo, memory[3], gemm->stream));
        CUDA_TRY(cudaEventRecord(gemm->to, gemm->stream));
        CUDA_TRY(cudaEventSynchronize(gemm->to));
        CUDA_TRY(cudaEventElapsedTime(&milliseconds, gemm->from, gemm->to));
        float us = milliseconds * 1e3f / TIMED_RUNS;
        if (trial == 0 || us < best) best = us;
    }
    *microseconds_out = best;
    return OK;
}

static Status measure_all(Gemm *gemm, const GemmDesc *desc, const GemmShape *s, void *const memory[4],
                          const cublasLtMatmulHeuristicResult_t *result, int found, GemmPlan *plan)
{
    for (int k = 0; k < found; k++) {
        float us;
        if (result[k].state != CUBLAS_STATUS_SUCCESS) continue;
        if (measure_one(gemm, desc, s, memory, &result[k].algo, &us) != OK) continue; /* a proposal that cannot run */
        if (plan->microseconds == 0 || us < plan->microseconds) {
            plan->microseconds = us;
            plan->algo = result[k].algo;
        }
    }
    return OK;
}

/* Outside of a capture, waits for what runs already, which would disturb the measurement. */
static Status quiet(CudaContext *ctx)
{
    cudaStreamCaptureStatus capture;
    CUDA_TRY(cudaStreamIsCapturing(ctx->stream, &capture));
    if (capture != cudaStreamCaptureStatusNone) return OK;
    return cuda_check(cudaDeviceSynchronize(), "waiting before a measurement");
}

/* Where there is no room for operands or workspace the first proposal stays. */
static Status measure(CudaContext *ctx, const GemmDesc *desc, const GemmShape *s,
                      const cublasLtMatmulHeuristicResult_t *result, int found, GemmPlan *plan)
{
    Gemm *gemm = ctx->gemm;
    void *memory[4] = {NULL, NULL, NULL, NULL};
    size_t size = dtype_size((DType)s->type_ab);
    int64_t count[3] = {extent(s->a_t ? s->k : s->m, s->lda, s->batch, s->stride_a),
                        extent(s->b_t ? s->n : s->k, s->ldb, s->batch, s->stride_b),
                        extent(s->m, s->ldd, s->batch, s->stride_d)};
    Status status = OK;
    TRY(quiet(ctx));
    int64_t words[4] = {0, 0, 0, (int64_t)gemm->workspace_bytes / 4};
    for (int k = 0; k < 3; k++) words[k] = (count[k] * (int64_t)(k < 2 ? size : dtype_size((DType)s->type_d)) + 3) / 4;
    for (int k = 0; k < 4; k++) {
        status = cuda_check(cudaMalloc(&memory[k], (size_t)words[k] * 4), "memory of a measured product");
        if (status == OK) continue;
        if (status == ERR_MEMORY) status = OK;
        goto done;
    }
    for (int k = 0; k < 3; k++)
        launch(noise_kernel, blocks_for(words[k], 256), 256, 0, gemm->stream, (uint32_t *)memory[k], words[k],
               size == 2);
    TRY_GOTO(status, cuda_launched("noise_kernel"), done);
    status = measure_all(gemm, desc, s, memory, result, found, plan);
done:
    for (void *m : memory) cudaFree(m);
    return status;
}

static Status plan_add(Gemm *gemm, const GemmPlan *plan)
{
    if (gemm->plans == gemm->capacity) {
        int capacity = gemm->capacity ? 2 * gemm->capacity : 64;
        GemmPlan *grown = (GemmPlan *)realloc(gemm->plan, (size_t)capacity * sizeof *grown);
        if (!grown) return status_fail(ERR_MEMORY, "no memory for %d products", capacity);
        gemm->plan = grown;
        gemm->capacity = capacity;
    }
    gemm->plan[gemm->plans++] = *plan;
    return OK;
}

static const GemmPlan *plan_find(const Gemm *gemm, const GemmShape *shape)
{
    for (int k = 0; k < gemm->plans; k++)
        if (memcmp(&gemm->plan[k].shape, shape, sizeof *shape) == 0) return &gemm->plan[k];
    return NULL;
}

/* One line per shape: "gemm DEVICE|VERSION|shape in hex|algorithm in hex|microseconds". */
static void hex_write(FILE *file, const void *data, size_t bytes)
{
    for (size_t k = 0; k < bytes; k++) fprintf(file, "%02x", ((const unsigned char *)data)[k]);
}
static bool hex_read(const char *text, void *data, size_t bytes)
{
    for (size_t k = 0; k < bytes; k++) {
        unsigned value;
        if (sscanf(text + 2 * k, "%2x", &value) != 1) return false;
        ((unsigned char *)data)[k] = (unsigned char)value;
    }
    return true;
}

static Status cache_append(const Gemm *gemm, const GemmPlan *plan)
{
    FILE *file = fopen(gemm->cache_path, "a");
    if (!file) return status_fail(ERR_IO, "%s: cannot be written", gemm->cache_path);
    fprintf(file, "gemm %s|", gemm->device);
    hex_write(file, &plan->shape, sizeof plan->shape);
    fputc('|', file);
    hex_write(file, &plan->algo, sizeof plan->algo);
    fprintf(file, "|%.2f\n", (double)plan->microseconds);
    if (fclose(file) != 0) return status_fail(ERR_IO, "%s: cannot be written", gemm->cache_path);
    return OK;
}

/* Lines of other devices, of other library versions and lines that do not parse are left alone. */
static Status cache_load(Gemm *gemm)
{
    FILE *file = fopen(gemm->cache_path, "r");
    char line[1024], prefix[300];
    int length = snprintf(prefix, sizeof prefix, "gemm %s|", gemm->device);
    Status status = OK;
    if (!file) return OK;
    while (status == OK && fgets(line, sizeof line, file)) {
        GemmPlan plan;
        size_t shape_at = (size_t)length, algo_at = shape_at + 2 * sizeof plan.shape + 1;
        memset(&plan, 0, sizeof plan);
        if (strncmp(line, prefix, (size_t)length) != 0 || strlen(line) <= algo_at + 2 * sizeof plan.algo) continue;
        if (!hex_read(line + shape_at, &plan.shape, sizeof plan.shape)) continue;
        if (!hex_read(line + algo_at, &plan.algo, sizeof plan.algo)) continue;
        if (!plan_find(gemm, &plan.shape)) status = plan_add(gemm, &plan);
    }
    fclose(file);
    return status;
}

static Status plan_choose(CudaContext *ctx, const GemmDesc *desc, GemmPlan *plan)
{
    Gemm *gemm = ctx->gemm;
    cublasLtMatmulHeuristicResult_t result[TRIED];
    int found = 0;
    TRY(proposals(gemm, desc, &plan->shape, result, &found));
    plan->algo = result[0].algo;
    if (gemm->measure == GEMM_FIRST) return OK;
    TRY(measure(ctx, desc, &plan->shape, result, found, plan));
    if (gemm->cache_path && plan->microseconds > 0) TRY(cache_append(gemm, plan));
    if (gemm->measure == GEMM_FASTEST_LATER) plan->algo = result[0].algo;
    return OK;
}

static Status plan_make(CudaContext *ctx, const GemmShape *shape, const void *bias)
{
    GemmPlan plan;
    GemmDesc desc;
    memset(&plan, 0, sizeof plan);
    plan.shape = *shape;
    Status status = desc_create(shape, &desc);
    if (status == OK) status = epilogue_set(&desc, shape, bias);
    if (status == OK) status = plan_choose(ctx, &desc, &plan);
    desc_destroy(&desc);
    return status == OK ? plan_add(ctx->gemm, &plan) : status;
}

/* Onto what is there: element (i, j) of matrix z of C. */
struct Onto {
    const float *c; /* NULL: none */
    int64_t row, matrix;
    __device__ __forceinline__ float operator()(int z, int i, int j, float x) const
    {
        return c ? x + c[z * matrix + i * row + j] : x;
    }
};

/* Products of few f32 numbers, summed in double. */
static Status product_of_few(CudaContext *ctx, const GemmShape &s, float alpha, const void *a, const void *b,
                             const void *c, void *d)
{
    Contract p = {};
    p.m = (int)s.m, p.n = (int)s.n, p.k = (int)s.k;
    p.batch[0] = p.batch[1] = 1, p.batch[2] = (int)s.batch;
    p.a = {s.a_t ? 1 : s.lda, s.a_t ? s.lda : 1, {0, 0, s.stride_a}};
    p.b = {s.b_t ? 1 : s.ldb, s.b_t ? s.ldb : 1, {0, 0, s.stride_b}};
    p.c = {s.ldd, 1, {0, 0, s.stride_d}};
    p.alpha = alpha;
    Onto onto = {s.accumulate ? (const float *)c : NULL, s.ldd, s.stride_d};
    return contract_launch((const float *)a, (const float *)b, (float *)d, p, onto, ctx->stream);
}

static Status product(CudaContext *ctx, const GemmShape *shape, float alpha, const void *a, const void *b,
                      const void *bias, const void *c, void *d)
{
    Gemm *gemm = ctx->gemm;
    GemmShape s = *shape;
    GemmDesc desc;
    if (s.m == 0 || s.n == 0 || s.batch == 0) return OK;
    bool plain = s.type_ab == DT_F32 && s.type_d == DT_F32 && !s.bias && !s.relu;
    if (plain && s.m * s.n * s.k * s.batch < FEW_MULTIPLICATIONS) return product_of_few(ctx, s, alpha, a, b, c, d);
    uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d | 16;
    s.align = (int32_t)(all & (~all + 1));
    GemmShape planned = without_gaps(&s);
    if (!plan_find(gemm, &planned)) TRY(plan_make(ctx, &planned, bias));
    Status status = desc_create(&s, &desc);
    if (status == OK) status = epilogue_set(&desc, &s, bias);
    if (status == OK)
        status = matmul(gemm, &desc, &s, alpha, a, b, c, d, &plan_find(gemm, &planned)->algo,
                        gemm->workspace[ctx->aside], ctx->stream);
    desc_destroy(&desc);
    return status;
}

Status gemm_run(CudaContext *ctx, const GemmShape *shape, const void *a, const void *b, const void *bias, void *d)
{
    return product(ctx, shape, 1, a, b, bias, d, d);
}

Status gemm_run_onto(CudaContext *ctx, const GemmShape *shape, const void *a, const void *b, const void *c, void *d)
{
    return gemm_run_scaled(ctx, shape, 1, a, b, c, d);
}

Status gemm_run_scaled(CudaContext *ctx, const GemmShape *shape, float alpha, const void *a, const void *b,
                       const void *c, void *d)
{
    GemmShape s = *shape;
    s.accumulate = c != NULL;
    return product(ctx, &s, alpha, a, b, NULL, c ? c : d, d);
}

static Status gemm_open(Gemm *gemm, const char *tune_cache)
{
    cudaDeviceProp properties;
    int device;
    CUDA_TRY(cudaGetDevice(&device));
    CUDA_TRY(cudaGetDeviceProperties(&properties, device));
    LT_TRY(cublasLtCreate(&gemm->handle));
    snprintf(gemm->device, sizeof gemm->device, "%.200s|%zu", properties.name, cublasLtGetVersion());
    gemm->workspace_bytes = (size_t)WORKSPACE_MIB << 20;
    for (void *&workspace : gemm->workspace) CUDA_TRY(cudaMalloc(&workspace, gemm->workspace_bytes));
    CUDA_TRY(cudaStreamCreateWithFlags(&gemm->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaEventCreate(&gemm->from));
    CUDA_TRY(cudaEventCreate(&gemm->to));
    if (!tune_cache) return OK;
    gemm->cache_path = strdup(tune_cache);
    if (!gemm->cache_path) return status_fail(ERR_MEMORY, "no memory for a path");
    return cache_load(gemm);
}

Status gemm_create(const char *tune_cache, GemmMeasure measure, Gemm **gemm_out)
{
    Gemm *gemm = (Gemm *)calloc(1, sizeof *gemm);
    if (!gemm) return status_fail(ERR_MEMORY, "no memory for the products of the cuda backend");
    gemm->measure = measure;
    Status status = gemm_open(gemm, tune_cache);
    if (status != OK) {
        gemm_destroy(&gemm);
        return status;
    }
    *gemm_out = gemm;
    return OK;
}

void gemm_destroy(Gemm **gemm)
{
    Gemm *g = *gemm;
    if (!g) return;
    if (g->handle) cublasLtDestroy(g->handle);
    for (void *workspace : g->workspace) cudaFree(workspace);
    if (g->stream) cudaStreamDestroy(g->stream);
    if (g->from) cudaEventDestroy(g->from);
    if (g->to) cudaEventDestroy(g->to);
    free(g->cache_path);
    free(g->plan);
    free(g);
    *gemm = NULL;
}
