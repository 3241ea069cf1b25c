/* modules/NAME.safetensors: each file is one module or loss. The module is recorded alone; its differentiable inputs
 * become parameters, so that autodiff delivers their gradients too; the scalar that is differentiated is sum(cot *
 * out). */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/metrics.h"
#include "tests/parity.h"

static const StTensor *find(const ModuleCase *c, const char *prefix, const char *name)
{
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return st_find(c->file, full);
}

static int strip(const StTensor *t)
{
    return t->rank > 0 && t->shape[0] == 1 ? 1 : 0; /* batch axis */
}

Val module_in(ModuleCase *c, const char *name)
{
    const StTensor *t = find(c, "in.", name);
    if (!t) return prog_fail(c->p, ERR_INPUT, "%s: no input '%s'", c->name, name);
    int skip = strip(t);
    if (find(c, "grad.in.", name)) {
        char full[128];
        snprintf(full, sizeof full, "in.%s", name);
        return prog_param(c->p, full, t->rank - skip, t->shape + skip, INIT_ZERO, 0);
    }
    return prog_input(c->p, name, t->dtype == ST_I64 ? DT_I32 : DT_F32, t->rank - skip, t->shape + skip);
}

int module_dim(ModuleCase *c, const char *tensor, int axis)
{
    const StTensor *t = st_find(c->file, tensor);
    int skip = t && !strncmp(tensor, "param.", 6) ? 0 : t ? strip(t) : 0;
    if (!t || axis + skip >= t->rank) {
        prog_fail(c->p, ERR_INPUT, "%s: no tensor '%s' with axis %d", c->name, tensor, axis);
        return 1;
    }
    return (int)t->shape[axis + skip];
}

int module_int(ModuleCase *c, const char *key)
{
    const char *text = st_metadata(c->file, key);
    if (!text) {
        prog_fail(c->p, ERR_INPUT, "%s: no metadata '%s'", c->name, key);
        return 1;
    }
    return atoi(text);
}

void module_out(ModuleCase *c, const char *name, Val value, ParityKind kind, const char *axes)
{
    if (value == VAL_NONE) return;
    if (c->n_outputs == (int)(sizeof c->output / sizeof *c->output)) {
        prog_fail(c->p, ERR_INTERNAL, "%s: too many outputs", c->name);
        return;
    }
    prog_output(c->p, name, value);
    snprintf(c->output[c->n_outputs].name, sizeof c->output->name, "%s", name);
    snprintf(c->output[c->n_outputs].axes, sizeof c->output->axes, "%s", axes);
    c->output[c->n_outputs++].kind = kind;
}

/* sum over outputs of sum(cot * out) becomes the loss */
static void record_scalar(ModuleCase *c)
{
    Program *p = c->p;
    bool former = prog_full_precision(p, true);
    Val sum = VAL_NONE;
    for (int i = 0; i < c->n_outputs; i++) {
        const StTensor *t = find(c, "cot.", c->output[i].name);
        Val out = prog_find(p, c->output[i].name);
        if (!t || out == VAL_NONE) continue;
        char name[128];
        snprintf(name, sizeof name, "cot.%s", c->output[i].name);
        const Tensor *shape = prog_tensor(p, out);
        Val cot = prog_input(p, name, DT_F32, shape->rank, shape->dim);
        Val term = prog_add(p, OP_DOT, 2, (Val[]){out, cot}, NULL);
        sum = sum == VAL_NONE ? term : prog_add(p, OP_ADD, 2, (Val[]){sum, term}, NULL);
    }
    prog_full_precision(p, former);
    p->loss = sum;
}

static Status write_buffer(ModuleCase *c, Store *store, int buffer, Arena *arena)
{
    const BufferInfo *info = &c->p->registry->buffer[buffer];
    if (!strncmp(info->name, "const.", 6)) return OK;
    char name[160];
    snprintf(name, sizeof name, "%s%s", strncmp(info->name, "cot.", 4) ? "in." : "", info->name);
    const StTensor *t = st_find(c->file, name);
    if (!t) return OK; /* zero: "rng" of programs without dropout */
    if (t->count != tensor_count(&info->tensor))
        return status_fail_at(ERR_INPUT, st_path(c->file), 0, "'%s' has %ld elements, the module expects %ld", name,
                              (long)t->count, (long)tensor_count(&info->tensor));
    double *values = arena_array(arena, (size_t)t->count, sizeof *values);
    if (!values) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
    TRY(st_read_f64(t, 0, t->count, values));
    if (info->tensor.dtype != DT_I32) return store_write(store, buffer, DT_F64, values, t->count);
    int32_t *integers = arena_array(arena, (size_t)t->count, sizeof *integers);
    if (!integers) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
    for (int64_t i = 0; i < t->count; i++) integers[i] = (int32_t)values[i];
    return store_write(store, buffer, DT_I32, integers, t->count);
}

