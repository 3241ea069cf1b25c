/* Harness of the CUDA benchmarks: runs one op on the GPU and on the CPU in f64 from the same (rounded) inputs, compares
 * every output, and times the GPU at a second size. No MPI, no OpenBLAS: the products of the reference are loops below.
 *
 * Error of an output: ||gpu - cpu|| / ||cpu|| (Euclidean). Tolerances:
 *   f32: 2e-6 per rounding step of a chain, sums of n terms grow like sqrt(n) u (u = 6e-8): 1e-5 covers n <= 10^4.
 *   bf16: one rounding of the output has relative error at most 2^-8 / 2, uniform: rms 2^-9 / sqrt(3) ... 2^-9 = 1.1e-3
 * to 2e-3; an op that rounds k intermediate tensors (k stated by the case) gets 2e-3 sqrt(k + 1) times a margin of 1.5.
 */
#ifndef FOLDSCALE_TESTS_BENCH_CUDA_CUH
#define FOLDSCALE_TESTS_BENCH_CUDA_CUH

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/gemm.h"
#include "tests/bench_cuda_values.cuh"

extern "C" {
#include "engine/program.h"
/* kernels/cpu/entry.h is C; the same layout here */
typedef Status (*CpuKernel)(const RankLayout *layout, const OpCall *call);
typedef struct CpuEntry {
    OpKind kind;
    CpuKernel run;
    size_t (*scratch)(const Program *program, const Op *op, size_t real_size);
} CpuEntry;
#define TABLE(name) extern const CpuEntry name##_f64[];
#include "kernels/cpu/tables.def"
#undef TABLE
}

enum Fill { FILL_NORMAL, FILL_MASK, FILL_INT, FILL_POSITIVE, FILL_RNG, FILL_ONE };

struct In {
    DType type; /* DT_F32: the tested type unless the op wants it exact */
    int rank;
    int64_t dim[TENSOR_MAX_RANK];
    Fill fill;
    int limit; /* FILL_INT: below */
    double scale;
};

struct Case {
    const char *name;
    OpKind kind;
    int n_in;
    In in[OP_MAX_IN];
    OpAttr attr;
    int roundings; /* intermediate tensors in bf16 */
    bool in_place; /* optimizer ops: outputs are inputs */
    int unread;    /* bit k: output k is left out */
};

struct Bench {
    CudaContext ctx;
    void *scratch;
    size_t scratch_bytes;
    char *weights; /* of a group: one after the other, as in the parameter block */
    int failures;
    uint64_t random;
    double copy_bytes_per_s;
};

static double bench_uniform(Bench *b)
{
    b->random = b->random * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(b->random >> 33) / 2147483648.0;
}
static double bench_normal(Bench *b)
{
    double s = 0;
    for (int k = 0; k < 6; k++) s += bench_uniform(b);
    return (s - 3.0) * 1.41421356;
}
static void check(Status status)
{
    if (status == OK) return;
    printf("FAILED: %s\n", status_text());
    exit(1);
}

static double fill_value(Bench *b, const In &in, int64_t e)
{
    double scale = in.scale != 0 ? in.scale : 1.0;
    switch (in.fill) {
    case FILL_MASK:
        /* the first key of every row stays: rows without one differ between f32 and f64 by design */
        return e % in.dim[in.rank - 1] == 0 || bench_uniform(b) < 0.85 ? 1.0 : 0.0;
    case FILL_INT:
        return floor(bench_uniform(b) * in.limit);
    case FILL_POSITIVE:
        return scale * (0.5 + bench_uniform(b));
    case FILL_RNG:
        return (double)(7 + 3 * e);
    case FILL_ONE:
        return scale;
    default:
        return scale * bench_normal(b);
    }
}

