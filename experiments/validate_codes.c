#include "experiments/validate_codes.h"

#include <math.h>
#include <string.h>

#include "experiments/pricing.h"

#ifndef FOLDSCALE_SOURCE_DIR
#define FOLDSCALE_SOURCE_DIR "."
#endif

#define PUBLISHED(name)  FOLDSCALE_SOURCE_DIR "/data/published/" name
#define EXPERIMENT(name) FOLDSCALE_SOURCE_DIR "/experiments/" name

/* Where a step time stands: the row whose cells begin with these texts. */
typedef struct Published {
    const char *file, *value;
    struct {
        const char *column, *starts;
    } where[4];
} Published;

typedef struct CodeCase {
    const char *what;
    Published from;
    const char *experiment;
    SwitchSection switches;
    int dp, dap;
    bool first; /* calibrates the rows that follow */
} CodeCase;

#define STEPS(method_, phase_)                                                                                         \
    {                                                                                                                  \
        PUBLISHED("scalefold_step_times.csv"), "step_time_s",                                                          \
        {                                                                                                              \
            {"method", method_},                                                                                       \
            {                                                                                                          \
                "phase", phase_                                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }
#define OTHERS(phase_)                                                                                                 \
    {                                                                                                                  \
        PUBLISHED("other_alphafold2_training.csv"), "value",                                                           \
        {                                                                                                              \
            {"system", "OpenFold"}, {"hardware", "A100 40GB"}, {"phase", phase_},                                      \
            {                                                                                                          \
                "precision", "bf16"                                                                                    \
            }                                                                                                          \
        }                                                                                                              \
    }
#define FASTFOLD(metric_)                                                                                              \
    {                                                                                                                  \
        PUBLISHED("fastfold.csv"), "value",                                                                            \
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
#define PLAIN_16                                                                                                       \
    {                                                                                                                  \
        .bf16 = true, .checkpoint = CHECKPOINT_BLOCK                                                                   \
    }
#define FUSED_16                                                                                                       \
    {                                                                                                                  \
        .fused_attention = true, .fused_layernorm = true, .bf16 = true, .checkpoint = CHECKPOINT_BLOCK                 \
    }

/* DAP degrees of FastFold's two steps are not stated beside the numbers; 2 and 4 are those of its paper's setting. */
static const CodeCase CASES[] = {
    {"BioNeMo, 128 A100, fp32, initial training: step (s)", STEPS("BioNeMo OpenFold, no optimisations", "initial"),
     EXPERIMENT("initial_training.yaml"), PLAIN, 128, 1, true},
    {"BioNeMo, 128 A100, bf16 and fused kernels: step (s)",
     STEPS("BioNeMo OpenFold, layernorm_inductor+layernorm_triton+mha_triton", "initial"),
     EXPERIMENT("initial_training.yaml"), FUSED_16, 128, 1, false},
    {"BioNeMo, 128 A100, fp32, fine-tuning: step (s)", STEPS("BioNeMo OpenFold, before", "fine-tuning"),
     EXPERIMENT("fine_tuning.yaml"), PLAIN, 128, 1, false},
    {"OpenFold, 1 A100, bf16, initial training: step (s)", OTHERS("initial training"),
     EXPERIMENT("initial_training.yaml"), PLAIN_16, 1, 1, true},
    {"OpenFold, 1 A100, bf16, fine-tuning: step (s)", OTHERS("fine-tuning"), EXPERIMENT("fine_tuning.yaml"), PLAIN_16,
     1, 1, false},
    {"FastFold, 256 A100, initial training, DAP 2: step (s)", FASTFOLD("initial training step"),
     EXPERIMENT("initial_training.yaml"), FUSED_16, 128, 2, true},
    {"FastFold, 512 A100, fine-tuning, DAP 4: step (s)", FASTFOLD("fine-tuning step"), EXPERIMENT("fine_tuning.yaml"),
     FUSED_16, 128, 4, false},
};

enum { CASE_COUNT = sizeof CASES / sizeof CASES[0] };
_Static_assert((int)CASE_COUNT <= (int)VALIDATE_CODES_ROWS, "raise VALIDATE_CODES_ROWS");

static Status read_value(const Published *p, double *value_out)
{
    Table *t = NULL;
    int value, column;
    TRY(table_read(p->file, &t));
    Status status = table_column(t, p->value, &value);
    int64_t found = -1;
    for (int64_t row = 0; row < t->rows && status == OK && found < 0; row++) {
        bool match = true;
        for (int k = 0; k < 4 && p->where[k].column && match && status == OK; k++) {
            status = table_column(t, p->where[k].column, &column);
            if (status != OK) break;
            match = strncmp(table_cell(t, row, column), p->where[k].starts, strlen(p->where[k].starts)) == 0;
        }
        if (match) found = row;
    }
    if (status == OK && found < 0)
        status = status_fail_at(ERR_INPUT, p->file, 0, "no row whose %s begins with \"%s\"", p->where[0].column,
                                p->where[0].starts);
    if (status == OK) status = table_double(t, found, value, value_out);
    table_destroy(&t);
    return status;
}

static Status cost_of(Pricing *pricing, const CodeCase *c, Config *config, TransferCase *out)
{
    *out = (TransferCase){.what = c->what, .dp = c->dp, .loader_s = 0};
    TRY(read_value(&c->from, &out->step_s));
    return pricing_cost(pricing, config, &c->switches, c->dap, &out->cost);
}

/* The cases from `first` up to the next one that calibrates; launches per op as for the other published code (table 1
 * of ScaleFold counts OpenFold's, which all of these descend from or compare with). */
static Status one_code(Pricing *pricing, Config **config, int first, double kernels_per_op, Arena *arena,
                       ValidationRow *rows, int *count)
{
    TransferCase cases[CASE_COUNT];
    const FitOptions options = {.seed = 1};
    OpPrices *prices = NULL;
    int n = 0;
    do {
        bool fine = strstr(CASES[first + n].experiment, "fine_tuning") != NULL;
        TRY(cost_of(pricing, &CASES[first + n], config[fine], &cases[n]));
        n++;
    } while (first + n < CASE_COUNT && !CASES[first + n].first);
    TRY(opprice_assume(pricing_machine(pricing), 1, kernels_per_op, 0.12, &prices));
    Status status = validate_transfer(prices, pricing_machine(pricing), cases, n, &options, arena, rows + *count);
    for (int i = 0; i < n && status == OK; i++) {
        rows[*count + i].set = "other codes";
        rows[*count + i].naive = rows[*count + i].naive2 = NAN; /* Amdahl knows nothing of another crop or kernels */
    }
    *count += n;
    opprice_destroy(&prices);
    return status;
}

Status validate_codes(Arena *arena, ValidationRow *rows_out, int *count_out)
{
    static const double OPENFOLD_LAUNCHES = 150887;
    const SwitchSection plain = PLAIN;
    const TextList none = {0};
    Config *config[2] = {NULL, NULL};
    Pricing *pricing = NULL;
    const StepCost *openfold = NULL;
    int count = 0;
    Status status = config_load(EXPERIMENT("initial_training.yaml"), &none, &config[0]);
    if (status == OK) status = config_load(EXPERIMENT("fine_tuning.yaml"), &none, &config[1]);
    if (status == OK) status = pricing_open(config[0], "a100_sxm", NULL, &pricing);
    if (status == OK) status = pricing_cost(pricing, config[0], &plain, 1, &openfold);
    for (int i = 0; i < CASE_COUNT && status == OK; i++)
        if (CASES[i].first)
            status = one_code(pricing, config, i, OPENFOLD_LAUNCHES / openfold->kernels, arena, rows_out, &count);
    pricing_close(&pricing);
    config_destroy(&config[0]);
    config_destroy(&config[1]);
    if (status == OK) *count_out = count;
    return status;
}
