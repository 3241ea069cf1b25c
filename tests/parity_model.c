#include "tests/parity_model.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/constants.h"

static const char *const loss_terms[] = {"fape",       "supervised_chi",          "distogram", "masked_msa",
                                         "plddt_loss", "experimentally_resolved", "violation"};

/* ---- preparation
 * -------------------------------------------------------------------------------------------------------- */

static Status record(ModelCase *c, bool loss, Program **planned_out)
{
    Program *recorded = NULL;
    TRY(prog_create(c->registry, &recorded));
    Status status = model_record_forward(&c->config, loss, recorded);
    if (status == OK) status = prog_status(recorded);
    if (status == OK && loss) prog_keep_taps(recorded);
    if (status == OK) status = passes_run(recorded, &c->parity->options.switches, PASS_PLAN, planned_out);
    prog_destroy(&recorded);
    return status;
}

static Status record_optimizer(ModelCase *c)
{
    static const OptimizerConfig adam = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-6, .max_norm = 0.1, .swa_decay = 0.9};
    Program *recorded = NULL;
    TRY(prog_create(c->registry, &recorded));
    Status status = model_record_optimizer(&adam, recorded);
    if (status == OK) status = passes_run(recorded, &c->parity->options.switches, PASS_PLAN, &c->optimizer);
    prog_destroy(&recorded);
    return status;
}

/* valid[i] = any non-zero entry of slice i of the mask's first axis; masks carry [1, n, ..., copies] */
static uint8_t *first_axis_any(ModelCase *c, const char *name, int64_t *n_out)
{
    GoldenTensor m;
    if (golden_read(c->batch, name, true, &c->arena, &m) != OK || m.rank < 1) return NULL;
    uint8_t *valid = arena_alloc(&c->arena, (size_t)m.dim[0]);
    int64_t inner = m.count / m.dim[0];
    for (int64_t i = 0; valid && i < m.dim[0]; i++)
        for (int64_t k = 0; k < inner; k++) valid[i] |= m.value[i * inner + k] != 0;
    *n_out = m.dim[0];
    return valid;
}

static Status read_masks(ModelCase *c)
{
    int64_t clusters = 0, templates = 0, n;
    uint8_t *residue = first_axis_any(c, "seq_mask", &n);
    uint8_t *cluster = first_axis_any(c, "msa_mask", &clusters);
    uint8_t *extra = first_axis_any(c, "extra_msa_mask", &n);
    uint8_t *templ = first_axis_any(c, "template_mask", &templates);
    uint8_t *row = arena_alloc(&c->arena, (size_t)(clusters + templates));
    /* template rows are masked by their psi angle (column 2 of the torsion mask) */
    GoldenTensor torsion;
    TRY(golden_read(c->batch, "template_torsion_angles_mask", true, &c->arena, &torsion));
    if (!residue || !cluster || !extra || !templ || !row)
        return status_fail_at(ERR_INPUT, st_path(c->batch), 0, "the masks cannot be read");
    memcpy(row, cluster, (size_t)clusters);
    int64_t residues = torsion.dim[1], angles = torsion.dim[2], copies = torsion.dim[3];
    for (int64_t t = 0; t < templates; t++)
        for (int64_t i = 0; i < residues; i++)
            row[clusters + t] |= torsion.value[((t * residues + i) * angles + 2) * copies] != 0;
    if (c->no_templates) memset(row + clusters, 0, (size_t)templates);
    c->mask = (ParityMask){residue, row, cluster, extra, templ};
    return OK;
}

Status model_case_open(ModelCase *c, Parity *parity, const char *dir, const ModelConfig *config, bool with_optimizer)
{
    char path[4096];
    *c = (ModelCase){.parity = parity, .dir = dir, .config = *config, .clamped = -1};
    TRY(model_config_check(config));
    snprintf(path, sizeof path, "%s/batch.safetensors", dir);
    TRY(st_open(path, &c->batch));
    TRY(registry_create(&c->registry));
    TRY(record(c, false, &c->nograd));
    TRY(record(c, true, &c->grad));
    if (with_optimizer) TRY(record_optimizer(c));
    TRY(store_create(parity->backend, c->registry, parity->options.switches.precision, STORE_TRAINING, &c->store));
    Program *const programs[] = {c->nograd, c->grad, c->optimizer};
    TRY(workspace_create(parity->backend, exec_workspace_shared(parity->backend, programs, 3), &c->workspace));
    const ExecOptions options = {.graph = parity->options.switches.cuda_graph};
    TRY(exec_create(parity->backend, c->nograd, c->store, c->workspace, &options, &c->run_nograd));
    TRY(exec_create(parity->backend, c->grad, c->store, c->workspace, &options, &c->run_grad));
    if (c->optimizer)
        TRY(exec_create(parity->backend, c->optimizer, c->store, c->workspace, &options, &c->run_optimizer));
    TRY(constants_bind(c->store));
    return read_masks(c);
}