/* The op recorded alone, its float inputs at `type`. */
static Program *bench_program(const Case &c, DType type, Registry **registry)
{
    Program *p;
    check(registry_create(registry));
    check(prog_create(*registry, &p));
    Val in[OP_MAX_IN];
    for (int k = 0; k < c.n_in; k++) {
        char name[32];
        snprintf(name, sizeof name, "in%d", k);
        in[k] = VAL_NONE;
        if (c.in[k].type == DT_NONE) continue;
        in[k] = prog_input(p, name, c.in[k].type == DT_I32 ? DT_I32 : DT_F32, c.in[k].rank, c.in[k].dim);
        if (c.in[k].type == DT_I32) continue;
        bool exact = op_defs[c.kind]->exact_in >> k & 1 || op_defs[c.kind]->flags & OPF_FULL;
        DType t = c.in[k].type == DT_BF16 ? DT_BF16 : type;
        p->value[in[k]].t.dtype =
            type == DT_F64 ? DT_F64 : (exact && t == DT_BF16 && c.in[k].type != DT_BF16 ? DT_F32 : t);
    }
    Val out[OP_MAX_OUT];
    prog_add_multi(p, c.kind, c.n_in, in, &c.attr, out);
    check(prog_status(p));
    for (int k = 0; k < p->op[0].n_out; k++)
        if (c.unread >> k & 1) p->op[0].out[k] = VAL_NONE;
    return p;
}

static void call_fill(const Program *p, OpCall *call)
{
    memset(call, 0, sizeof *call);
    call->op = &p->op[0];
    call->comm_slot = -1;
    call->steady = UINT32_MAX; /* operands are there before anything runs */
    for (int k = 0; k < call->op->n_in; k++)
        if (call->op->in[k] != VAL_NONE) call->in_tensor[k] = &p->value[call->op->in[k]].t;
    for (int k = 0; k < call->op->n_out; k++)
        if (call->op->out[k] != VAL_NONE && p->value[call->op->out[k]].t.dtype != DT_NONE)
            call->out_tensor[k] = &p->value[call->op->out[k]].t;
}

static const CudaEntry *bench_cuda_find(OpKind kind)
{
    const CudaEntry *tables[] = {
#define TABLE(name) name,
#include "kernels/cuda/tables.def"
#undef TABLE
    };
    for (const CudaEntry *t : tables)
        for (; t->run; t++)
            if (t->kind == kind) return t;
    return NULL;
}
static const CpuEntry *bench_cpu_find(OpKind kind)
{
    const CpuEntry *tables[] = {
#define TABLE(name) name##_f64,
#include "kernels/cpu/tables.def"
#undef TABLE
    };
    for (const CpuEntry *t : tables)
        for (; t->run; t++)
            if (t->kind == kind) return t;
    return NULL;
}

/* which input an in-place op's output k writes to */
static int in_place_input(const Case &c, int k)
{
    static const int adam[] = {0, 2, 3, 4, 7};
    return c.in_place && (c.kind == OP_ADAM || c.kind == OP_ADAM_FUSED) ? adam[k] : 0;
}

static void bench_reference(const Case &c, double *const *value, double **out)
{
    Registry *registry;
    Program *p = bench_program(c, DT_F64, &registry);
    OpCall call;
    RankLayout layout = {1, 0, 1, 0, 1, 0};
    const CpuEntry *entry = bench_cpu_find(c.kind);
    call_fill(p, &call);
    if (!entry) {
        printf("no CPU kernel for %s\n", c.name);
        exit(1);
    }
    void *memory[OP_MAX_IN] = {};
    for (int k = 0; k < c.n_in; k++) {
        const Tensor *t = call.in_tensor[k];
        if (!t) continue;
        memory[k] = calloc((size_t)tensor_count(t) + 8, 8);
        for (int64_t e = 0; e < tensor_count(t); e++) put(memory[k], t->dtype, e, value[k][e]);
        call.in[k] = memory[k];
    }
    for (int k = 0; k < call.op->n_out; k++) {
        if (!call.out_tensor[k]) continue;
        call.out[k] =
            c.in_place ? memory[in_place_input(c, k)] : calloc((size_t)tensor_count(call.out_tensor[k]) + 8, 8);
    }
    call.scratch = entry->scratch ? calloc(entry->scratch(p, call.op, 8) + 64, 1) : NULL;
    check(entry->run(&layout, &call));
    for (int k = 0; k < call.op->n_out; k++) {
        if (!call.out_tensor[k]) continue;
        int64_t n = tensor_count(call.out_tensor[k]);
        out[k] = (double *)malloc((size_t)n * sizeof(double) + 8);
        for (int64_t e = 0; e < n; e++) out[k][e] = stored(call.out[k], call.out_tensor[k]->dtype, e);
        if (!c.in_place) free(call.out[k]);
    }
    for (int k = 0; k < c.n_in; k++) free(memory[k]);
    free(call.scratch);
    prog_destroy(&p);
    registry_destroy(&registry);
}