static Status write_inputs(ModuleCase *c, Store *store, Arena *arena)
{
    const Registry *r = c->p->registry;
    for (int b = 0; b < r->n_buffers; b++) TRY(write_buffer(c, store, b, arena));
    for (int k = 0; k < r->n_params; k++) {
        char name[600];
        bool input = !strncmp(r->param[k].name, "in.", 3);
        snprintf(name, sizeof name, "%s%s", input ? "" : "param.", r->param[k].name);
        const StTensor *t = st_find(c->file, name);
        if (!t || t->count != r->param[k].count)
            return status_fail_at(ERR_INPUT, st_path(c->file), 0, "no tensor '%s' with %ld elements", name,
                                  (long)r->param[k].count);
        double *values = arena_array(arena, (size_t)t->count, sizeof *values);
        if (!values) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
        TRY(st_read_f64(t, 0, t->count, values));
        TRY(store_write_param(store, PLACE_PARAM, k, DT_F64, values, t->count));
    }
    return store_lower_params(store);
}

/* ---- validity of rows: from whichever mask the file has ---------------------------------------------------------- */

typedef struct Validity {
    uint8_t residue[512], row[512], templ[64];
    ParityMask mask;
} Validity;

/* valid[i] = some entry of slice i along the axis is non-zero */
static void any_along(const GoldenTensor *m, int axis, uint8_t *valid, int capacity)
{
    int64_t outer = 1, inner = 1;
    for (int k = 0; k < axis; k++) outer *= m->dim[k];
    for (int k = axis + 1; k < m->rank; k++) inner *= m->dim[k];
    for (int64_t i = 0; i < m->dim[axis] && i < capacity; i++) {
        valid[i] = 0;
        for (int64_t o = 0; o < outer; o++)
            for (int64_t n = 0; n < inner; n++) valid[i] |= m->value[(o * m->dim[axis] + i) * inner + n] != 0;
    }
}

static bool any_zero(const uint8_t *valid, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!valid[i]) return true;
    return false;
}

static void read_validity(ModuleCase *c, Arena *arena, Validity *v)
{
    static const char *const names[] = {"in.mask", "in.msa_mask", "in.pair_mask", "in.seq_mask", "in.template_mask"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        GoldenTensor m;
        if (!st_find(c->file, names[i]) || golden_read(c->file, names[i], true, arena, &m) != OK) continue;
        if (!strcmp(names[i], "in.template_mask")) { /* masks keys alone: all rows are valid, or none */
            double sum = 0;
            for (int64_t k = 0; k < m.count; k++) sum += m.value[k];
            c->fully_masked |= sum == 0;
            c->no_output |= sum == 0;
            continue;
        }
        bool square = m.rank == 2 && m.dim[0] == m.dim[1];
        int residue_axis = m.rank - 1;
        if (residue_axis < 0 || m.dim[residue_axis] > (int64_t)sizeof v->residue) continue;
        any_along(&m, residue_axis, v->residue, sizeof v->residue);
        v->mask.residue = v->residue;
        c->fully_masked |= any_zero(v->residue, m.dim[residue_axis]);
        if (m.rank == 2 && !square) {
            any_along(&m, 0, v->row, sizeof v->row);
            v->mask.msa_row = v->row;
            c->fully_masked |= any_zero(v->row, m.dim[0]);
        }
    }
    if (!strncmp(c->name, "loss_", 5)) c->fully_masked = false; /* nothing attends in a loss */
}

static const ModuleRow *find_row(const char *name)
{
    const ModuleRow *tables[] = {parity_trunk_rows, parity_structure_rows}, *best = NULL;
    size_t longest = 0;
    for (int t = 0; t < 2; t++)
        for (const ModuleRow *row = tables[t]; row->name; row++) {
            size_t n = strlen(row->name);
            if (n > longest && !strncmp(name, row->name, n) && (name[n] == 0 || name[n] == '_')) {
                best = row;
                longest = n;
            }
        }
    return best;
}