void model_case_close(ModelCase *c)
{
    exec_destroy(&c->run_nograd);
    exec_destroy(&c->run_grad);
    exec_destroy(&c->run_optimizer);
    workspace_destroy(&c->workspace);
    store_destroy(&c->store);
    prog_destroy(&c->nograd);
    prog_destroy(&c->grad);
    prog_destroy(&c->optimizer);
    registry_destroy(&c->registry);
    st_close(&c->batch);
    arena_free(&c->arena);
}

/* ---- a step
 * --------------------------------------------------------------------------------------------------------------- */

/* Copies recycling slice k (last axis of the golden batch) of every feature the programs read. */
static Status write_slice(ModelCase *c, int slice)
{
    Arena arena = {0};
    Status status = OK;
    for (int b = 0; b < c->registry->n_buffers && status == OK; b++) {
        const BufferInfo *info = &c->registry->buffer[b];
        const StTensor *t = st_find(c->batch, info->name);
        if (!t || info->kind != BUFFER_INPUT) continue;
        int64_t count = tensor_count(&info->tensor), copies = t->rank ? t->shape[t->rank - 1] : 1;
        if (t->count != count * copies || slice >= copies) {
            status =
                status_fail_at(ERR_INPUT, st_path(c->batch), 0, "'%s' has %ld elements, expected %ld copies of %ld",
                               info->name, (long)t->count, (long)copies, (long)count);
            break;
        }
        double *all = arena_array(&arena, (size_t)t->count, sizeof *all),
               *one = arena_array(&arena, (size_t)count, sizeof *one);
        int32_t *integers = arena_array(&arena, (size_t)count, sizeof *integers);
        if (!all || !one || !integers) status = status_fail(ERR_MEMORY, "out of memory for '%s'", info->name);
        if (status == OK) status = st_read_f64(t, 0, t->count, all);
        if (status != OK) break;
        bool zero = c->no_templates && !strncmp(info->name, "template_", 9);
        for (int64_t i = 0; i < count; i++) one[i] = zero ? 0 : all[i * copies + slice];
        if (!strcmp(info->name, "use_clamped_fape") && c->clamped >= 0) one[0] = c->clamped;
        for (int64_t i = 0; i < count; i++) integers[i] = isfinite(one[i]) ? (int32_t)one[i] : 0;
        bool integer = info->tensor.dtype == DT_I32;
        status = store_write(c->store, b, integer ? DT_I32 : DT_F64, integer ? (void *)integers : (void *)one, count);
    }
    arena_free(&arena);
    return status;
}

static Status clear_recycled(ModelCase *c)
{
    for (int b = 0; b < c->registry->n_buffers; b++) {
        const BufferInfo *info = &c->registry->buffer[b];
        if (strncmp(info->name, "recycle.", 8)) continue;
        int64_t count = tensor_count(&info->tensor);
        double *zero = calloc((size_t)count, sizeof *zero);
        if (!zero) return status_fail(ERR_MEMORY, "out of memory for '%s'", info->name);
        Status status = store_write(c->store, b, DT_F64, zero, count);
        free(zero);
        TRY(status);
    }
    return OK;
}

Status model_case_step(ModelCase *c, int iterations)
{
    TRY(clear_recycled(c));
    for (int k = 0; k < iterations; k++) {
        TRY(write_slice(c, k));
        TRY(exec_run(c->run_nograd));
    }
    TRY(write_slice(c, iterations));
    return exec_run(c->run_grad);
}

