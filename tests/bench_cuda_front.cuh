/* Products with a layer norm in front: against the CPU, the layer norm bit for bit against the op of its own, and their
 * times beside those of the two ops. */
#ifndef FOLDSCALE_TESTS_BENCH_CUDA_FRONT_CUH
#define FOLDSCALE_TESTS_BENCH_CUDA_FRONT_CUH

#include "tests/bench_cuda.cuh"

struct Front {
    const char *name;
    OpKind kind;
    int rank;
    int64_t x[TENSOR_MAX_RANK];
    int members;
    int64_t out[6];
    bool relu;
};

static const Front front_checks[] = {
    {"norm linear odd", OP_LINEAR, 3, {7, 5, 33}, 1, {19}, true},
    {"norm linear 256 relu", OP_LINEAR, 2, {1500, 256}, 1, {384}, true},
    {"norm linear 128 relu", OP_LINEAR, 2, {1500, 128}, 1, {512}, true},
    {"norm linear 64", OP_LINEAR, 2, {1511, 64}, 1, {256}, false},
    {"norm linear narrow", OP_LINEAR, 2, {4133, 128}, 1, {8}, false},
    {"norm group 256", OP_LINEAR_GROUP, 2, {2017, 256}, 4, {256, 256, 256, 256}, false},
    {"norm group few first", OP_LINEAR_GROUP, 2, {2017, 128}, 5, {4, 128, 128, 128, 128}, false},
    {"norm group few last", OP_LINEAR_GROUP, 2, {2017, 64}, 4, {64, 64, 64, 8}, false},
    {"norm group narrow", OP_LINEAR_GROUP, 2, {4133, 256}, 2, {32, 32}, false},
    {"norm group narrow 64", OP_LINEAR_GROUP, 2, {4133, 64}, 2, {8, 6}, false},
    {"norm group stream", OP_LINEAR_GROUP, 2, {4133, 128}, 2, {128, 40}, false},
};

/* Of an Evoformer block and its halves under DAP 2, an extra MSA block, a template block. */
static const Front front_times[] = {
    {"norm z bias", OP_LINEAR, 3, {256, 256, 128}, 1, {8}, false},
    {"norm z bias dap2", OP_LINEAR, 3, {128, 256, 128}, 1, {8}, false},
    {"norm extra attention", OP_LINEAR_GROUP, 3, {1024, 256, 64}, 4, {64, 64, 64, 64}, false},
    {"norm extra outer", OP_LINEAR_GROUP, 3, {1024, 256, 64}, 2, {32, 32}, false},
    {"norm template attention", OP_LINEAR_GROUP, 4, {4, 256, 256, 64}, 5, {4, 64, 64, 64, 64}, false},
};

static In front_input(int rank, const int64_t *dim, Fill fill, double scale)
{
    In in = {DT_F32, rank, {}, fill, 0, scale};
    memcpy(in.dim, dim, (size_t)rank * sizeof *dim);
    return in;
}

enum FrontForm { FRONT_KEPT, FRONT_ALONE /* its results unread */, FRONT_NONE };

static Case front_case(const Front &f, FrontForm form)
{
    int gamma = f.kind == OP_LINEAR ? 3 : 13, out = f.kind == OP_LINEAR ? 1 : 6, at = 0;
    Case c = {f.name, f.kind, 0, {}, {}, 1, false, form == FRONT_ALONE ? 7 << out : 0};
    c.in[at++] = front_input(f.rank, f.x, FILL_NORMAL, 1.0);
    for (int k = 0; k < f.members; k++) {
        const int64_t w[2] = {f.out[k], f.x[f.rank - 1]};
        c.in[at++] = front_input(2, w, FILL_NORMAL, 0.1);
        c.in[at++] = front_input(1, w, FILL_NORMAL, 1.0);
    }
    c.n_in = at;
    c.attr.i[0] = f.kind == OP_LINEAR_GROUP ? f.members : f.relu;
    if (form == FRONT_NONE) return c;
    c.attr.f[0] = 1e-5;
    for (int k = 0; k < 2; k++) c.in[gamma + k] = front_input(1, &f.x[f.rank - 1], FILL_NORMAL, 1.0);
    c.n_in = gamma + 2;
    return c;
}

static Case front_norm_case(const Front &f)
{
    Case c = {f.name, OP_LAYER_NORM_FUSED, 3, {front_input(f.rank, f.x, FILL_NORMAL, 1.0)}, {{0}, {1e-5}}};
    for (int k = 1; k < 3; k++) c.in[k] = front_input(1, &f.x[f.rank - 1], FILL_NORMAL, 1.0);
    return c;
}

