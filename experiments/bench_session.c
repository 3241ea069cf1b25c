#include "experiments/bench_session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/clock.h"
#include "experiments/constants.h"
#include "kernels/kernels.h"
#include "model/modules.h"

const char *const BENCH_PROGRAM_NAMES[BENCH_PROGRAMS] = {"nograd", "grad", "optimizer"};

/* --- inputs
 * ------------------------------------------------------------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014) of a counter: uniform in [0, 1) */
static double draw(uint64_t stream, int64_t element)
{
    uint64_t z = (stream << 40) + (uint64_t)element * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* Coordinate k of residue r in an alpha helix: radius 2.3 A, 100 degrees and 1.5 A a residue. */
static double helix(int64_t r, int k)
{
    double angle = (double)r * 100 * M_PI / 180;
    return k == 0 ? 2.3 * cos(angle) : k == 1 ? 2.3 * sin(angle) : 1.5 * (double)r;
}

/* Element of a 4 x 4 frame: turned with the helix, at its residue. */
static double frame(int64_t r, int row, int column)
{
    double angle = (double)r * 100 * M_PI / 180;
    if (row == 3) return column == 3;
    if (column == 3) return helix(r, row);
    if (row == 2 || column == 2) return row == column;
    return row == column ? cos(angle) : row ? sin(angle) : -sin(angle);
}

static double real(const char *name, const Tensor *t, uint64_t stream, int64_t e)
{
    double u = draw(stream, e);
    if (!strcmp(name, "resolution")) return 2;
    if (strstr(name, "mask") || strstr(name, "exists") || strstr(name, "clamped")) return 1;
    if (strstr(name, "ambiguous") || strstr(name, "has_deletion")) return u > 0.7;
    if (strstr(name, "frames") || strstr(name, "rigid_tensor")) {
        int64_t groups = t->rank > 3 ? t->dim[t->rank - 3] : 1;
        return frame(e / 16 / groups, (int)(e / 4 % 4), (int)(e % 4));
    }
    if (strstr(name, "positions") || strstr(name, "pseudo_beta")) {
        bool one = strstr(name, "pseudo_beta") != NULL;
        int64_t atoms = one ? 1 : t->dim[t->rank - 2], residues = t->dim[t->rank - (one ? 2 : 3)];
        return helix(e / 3 / atoms % residues, (int)(e % 3)) + 3 * (u - 0.5);
    }
    if (strstr(name, "sin_cos")) {
        double angle = 2 * M_PI * draw(stream, e / 2);
        return e % 2 ? cos(angle) : sin(angle);
    }
    return u;
}

static int32_t integer(const char *name, const Tensor *t, int n_res, uint64_t stream, int64_t e)
{
    double u = draw(stream, e);
    if (!strcmp(name, "seq_length")) return n_res;
    if (!strcmp(name, "residue_index")) return (int32_t)(e % tensor_last(t));
    if (strstr(name, "atom14_to_atom37")) return (int32_t)(37 * u);
    if (strstr(name, "atom37_to_atom14")) return (int32_t)(14 * u);
    return (int32_t)(20 * u); /* residue types */
}

static Status write_input(BenchSession *s, int buffer, int n_res)
{
    const BufferInfo *info = &s->registry->buffer[buffer];
    const Tensor *t = &info->tensor;
    int64_t count = tensor_count(t);
    float *reals = malloc(((size_t)count + 1) * sizeof *reals);
    int32_t *integers = malloc(((size_t)count + 1) * sizeof *integers);
    bool whole = t->dtype == DT_I32;
    Status status = reals && integers ? OK : status_fail(ERR_MEMORY, "no memory for input \"%s\"", info->name);
    for (int64_t e = 0; status == OK && e < count; e++)
        if (whole)
            integers[e] = integer(info->name, t, n_res, (uint64_t)buffer, e);
        else
            reals[e] = (float)real(info->name, t, (uint64_t)buffer, e);
    if (status == OK)
        status =
            store_write(s->store, buffer, whole ? DT_I32 : DT_F32, whole ? (void *)integers : (void *)reals, count);
    free(reals);
    free(integers);
    return status;
}

/* Every input once; states (recycled values) stay zero, as at the start of a step. */
static Status write_inputs(BenchSession *s, int n_res)
{
    TRY(constants_bind(s->store));
    for (int b = 0; b < s->registry->n_buffers; b++) {
        const BufferInfo *info = &s->registry->buffer[b];
        if (info->kind != BUFFER_INPUT || !strncmp(info->name, "const.", 6)) continue;
        if (!strcmp(info->name, "rng"))
            TRY(store_write(s->store, b, DT_I32, (int32_t[]){42, 1, 0, 0}, 4));
        else if (!strcmp(info->name, "hyper"))
            TRY(store_write(s->store, b, DT_F64, (double[]){1e-4, 0.1, 1e-3, 1}, 4));
        else
            TRY(write_input(s, b, n_res));
    }
    return OK;
}

/* --- recording
 * ---------------------------------------------------------------------------------------------------------- */

static Status passes(BenchSession *s, const Switches *switches, Program *recorded, int which)
{
    TRY(prog_status(recorded));
    return passes_run(recorded, switches, PASS_PLAN, &s->program[which]);
}

static Status record_one(BenchSession *s, const ModelConfig *config, const Switches *switches, int which)
{
    static const OptimizerConfig adam = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-6, .max_norm = 0.1, .swa_decay = 0.9};
    Program *recorded = NULL;
    TRY(prog_create(s->registry, &recorded));
    Status status = which == BENCH_OPTIMIZER ? model_record_optimizer(&adam, recorded)
                                             : model_record_forward(config, which == BENCH_GRAD, recorded);
    /* an iteration without gradient only feeds the recycled states */
    for (int32_t v = 0; which == BENCH_NOGRAD && v < recorded->n_values; v++) recorded->value[v].output = false;
    if (status == OK) status = passes(s, switches, recorded, which);
    prog_destroy(&recorded);
    return status;
}

