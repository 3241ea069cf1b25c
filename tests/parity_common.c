#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/constants.h"
#include "tests/parity.h"

/* f64: what a re-implementation must reach (outputs 1e-9, gradients 1e-8). f32: what the reference reaches against
 * itself (golden README, "Fair tolerances"); moments: the parameters' error after three steps over their change,
 * 1.4e-6 / 3e-3, as Adam's change is the learning rate times a ratio of the moments. bf16: unit roundoff u = 2^-9; a
 * value passes through k roundings on its way, independent to first order, so errors grow like sqrt(k) u: k ~ 100
 * roundings along the residual stream of the tiny model give 0.02, and a gradient passes the same chain twice. The
 * structure module runs in f32 but inherits the trunk's error. */
static const double tolerance[3][2][PARITY_KINDS] = {
    [PRECISION_F64] = {{1e-9, 1e-9, 1e-9, 1e-9, 1e-8, 1e-8, 1e-8, 1e-9, 1e-8},
                       {1e-9, 1e-9, 1e-9, 1e-9, 1e-8, 1e-8, 1e-8, 1e-9, 1e-8}},
    [PRECISION_F32] = {{1e-6, 5e-7, 3e-6, 3e-7, 1e-5, 5e-7, 1e-5, 1.4e-6, 4.7e-4},
                       {1e-6, 1e-6, 8e-6, 2e-7, 1.2e-3, 1.8e-4, 1.4e-4, 1.4e-6, 4.7e-4}},
    [PRECISION_BF16] = {{2e-2, 2e-2, 5e-2, 5e-3, 1e-1, 5e-2, 5e-2, 3e-3, 2e-1},
                        {5e-2, 5e-2, 2e-1, 1e-2, 5e-1, 3e-1, 3e-1, 3e-3, 2e-1}},
};

double parity_tolerance(const Parity *parity, ParityKind kind)
{
    return tolerance[parity->options.switches.precision][parity->full][kind];
}

double parity_tolerance_stored(const Parity *parity, ParityKind kind, bool rounded)
{
    double limit = parity_tolerance(parity, kind);
    return rounded && limit < 0x1p-24 ? 0x1p-24 : limit;
}

static void report(Parity *parity, const char *name, double error, double limit, bool stated)
{
    const RankLayout *layout = &parity->backend->layout;
    if (layout->world > 1) {
        double *all = malloc((size_t)layout->world * sizeof *all);
        if (all && parity->backend->host_all_gather(parity->backend, &error, 1, all) == OK)
            for (int r = 0; r < layout->world; r++)
                if (!(all[r] <= error)) error = all[r];
        free(all);
    }
    if (parity->spread) limit = parity_spread_limit(parity->spread, name, error, limit, stated);
    bool ok = error <= limit;
    parity->checks++;
    parity->failures += !ok;
    if (layout->rank == 0) printf("%-72s %10.3e %10.3e %s\n", name, error, limit, ok ? "ok" : "FAIL");
}

void parity_report(Parity *parity, const char *name, double error, double limit)
{
    report(parity, name, error, limit, true);
}

void parity_report_unstated(Parity *parity, const char *name, double error, double limit)
{
    report(parity, name, error, limit, false);
}

void parity_skip(Parity *parity, const char *name, const char *why)
{
    parity->skipped++;
    if (parity->backend->layout.rank == 0) printf("%-72s skipped: %s\n", name, why);
}

static const uint8_t *axis_mask(const ParityMask *mask, char letter)
{
    if (!mask) return NULL;
    switch (letter) {
    case 'R':
        return mask->residue;
    case 'S':
        return mask->msa_row;
    case 'C':
        return mask->cluster_row;
    case 'E':
        return mask->extra_row;
    case 'T':
        return mask->templ;
    default:
        return NULL;
    }
}

