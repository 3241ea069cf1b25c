/* parity DIR [--dtype f64|f32|bf16] [--backend cpu|cuda] [--dap N] [--switches none|all] [--checkpoint
 * none|block|selective]
 *            [--only TEXT] [--save FILE | --beside FILE] [--dither SEED] [--spread FILE]
 *
 * DIR is a golden folder (tiny: config.json; modules: index.json; full: generator.csv) or a folder that holds such
 * folders. One line per quantity; exit 1 on any FAIL. With --dap N it starts its N ranks itself unless it already runs
 * under mpirun. --save keeps what was computed; --beside tells how far it is from what another run kept, and compares
 * with it what no golden value tells (gradients of modules with rows without a valid key, where f32 and f64 differ by
 * design). --dither makes the CPU round bf16 at random, or to f32 what it computes in f64, an op's result once: what a
 * program in f32 may be off by. From the lines of many such runs --spread takes the tolerances (parity_spread.c):
 *
 *   for s in $(seq 128); do parity DIR --dtype bf16 --dither $s; done >spread.txt
 *   parity DIR --dtype bf16 --backend cuda --spread spread.txt
 *
 * For f32 the runs are those of --dtype f64 --dither $s; they tell where the golden README states no tolerance. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/parity.h"

static Status parse(int argc, char **argv, ParityOptions *o)
{
    *o = (ParityOptions){.backend = "cpu", .switches = {.precision = PRECISION_F64, .dap = 1, .dp = 1}};
    for (int i = 1; i < argc; i++) {
        const char *key = argv[i];
        if (key[0] != '-') {
            o->dir = key;
            continue;
        }
        if (i + 1 == argc) return status_fail(ERR_USAGE, "%s needs a value", key);
        const char *value = argv[++i];
        if (!strcmp(key, "--backend")) {
            o->backend = value;
        } else if (!strcmp(key, "--only")) {
            o->only = value;
        } else if (!strcmp(key, "--save")) {
            o->save = value;
        } else if (!strcmp(key, "--beside")) {
            o->beside = value;
        } else if (!strcmp(key, "--spread")) {
            o->spread = value;
        } else if (!strcmp(key, "--dither")) {
            o->dither = strtoull(value, NULL, 10);
        } else if (!strcmp(key, "--dap")) {
            o->switches.dap = atoi(value);
            if (o->switches.dap < 1 || o->switches.dap > 8)
                return status_fail(ERR_USAGE, "--dap %s (expected 1, 2, 4 or 8)", value);
        } else if (!strcmp(key, "--dtype")) {
            if (!strcmp(value, "f64"))
                o->switches.precision = PRECISION_F64;
            else if (!strcmp(value, "f32"))
                o->switches.precision = PRECISION_F32;
            else if (!strcmp(value, "bf16"))
                o->switches.precision = PRECISION_BF16;
            else
                return status_fail(ERR_USAGE, "--dtype %s (expected f64, f32 or bf16)", value);
        } else if (!strcmp(key, "--switches")) {
            bool all = !strcmp(value, "all");
            if (!all && strcmp(value, "none"))
                return status_fail(ERR_USAGE, "--switches %s (expected none or all)", value);
            o->switches.gemm_batching = o->switches.fused_attention = o->switches.fused_layernorm = all;
            o->switches.fused_pointwise = o->switches.fused_optimizer = o->switches.comm_overlap = all;
            o->switches.overlap_clip = o->switches.cuda_graph = all;
        } else if (!strcmp(key, "--checkpoint")) {
            if (!strcmp(value, "none"))
                o->switches.checkpoint = CHECKPOINT_NONE;
            else if (!strcmp(value, "block"))
                o->switches.checkpoint = CHECKPOINT_BLOCK;
            else if (!strcmp(value, "selective"))
                o->switches.checkpoint = CHECKPOINT_SELECTIVE;
            else
                return status_fail(ERR_USAGE, "--checkpoint %s (expected none, block or selective)", value);
        } else {
            return status_fail(ERR_USAGE, "unknown option %s", key);
        }
    }
    if ((o->save || o->beside) && o->switches.dap > 1)
        return status_fail(ERR_USAGE, "--save and --beside need --dap 1: a rank holds its share alone");
    if (o->spread && o->switches.precision == PRECISION_F64)
        return status_fail(ERR_USAGE, "--spread is of bf16 and f32 (--dtype): nothing rounds f64 at random");
    return o->dir ? OK : status_fail(ERR_USAGE, "no golden folder given");
}

static bool has(const char *dir, const char *file)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return access(path, R_OK) == 0;
}

static Status run_folder(Parity *parity, const char *dir, bool *known_out)
{
    *known_out = true;
    if (has(dir, "generator.csv")) return parity_full(parity, dir);
    if (has(dir, "config.json")) return parity_tiny(parity, dir);
    if (has(dir, "index.json")) {
        if (parity->options.switches.dap == 1) return parity_modules(parity, dir);
        parity_skip(parity, dir, "module goldens have 7 residues, which no DAP degree divides");
        return OK;
    }
    *known_out = false;
    return OK;
}

static Status run_all(Parity *parity)
{
    static const char *const kinds[] = {"modules", "tiny", "full"};
    const char *dir = parity->options.dir;
    bool known;
    TRY(run_folder(parity, dir, &known));
    for (int i = 0; i < 3 && !known; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, kinds[i]);
        bool child = false;
        TRY(run_folder(parity, path, &child));
        if (i == 2 && parity->checks + parity->failures + parity->skipped == 0)
            return status_fail_at(ERR_INPUT, dir, 0,
                                  "no golden folder (expected config.json, index.json or generator.csv)");
    }
    return OK;
}

/* Replaces this process by mpirun with the same arguments. */
static void start_ranks(int ranks, char **argv)
{
    char count[16];
    snprintf(count, sizeof count, "%d", ranks);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    char *args[64] = {"mpirun", "--oversubscribe", "-np", count};
    int n = 4;
    for (int i = 0; argv[i] && n < 63; i++) args[n++] = argv[i];
    execvp("mpirun", args);
    perror("parity: cannot start mpirun");
    exit(1);
}