Status bench_record_step(BenchSession *s, const ModelConfig *config, const Switches *switches)
{
    double start = clock_now_s();
    TRY(registry_create(&s->registry));
    TRY(record_one(s, config, switches, BENCH_GRAD));
    TRY(record_one(s, config, switches, BENCH_NOGRAD));
    TRY(record_one(s, config, switches, BENCH_OPTIMIZER));
    s->prepare_s = clock_now_s() - start;
    return OK;
}

/* A chain of Evoformer blocks alone. Its two inputs are parameters, so that their gradients are computed as they are
 * within the stack; the loss is the product of both outputs with constant cotangents. */
static void record_blocks(Program *p, const ModelConfig *c, int blocks, bool loss)
{
    int64_t rows = c->n_clust + c->n_templ, n = c->n_res;
    int64_t m_dim[] = {rows, n, c->c_m}, z_dim[] = {n, n, c->c_z};
    Val m = prog_param(p, "in.m", 3, m_dim, INIT_NORMAL, 1), z = prog_param(p, "in.z", 3, z_dim, INIT_NORMAL, 1);
    Val msa_mask = prog_input(p, "msa_mask", DT_F32, 2, m_dim),
        pair_mask = prog_input(p, "pair_mask", DT_F32, 2, z_dim);
    m = layer_reshard(p, m, 0);
    z = layer_reshard(p, z, 0);
    prog_scope_push(p, "evoformer_stack");
    for (int i = 0; i < blocks; i++) {
        prog_scope_push(p, "blocks.%d", i);
        evoformer_block(p, c, &m, &z, msa_mask, pair_mask);
        prog_scope_pop(p);
    }
    prog_scope_pop(p);
    m = layer_reshard(p, m, SHARD_NONE);
    z = layer_reshard(p, z, SHARD_NONE);
    prog_output(p, "m", m);
    prog_output(p, "z", z);
    if (!loss) return;
    prog_full_precision(p, true);
    Val cot_m = prog_input(p, "cot.m", DT_F32, 3, m_dim), cot_z = prog_input(p, "cot.z", DT_F32, 3, z_dim);
    Val sum[] = {prog_add(p, OP_DOT, 2, (Val[]){m, cot_m}, NULL), prog_add(p, OP_DOT, 2, (Val[]){z, cot_z}, NULL)};
    p->loss = prog_add(p, OP_ADD, 2, sum, NULL);
    prog_full_precision(p, false);
}

Status bench_record_chain(BenchSession *s, const ModelConfig *config, const Switches *switches, int blocks)
{
    double start = clock_now_s();
    TRY(registry_create(&s->registry));
    for (int which = BENCH_NOGRAD; which <= BENCH_GRAD; which++) {
        Program *recorded = NULL;
        TRY(prog_create(s->registry, &recorded));
        record_blocks(recorded, config, blocks, which == BENCH_GRAD);
        Status status = passes(s, switches, recorded, which);
        prog_destroy(&recorded);
        TRY(status);
    }
    s->prepare_s = clock_now_s() - start;
    return OK;
}

/* --- memory
 * ------------------------------------------------------------------------------------------------------------- */

void bench_close(BenchSession *s)
{
    for (int k = 0; k < BENCH_PROGRAMS; k++) exec_destroy(&s->exec[k]);
    workspace_destroy(&s->workspace);
    store_destroy(&s->store);
    for (int k = 0; k < BENCH_PROGRAMS; k++) prog_destroy(&s->program[k]);
    if (s->registry) registry_destroy(&s->registry);
    *s = (BenchSession){.backend = s->backend};
}

static Status open_execs(BenchSession *s, const ExecOptions *options)
{
    for (int k = 0; k < BENCH_PROGRAMS; k++) {
        exec_destroy(&s->exec[k]);
        if (s->program[k]) TRY(exec_create(s->backend, s->program[k], s->store, s->workspace, options, &s->exec[k]));
    }
    return OK;
}

Status bench_measure_memory(BenchSession *s, Precision precision)
{
    s->store_bytes = store_bytes(s->registry, precision, STORE_TRAINING);
    s->workspace_bytes = exec_workspace_shared(s->backend, s->program, BENCH_PROGRAMS);
    const Backend *backend = s->backend;
    size_t needed = s->store_bytes + s->workspace_bytes, there = backend_memory_free(backend);
    if (backend->memory_bytes == 0 || needed <= there) return OK;
    return status_fail(ERR_MEMORY, "needs %.2f GiB, %s has %.2f GiB", (double)needed / 0x1p30, backend->device,
                       (double)there / 0x1p30);
}

Status bench_allocate(BenchSession *s, const ModelConfig *config, const Switches *switches)
{
    TRY(store_create(s->backend, s->registry, switches->precision, STORE_TRAINING, &s->store));
    TRY(workspace_create(s->backend, s->workspace_bytes, &s->workspace));
    TRY(store_init_params(s->store, 1));
    TRY(write_inputs(s, config->n_res));
    return open_execs(s, &(ExecOptions){.graph = switches->cuda_graph});
}