double parity_error(const double *a, const double *b, int rank, const int64_t *dim, const char *axes,
                    const ParityMask *mask)
{
    const uint8_t *valid[TENSOR_MAX_RANK] = {0};
    int64_t count = 1;
    for (int axis = 0; axis < rank; axis++) count *= dim[axis];
    for (int axis = 0; axis < rank && axes && axes[axis]; axis++) valid[axis] = axis_mask(mask, axes[axis]);
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t rest = i;
        bool use = true;
        for (int axis = rank - 1; axis >= 0; axis--) {
            if (valid[axis] && !valid[axis][rest % dim[axis]]) use = false;
            rest /= dim[axis];
        }
        if (!use) continue;
        double difference = fabs(a[i] - b[i]);
        if (!(difference <= worst)) worst = difference; /* keeps a NaN */
        if (isnan(difference)) return NAN;
        if (fabs(b[i]) > largest) largest = fabs(b[i]);
    }
    return largest > 0 ? worst / largest : worst;
}

double parity_l2_error(const double *a, const double *b, int64_t count, double floor)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return sqrt(difference) / (sqrt(norm) + floor + 1e-300);
}

Status golden_read(const StFile *file, const char *name, bool batch_axis, Arena *arena, GoldenTensor *out)
{
    const StTensor *t = st_find(file, name);
    if (!t) return status_fail_at(ERR_INPUT, st_path(file), 0, "no tensor '%s'", name);
    int skip = batch_axis && t->rank > 0 && t->shape[0] == 1 ? 1 : 0;
    GoldenTensor g = {.rounded = t->dtype == ST_F32, .rank = t->rank - skip, .count = t->count};
    if (g.rank > TENSOR_MAX_RANK)
        return status_fail_at(ERR_INPUT, st_path(file), 0, "tensor '%s': rank %d", name, t->rank);
    for (int axis = 0; axis < g.rank; axis++) g.dim[axis] = t->shape[axis + skip];
    g.value = arena_array(arena, (size_t)t->count, sizeof *g.value);
    if (!g.value) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
    TRY(st_read_f64(t, 0, t->count, g.value));
    *out = g;
    return OK;
}

Status golden_local_slice(const Parity *parity, const Tensor *local, const GoldenTensor *golden, Arena *arena,
                          GoldenTensor *slice_out)
{
    *slice_out = *golden;
    if (local->shard == SHARD_NONE) return OK;
    int axis = local->shard;
    int64_t outer = 1, inner = 1, extent = golden->dim[axis], part = local->dim[axis];
    for (int k = 0; k < axis; k++) outer *= golden->dim[k];
    for (int k = axis + 1; k < golden->rank; k++) inner *= golden->dim[k];
    slice_out->dim[axis] = part;
    slice_out->count = outer * part * inner;
    slice_out->value = arena_array(arena, (size_t)slice_out->count, sizeof(double));
    if (!slice_out->value) return status_fail(ERR_MEMORY, "out of memory for a slice");
    int64_t first = part * parity->backend->layout.dap_rank;
    for (int64_t o = 0; o < outer; o++)
        memcpy(slice_out->value + o * part * inner, golden->value + (o * extent + first) * inner,
               (size_t)(part * inner) * sizeof(double));
    return OK;
}

Status parity_run_build(Parity *parity, ParityRun *run)
{
    TRY(prog_status(run->recorded));
    prog_keep_taps(run->recorded);
    TRY(passes_run(run->recorded, &parity->options.switches, PASS_PLAN, &run->planned));
    TRY(store_create(parity->backend, run->registry, parity->options.switches.precision, STORE_TRAINING, &run->store));
    TRY(workspace_create(parity->backend, exec_workspace_bytes(parity->backend, run->planned), &run->workspace));
    TRY(exec_create(parity->backend, run->planned, run->store, run->workspace, &(ExecOptions){0}, &run->exec));
    return constants_bind(run->store);
}

void parity_run_free(ParityRun *run)
{
    exec_destroy(&run->exec);
    workspace_destroy(&run->workspace);
    store_destroy(&run->store);
    prog_destroy(&run->planned);
    prog_destroy(&run->recorded);
    registry_destroy(&run->registry);
}
