/* Every op kind of the trunk and the large ones of the structure module: checked at a small size in f32 and bf16, timed
 * at the size of the Evoformer block in bf16, or in f32 what always runs in f32. Arguments: parts of names; --checks
 * first: no times, as under compute-sanitizer (gpu_sanitize.sh); --part I/N before the names: every Nth of the cases.
 */
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

/* Which cases run. */
struct Choice {
    int names;
    char **name;
    unsigned part, parts, seen;
};

static bool wanted(Choice *c, const char *name)
{
    bool named = c->names == 0;
    for (int k = 0; k < c->names; k++) named |= strstr(name, c->name[k]) != NULL;
    return named && c->seen++ % c->parts == c->part;
}

/* False: no choice. */
static bool choose(int argc, char **argv, bool *times_out, Choice *c)
{
    int at = 1;
    *times_out = argc <= at || strcmp(argv[at], "--checks") != 0;
    at += !*times_out;
    *c = {0, NULL, 0, 1, 0};
    if (argc > at + 1 && !strcmp(argv[at], "--part")) {
        if (sscanf(argv[at + 1], "%u/%u", &c->part, &c->parts) != 2 || c->part >= c->parts) return false;
        at += 2;
    }
    c->names = argc - at, c->name = argv + at;
    return true;
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
    Choice choice;
    bool times;
    if (!choose(argc, argv, &times, &choice)) {
        fprintf(stderr, "usage: bench_cuda_trunk [--checks] [--part I/N] [NAME...]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut off keeps its lines */
    bench_open(&b, times);
    for (const Case &c : small_cases)
        if (wanted(&choice, c.name)) check_case(&b, c);
    for (const Case &c : attention_cases)
        if (wanted(&choice, c.name)) check_case(&b, c);
    for (const Case &c : norm_dx_cases)
        if (wanted(&choice, c.name)) check_case(&b, c);
    for (const Case &c : behind_cases)
        if (wanted(&choice, c.name)) check_case(&b, c);
    for (const Case &c : structure_cases)
        if (wanted(&choice, c.name)) check_case(&b, c);
    for (const Front &f : front_checks)
        if (wanted(&choice, f.name)) {
            bench_check(&b, front_case(f, FRONT_KEPT), DT_F32);
            bench_check(&b, front_case(f, FRONT_KEPT), DT_BF16);
            front_bits(&b, f);
        }
    fflush(stdout);
    for (const Front &f : front_times)
        if (times && wanted(&choice, f.name)) {
            front_bits(&b, f);
            front_time(&b, f);
        }
    for (const Case &c : large_cases)
        if (times && wanted(&choice, c.name)) time_case(&b, c);
    for (const Case &c : large_attention_cases)
        if (times && wanted(&choice, c.name)) time_case(&b, c);
    for (const Case &c : large_norm_dx_cases)
        if (times && wanted(&choice, c.name)) time_case(&b, c);
    for (const Case &c : large_behind_cases)
        if (times && wanted(&choice, c.name)) time_case(&b, c);
    for (const Case &c : large_structure_cases)
        if (times && wanted(&choice, c.name)) bench_time(&b, c, DT_F32);
    printf("bench_cuda_trunk: %d failures\n", b.failures);
    gemm_destroy(&b.ctx.gemm);
    return b.failures ? 1 : 0;
}