/* ---- comparison
 * ------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *part, *axes;
    ParityKind kind;
} outputs[] = {
    /* the first part that the name contains decides */
    {"template.pair_feat", "TRR", PARITY_REPRESENTATION},
    {"template.pair_embedding", "TRR", PARITY_REPRESENTATION},
    {"template.pair_stack", "TRR", PARITY_REPRESENTATION},
    {"template.pointwise_attention", "RR", PARITY_REPRESENTATION},
    {"template.angle", "TR", PARITY_REPRESENTATION},
    {"extra_msa_stack.in.pair", "RR", PARITY_REPRESENTATION},
    {"extra_msa_feat", "ER", PARITY_REPRESENTATION},
    {"extra_msa_embedding", "ER", PARITY_REPRESENTATION},
    {"in.msa_mask", "SR", PARITY_REPRESENTATION},
    {"in.pair_mask", "RR", PARITY_REPRESENTATION},
    {"input_embedder.msa", "CR", PARITY_REPRESENTATION},
    {"masked_msa_logits", "CR", PARITY_REPRESENTATION},
    {"out.msa", "CR", PARITY_REPRESENTATION},
    {"out.pair", "RR", PARITY_REPRESENTATION},
    {"distogram_logits", "RR", PARITY_REPRESENTATION},
    {"z_update", "RR", PARITY_REPRESENTATION},
    {"in.z_prev", "RR", PARITY_REPRESENTATION},
    {"in.x_prev", "R", PARITY_GEOMETRY},
    {"out.sm_single", "R", PARITY_REPRESENTATION},
    {"out.sm_states", ".R", PARITY_REPRESENTATION},
    {"out.sm_angles", ".R", PARITY_ANGLE},
    {"out.sm_unnormalized_angles", ".R", PARITY_ANGLE},
    {"out.sm_", ".R", PARITY_GEOMETRY},
    {"positions", "R", PARITY_GEOMETRY},
    {"out.", "R", PARITY_REPRESENTATION},
    {"recycling_embedder", "R", PARITY_REPRESENTATION},
    {"pair", "RR", PARITY_REPRESENTATION},
    {"extra_msa_stack", "ER", PARITY_REPRESENTATION},
    {"msa", "SR", PARITY_REPRESENTATION},
};

static Status compare_value(ModelCase *c, const StFile *file, const char *name, const char *label, Arena *arena)
{
    Program *p = c->grad;
    Val v = prog_find(p, name);
    char line[256];
    snprintf(line, sizeof line, "%s/%s", label, name);
    if (v == VAL_NONE) {
        parity_skip(c->parity, line, "not recorded under this name");
        c->parity->failures++;
        return OK;
    }
    size_t row = 0, rows = sizeof outputs / sizeof *outputs;
    while (row < rows && !strstr(name, outputs[row].part)) row++;
    if (row == rows) return status_fail(ERR_INTERNAL, "no row of parity_model.c says what '%s' is", name);
    GoldenTensor golden, slice;
    TRY(golden_read(file, name, true, arena, &golden));
    Tensor t = *prog_tensor(p, v);
    const char *axes = outputs[row].axes;
    double *ours = arena_array(arena, (size_t)tensor_count(&t), sizeof *ours);
    if (!ours) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
    TRY(exec_read_value(c->run_grad, v, DT_F64, ours, tensor_count(&t)));
    if (t.rank == golden.rank + 1) { /* the golden keeps the last structure block alone */
        int64_t block = tensor_count(&t) / t.dim[0];
        ours += (t.dim[0] - 1) * block;
        axes = axes[0] == '.' ? axes + 1 : axes;
        memmove(t.dim, t.dim + 1, sizeof t.dim - sizeof *t.dim);
        t.rank--;
    }
    TRY(golden_local_slice(c->parity, &t, &golden, arena, &slice));
    if (slice.count != tensor_count(&t)) {
        parity_skip(c->parity, line, "another size than the golden");
        c->parity->failures++;
        return OK;
    }
    /* a sharded axis is compared where its own slice is valid: shift the mask */
    ParityMask mask = c->mask;
    if (t.shard != SHARD_NONE && (int)strlen(axes) > t.shard) {
        int64_t first = t.dim[t.shard] * c->parity->backend->layout.dap_rank;
        for (int axis = 0; axis < t.rank && axes[axis]; axis++)
            if (axis != t.shard && axes[axis] == axes[t.shard]) { /* pair: compare against two different masks */
                uint8_t *valid = arena_alloc(arena, (size_t)t.dim[t.shard]);
                if (!valid) return status_fail(ERR_MEMORY, "out of memory");
                memcpy(valid, c->mask.residue + first, (size_t)t.dim[t.shard]);
                mask.msa_row = valid;
                static const char *const pair[2] = {"SR", "RS"}, *const triple[2] = {"TSR", "TRS"};
                axes = strlen(axes) == 3 ? triple[t.shard - 1] : pair[t.shard];
                break;
            }
        const uint8_t **shifted[] = {&mask.residue, &mask.msa_row, &mask.cluster_row, &mask.extra_row};
        static const char letters[] = "RSCE";
        for (int k = 0; k < 4; k++)
            if (axes[t.shard] == letters[k] && *shifted[k] && !(letters[k] == 'S' && mask.msa_row != c->mask.msa_row))
                *shifted[k] += first;
    }
    double limit = parity_tolerance_stored(c->parity, outputs[row].kind, golden.rounded);
    TRY(parity_beside(c->parity, line, ours, slice.value, slice.count, arena));
    parity_report(c->parity, line, parity_error(ours, slice.value, slice.rank, slice.dim, axes, &mask), limit);
    return OK;
}