static bool in_group(const Case &c, int k)
{
    if (c.kind == OP_LINEAR_GROUP) return k > 0 && c.in[k].rank == 2;
    if (c.kind == OP_LINEAR_GATES) return k > 1 && c.in[k].rank == 2;
    if (c.kind == OP_LINEAR_NORM_DX) return k >= 6 + c.attr.i[2];
    return c.kind == OP_LINEAR_GROUP_DX && k >= c.attr.i[0];
}

static void bench_weights(Bench *b, const Case &c, const OpCall *call)
{
    size_t bytes = 0;
    for (int k = 0; k < c.n_in; k++)
        if (call->in_tensor[k] && in_group(c, k)) bytes += tensor_bytes(call->in_tensor[k]);
    check(cuda_check(cudaMalloc(&b->weights, bytes + 256), "malloc"));
}

/* Device operands from host values (or noise when value is NULL); outputs poisoned. */
static void bench_operands(Bench *b, const Case &c, OpCall *call, double *const *value)
{
    size_t weights = 0;
    bench_weights(b, c, call);
    for (int k = 0; k < c.n_in; k++) {
        const Tensor *t = call->in_tensor[k];
        if (!t) continue;
        int64_t n = tensor_count(t);
        size_t bytes = (size_t)n * dtype_size(t->dtype);
        void *host = malloc(bytes + 16), *device;
        for (int64_t e = 0; e < n; e++) {
            double x = value ? value[k][e] : (e < 4096 ? fill_value(b, c.in[k], e) : stored(host, t->dtype, e - 4096));
            put(host, t->dtype, e, x);
        }
        if (in_group(c, k)) {
            device = b->weights + weights;
            weights += bytes;
        } else {
            check(cuda_check(cudaMalloc(&device, bytes + 256), "malloc"));
        }
        check(cuda_check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "memcpy"));
        call->in[k] = device;
        free(host);
    }
    for (int k = 0; k < call->op->n_out; k++) {
        const Tensor *t = call->out_tensor[k];
        if (!t) continue;
        size_t bytes = (size_t)tensor_count(t) * dtype_size(t->dtype);
        if (c.in_place) {
            call->out[k] = (void *)call->in[in_place_input(c, k)];
            continue;
        }
        check(cuda_check(cudaMalloc(&call->out[k], bytes + 256), "malloc"));
        check(cuda_check(cudaMemset(call->out[k], 0xff, bytes), "memset"));
    }
    call->scratch = b->scratch;
    check(cuda_check(cudaMemset(b->scratch, 0xff, b->scratch_bytes), "memset"));
    /* the kernels' stream does not wait for the default stream, where copies of operands may still be under way */
    check(cuda_check(cudaDeviceSynchronize(), "operands"));
}

static void bench_release(Bench *b, const Case &c, OpCall *call)
{
    cudaFree(b->weights);
    for (int k = 0; k < call->op->n_out; k++)
        if (call->out[k] && !c.in_place) cudaFree(call->out[k]);
    for (int k = 0; k < c.n_in; k++)
        if (call->in[k] && !in_group(c, k)) cudaFree((void *)call->in[k]);
}

static const CudaEntry *bench_entry(Bench *b, const Case &c, const OpCall *call)
{
    const CudaEntry *entry = bench_cuda_find(c.kind);
    if (!entry) {
        printf("%-34s no CUDA kernel\n", c.name);
        b->failures++;
        return NULL;
    }
    size_t want = entry->scratch ? entry->scratch(call) : 0;
    if (want > b->scratch_bytes) {
        cudaFree(b->scratch);
        check(cuda_check(cudaMalloc(&b->scratch, want), "scratch"));
        b->scratch_bytes = want;
    }
    return entry;
}

static void compare(Bench *b, const Case &c, DType type, OpCall *call, double *const *want)
{
    double allowed = type == DT_BF16 ? 3e-3 * sqrt(c.roundings + 1.0) : 1e-5;
    for (int k = 0; k < call->op->n_out; k++) {
        const Tensor *t = call->out_tensor[k];
        if (!t) continue;
        int64_t n = tensor_count(t), bad = 0;
        size_t bytes = (size_t)n * dtype_size(t->dtype);
        void *host = malloc(bytes + 16);
        check(cuda_check(cudaMemcpy(host, call->out[k], bytes, cudaMemcpyDeviceToHost), "memcpy"));
        double difference = 0, norm = 0, worst = 0;
        for (int64_t e = 0; e < n; e++) {
            double x = stored(host, t->dtype, e), d = x - want[k][e];
            if (!isfinite(x)) bad++;
            difference += d * d;
            norm += want[k][e] * want[k][e];
            if (fabs(d) > worst) worst = fabs(d);
        }
        double error = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
        bool ok = bad == 0 && error <= allowed;
        printf("check %-34s %-4s out %d  error %.2e  allowed %.1e  worst %.2e  %s\n", c.name, dtype_name(type), k,
               error, allowed, worst, ok ? "ok" : "WRONG");
        if (bad) printf("      %lld values are not finite\n", (long long)bad);
        b->failures += !ok;
        free(host);
    }
}

