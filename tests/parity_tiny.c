/* tiny/: the whole step of a small model. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/parity_model.h"

/* ---- configuration: "dims" of config.json
 * ------------------------------------------------------------------------------ */

static int dim(const cJSON *object, const char *key, const char *path, Status *status)
{
    const cJSON *value = cJSON_GetObjectItem(object, key);
    if (!cJSON_IsNumber(value) && *status == OK)
        *status = status_fail_at(ERR_INPUT, path, 0, "dims: no number '%s'", key);
    return cJSON_IsNumber(value) ? (int)value->valuedouble : 0;
}

static PairStackConfig pair_stack(const cJSON *o, const char *transition, const char *path, Status *s)
{
    return (PairStackConfig){.c_hidden_mul = dim(o, "c_hidden_tri_mul", path, s),
                             .c_hidden_att = dim(o, "c_hidden_tri_att", path, s),
                             .heads = dim(o, "num_heads_tri", path, s),
                             .transition_n = dim(o, transition, path, s)};
}

static Status read_dims(const cJSON *d, const char *path, ModelConfig *m)
{
    Status s = OK;
    const cJSON *templ = cJSON_GetObjectItem(d, "template_pair_stack");
    const cJSON *point = cJSON_GetObjectItem(d, "template_pointwise_attention");
    const cJSON *extra = cJSON_GetObjectItem(d, "extra_msa_stack"), *evo = cJSON_GetObjectItem(d, "evoformer_stack");
    const cJSON *sm = cJSON_GetObjectItem(d, "structure_module");
    TRY(model_config_preset("initial_training", m));
    m->n_res = dim(d, "N_res", path, &s);
    m->n_clust = dim(d, "N_clust", path, &s);
    m->n_templ = dim(d, "N_templ", path, &s);
    m->n_extra = dim(d, "N_extra", path, &s);
    m->c_m = dim(d, "c_m", path, &s);
    m->c_z = dim(d, "c_z", path, &s);
    m->c_s = dim(d, "c_s", path, &s);
    m->c_e = dim(d, "c_e", path, &s);
    m->c_t = dim(d, "c_t", path, &s);
    m->plddt_hidden = dim(d, "plddt_hidden", path, &s);
    m->template_pair = pair_stack(templ, "pair_transition_n", path, &s);
    m->template_blocks = dim(templ, "num_blocks", path, &s);
    m->pointwise_c_hidden = dim(point, "c_hidden", path, &s);
    m->pointwise_heads = dim(point, "num_heads", path, &s);
    m->extra_pair = pair_stack(extra, "transition_n", path, &s);
    m->extra_blocks = dim(extra, "num_blocks", path, &s);
    m->extra_c_hidden_att = dim(extra, "c_hidden_msa_att", path, &s);
    m->extra_heads = dim(extra, "num_heads_msa", path, &s);
    m->extra_c_hidden_opm = dim(extra, "c_hidden_opm", path, &s);
    m->extra_transition_n = dim(extra, "transition_n", path, &s);
    m->evo_pair = pair_stack(evo, "transition_n", path, &s);
    m->evo_blocks = dim(evo, "num_blocks", path, &s);
    m->evo_c_hidden_att = dim(evo, "c_hidden_msa_att", path, &s);
    m->evo_heads = dim(evo, "num_heads_msa", path, &s);
    m->evo_c_hidden_opm = dim(evo, "c_hidden_opm", path, &s);
    m->evo_transition_n = dim(evo, "transition_n", path, &s);
    m->sm_blocks = dim(sm, "num_blocks", path, &s);
    m->sm_c_hidden_ipa = dim(sm, "c_hidden_ipa", path, &s);
    m->sm_heads = dim(sm, "num_heads_ipa", path, &s);
    m->sm_qk_points = dim(sm, "num_qk_points", path, &s);
    m->sm_v_points = dim(sm, "num_v_points", path, &s);
    m->sm_c_hidden_resnet = dim(sm, "c_hidden_ang_res", path, &s);
    m->sm_resnet_blocks = dim(sm, "num_ang_res_blocks", path, &s);
    m->extra_msa_dropout = m->evo_msa_dropout = m->sm_dropout = 0; /* the goldens were made without dropout */
    return s;
}

