/* full/: the 93,229,082-parameter model; parameters come from a generator, gradients are summarised. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "analysis/table.h"
#include "tests/parity_model.h"

/* Parameter element i of name s (golden README): SplitMix64 of FNV-1a(s) + i, uniform in center +- scale. */
static double generate(uint64_t hash, uint64_t i, double center, double scale)
{
    uint64_t z = hash + i + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return center + scale * (2.0 * (double)(z >> 11) * 0x1p-53 - 1.0);
}

static uint64_t fnv1a(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

/* order[row of generator.csv] = parameter of the registry */
static Status write_params(ModelCase *c, const Table *t, int *order)
{
    int name_column, center_column, scale_column;
    TRY(table_column(t, "name", &name_column));
    TRY(table_column(t, "center", &center_column));
    TRY(table_column(t, "scale", &scale_column));
    if (t->rows != c->registry->n_params)
        return status_fail_at(ERR_INPUT, t->file, 0, "%ld rows, the model has %d parameters", (long)t->rows,
                              c->registry->n_params);
    for (int64_t row = 0; row < t->rows; row++) {
        const char *name = table_cell(t, row, name_column);
        double center, scale;
        TRY(table_double(t, row, center_column, &center));
        TRY(table_double(t, row, scale_column, &scale));
        int k = registry_find_param(c->registry, name);
        if (k < 0) return status_fail_at(ERR_INPUT, t->file, 0, "the model has no parameter '%s'", name);
        order[row] = k;
        int64_t count = c->registry->param[k].count;
        double *values = malloc((size_t)count * sizeof *values);
        if (!values) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
        uint64_t hash = fnv1a(name);
        for (int64_t i = 0; i < count; i++) values[i] = generate(hash, (uint64_t)i, center, scale);
        Status status = store_write_param(c->store, PLACE_PARAM, k, DT_F64, values, count);
        free(values);
        TRY(status);
    }
    return store_lower_params(c->store);
}

/* Validity of every position of a representation [rows, N, c]: the mask itself, holes included. */
static uint8_t *position_mask(ModelCase *c, char axis, int64_t rows, int64_t columns, Arena *arena)
{
    uint8_t *valid = arena_alloc(arena, (size_t)(rows * columns));
    GoldenTensor clusters, psi;
    const char *mask = axis == 'E' ? "extra_msa_mask" : "msa_mask";
    if (!valid || golden_read(c->batch, mask, true, arena, &clusters) != OK ||
        golden_read(c->batch, "template_torsion_angles_mask", true, arena, &psi) != OK)
        return NULL;
    int64_t copies = clusters.dim[clusters.rank - 1], masked = clusters.dim[0], angles = psi.dim[2];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++) {
            double value;
            if (axis == 'R')
                value = c->mask.residue[r] && c->mask.residue[i];
            else if (r < masked)
                value = clusters.value[(r * columns + i) * copies];
            else
                value = psi.value[(((r - masked) * columns + i) * angles + 2) * copies];
            valid[r * columns + i] = value != 0;
        }
    return valid;
}

