#include "experiments/validate_codes.h"

#include <math.h>
#include <string.h>

#include "experiments/openfold.h"
#include "experiments/published.h"

#ifndef FOLDSCALE_SOURCE_DIR
#define FOLDSCALE_SOURCE_DIR "."
#endif

#define EXPERIMENT(name) FOLDSCALE_SOURCE_DIR "/experiments/" name

typedef struct CodeCase {
    const char *what;
    PublishedCell from;
    const char *experiment;
    SwitchSection switches;
    int dp, dap;
    bool first;    /* calibrates the rows that follow */
    bool openfold; /* its modules: launches cost what OpenFold's do; else what the device takes */
    bool autocast; /* "bf16-mixed": products alone are sure to be in bf16 */
} CodeCase;

#define STEPS(method_, phase_)                                                                                         \
    {                                                                                                                  \
        "scalefold_step_times.csv", "step_time_s",                                                                     \
        {                                                                                                              \
            {"method", method_},                                                                                       \
            {                                                                                                          \
                "phase", phase_                                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }
#define FASTFOLD(metric_)                                                                                              \
    {                                                                                                                  \
        "fastfold.csv", "value",                                                                                       \
        {                                                                                                              \
            {                                                                                                          \
                "metric", metric_                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
#define PLAIN                                                                                                          \
    {                                                                                                                  \
        .checkpoint = CHECKPOINT_BLOCK                                                                                 \
    }
#define FUSED_16                                                                                                       \
    {                                                                                                                  \
        .fused_attention = true, .fused_layernorm = true, .bf16 = true, .checkpoint = CHECKPOINT_BLOCK                 \
    }

/* DAP degrees of FastFold's two steps are not stated beside the numbers; 2 and 4 are those of its paper's setting. */
static const CodeCase CASES[] = {
    {"BioNeMo, 128 A100, fp32, initial training: step (s)", STEPS("BioNeMo OpenFold, no optimisations", "initial"),
     EXPERIMENT("initial_training.yaml"), PLAIN, 128, 1, true, true, false},
    {"BioNeMo, 128 A100, bf16 and fused kernels: step (s)",
     STEPS("BioNeMo OpenFold, layernorm_inductor+layernorm_triton+mha_triton", "initial"),
     EXPERIMENT("initial_training.yaml"), FUSED_16, 128, 1, false, true, true},
    {"BioNeMo, 128 A100, fp32, fine-tuning: step (s)", STEPS("BioNeMo OpenFold, before", "fine-tuning"),
     EXPERIMENT("fine_tuning.yaml"), PLAIN, 128, 1, false, true, false},
    {"FastFold, 256 A100, initial training, DAP 2: step (s)", FASTFOLD("initial training step"),
     EXPERIMENT("initial_training.yaml"), FUSED_16, 128, 2, true, false, false},
    {"FastFold, 512 A100, fine-tuning, DAP 4: step (s)", FASTFOLD("fine-tuning step"), EXPERIMENT("fine_tuning.yaml"),
     FUSED_16, 128, 4, false, false, false},
};

enum { CASE_COUNT = sizeof CASES / sizeof CASES[0], OPENFOLD_STEPS = 2 };
_Static_assert((int)CASE_COUNT + OPENFOLD_STEPS <= (int)VALIDATE_CODES_ROWS, "raise VALIDATE_CODES_ROWS");

typedef struct Codes {
    Config *config[2]; /* initial training, fine-tuning */
    Pricing *pricing;
    OpenFold openfold;
    Arena *arena;
} Codes;

/* Autocast keeps what lies between products in float32 where an operand asks for it, and nobody says how often: priced
 * as if everywhere, with the distance to a program wholly in bf16 as the spread. */
static Status set_autocast(Codes *k, const CodeCase *c, const Config *config, TransferCase *out)
{
    SwitchSection full = c->switches;
    const StepCost *cost = NULL;
    StepCost *mixed = arena_array(k->arena, 1, sizeof *mixed);
    const Machine *machine = pricing_machine(k->pricing);
    double roofline[2] = {0};
    full.bf16 = false;
    TRY(pricing_cost(k->pricing, config, &full, c->dap, &cost));
    if (!mixed) return status_fail(ERR_MEMORY, "validate: out of memory");
    TRY(openfold_autocast(cost, k->arena, mixed));
    const StepCost *both[2] = {mixed, out->cost};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < both[i]->count; j++) {
            const CostClass *item = &both[i]->item[j];
            if (!item->comm)
                roofline[i] += item->calls * opprice_roofline(machine, item->rate, item->flops, item->bytes);
        }
    out->cost = mixed;
    out->spread = fabs(log(roofline[0] / roofline[1])) / sqrt(12); /* all between is as likely */
    return OK;
}

static Status cost_of(Codes *k, const CodeCase *c, TransferCase *out)
{
    const Config *config = k->config[strstr(c->experiment, "fine_tuning") != NULL];
    *out = (TransferCase){.what = c->what, .dp = c->dp, .loader_s = c->openfold ? k->openfold.loader_s : 0};
    TRY(published_cell(&c->from, &out->step_s));
    TRY(pricing_cost(k->pricing, config, &c->switches, c->dap, &out->cost));
    return c->autocast ? set_autocast(k, c, config, out) : OK;
}

/* The cases from `first` up to the next one that calibrates. */
static Status one_code(Codes *k, int first, ValidationRow *rows, int *count)
{
    TransferCase cases[CASE_COUNT];
    const FitOptions options = {.seed = 1};
    const Machine *machine = pricing_machine(k->pricing);
    OpPrices *prices = NULL;
    int n = 0;
    do {
        TRY(cost_of(k, &CASES[first + n], &cases[n]));
        n++;
    } while (first + n < CASE_COUNT && !CASES[first + n].first);
    double launch_s = CASES[first].openfold ? k->openfold.launch_s : k->openfold.launch_low_s;
    TRY(openfold_prices(&k->openfold, machine, launch_s, &prices));
    Status status = validate_transfer(prices, machine, cases, n, &options, k->arena, rows + *count);
    for (int i = 0; i < n && status == OK; i++) {
        rows[*count + i].set = "other codes";
        rows[*count + i].naive = rows[*count + i].naive2 = NAN; /* Amdahl knows nothing of another crop or kernels */
    }
    *count += n;
    opprice_destroy(&prices);
    return status;
}

/* OpenFold's own two steps gave the cost of its launches. */
static void openfold_rows(const OpenFold *o, ValidationRow *rows, int *count)
{
    static const char *const what[OPENFOLD_STEPS] = {"OpenFold, 1 A100, bf16, initial training: step (s)",
                                                     "OpenFold, 1 A100, bf16, fine-tuning: step (s)"};
    for (int i = 0; i < OPENFOLD_STEPS; i++)
        rows[(*count)++] = (ValidationRow){.set = "other codes",
                                           .what = what[i],
                                           .fitted = true,
                                           .truth = o->step_s[i],
                                           .naive = NAN,
                                           .naive2 = NAN,
                                           .basis = "both steps: its kernels and its launches"};
}

Status validate_codes(Arena *arena, ValidationRow *rows_out, int *count_out)
{
    const TextList none = {0};
    Codes k = {.arena = arena};
    int count = 0;
    Status status = config_load(EXPERIMENT("initial_training.yaml"), &none, &k.config[0]);
    if (status == OK) status = config_load(EXPERIMENT("fine_tuning.yaml"), &none, &k.config[1]);
    if (status == OK) status = pricing_open(k.config[0], "a100_sxm", NULL, &k.pricing);
    if (status == OK) status = openfold_read(k.config[0], k.config[1], &k.openfold);
    if (status == OK) openfold_rows(&k.openfold, rows_out, &count);
    for (int i = 0; i < CASE_COUNT && status == OK; i++)
        if (CASES[i].first) status = one_code(&k, i, rows_out, &count);
    pricing_close(&k.pricing);
    config_destroy(&k.config[0]);
    config_destroy(&k.config[1]);
    if (status == OK) *count_out = count;
    return status;
}