static Status read_config(const char *dir, ModelConfig *config_out)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *f = fopen(path, "rb");
    if (!f) return status_fail_at(ERR_IO, path, 0, "cannot be opened");
    char *text = calloc(1, 1 << 20);
    size_t length = text ? fread(text, 1, (1 << 20) - 1, f) : 0;
    fclose(f);
    cJSON *json = length ? cJSON_Parse(text) : NULL;
    free(text);
    if (!json) return status_fail_at(ERR_INPUT, path, 0, "not JSON");
    Status status = read_dims(cJSON_GetObjectItem(json, "dims"), path, config_out);
    cJSON_Delete(json);
    return status;
}

/* ---- parameters and gradients
 * ------------------------------------------------------------------------------------------------ */

static Status write_params(ModelCase *c)
{
    char path[4096];
    StFile *file = NULL;
    snprintf(path, sizeof path, "%s/params.safetensors", c->dir);
    TRY(st_open(path, &file));
    Status status = OK;
    if (st_count(file) != c->registry->n_params)
        status = status_fail_at(ERR_INPUT, path, 0, "%ld parameters, the model has %d", (long)st_count(file),
                                c->registry->n_params);
    for (int k = 0; k < c->registry->n_params && status == OK; k++) {
        Arena arena = {0};
        GoldenTensor g;
        status = golden_read(file, c->registry->param[k].name, false, &arena, &g);
        if (status == OK) status = store_write_param(c->store, PLACE_PARAM, k, DT_F64, g.value, g.count);
        arena_free(&arena);
    }
    st_close(&file);
    return status == OK ? store_lower_params(c->store) : status;
}

/* Compares a place of all parameters with PREFIX + name of a file: one line for the worst tensor, one for all together.
 */
static Status compare_params(ModelCase *c, const char *file_name, const char *prefix, Place place, const char *label)
{
    char path[4096], line[256];
    StFile *file = NULL;
    snprintf(path, sizeof path, "%s/%s", c->dir, file_name);
    TRY(st_open(path, &file));
    Arena arena = {0};
    Status status = OK;
    int n = c->registry->n_params;
    GoldenTensor *golden = arena_array(&arena, (size_t)n, sizeof *golden);
    double **ours = arena_array(&arena, (size_t)n, sizeof *ours), norm = 0, difference = 0, absolute = 0;
    for (int k = 0; k < n && status == OK; k++) {
        char name[600];
        snprintf(name, sizeof name, "%s%s", prefix, c->registry->param[k].name);
        status = golden_read(file, name, false, &arena, &golden[k]);
        if (status != OK) break;
        ours[k] = arena_array(&arena, (size_t)golden[k].count, sizeof **ours);
        status = ours[k] ? store_read_param(c->store, place, k, DT_F64, ours[k], golden[k].count)
                         : status_fail(ERR_MEMORY, "out of memory");
        for (int64_t i = 0; i < golden[k].count && status == OK; i++) {
            double d = ours[k][i] - golden[k].value[i];
            norm += golden[k].value[i] * golden[k].value[i];
            difference += d * d;
            if (!(fabs(d) <= absolute)) absolute = fabs(d);
        }
    }
    bool stepped = place == PLACE_PARAM || place == PLACE_SWA, moment = place == PLACE_ADAM_M || place == PLACE_ADAM_V;
    bool violation = !stepped && !moment && c->config.w_violation > 0;
    ParityKind kind = moment ? PARITY_MOMENT : PARITY_GRADIENT;
    for (int k = 0; k < n && status == OK && !stepped; k++) {
        double own = 0;
        for (int64_t i = 0; i < golden[k].count; i++) own += golden[k].value[i] * golden[k].value[i];
        snprintf(line, sizeof line, "%s/%s", label, c->registry->param[k].name);
        /* a gradient that vanishes analytically (golden README) is the rounding noise of terms as large as the others:
         * measured against the norm of all */
        bool vanishes = sqrt(own) < 1e-9 * sqrt(norm);
        double floor = vanishes ? sqrt(norm) : 0;
        double limit = parity_tolerance(c->parity, vanishes && !moment ? PARITY_GRADIENT_ALL : kind);
        status = parity_beside(c->parity, line, ours[k], golden[k].value, golden[k].count, &arena);
        if (status != OK) break;
        double error = parity_l2_error(ours[k], golden[k].value, golden[k].count, floor);
        (violation ? parity_report_unstated : parity_report)(c->parity, line, error, limit);
    }
    if (status == OK && stepped) {
        snprintf(line, sizeof line, "%s (largest absolute error)", label);
        parity_report(c->parity, line, absolute, parity_tolerance(c->parity, PARITY_STEPPED));
    } else if (status == OK) {
        snprintf(line, sizeof line, "%s, all parameters (l2)", label);
        double limit = parity_tolerance(c->parity, moment ? PARITY_MOMENT : PARITY_GRADIENT_ALL);
        if (violation && c->parity->options.switches.precision == PRECISION_F32)
            limit = PARITY_VIOLATION_FACTOR * parity_tolerance(c->parity, PARITY_GEOMETRY);
        parity_report(c->parity, line, sqrt(difference / norm), limit);
    }
    arena_free(&arena);
    st_close(&file);
    return status;
}