Status model_compare_forward(ModelCase *c, const char *file_name, const char *label)
{
    char path[4096];
    StFile *file = NULL;
    snprintf(path, sizeof path, "%s/%s", c->dir, file_name);
    TRY(st_open(path, &file));
    Status status = OK;
    for (int64_t i = 0; i < st_count(file) && status == OK; i++) {
        const char *name = st_at(file, i)->name;
        if (!strncmp(name, "norm_sum.", 9)) continue;
        Arena arena = {0};
        status = compare_value(c, file, name, label, &arena);
        arena_free(&arena);
    }
    st_close(&file);
    return status;
}

Status model_read_scalar(ModelCase *c, const char *name, double *value_out)
{
    return exec_output(c->run_grad, name, DT_F64, value_out, 1);
}

static Status read_json(const char *path, cJSON **json_out)
{
    FILE *f = fopen(path, "rb");
    if (!f) return status_fail_at(ERR_IO, path, 0, "cannot be opened");
    char *text = calloc(1, 1 << 20);
    size_t length = text ? fread(text, 1, (1 << 20) - 1, f) : 0;
    fclose(f);
    *json_out = length ? cJSON_Parse(text) : NULL;
    free(text);
    return *json_out ? OK : status_fail_at(ERR_INPUT, path, 0, "not JSON");
}

static Status compare_scalar(ModelCase *c, const char *label, const char *name, const cJSON *golden)
{
    char line[256];
    double value = NAN;
    snprintf(line, sizeof line, "%s/%s", label, name);
    if (!cJSON_IsNumber(golden)) return OK; /* this file does not have it */
    TRY(model_read_scalar(c, name, &value));
    double truth = golden->valuedouble, limit = parity_tolerance(c->parity, PARITY_LOSS);
    double derived = PARITY_VIOLATION_FACTOR * parity_tolerance(c->parity, PARITY_GEOMETRY);
    if (!strncmp(name, "loss.violation_", 15) && c->parity->options.switches.precision != PRECISION_F64)
        limit = derived;
    parity_report(c->parity, line, truth != 0 ? fabs(value - truth) / fabs(truth) : fabs(value), limit);
    return OK;
}

Status model_compare_losses(ModelCase *c, const char *file_name, const char *variant, const char *label)
{
    char path[4096], name[64];
    cJSON *json = NULL;
    snprintf(path, sizeof path, "%s/%s", c->dir, file_name);
    TRY(read_json(path, &json));
    const cJSON *root = variant ? cJSON_GetObjectItem(json, variant) : json;
    const cJSON *terms = cJSON_GetObjectItem(root, "unweighted"), *parts = cJSON_GetObjectItem(json, "parts");
    Status status = OK;
    for (size_t i = 0; i < sizeof loss_terms / sizeof *loss_terms && status == OK; i++) {
        snprintf(name, sizeof name, "loss.%s", loss_terms[i]);
        status = compare_scalar(c, label, name, cJSON_GetObjectItem(terms, loss_terms[i]));
    }
    if (status == OK)
        status = compare_scalar(c, label, "loss.weighted_total_loss", cJSON_GetObjectItem(root, "weighted_total_loss"));
    if (status == OK)
        status = compare_scalar(c, label, "loss.scaled_weighted_total_loss",
                                cJSON_GetObjectItem(root, "scaled_weighted_total_loss"));
    const cJSON *part;
    cJSON_ArrayForEach(part, parts)
    {
        snprintf(name, sizeof name, "loss.%s", part->string);
        if (status == OK && (!variant || !strcmp(variant, "clamped"))) status = compare_scalar(c, label, name, part);
    }
    cJSON_Delete(json);
    return status;
}