/* ---- comparison -----------------------------------------------------------------------------------------------------
 */

/* A quantity that f32 and f64 differ in by design, as rows without a valid key take part: only another run in the same
 * precision tells what is right (--save, --beside). `largest`: of the quantities that it goes with, half a unit of
 * which two runs can differ by. Where masks are -1e5 (invariant point attention, template pointwise attention), the
 * logits of such rows have in f32 a resolution of 2^-7, which a last digit of a sum can flip, and which their gradients
 * follow. */
static Status compare_runs(ModuleCase *c, const char *label, const double *ours, int64_t count, double largest,
                           double limit, const char *why, Arena *arena)
{
    static const char *const coarse[] = {"invariant_point_attention", "structure_module",
                                         "template_pointwise_attention"};
    double half_unit = c->parity->options.switches.precision == PRECISION_BF16 ? 0x1p-9 : 0x1p-24;
    double floor = fmax(1e-3, half_unit / limit) * largest;
    bool done;
    for (size_t k = 0; k < sizeof coarse / sizeof *coarse; k++)
        if (!strncmp(c->name, coarse[k], strlen(coarse[k]))) limit = fmax(limit, 0x1p-8);
    TRY(parity_beside_instead(c->parity, label, ours, count, floor, limit, arena, &done));
    if (!done) parity_skip(c->parity, label, why);
    return OK;
}

static Status compare_outputs(ModuleCase *c, ParityRun *run, const Validity *v, Arena *arena)
{
    for (int i = 0; i < c->n_outputs; i++) {
        const char *name = c->output[i].name;
        char label[200], full[128];
        snprintf(full, sizeof full, "out.%s", name);
        snprintf(label, sizeof label, "%s/%s", c->name, full);
        GoldenTensor golden;
        TRY(golden_read(c->file, full, true, arena, &golden));
        double *ours = arena_array(arena, (size_t)golden.count, sizeof *ours);
        if (!ours) return status_fail(ERR_MEMORY, "out of memory for '%s'", name);
        TRY(exec_output(run->exec, name, DT_F64, ours, golden.count));
        const char *axes = c->output[i].axes;
        double limit = parity_tolerance_stored(c->parity, c->output[i].kind, golden.rounded);
        if (c->no_output && c->parity->options.switches.precision != PRECISION_F64) {
            TRY(compare_runs(c, label, ours, golden.count, 0, limit,
                             "no row has a valid key: f32 and f64 differ there by design", arena));
            continue;
        }
        TRY(parity_beside(c->parity, label, ours, golden.value, golden.count, arena));
        parity_report(c->parity, label, parity_error(ours, golden.value, golden.rank, golden.dim, axes, &v->mask),
                      limit);
    }
    return OK;
}

/* Some golden files were made by running a module twice without clearing its gradients: their parameter gradients hold
 * the sum of this file's and of the file before (NAME_variant after NAME). The bias of the output projection tells,
 * whatever our engine says: its gradient is the column sum of the cotangent. Returns the earlier file when (and only
 * when) that identity holds after subtraction and not before. */
static bool bias_identity(const GoldenTensor *bias, const double *minus, const GoldenTensor *cot)
{
    double worst = 0;
    for (int64_t k = 0; k < bias->count; k++) {
        double sum = 0;
        for (int64_t i = k; i < cot->count; i += bias->count) sum += cot->value[i];
        worst = fmax(worst, fabs(bias->value[k] - (minus ? minus[k] : 0) - sum));
    }
    return worst < 1e-10;
}

