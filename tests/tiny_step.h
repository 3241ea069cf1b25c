/* One training step of the tiny model on made-up inputs: what tests of switches, ranks and the executor run. */
#ifndef FOLDSCALE_TESTS_TINY_STEP_H
#define FOLDSCALE_TESTS_TINY_STEP_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/exec.h"
#include "engine/philox.h"
#include "experiments/constants.h"
#include "kernels/kernels.h"
#include "model/model.h"

typedef struct TinyStep {
    Backend *backend; /* borrowed */
    Registry *registry;
    Program *grad, *optimizer;
    Store *store;
    Workspace *workspace;
    Exec *run_grad, *run_optimizer;
} TinyStep;

/* Uniform in [-1, 1), a function of (stream, element). */
static inline double tiny_draw(uint64_t stream, int64_t element)
{
    uint32_t counter[4] = {(uint32_t)element, (uint32_t)(element >> 32), 0, 0}, words[4];
    uint32_t key[2] = {(uint32_t)stream, (uint32_t)(stream >> 32)};
    philox4x32(counter, key, words);
    return 2 * philox_uniform_f64(words[0], words[1]) - 1;
}

static inline bool tiny_named(const char *name, const char *part)
{
    return strstr(name, part) != NULL;
}

/* Element e of input `name`: masks mostly one, indices in range, frames a chain of unit rotations, else noise. */
static inline double tiny_value(const char *name, const Tensor *t, uint64_t stream, int64_t e)
{
    double u = tiny_draw(stream, e);
    int64_t inner = t->rank > 1 ? tensor_last(t) : 1;
    if (!strcmp(name, "seq_length")) return 30;
    if (!strcmp(name, "resolution")) return 2;
    if (!strcmp(name, "use_clamped_fape")) return 1;
    if (!strcmp(name, "residue_index")) return (double)e;
    if (tiny_named(name, "atom37_to_atom14")) return floor((u + 1) * 7);
    if (tiny_named(name, "atom14_to_atom37")) return floor((u + 1) * 18.5);
    if (tiny_named(name, "aatype")) return floor((u + 1) * 10);
    if (t->dtype == DT_I32) return floor((u + 1) * 11);
    if (!strcmp(name, "template_mask")) return 1;
    if (tiny_named(name, "mask") || tiny_named(name, "exists")) return u < 0.7;
    if (tiny_named(name, "ambiguous") || tiny_named(name, "has_deletion")) return u > 0.6;
    if (tiny_named(name, "frames") || tiny_named(name, "rigid_tensor")) {
        int64_t row = e / 4 % 4, column = e % 4;
        return column == 3 ? (row == 3 ? 1 : 8 * u) : row == column;
    }
    if (tiny_named(name, "positions") || tiny_named(name, "pseudo_beta") || tiny_named(name, "recycle.x")) return 8 * u;
    (void)inner;
    return u;
}

static inline Status tiny_write(TinyStep *s, int buffer, uint64_t stream)
{
    const BufferInfo *info = &s->registry->buffer[buffer];
    int64_t count = tensor_count(&info->tensor);
    double *values = malloc(((size_t)count + 1) * sizeof *values);
    int32_t *integers = malloc(((size_t)count + 1) * sizeof *integers);
    for (int64_t e = 0; e < count; e++) {
        values[e] = tiny_value(info->name, &info->tensor, stream, e);
        integers[e] = (int32_t)values[e];
    }
    bool integer = info->tensor.dtype == DT_I32;
    Status status = integer ? store_write(s->store, buffer, DT_I32, integers, count)
                            : store_write(s->store, buffer, DT_F64, values, count);
    free(values);
    free(integers);
    return status;
}

/* Weights that leave no gradient zero: the model's own last layers start at zero. */
static inline Status tiny_fill_params(TinyStep *s)
{
    for (int k = 0; k < s->registry->n_params; k++) {
        const ParamInfo *param = &s->registry->param[k];
        double *values = malloc((size_t)param->count * sizeof *values);
        double scale = param->rank == 2 ? 1.7 / sqrt((double)param->dim[1]) : 0.2;
        double base = param->init == INIT_ONE ? 1 : 0;
        for (int64_t e = 0; e < param->count; e++) values[e] = base + scale * tiny_draw(7777 + (uint64_t)k, e);
        Status status = store_write_param(s->store, PLACE_PARAM, k, DT_F64, values, param->count);
        free(values);
        TRY(status);
    }
    return store_lower_params(s->store);
}

