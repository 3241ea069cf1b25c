#include "experiments/openfold.h"

#include <math.h>
#include <string.h>

#include "experiments/published.h"

static const double KERNEL_SD = 0.12; /* of the kernels of one code around one factor on all */

static Status read_figures(OpenFold *o)
{
    const PublishedCell gain = {"scalefold_ablation.csv", "speedup", {{"optimization", "CUDA Graph at DAP-8"}}};
    const PublishedCell with = {"scalefold_ablation.csv", "speedup", {{"optimization", "DAP-8 + CUDA Graph"}}};
    const PublishedCell without = {"scalefold_ablation.csv", "speedup", {{"optimization", "DAP-8 without"}}};
    const PublishedCell ordered = {"scalefold_step_times.csv",
                                   "step_time_s",
                                   {{"method", "BioNeMo OpenFold, layernorm_inductor+layernorm_triton+mha_triton"}}};
    const PublishedCell ready = {
        "scalefold_step_times.csv",
        "step_time_s",
        {{"method", "BioNeMo OpenFold, layernorm_inductor+layernorm_triton+mha_triton+dataloader_pq"}}};
    double rounded, high, low, slow, fast;
    TRY(published_cell(&gain, &rounded));
    TRY(published_cell(&with, &high));
    TRY(published_cell(&without, &low));
    TRY(published_cell(&ordered, &slow));
    TRY(published_cell(&ready, &fast));
    o->graph_gain = high / low;
    o->graph_gain_sd = 0.03; /* both rounded to two decimals, one from an abridged quotation */
    o->loader_s = fmax(slow - fast, 0);
    if (fabs(o->graph_gain - rounded) > 0.02)
        return status_fail(ERR_INPUT, "scalefold_ablation.csv: %g / %g is not %g", high, low, rounded);
    return OK;
}

static Status read_steps(OpenFold *o)
{
    static const char *const phases[] = {"initial training", "fine-tuning"};
    for (int k = 0; k < 2; k++) {
        const PublishedCell step = {
            "other_alphafold2_training.csv",
            "value",
            {{"system", "OpenFold"}, {"hardware", "A100 40GB"}, {"phase", phases[k]}, {"precision", "bf16"}}};
        TRY(published_cell(&step, &o->step_s[k]));
    }
    return OK;
}

/* With kernels calibrated on the first step, the second falls as launches take a larger part of both. */
static Status solve_launch(OpenFold *o, const Machine *machine, const StepCost *const cost[2])
{
    double low = 0.1 * o->launch_low_s, high = o->step_s[0] / (cost[0]->kernels * o->launches_per_op);
    OpPrices *prices = NULL;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        StepPrice price;
        TRY(openfold_prices(o, machine, middle, &prices));
        Status status = opprice_calibrate(prices, machine, cost[0], 1, o->step_s[0]);
        bool launches_alone = status != OK; /* no time is left for kernels */
        if (!launches_alone) status = opprice_step(prices, machine, cost[1], 1, &price);
        opprice_destroy(&prices);
        if (!launches_alone) TRY(status);
        if (launches_alone || price.compute_s < o->step_s[1])
            high = middle;
        else
            low = middle;
    }
    o->launch_s = (low + high) / 2;
    return OK;
}

Status openfold_read(const Config *initial, const Config *fine, OpenFold *out)
{
    const SwitchSection plain = {.checkpoint = CHECKPOINT_BLOCK}, low = {.bf16 = true, .checkpoint = CHECKPOINT_BLOCK};
    const PublishedCell launches = {"scalefold_breakdown.csv", "value", {{"item", "all kernel calls per step"}}};
    OpenFold o = {0};
    Pricing *pricing = NULL;
    const StepCost *counted = NULL, *cost[2] = {NULL, NULL};
    double calls = 0;
    TRY(published_cell(&launches, &calls));
    TRY(read_figures(&o));
    TRY(read_steps(&o));
    Status status = pricing_open(initial, "a100_sxm", NULL, &pricing);
    if (status == OK) status = pricing_cost(pricing, initial, &plain, 1, &counted);
    if (status == OK) status = pricing_cost(pricing, initial, &low, 1, &cost[0]);
    if (status == OK) status = pricing_cost(pricing, fine, &low, 1, &cost[1]);
    if (status == OK) {
        o.launches_per_op = calls / counted->kernels;
        o.launch_low_s = pricing_machine(pricing)->device.launch_s.value;
        status = solve_launch(&o, pricing_machine(pricing), cost);
    }
    pricing_close(&pricing);
    if (status == OK) *out = o;
    return status;
}

Status openfold_prices(const OpenFold *openfold, const Machine *machine, double launch_s, OpPrices **prices_out)
{
    static const char *const once[] = {"attention", "attention_bwd", "layer_norm_fused", "layer_norm_fused_bwd"};
    OpPrices *prices = NULL;
    TRY(opprice_assume(machine, 1, openfold->launches_per_op, KERNEL_SD, &prices));
    Status status = OK;
    for (size_t k = 0; k < sizeof once / sizeof *once && status == OK; k++)
        status = opprice_assume_kind(prices, once[k], 1);
    if (status != OK) {
        opprice_destroy(&prices);
        return status;
    }
    opprice_set_launch(prices, launch_s);
    *prices_out = prices;
    return OK;
}

Status openfold_autocast(const StepCost *full, Arena *arena, StepCost *out)
{
    CostClass *item = arena_array(arena, (size_t)full->count + 1, sizeof *item);
    if (!item) return status_fail(ERR_MEMORY, "out of memory for a program of %d classes", full->count);
    memcpy(item, full->item, (size_t)full->count * sizeof *item);
    for (int i = 0; i < full->count; i++)
        if (!item[i].comm && item[i].rate == RATE_F32) item[i].rate = RATE_BF16; /* its bytes stay those of float32 */
    *out = *full;
    out->item = item;
    return OK;
}