static StFile *accumulated_onto(ModuleCase *c, Arena *arena)
{
    static const char *const bias_name = "grad.param.mha.linear_o.bias";
    char path[4096];
    GoldenTensor bias, cot, before;
    const char *cot_name = c->n_outputs == 1 ? c->output[0].name : "";
    char full[128];
    snprintf(full, sizeof full, "cot.%s", cot_name);
    if (!st_find(c->file, bias_name) || !st_find(c->file, full)) return NULL;
    if (golden_read(c->file, bias_name, false, arena, &bias) != OK ||
        golden_read(c->file, full, true, arena, &cot) != OK || bias_identity(&bias, NULL, &cot))
        return NULL;
    StFile *earlier = NULL;
    const char *base = find_row(c->name)->name;
    const char *slash = strrchr(st_path(c->file), '/');
    snprintf(path, sizeof path, "%.*s/%s.safetensors", (int)(slash - st_path(c->file)), st_path(c->file), base);
    if (!strcmp(base, c->name) || st_open(path, &earlier) != OK) return NULL;
    if (golden_read(earlier, bias_name, false, arena, &before) == OK && before.count == bias.count &&
        bias_identity(&bias, before.value, &cot))
        return earlier;
    st_close(&earlier);
    return NULL;
}

/* Subtracts the earlier file's gradient of the same name. */
static void subtract(const StFile *earlier, const char *name, Arena *arena, GoldenTensor *golden)
{
    GoldenTensor before;
    if (!earlier || !st_find(earlier, name) || golden_read(earlier, name, false, arena, &before) != OK) return;
    for (int64_t i = 0; i < golden->count && before.count == golden->count; i++) golden->value[i] -= before.value[i];
}

static Status compare_gradients(ModuleCase *c, ParityRun *run, Arena *arena, const StFile *earlier)
{
    const Registry *r = run->registry;
    double largest = 0;
    for (int64_t i = 0; i < st_count(c->file); i++) {
        const StTensor *t = st_at(c->file, i);
        GoldenTensor g;
        if (strncmp(t->name, "grad.", 5) || golden_read(c->file, t->name, false, arena, &g) != OK) continue;
        for (int64_t k = 0; k < g.count; k++) largest = fmax(largest, fabs(g.value[k]));
    }
    for (int k = 0; k < r->n_params; k++) {
        char full[600], label[800];
        snprintf(full, sizeof full, "grad.%s%s", strncmp(r->param[k].name, "in.", 3) ? "param." : "", r->param[k].name);
        snprintf(label, sizeof label, "%s/%s%s", c->name, full, earlier ? " (less the file before)" : "");
        GoldenTensor golden;
        TRY(golden_read(c->file, full, false, arena, &golden));
        if (strncmp(full, "grad.in.", 8)) subtract(earlier, full, arena, &golden);
        double *ours = arena_array(arena, (size_t)golden.count, sizeof *ours);
        if (!ours) return status_fail(ERR_MEMORY, "out of memory for '%s'", full);
        TRY(store_read_param(run->store, PLACE_GRAD, k, DT_F64, ours, golden.count));
        /* gradients that are zero but for rounding (golden README) are held against 1e-3 of the module's largest */
        double limit = parity_tolerance(c->parity, PARITY_GRADIENT), floor = 1e-3 * largest;
        if (c->fully_masked && c->parity->options.switches.precision != PRECISION_F64) {
            TRY(compare_runs(c, label, ours, golden.count, largest, limit,
                             "rows without a valid key differ between f32 and f64 by design", arena));
            continue;
        }
        TRY(parity_beside(c->parity, label, ours, golden.value, golden.count, arena));
        parity_report(c->parity, label, parity_l2_error(ours, golden.value, golden.count, floor), limit);
    }
    return OK;
}

static Status run_case(ModuleCase *c, ParityRun *run, Arena *arena)
{
    Validity *validity = arena_alloc(arena, sizeof *validity);
    if (!validity) return status_fail(ERR_MEMORY, "out of memory");
    read_validity(c, arena, validity);
    record_scalar(c);
    TRY(parity_run_build(c->parity, run));
    TRY(write_inputs(c, run->store, arena));
    TRY(exec_run(run->exec));
    TRY(compare_outputs(c, run, validity, arena));
    if (c->p->loss == VAL_NONE) return OK;
    StFile *earlier = accumulated_onto(c, arena);
    Status status = compare_gradients(c, run, arena, earlier);
    st_close(&earlier);
    return status;
}

static Status read_positions(const StFile *file, const char *name, int64_t n, Arena *arena, double **ca_out)
{
    enum { ATOMS = 37, CA = 1 };
    GoldenTensor all;
    TRY(golden_read(file, name, true, arena, &all));
    *ca_out = arena_array(arena, (size_t)(3 * n), sizeof **ca_out);
    if (!*ca_out || all.count != 3 * ATOMS * n)
        return status_fail_at(ERR_INPUT, st_path(file), 0, "'%s' is no [n, 37, 3]", name);
    for (int64_t i = 0; i < n; i++) memcpy(*ca_out + 3 * i, all.value + 3 * (ATOMS * i + CA), 3 * sizeof(double));
    return OK;
}