static bool present(const ModelCase *c, const char *file_name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", c->dir, file_name);
    return access(path, R_OK) == 0;
}

/* ---- the files of the folder
 * ---------------------------------------------------------------------------------------------------- */

static Status recycling_case(ModelCase *c, int iterations)
{
    char forward[64], loss[64], grads[64], label[64];
    snprintf(forward, sizeof forward, "forward_r%d.safetensors", iterations);
    snprintf(loss, sizeof loss, "loss_r%d.json", iterations);
    snprintf(grads, sizeof grads, "grads_r%d.safetensors", iterations);
    if (!present(c, forward) && !present(c, grads)) return OK;
    for (int clamped = 0; clamped < 2 && present(c, loss); clamped++) {
        c->clamped = clamped;
        TRY(model_case_step(c, iterations));
        snprintf(label, sizeof label, "r%d.%s", iterations, clamped ? "clamped" : "unclamped");
        TRY(model_compare_losses(c, loss, clamped ? "clamped" : "unclamped", label));
    }
    c->clamped = -1;
    TRY(model_case_step(c, iterations));
    snprintf(label, sizeof label, "r%d", iterations);
    if (present(c, forward)) TRY(model_compare_forward(c, forward, label));
    snprintf(label, sizeof label, "r%d.grad", iterations);
    if (present(c, grads)) TRY(compare_params(c, grads, "", PLACE_GRAD, label));
    return OK;
}

static Status base_cases(Parity *parity, const char *dir, const ModelConfig *config)
{
    ModelCase c;
    Status status = model_case_open(&c, parity, dir, config, false);
    if (status == OK) status = write_params(&c);
    for (int r = 0; r < RECYCLING_COPIES && status == OK; r++) status = recycling_case(&c, r);
    model_case_close(&c);
    return status;
}

static Status no_template_case(Parity *parity, const char *dir, const ModelConfig *config)
{
    ModelCase c;
    Status status = model_case_open(&c, parity, dir, config, false);
    c.no_templates = true;
    if (status == OK && present(&c, "forward_r0_notemplates.safetensors")) {
        status = write_params(&c);
        if (status == OK) status = model_case_step(&c, 0);
        if (status == OK) status = model_compare_losses(&c, "loss_r0_notemplates.json", NULL, "r0_notemplates");
        if (status == OK) status = model_compare_forward(&c, "forward_r0_notemplates.safetensors", "r0_notemplates");
    }
    model_case_close(&c);
    return status;
}