static void complain(void)
{
    fprintf(stderr, "parity: %s\n", status_text());
}

int main(int argc, char **argv)
{
    Parity parity = {0};
    Status status = parse(argc, argv, &parity.options);
    if (status == OK && parity.options.switches.dap > 1 && !getenv("OMPI_COMM_WORLD_SIZE"))
        start_ranks(parity.options.switches.dap, argv);
    if (status == OK)
        status = kernels_open(parity.options.backend,
                              &(KernelOptions){.dap = parity.options.switches.dap, .dither = parity.options.dither},
                              &parity.backend);
    if (status == OK) status = parity_beside_open(parity.options.save, parity.options.beside, &parity.beside);
    if (status == OK)
        status = parity_spread_open(parity.options.spread, parity.options.switches.precision, &parity.spread);
    if (status == OK) status = run_all(&parity);
    if (status == OK) parity_spread_report(&parity);
    if (status != OK) complain(); /* before what is closed may fail too */
    Status closed = parity_beside_close(&parity.beside, status == OK);
    if (status == OK && closed != OK) complain();
    if (status == OK) status = closed;
    parity_spread_close(&parity.spread);
    bool speaker = !parity.backend || parity.backend->layout.rank == 0;
    if (status == OK && speaker)
        printf("%d passed, %d failed, %d skipped\n", parity.checks - parity.failures, parity.failures, parity.skipped);
    if (status != OK) kernels_abort(status_exit_code(status)); /* the other ranks would wait for this one */
    kernels_close(&parity.backend);
    kernels_finalize();
    if (status != OK) return status_exit_code(status);
    return parity.failures ? 1 : 0;
}
