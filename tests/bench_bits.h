/* Two runs with one seed give the same bits: the step from the same start, twice, and everything it leaves compared. */
#ifndef FOLDSCALE_TESTS_BENCH_BITS_H
#define FOLDSCALE_TESTS_BENCH_BITS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/bench_session.h"

enum { BITS_STEPS = 2 };
static const Place bits_places[] = {PLACE_GRAD, PLACE_PARAM, PLACE_ADAM_M, PLACE_ADAM_V, PLACE_SWA};
enum { BITS_PLACES = sizeof bits_places / sizeof *bits_places };

typedef struct BitsHash {
    uint64_t loss[BITS_STEPS], place[BITS_PLACES];
} BitsHash;

/* FNV-1a, by words of 4 bytes */
static inline uint64_t bits_hash(uint64_t hash, const void *data, int64_t words)
{
    for (int64_t i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, (const char *)data + 4 * i, 4);
        hash = (hash ^ word) * 0x100000001b3u;
    }
    return hash;
}

static inline Status bits_read(BenchSession *s, BitsHash *hash)
{
    for (int k = 0; k < BITS_PLACES; k++) {
        hash->place[k] = 0xcbf29ce484222325u;
        for (int p = 0; p < s->registry->n_params; p++) {
            int64_t count = s->registry->param[p].count;
            double *values = malloc(((size_t)count + 1) * sizeof *values);
            Status status = values ? store_read_param(s->store, bits_places[k], p, DT_F64, values, count)
                                   : status_fail(ERR_MEMORY, "no memory to compare parameters");
            if (status == OK) hash->place[k] = bits_hash(hash->place[k], values, 2 * count);
            free(values);
            TRY(status);
        }
    }
    return OK;
}

/* Steps of one iteration without gradient, gradient step and optimizer, from the initial parameters and inputs. */
static inline Status bits_run(BenchSession *s, const ModelConfig *config, const Switches *switches, BitsHash *hash)
{
    for (int k = 0; k < BENCH_PROGRAMS; k++) exec_destroy(&s->exec[k]);
    workspace_destroy(&s->workspace);
    store_destroy(&s->store);
    TRY(bench_allocate(s, config, switches));
    for (int step = 0; step < BITS_STEPS; step++) {
        double loss;
        for (int k = 0; k < BENCH_PROGRAMS; k++)
            if (s->exec[k]) TRY(exec_run(s->exec[k]));
        TRY(exec_read_value(s->exec[BENCH_GRAD], s->program[BENCH_GRAD]->loss, DT_F64, &loss, 1));
        hash->loss[step] = bits_hash(0xcbf29ce484222325u, &loss, 2);
    }
    return bits_read(s, hash);
}

static inline Status bench_same_bits(BenchSession *s, const ModelConfig *config, const Switches *switches)
{
    BitsHash run[2];
    for (int k = 0; k < 2; k++) TRY(bits_run(s, config, switches, &run[k]));
    if (memcmp(&run[0], &run[1], sizeof run[0]))
        return status_fail(
            ERR_INTERNAL,
            "two runs with one seed differ: losses %s, gradients %s, parameters %s, moments %s, average %s",
            memcmp(run[0].loss, run[1].loss, sizeof run[0].loss) ? "differ" : "equal",
            run[0].place[0] != run[1].place[0] ? "differ" : "equal",
            run[0].place[1] != run[1].place[1] ? "differ" : "equal",
            memcmp(run[0].place + 2, run[1].place + 2, 2 * sizeof(uint64_t)) ? "differ" : "equal",
            run[0].place[4] != run[1].place[4] ? "differ" : "equal");
    if (s->backend->layout.rank == 0)
        printf("  two runs of %d steps with one seed: the same bits of losses, gradients %016llx, parameters %016llx, "
               "moments and average\n",
               BITS_STEPS, (unsigned long long)run[0].place[0], (unsigned long long)run[0].place[1]);
    return OK;
}

#endif