static Status fine_tuning_case(Parity *parity, const char *dir, const ModelConfig *config)
{
    ModelConfig tuned = *config;
    tuned.w_violation = 1.0;
    tuned.w_resolved = 0.01;
    ModelCase c;
    Status status = model_case_open(&c, parity, dir, &tuned, false);
    if (status == OK && present(&c, "grads_r0_finetune.safetensors")) {
        status = write_params(&c);
        if (status == OK) status = model_case_step(&c, 0);
        if (status == OK) status = model_compare_losses(&c, "loss_r0_finetune.json", NULL, "r0_finetune");
        if (status == OK)
            status = compare_params(&c, "grads_r0_finetune.safetensors", "", PLACE_GRAD, "r0_finetune.grad");
    }
    model_case_close(&c);
    return status;
}

/* hyper = learning rate, 1 - beta1^t, 1 - beta2^t, t */
static Status optimizer_step(ModelCase *c, int t)
{
    const double hyper[4] = {1e-3, 1 - pow(0.9, t), 1 - pow(0.999, t), t};
    int buffer = registry_find_buffer(c->registry, "hyper");
    TRY(store_write(c->store, buffer, DT_F64, hyper, 4));
    return exec_run(c->run_optimizer);
}

static Status three_steps(ModelCase *c, const cJSON *steps)
{
    const cJSON *step;
    int t = 0;
    cJSON_ArrayForEach(step, steps)
    {
        char label[64];
        snprintf(label, sizeof label, "train3.step%d/loss", ++t);
        double loss = NAN, truth = cJSON_GetNumberValue(cJSON_GetObjectItem(step, "loss"));
        TRY(model_case_step(c, (int)cJSON_GetNumberValue(cJSON_GetObjectItem(step, "num_recycling_iters"))));
        TRY(model_read_scalar(c, "loss.scaled_weighted_total_loss", &loss));
        /* later losses carry the parameters' error of the steps before: ten times the single loss's tolerance */
        parity_report(c->parity, label, fabs(loss - truth) / fabs(truth),
                      10 * parity_tolerance(c->parity, PARITY_LOSS));
        TRY(optimizer_step(c, t));
    }
    TRY(compare_params(c, "train3.safetensors", "param.", PLACE_PARAM, "train3.param"));
    TRY(compare_params(c, "train3.safetensors", "adam_m.", PLACE_ADAM_M, "train3.adam_m"));
    TRY(compare_params(c, "train3.safetensors", "adam_v.", PLACE_ADAM_V, "train3.adam_v"));
    return compare_params(c, "train3.safetensors", "swa.", PLACE_SWA, "train3.swa");
}

static Status training_case(Parity *parity, const char *dir, const ModelConfig *config)
{
    char path[4096], text[65536] = {0};
    snprintf(path, sizeof path, "%s/train3.json", dir);
    FILE *f = fopen(path, "rb");
    if (!f) return OK; /* this folder has no training golden */
    size_t length = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    cJSON *steps = length ? cJSON_Parse(text) : NULL;
    if (!steps) return status_fail_at(ERR_INPUT, path, 0, "not JSON");
    ModelCase c;
    Status status = model_case_open(&c, parity, dir, config, true);
    if (status == OK) status = write_params(&c);
    if (status == OK) status = three_steps(&c, steps);
    model_case_close(&c);
    cJSON_Delete(steps);
    return status;
}

Status parity_tiny(Parity *parity, const char *dir)
{
    ModelConfig config;
    TRY(read_config(dir, &config));
    TRY(base_cases(parity, dir, &config));
    TRY(no_template_case(parity, dir, &config));
    TRY(fine_tuning_case(parity, dir, &config));
    return training_case(parity, dir, &config);
}