/* Input 8 of attention's gradient: sums of do o over the channels of each head. */
static void head_sums(const Case &c, const OpCall &call, const double *o, double **value)
{
    int64_t heads = tensor_count(call.in_tensor[8]), width = tensor_last(call.in_tensor[0]) / c.attr.i[0];
    bool low = call.in_tensor[0]->dtype == DT_BF16;
    for (int64_t h = 0; h < heads; h++) {
        value[8][h] = 0;
        for (int64_t e = h * width; e < (h + 1) * width; e++)
            value[8][h] += value[0][e] * (low ? round_bf16((float)o[e]) : o[e]);
        value[8][h] = (float)value[8][h];
    }
}

/* Inputs of a backward op that are results of its forward: computed by the reference, rounded like the others. */
static void forward_results(const Case &c, const OpCall &call, double **value)
{
    bool attention = c.kind == OP_ATTENTION_BWD;
    int x = c.kind == OP_LINEAR_NORM_DX || c.kind == OP_TRANSITION_DX ? 0 : 1; /* of a layer norm's gradient */
    if (!attention && x == 1 && c.kind != OP_LAYER_NORM_FUSED_BWD) return;
    Case forward = c;
    double *in[OP_MAX_IN] = {}, *out[OP_MAX_OUT] = {};
    forward.kind = attention ? OP_ATTENTION : OP_LAYER_NORM_FUSED;
    forward.n_in = attention ? 5 : 3;
    for (int k = 0; k < forward.n_in; k++) {
        int from = attention ? k + 1 : x + (k > 0); /* beta does not matter: gamma again */
        forward.in[k] = c.in[from];
        in[k] = value[from];
    }
    bench_reference(forward, in, out);
    for (int k = 0; k < 2; k++) {
        int to = attention ? 6 + k : x + 2 + k, from = attention ? k : 1 + k;
        const Tensor *t = call.in_tensor[to];
        for (int64_t e = 0; t && e < tensor_count(t); e++)
            value[to][e] = t->dtype == DT_BF16 ? round_bf16((float)out[from][e]) : (float)out[from][e];
    }
    if (attention && c.n_in > 8) head_sums(c, call, out[0], value);
    for (double *v : out) free(v);
}

/* Weight gradients "in company" go through a batch, here of two alike. */
static Status run_in_company(Bench *b, const CudaEntry *entry, const OpCall *call)
{
    TRY(weights_batch_create(&b->ctx.batch));
    Status status = entry->run(&b->ctx, call);
    if (status == OK) status = entry->run(&b->ctx, call);
    if (status == OK) status = weights_flush(&b->ctx);
    weights_batch_destroy(&b->ctx.batch);
    return status;
}

static void bench_check(Bench *b, const Case &c, DType type)
{
    Registry *registry;
    Program *p = bench_program(c, type, &registry);
    OpCall call;
    double *value[OP_MAX_IN] = {}, *want[OP_MAX_OUT] = {};
    bool company = strstr(c.name, "in company");
    if (company) p->op[p->n_ops - 1].stream = STREAM_ASIDE;
    call_fill(p, &call);
    for (int k = 0; k < c.n_in; k++) {
        if (!call.in_tensor[k]) continue;
        int64_t n = tensor_count(call.in_tensor[k]);
        value[k] = (double *)malloc((size_t)n * sizeof(double) + 8);
        for (int64_t e = 0; e < n; e++) {
            double x = (float)fill_value(b, c.in[k], e);
            value[k][e] = call.in_tensor[k]->dtype == DT_BF16 ? round_bf16((float)x) : x;
        }
    }
    forward_results(c, call, value);
    const CudaEntry *entry = bench_entry(b, c, &call);
    if (entry) bench_reference(c, value, want);
    /* operands that may be read ahead, then none: kernels in bf16 bring weights at another point */
    for (int way = 0; entry && way < (type == DT_BF16 ? 2 : 1); way++) {
        if (way == 1) call.steady = 0;
        bench_operands(b, c, &call, value);
        Status status = company ? run_in_company(b, entry, &call) : entry->run(&b->ctx, &call);
        if (status == OK) status = cuda_check(cudaDeviceSynchronize(), "run");
        if (status != OK) {
            printf("check %-34s %-4s FAILED: %s\n", c.name, dtype_name(type), status_text());
            b->failures++;
            if (cudaGetLastError() != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) exit(1);
        } else {
            compare(b, c, type, &call, want);
        }
        bench_release(b, c, &call);
    }
    for (double *v : value) free(v);
    for (double *v : want) free(v);
    prog_destroy(&p);
    registry_destroy(&registry);
}