/* Inputs of one sample, the same on whatever ranks; recycled states are made up like everything else. */
static inline Status tiny_inputs(TinyStep *s, int sample, int step)
{
    for (int b = 0; b < s->registry->n_buffers; b++) {
        const char *name = s->registry->buffer[b].name;
        if (!strncmp(name, "const.", 6) || !strncmp(name, "grad_", 5)) continue;
        if (!strcmp(name, "rng")) {
            TRY(store_write(s->store, b, DT_I32, (int32_t[]){42, step, sample, 0}, 4));
        } else if (!strcmp(name, "hyper")) {
            double hyper[] = {1e-3, 1 - pow(0.9, step), 1 - pow(0.999, step), step};
            TRY(store_write(s->store, b, DT_F64, hyper, 4));
        } else {
            TRY(tiny_write(s, b, 1000003u * (uint64_t)(sample + 1) + (uint64_t)b));
        }
    }
    return OK;
}

static inline void tiny_close(TinyStep *s)
{
    exec_destroy(&s->run_grad);
    exec_destroy(&s->run_optimizer);
    workspace_destroy(&s->workspace);
    store_destroy(&s->store);
    prog_destroy(&s->grad);
    prog_destroy(&s->optimizer);
    if (s->registry) registry_destroy(&s->registry);
}

static inline Status tiny_record(TinyStep *s, const Switches *switches, bool optimizer, Program **planned_out)
{
    static const OptimizerConfig adam = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-6, .max_norm = 0.1, .swa_decay = 0.9};
    ModelConfig config;
    TRY(model_config_preset("tiny", &config));
    config.w_resolved = 0.01;
    config.w_violation = 1;
    Program *recorded = NULL;
    TRY(prog_create(s->registry, &recorded));
    Status status = optimizer ? model_record_optimizer(&adam, recorded) : model_record_forward(&config, true, recorded);
    if (status == OK) status = passes_run(recorded, switches, PASS_PLAN, planned_out);
    prog_destroy(&recorded);
    return status;
}

static inline Status tiny_open(Backend *backend, const Switches *switches, TinyStep *s)
{
    *s = (TinyStep){.backend = backend};
    TRY(registry_create(&s->registry));
    TRY(tiny_record(s, switches, false, &s->grad));
    TRY(tiny_record(s, switches, true, &s->optimizer));
    TRY(store_create(backend, s->registry, switches->precision, STORE_TRAINING, &s->store));
    size_t bytes = exec_workspace_bytes(backend, s->grad), second = exec_workspace_bytes(backend, s->optimizer);
    TRY(workspace_create(backend, bytes > second ? bytes : second, &s->workspace));
    ExecOptions options = {.graph = switches->cuda_graph};
    TRY(exec_create(backend, s->grad, s->store, s->workspace, &options, &s->run_grad));
    TRY(exec_create(backend, s->optimizer, s->store, s->workspace, &options, &s->run_optimizer));
    TRY(constants_bind(s->store));
    return tiny_fill_params(s);
}

/* Numbers of a step: loss, gradient norm, then for every parameter gradient, p, m, v, swa. */
static inline int64_t tiny_result_count(const TinyStep *s)
{
    return 2 + 5 * s->registry->param_count;
}

static inline Status tiny_read(TinyStep *s, double *result)
{
    static const Place places[] = {PLACE_GRAD, PLACE_PARAM, PLACE_ADAM_M, PLACE_ADAM_V, PLACE_SWA};
    TRY(exec_output(s->run_optimizer, "grad_norm", DT_F64, &result[1], 1));
    double *at = result + 2;
    for (int k = 0; k < s->registry->n_params; k++)
        for (int b = 0; b < 5; b++) {
            int64_t count = s->registry->param[k].count;
            TRY(store_read_param(s->store, places[b], k, DT_F64, at, count));
            at += count;
        }
    return OK;
}

static inline Status tiny_run(TinyStep *s, int sample, double *result)
{
    TRY(tiny_inputs(s, sample, 1));
    TRY(exec_run(s->run_grad));
    TRY(exec_read_value(s->run_grad, s->grad->loss, DT_F64, result, 1));
    TRY(exec_run(s->run_optimizer));
    return tiny_read(s, result);
}

#endif