static int64_t differing(const Tensor *t, const void *a, const void *b)
{
    size_t size = dtype_size(t->dtype), bytes = (size_t)tensor_count(t) * size;
    char *x = (char *)malloc(bytes), *y = (char *)malloc(bytes);
    int64_t count = 0;
    check(cuda_check(cudaMemcpy(x, a, bytes, cudaMemcpyDeviceToHost), "memcpy"));
    check(cuda_check(cudaMemcpy(y, b, bytes, cudaMemcpyDeviceToHost), "memcpy"));
    for (size_t e = 0; e < bytes; e += size) count += memcmp(x + e, y + e, size) != 0;
    free(x);
    free(y);
    return count;
}

/* One op of `c` on operands of its own, whose first inputs are replaced by `given` (NULL: not). */
struct FrontRun {
    Case c;
    Registry *registry;
    Program *p;
    OpCall call;
};

static void front_run(Bench *b, FrontRun *run, const OpCall *inputs, const int *from, const void *x)
{
    run->p = bench_program(run->c, DT_BF16, &run->registry);
    call_fill(run->p, &run->call);
    const CudaEntry *entry = bench_entry(b, run->c, &run->call);
    bench_operands(b, run->c, &run->call, NULL);
    for (int k = 0; inputs && k < run->c.n_in; k++)
        if (run->call.in_tensor[k])
            check(cuda_check(cudaMemcpy((void *)run->call.in[k], k == 0 && x ? x : inputs->in[from[k]],
                                        tensor_bytes(run->call.in_tensor[k]), cudaMemcpyDeviceToDevice),
                             "memcpy"));
    check(cuda_check(cudaDeviceSynchronize(), "operands"));
    check(entry->run(&b->ctx, &run->call));
    check(cuda_check(cudaDeviceSynchronize(), "run"));
}

/* Fused in both forms, and as two ops: the same bits, but for products whose kernel alone is another one. */
static void front_bits(Bench *b, const Front &f)
{
    int gamma = f.kind == OP_LINEAR ? 3 : 13, out = f.kind == OP_LINEAR ? 1 : 6, same[OP_MAX_IN];
    const int norm_from[] = {0, gamma, gamma + 1};
    for (int k = 0; k < OP_MAX_IN; k++) same[k] = k;
    FrontRun fused = {front_case(f, FRONT_KEPT)}, alone = {front_case(f, FRONT_ALONE)};
    FrontRun norm = {front_norm_case(f)}, plain = {front_case(f, FRONT_NONE)};
    front_run(b, &fused, NULL, NULL, NULL);
    char *weights[4] = {b->weights};
    front_run(b, &norm, &fused.call, norm_from, NULL);
    weights[1] = b->weights;
    front_run(b, &plain, &fused.call, same, norm.call.out[0]);
    weights[2] = b->weights;
    front_run(b, &alone, &fused.call, same, NULL);
    weights[3] = b->weights;
    int64_t bad = 0, bad_norm = 0, bad_alone = 0;
    for (int k = 0; k < plain.call.op->n_out; k++)
        if (plain.call.out_tensor[k]) bad += differing(plain.call.out_tensor[k], plain.call.out[k], fused.call.out[k]);
    for (int k = 0; k < 3; k++)
        bad_norm += differing(norm.call.out_tensor[k], norm.call.out[k], fused.call.out[out + k]);
    for (int k = 0; k < alone.call.op->n_out; k++)
        if (alone.call.out_tensor[k])
            bad_alone += differing(alone.call.out_tensor[k], alone.call.out[k], fused.call.out[k]);
    printf("bits  %-34s norm %lld  unkept %lld  differ  %s (products %lld)\n", f.name, (long long)bad_norm,
           (long long)bad_alone, bad_norm + bad_alone ? "WRONG" : "ok", (long long)bad);
    b->failures += bad_norm + bad_alone != 0;
    FrontRun *runs[] = {&fused, &norm, &plain, &alone};
    for (int k = 0; k < 4; k++) {
        b->weights = weights[k];
        bench_release(b, runs[k]->c, &runs[k]->call);
        prog_destroy(&runs[k]->p);
        registry_destroy(&runs[k]->registry);
    }
}

static void front_time(Bench *b, const Front &f)
{
    double norm = bench_time(b, front_norm_case(f), DT_BF16), plain = bench_time(b, front_case(f, FRONT_NONE), DT_BF16);
    double kept = bench_time(b, front_case(f, FRONT_KEPT), DT_BF16);
    double alone = bench_time(b, front_case(f, FRONT_ALONE), DT_BF16);
    printf("front %-34s norm %.1f + product %.1f us; fused %.1f us (%.2f), kept %.1f us (%.2f)\n", f.name, norm, plain,
           alone, alone / (norm + plain), kept, kept / (norm + plain));
}

#endif