/* Time per call: a graph of `calls` calls replayed; the floor is the larger of bytes / copy rate and flops / 810
 * TFLOP/s (67 for f32). */
static double bench_time(Bench *b, const Case &c, DType type)
{
    enum { CALLS = 10, REPLAYS = 5 };
    Registry *registry;
    Program *p = bench_program(c, type, &registry);
    OpCall call;
    Cost cost = {};
    call_fill(p, &call);
    op_defs[c.kind]->cost(p, &p->op[0], &cost);
    const CudaEntry *entry = bench_entry(b, c, &call);
    double best = 0;
    if (entry) {
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        cudaEvent_t from, to;
        bench_operands(b, c, &call, NULL);
        check(entry->run(&b->ctx, &call));
        check(cuda_check(cudaStreamSynchronize(b->ctx.stream), "run"));
        check(cuda_check(cudaStreamBeginCapture(b->ctx.stream, cudaStreamCaptureModeRelaxed), "capture"));
        for (int k = 0; k < CALLS; k++) check(entry->run(&b->ctx, &call));
        check(cuda_check(cudaStreamEndCapture(b->ctx.stream, &graph), "capture"));
        check(cuda_check(cudaGraphInstantiate(&exec, graph, 0), "graph"));
        cudaEventCreate(&from);
        cudaEventCreate(&to);
        for (int r = 0; r < REPLAYS; r++) {
            float ms;
            cudaEventRecord(from, b->ctx.stream);
            check(cuda_check(cudaGraphLaunch(exec, b->ctx.stream), "launch"));
            cudaEventRecord(to, b->ctx.stream);
            check(cuda_check(cudaEventSynchronize(to), "replay"));
            cudaEventElapsedTime(&ms, from, to);
            double us = ms * 1e3 / CALLS;
            if (r == 1 || us < best) best = us;
        }
        double by_bytes = cost.bytes / b->copy_bytes_per_s * 1e6;
        double by_flops = cost.flops / (type == DT_BF16 ? 810e12 : 50e12) * 1e6;
        double floor_us = by_bytes > by_flops ? by_bytes : by_flops;
        printf("time  %-34s %-4s %9.1f us  floor %8.1f us (%s)  ratio %5.2f  %6.2f TB/s  %6.1f TFLOP/s\n", c.name,
               dtype_name(type), best, floor_us, by_bytes > by_flops ? "bytes" : "flops", best / floor_us,
               cost.bytes / best * 1e-6, cost.flops / best * 1e-6);
        fflush(stdout);
        cudaEventDestroy(from);
        cudaEventDestroy(to);
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
        bench_release(b, c, &call);
    }
    prog_destroy(&p);
    registry_destroy(&registry);
    return best;
}

/* Without times products take the library's first proposal: a sanitizer would watch each trial of a measurement. */
static void bench_open(Bench *b, bool times)
{
    static RankLayout layout = {1, 0, 1, 0, 1, 0};
    memset(b, 0, sizeof *b);
    b->random = 88172645463325252ull;
    b->copy_bytes_per_s = 4.25e12;
    b->ctx.layout = &layout;
    check(cuda_check(cudaStreamCreateWithFlags(&b->ctx.stream, cudaStreamNonBlocking), "stream"));
    check(gemm_create(NULL, times ? GEMM_FASTEST : GEMM_FIRST, &b->ctx.gemm));
    b->scratch_bytes = 1 << 20;
    check(cuda_check(cudaMalloc(&b->scratch, b->scratch_bytes), "scratch"));
    cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, 0);
    printf("device %s\n", properties.name);
}

#endif