/* The validation metrics are host code, no ops. */
static Status compare_metrics(Parity *parity, const StFile *file, const char *name, Arena *arena)
{
    static const char *const keys[] = {"lddt_ca", "drmsd_ca", "alignment_rmsd", "gdt_ts", "gdt_ha"};
    enum { ATOMS = 37, CA = 1 };
    GoldenTensor mask, truth;
    double *predicted, *target;
    StructureMetrics m;
    TRY(golden_read(file, "in.atom_mask", true, arena, &mask));
    int64_t n = mask.dim[0];
    TRY(read_positions(file, "in.predicted_atom_positions", n, arena, &predicted));
    TRY(read_positions(file, "in.target_atom_positions", n, arena, &target));
    uint8_t *ca = arena_alloc(arena, (size_t)n);
    double *residue = arena_array(arena, (size_t)n, sizeof *residue);
    if (!ca || !residue) return status_fail(ERR_MEMORY, "out of memory");
    for (int64_t i = 0; i < n; i++) ca[i] = mask.value[ATOMS * i + CA] != 0;
    TRY(metrics_compare(predicted, target, ca, n, residue, &m));
    const double ours[] = {m.lddt_ca, m.drmsd, m.rmsd, m.gdt_ts, m.gdt_ha};
    for (int k = 0; k < 5; k++) {
        char full[64], label[200];
        snprintf(full, sizeof full, "out.%s", keys[k]);
        snprintf(label, sizeof label, "%s/%s", name, full);
        TRY(golden_read(file, full, true, arena, &truth));
        parity_report(parity, label, fabs(ours[k] - truth.value[0]) / fabs(truth.value[0]),
                      parity_tolerance(parity, PARITY_GEOMETRY));
    }
    return OK;
}

static Status module_file(Parity *parity, const char *path, const char *name)
{
    if (!strncmp(name, "validation_metrics", 18)) {
        StFile *metrics = NULL;
        Arena own = {0};
        TRY(st_open(path, &metrics));
        Status compared = compare_metrics(parity, metrics, name, &own);
        st_close(&metrics);
        arena_free(&own);
        return compared;
    }
    const ModuleRow *row = find_row(name);
    if (!row) {
        parity_skip(parity, name, "no module of this name is recorded alone");
        return OK;
    }
    StFile *file = NULL;
    Arena arena = {0};
    ParityRun run = {0};
    ModuleCase *c = calloc(1, sizeof *c);
    Status status = c ? st_open(path, &file) : status_fail(ERR_MEMORY, "out of memory");
    if (status == OK) status = registry_create(&run.registry);
    if (status == OK) status = prog_create(run.registry, &run.recorded);
    if (status == OK) {
        *c = (ModuleCase){.parity = parity, .file = file, .p = run.recorded, .name = name};
        row->record(c);
        status = prog_status(run.recorded);
        if (status == OK) status = run_case(c, &run, &arena);
    }
    parity_run_free(&run);
    st_close(&file);
    arena_free(&arena);
    free(c);
    return status;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

Status parity_modules(Parity *parity, const char *dir)
{
    struct dirent **entries;
    int n = scandir(dir, &entries, NULL, by_name);
    if (n < 0) return status_fail_at(ERR_IO, dir, 0, "cannot list the folder");
    Status status = OK;
    for (int i = 0; i < n; i++) {
        char name[256], path[4096];
        snprintf(name, sizeof name, "%s", entries[i]->d_name);
        char *end = strstr(name, ".safetensors");
        snprintf(path, sizeof path, "%s/%s", dir, entries[i]->d_name);
        free(entries[i]);
        if (!end || status != OK) continue;
        *end = 0;
        if (!strcmp(name, "constants") || (parity->options.only && !strstr(name, parity->options.only))) continue;
        Status one = module_file(parity, path, name);
        if (one != OK) { /* one broken module must not hide the others */
            parity->failures++;
            printf("%-72s FAIL: %s\n", name, status_text());
        }
    }
    free(entries);
    return status;
}
