/* Every op kind of the trunk and the large ones of the structure module: checked at a small size in f32 and bf16, timed
 * at the size of the Evoformer block in bf16, or in f32 what always runs in f32. Arguments: parts of names; --checks
 * first: no times, as under compute-sanitizer. */
#include "tests/bench_cuda_front.cuh"

#define F(...)                                                                                                         \
    {                                                                                                                  \
        DT_F32, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_NORMAL, 0, 1.0                                                  \
    }
#define W(scale, ...)                                                                                                  \
    {                                                                                                                  \
        DT_F32, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_NORMAL, 0, scale                                                \
    }
#define M(...)                                                                                                         \
    {                                                                                                                  \
        DT_F32, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_MASK, 0, 1.0                                                    \
    }
#define P(scale, ...)                                                                                                  \
    {                                                                                                                  \
        DT_F32, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_POSITIVE, 0, scale                                              \
    }
#define ONE(scale, ...)                                                                                                \
    {                                                                                                                  \
        DT_F32, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_ONE, 0, scale                                                   \
    }
#define I(limit, ...)                                                                                                  \
    {                                                                                                                  \
        DT_I32, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_INT, limit, 1.0                                                 \
    }
#define RNG                                                                                                            \
    {                                                                                                                  \
        DT_I32, 1, {4}, FILL_RNG, 0, 1.0                                                                               \
    }
#define LOW(...)                                                                                                       \
    {                                                                                                                  \
        DT_BF16, RANK(__VA_ARGS__), {__VA_ARGS__}, FILL_NORMAL, 0, 1.0                                                 \
    }
#define NONE                                                                                                           \
    {                                                                                                                  \
        DT_NONE, 0, {0}, FILL_NORMAL, 0, 1.0                                                                           \
    }
#define RANK(...) ((int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))
#define ATTR(...)                                                                                                      \
    {                                                                                                                  \
        {__VA_ARGS__},                                                                                                 \
        {                                                                                                              \
            0                                                                                                          \
        }                                                                                                              \
    }

#include "tests/bench_cuda_attention.h"
#include "tests/bench_cuda_behind.h"
#include "tests/bench_cuda_checks.h"
#include "tests/bench_cuda_norm_dx.h"
#include "tests/bench_cuda_structure.h"
#include "tests/bench_cuda_times.h"

static bool wanted(int argc, char **argv, const char *name)
{
    for (int k = 1; k < argc; k++)
        if (strstr(name, argv[k])) return true;
    return argc == 1;
}

static void check_case(Bench *b, const Case &c)
{
    bench_check(b, c, DT_F32);
    bool optimizer = c.in_place || c.kind == OP_SUM_SQUARES || c.kind == OP_CLIP_FACTOR;
    if (!optimizer && !(op_defs[c.kind]->flags & OPF_FULL)) bench_check(b, c, DT_BF16);
}

static void time_case(Bench *b, const Case &c)
{
    bool full = c.in_place || c.kind == OP_SUM_SQUARES || op_defs[c.kind]->flags & OPF_FULL;
    bench_time(b, c, full ? DT_F32 : DT_BF16);
}

int main(int argc, char **argv)
{
    Bench b;
    bool times = argc < 2 || strcmp(argv[1], "--checks") != 0;
    if (!times) argc--, argv++;
    bench_open(&b);
    for (const Case &c : small_cases)
        if (wanted(argc, argv, c.name)) check_case(&b, c);
    for (const Case &c : attention_cases)
        if (wanted(argc, argv, c.name)) check_case(&b, c);
    for (const Case &c : norm_dx_cases)
        if (wanted(argc, argv, c.name)) check_case(&b, c);
    for (const Case &c : behind_cases)
        if (wanted(argc, argv, c.name)) check_case(&b, c);
    for (const Case &c : structure_cases)
        if (wanted(argc, argv, c.name)) check_case(&b, c);
    for (const Front &f : front_checks)
        if (wanted(argc, argv, f.name)) {
            bench_check(&b, front_case(f, FRONT_KEPT), DT_F32);
            bench_check(&b, front_case(f, FRONT_KEPT), DT_BF16);
            front_bits(&b, f);
        }
    fflush(stdout);
    for (const Front &f : front_times)
        if (times && wanted(argc, argv, f.name)) {
            front_bits(&b, f);
            front_time(&b, f);
        }
    for (const Case &c : large_cases)
        if (times && wanted(argc, argv, c.name)) time_case(&b, c);
    for (const Case &c : large_norm_dx_cases)
        if (times && wanted(argc, argv, c.name)) time_case(&b, c);
    for (const Case &c : large_behind_cases)
        if (times && wanted(argc, argv, c.name)) time_case(&b, c);
    for (const Case &c : large_structure_cases)
        if (times && wanted(argc, argv, c.name)) bench_time(&b, c, DT_F32);
    printf("bench_cuda_trunk: %d failures\n", b.failures);
    gemm_destroy(&b.ctx.gemm);
    return b.failures ? 1 : 0;
}