/* (l2 norm, sum) over valid positions after every block against norm_sum.NAME [blocks, 2] */
static Status compare_norms(ModelCase *c, const StFile *file, const char *stack, const char *kind, int blocks,
                            char axis)
{
    char name[128], line[160];
    GoldenTensor golden;
    Arena arena = {0};
    snprintf(name, sizeof name, "norm_sum.%s.%s", stack, kind);
    Status status = golden_read(file, name, false, &arena, &golden);
    double worst = 0;
    uint8_t *valid = NULL;
    for (int b = 0; b < blocks && status == OK; b++) {
        snprintf(name, sizeof name, "%s.%d.%s", stack, b, kind);
        Val v = prog_find(c->grad, name);
        if (v == VAL_NONE) {
            status = status_fail(ERR_INTERNAL, "the program has no value '%s'", name);
            break;
        }
        const Tensor *t = prog_tensor(c->grad, v);
        if (!valid && !(valid = position_mask(c, axis, t->dim[0], t->dim[1], &arena))) {
            status = status_fail(ERR_INTERNAL, "no mask for '%s'", name);
            break;
        }
        double *values = malloc((size_t)tensor_count(t) * sizeof *values), square = 0;
        status = values ? exec_read_value(c->run_grad, v, DT_F64, values, tensor_count(t))
                        : status_fail(ERR_MEMORY, "out of memory");
        for (int64_t i = 0; i < tensor_count(t) && status == OK; i++)
            if (valid[i / t->dim[2]]) square += values[i] * values[i];
        free(values);
        double truth = golden.value[2 * b], error = fabs(sqrt(square) - truth) / truth;
        if (!(error <= worst)) worst = error;
    }
    snprintf(line, sizeof line, "r1/norm of %s.*.%s (worst of %d)", stack, kind, blocks);
    if (status == OK) parity_report(c->parity, line, worst, parity_tolerance(c->parity, PARITY_REPRESENTATION));
    arena_free(&arena);
    return status;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* grad_stats [n, 6]: l2, sum, g[0], g[n/3], g[2n/3], g[n-1] */
static Status compare_gradients(ModelCase *c, const int *order)
{
    char path[4096];
    StFile *file = NULL;
    Arena arena = {0};
    GoldenTensor golden;
    snprintf(path, sizeof path, "%s/grads_r1.safetensors", c->dir);
    TRY(st_open(path, &file));
    Status status = golden_read(file, "grad_stats", false, &arena, &golden);
    int64_t n = c->registry->n_params;
    double all = 0, ours_all = 0, worst_norm = 0, worst_sample = 0;
    double *errors = arena_array(&arena, (size_t)n, sizeof *errors);
    for (int64_t row = 0; row < n && status == OK; row++) all += golden.value[6 * row] * golden.value[6 * row];
    for (int64_t row = 0; row < n && status == OK; row++) {
        int64_t count = c->registry->param[order[row]].count;
        double *g = malloc((size_t)count * sizeof *g), square = 0;
        status = g ? store_read_param(c->store, PLACE_GRAD, order[row], DT_F64, g, count)
                   : status_fail(ERR_MEMORY, "out of memory");
        if (status != OK) break;
        const double *truth = golden.value + 6 * row;
        for (int64_t i = 0; i < count; i++) square += g[i] * g[i];
        ours_all += square;
        double floor = 1e-6 * sqrt(all), samples[4] = {g[0], g[count / 3], g[2 * count / 3], g[count - 1]};
        free(g);
        errors[row] = fabs(sqrt(square) - truth[0]) / (truth[0] + floor);
        if (!(errors[row] <= worst_norm)) worst_norm = errors[row];
        for (int k = 0; k < 4; k++) {
            double e = fabs(samples[k] - truth[2 + k]) / (truth[0] + floor);
            if (!(e <= worst_sample)) worst_sample = e;
        }
    }
    if (status == OK) {
        qsort(errors, (size_t)n, sizeof *errors, by_value);
        Parity *parity = c->parity;
        parity_report(parity, "r1.grad/l2 norm of one tensor (worst)", worst_norm,
                      parity_tolerance(parity, PARITY_GRADIENT_NORM));
        parity_report(parity, "r1.grad/sampled elements over the tensor's norm (worst)", worst_sample,
                      parity_tolerance(parity, PARITY_GRADIENT));
        parity_report(parity, "r1.grad/l2 norm of one tensor (median)", errors[n / 2],
                      parity_tolerance(parity, PARITY_GRADIENT_ALL));
        parity_report(parity, "r1.grad/norm of all", fabs(sqrt(ours_all) - sqrt(all)) / sqrt(all),
                      parity_tolerance(parity, PARITY_GRADIENT_ALL));
    }
    arena_free(&arena);
    st_close(&file);
    return status;
}

/* Sizes that are not the defaults are those of the batch. */
static Status read_sizes(const char *dir, ModelConfig *config)
{
    char path[4096];
    StFile *file = NULL;
    snprintf(path, sizeof path, "%s/batch.safetensors", dir);
    TRY(model_config_preset("initial_training", config));
    TRY(st_open(path, &file));
    const StTensor *msa = st_find(file, "msa_mask"), *extra = st_find(file, "extra_msa_mask"),
                   *templ = st_find(file, "template_mask");
    Status status = OK;
    if (!msa || !extra || !templ || msa->rank != 4 || extra->rank != 4 || templ->rank != 3) {
        status = status_fail_at(ERR_INPUT, path, 0, "no masks that tell the sizes");
    } else {
        config->n_clust = (int)msa->shape[1];
        config->n_res = (int)msa->shape[2];
        config->n_extra = (int)extra->shape[1];
        config->n_templ = (int)templ->shape[1];
    }
    config->template_pair.dropout = config->extra_pair.dropout = config->evo_pair.dropout = 0;
    config->extra_msa_dropout = config->evo_msa_dropout = config->sm_dropout = 0;
    st_close(&file);
    return status;
}

static Status run_full(ModelCase *c, const Table *generator)
{
    int *order = arena_array(&c->arena, (size_t)c->registry->n_params, sizeof *order);
    char path[4096];
    StFile *file = NULL;
    if (!order) return status_fail(ERR_MEMORY, "out of memory");
    TRY(write_params(c, generator, order));
    TRY(model_case_step(c, 1));
    TRY(model_compare_losses(c, "loss_r1.json", "clamped", "r1"));
    TRY(model_compare_forward(c, "forward_r1.safetensors", "r1"));
    snprintf(path, sizeof path, "%s/forward_r1.safetensors", c->dir);
    TRY(st_open(path, &file));
    Status status = OK;
    if (c->parity->options.switches.dap == 1) { /* sharded blocks are compared by the tiny golden */
        status = compare_norms(c, file, "evoformer_stack", "msa", c->config.evo_blocks, 'S');
        if (status == OK) status = compare_norms(c, file, "evoformer_stack", "pair", c->config.evo_blocks, 'R');
        if (status == OK) status = compare_norms(c, file, "extra_msa_stack", "msa", c->config.extra_blocks, 'E');
        if (status == OK) status = compare_norms(c, file, "extra_msa_stack", "pair", c->config.extra_blocks, 'R');
    }
    st_close(&file);
    return status == OK ? compare_gradients(c, order) : status;
}

Status parity_full(Parity *parity, const char *dir)
{
    ModelConfig config;
    ModelCase c;
    Table *generator = NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s/generator.csv", dir);
    TRY(read_sizes(dir, &config));
    TRY(table_read(path, &generator));
    parity->full = true;
    Status status = model_case_open(&c, parity, dir, &config, false);
    c.clamped = 1; /* loss_r1.json and the gradients are those of the clamped loss */
    if (status == OK) status = run_full(&c, generator);
    model_case_close(&c);
    table_destroy(&generator);
    parity->full = false;
    return status;
}
