#include "experiments/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/convert.h"
#include "experiments/constants.h"

static Status allocate(Session *s, bool training)
{
    Precision precision = config_pass_switches(s->config).precision;
    StoreUse use = training ? STORE_TRAINING : STORE_FORWARD;
    s->store_bytes = store_bytes(s->registry, precision, use);
    s->workspace_bytes = exec_workspace_shared(s->backend, s->program, SESSION_PROGRAMS);
    TRY(session_check_memory(s, training));
    TRY(store_create(s->backend, s->registry, precision, use, &s->store));
    TRY(workspace_create(s->backend, s->workspace_bytes, &s->workspace));
    return constants_bind(s->store);
}

static Status prepare_execs(Session *s, const ExecOptions *options)
{
    for (int i = 0; i < SESSION_PROGRAMS; i++)
        if (s->program[i]) TRY(exec_create(s->backend, s->program[i], s->store, s->workspace, options, &s->exec[i]));
    return OK;
}

/* Outputs of the gradient program named "loss.*" that hold one number. */
static Status find_losses(Session *s)
{
    const Program *p = s->program[SESSION_GRAD];
    s->total_loss = s->gradient_norm = VAL_NONE;
    if (!p) return OK;
    for (int32_t v = 0; v < p->n_values; v++) {
        const Value *value = &p->value[v];
        if (!value->name || !value->output || strncmp(value->name, "loss.", 5) != 0 || tensor_count(&value->t) != 1)
            continue;
        if (s->losses == SESSION_MAX_LOSSES) return status_fail(ERR_INTERNAL, "more than %d loss outputs", s->losses);
        s->loss[s->losses++] = (LossOutput){value->name + 5, v};
    }
    s->total_loss = p->loss;
    s->gradient_norm = prog_find(s->program[SESSION_OPTIMIZER], "grad_norm");
    if (s->total_loss == VAL_NONE || s->gradient_norm == VAL_NONE)
        return status_fail(ERR_INTERNAL, "the recorded step has no total loss or no output \"grad_norm\"");
    return OK;
}

/* Numbers that a step leaves: its losses, the total, the gradient norm. */
static int result_count(const Session *s)
{
    return s->losses + 2;
}

static Val result_value(const Session *s, int i, SessionProgram *program_out)
{
    *program_out = i == s->losses + 1 ? SESSION_OPTIMIZER : SESSION_GRAD;
    return i < s->losses ? s->loss[i].value : i == s->losses ? s->total_loss : s->gradient_norm;
}

static Status results_allocate(Session *s)
{
    for (int k = 0; k < SESSION_ENDS; k++) TRY(s->backend->marks_reserve(s->backend, 1, &s->end_mark[k]));
    for (int k = 0; k < SESSION_STEPS_IN_FLIGHT; k++) {
        TRY(s->backend->host_alloc(s->backend, (size_t)result_count(s) * sizeof(double), &s->flight[k].results));
    }
    return OK;
}

Status session_create(Backend *backend, const Config *config, bool training, bool profile, Session **session_out)
{
    SessionPlan plan;
    TRY(session_plan(config, training, PASS_PLAN, &plan));
    Session *s = calloc(1, sizeof *s);
    if (!s) {
        session_plan_free(&plan);
        return status_fail(ERR_MEMORY, "out of memory for a session");
    }
    s->backend = backend;
    s->config = config;
    s->registry = plan.registry;
    s->prepare_s = plan.prepare_s;
    memcpy(s->program, plan.program, sizeof s->program);
    s->rng_buffer = registry_find_buffer(s->registry, "rng");
    s->hyper_buffer = registry_find_buffer(s->registry, "hyper");
    Status status = allocate(s, training);
    if (status == OK) status = find_losses(s);
    ExecOptions options = {.time_ops = profile, .graph = config->switches.cuda_graph && !profile};
    if (status == OK) status = prepare_execs(s, &options);
    if (status == OK && training) status = results_allocate(s);
    if (status == OK)
        *session_out = s;
    else
        session_destroy(&s);
    return status;
}

void session_destroy(Session **session)
{
    Session *s = *session;
    if (!s) return;
    for (int i = 0; i < SESSION_PROGRAMS; i++) exec_destroy(&s->exec[i]);
    for (int k = 0; k < SESSION_STEPS_IN_FLIGHT; k++)
        if (s->flight[k].results) s->backend->host_release(s->backend, s->flight[k].results);
    workspace_destroy(&s->workspace);
    store_destroy(&s->store);
    for (int i = 0; i < SESSION_PROGRAMS; i++)
        if (s->program[i]) prog_destroy(&s->program[i]);
    registry_destroy(&s->registry);
    free(s);
    *session = NULL;
}

/* --- a step
 * ----------------------------------------------------------------------------------------------------------- */

static bool is_session_input(const char *name)
{
    return strcmp(name, "rng") == 0 || strcmp(name, "hyper") == 0 || strncmp(name, "const.", 6) == 0;
}

/* Copy `copy` of every feature the programs read; features that all copies share only with the first one. */
static Status upload_features(Session *s, const Batch *batch, int copy, bool shared_too)
{
    for (int i = 0; i < s->registry->n_buffers; i++) {
        const BufferInfo *buffer = &s->registry->buffer[i];
        if (buffer->kind != BUFFER_INPUT || is_session_input(buffer->name)) continue;
        const BatchTensor *feature = batch_find(batch, buffer->name);
        if (!feature)
            return status_fail(ERR_INTERNAL, "the model reads \"%s\", which no feature provides", buffer->name);
        if (!feature->per_copy && !shared_too) continue;
        DType type = feature->tensor.dtype == DT_I32 ? DT_I32 : DT_F32;
        if (feature->count != tensor_count(&buffer->tensor))
            return status_fail(ERR_INTERNAL, "feature \"%s\" has %lld elements, the model reads %lld", buffer->name,
                               (long long)feature->count, (long long)tensor_count(&buffer->tensor));
        TRY(store_write(s->store, i, type, batch_data(feature, copy), feature->count));
    }
    return OK;
}

static Status write_rng(Session *s, int64_t seed, int64_t step, int64_t sample, int iteration)
{
    if (s->rng_buffer < 0) return OK;
    const int32_t values[4] = {(int32_t)(seed & 0x7fffffff), (int32_t)step, (int32_t)sample, iteration};
    return store_write(s->store, s->rng_buffer, DT_I32, values, 4);
}

static Status write_hyper(Session *s, const StepInput *input)
{
    const TrainSection *t = &s->config->train;
    double step = (double)input->step;
    const double hyper[4] = {input->learning_rate, 1 - pow(t->beta1, step), 1 - pow(t->beta2, step), step};
    return store_write(s->store, s->hyper_buffer, DT_F64, hyper, 4);
}

/* Iterations 0..recycling, the last one with gradient. */
static Status run_iterations(Session *s, const StepInput *input)
{
    TRY(exec_run(s->exec[SESSION_RESET]));
    TRY(write_hyper(s, input));
    for (int k = 0; k <= input->recycling; k++) {
        TRY(upload_features(s, input->batch, k, k == 0));
        TRY(write_rng(s, s->config->train.seed, input->step, input->sample, k));
        TRY(exec_run(s->exec[k < input->recycling ? SESSION_NOGRAD : SESSION_GRAD]));
    }
    return OK;
}

static Status results_enqueue(Session *s, const StepFlight *flight, int first, int end)
{
    for (int i = first; i < end; i++) {
        SessionProgram program;
        Val value = result_value(s, i, &program);
        TRY(exec_read_later(s->exec[program], value, (double *)flight->results + i));
    }
    return OK;
}

static Status results_convert(const Session *s, const StepFlight *flight, StepResult *r)
{
    for (int i = 0; i < result_count(s); i++) {
        SessionProgram program;
        Val value = result_value(s, i, &program);
        double *to = i < s->losses ? &r->loss[i] : i == s->losses ? &r->total_loss : &r->gradient_norm;
        TRY(convert_array(prog_tensor(s->program[program], value)->dtype, (const double *)flight->results + i, DT_F64,
                          to, 1));
    }
    return OK;
}

bool session_busy(const Session *s)
{
    bool reached = true;
    if (s->started == s->finished) return false;
    return s->backend->mark_reached(s->backend, s->end_mark[s->started % SESSION_ENDS], &reached) == OK && !reached;
}

Status session_step_start(Session *session, const StepInput *input)
{
    Session *s = session;
    if (s->started - s->finished == SESSION_STEPS_IN_FLIGHT)
        return status_fail(ERR_INTERNAL, "a step was started while %d were in flight", SESSION_STEPS_IN_FLIGHT);
    StepFlight *flight = &s->flight[s->started % SESSION_STEPS_IN_FLIGHT];
    flight->recycling = input->recycling;
    for (int i = 0; i < SESSION_PROGRAMS; i++) /* without recycling there is no SESSION_NOGRAD */
        flight->run[i] = s->exec[i] ? exec_runs(s->exec[i]) : 0;
    if (s->started == 0) TRY(s->backend->mark(s->backend, s->end_mark[0]));
    TRY(run_iterations(s, input));
    /* the losses are read before the optimizer reuses the workspace */
    TRY(results_enqueue(s, flight, 0, s->losses + 1));
    TRY(exec_run(s->exec[SESSION_OPTIMIZER]));
    TRY(results_enqueue(s, flight, s->losses + 1, s->losses + 2));
    s->started++;
    TRY(s->backend->mark(s->backend, s->end_mark[s->started % SESSION_ENDS]));
    return s->backend->upload_finish(s->backend);
}

static Status step_times(Session *s, const StepFlight *flight, StepResult *r)
{
    ExecTimes t;
    for (int k = 0; k < flight->recycling; k++) {
        TRY(exec_run_times(s->exec[SESSION_NOGRAD], flight->run[SESSION_NOGRAD] + k, &t));
        r->forward_nograd_s += t.total_s - t.comm_exposed_s;
        r->comm_exposed_s += t.comm_exposed_s;
    }
    TRY(exec_run_times(s->exec[SESSION_GRAD], flight->run[SESSION_GRAD], &t));
    r->forward_s = t.stage_s[STAGE_FORWARD] - t.comm_stage_s[STAGE_FORWARD];
    r->backward_s =
        t.stage_s[STAGE_BACKWARD] - t.comm_stage_s[STAGE_BACKWARD] + t.stage_s[STAGE_SYNC] - t.comm_stage_s[STAGE_SYNC];
    r->comm_exposed_s += t.comm_exposed_s;
    TRY(exec_run_times(s->exec[SESSION_OPTIMIZER], flight->run[SESSION_OPTIMIZER], &t));
    r->optimizer_s = t.total_s - t.comm_exposed_s;
    r->comm_exposed_s += t.comm_exposed_s;
    return OK;
}

Status session_step_finish(Session *session, StepResult *result_out)
{
    Session *s = session;
    StepResult result = {0};
    if (s->started == s->finished) return status_fail(ERR_INTERNAL, "no step is in flight");
    const StepFlight *flight = &s->flight[s->finished % SESSION_STEPS_IN_FLIGHT];
    int before = s->end_mark[s->finished % SESSION_ENDS], end = s->end_mark[(s->finished + 1) % SESSION_ENDS];
    TRY(s->backend->mark_wait(s->backend, end));
    TRY(s->backend->elapsed(s->backend, before, end, &result.span_s));
    TRY(step_times(s, flight, &result));
    TRY(results_convert(s, flight, &result));
    s->finished++;
    *result_out = result;
    return OK;
}

Status session_check_finite(Session *session, const StepInput *input)
{
    Session *s = session;
    Exec *usual[SESSION_PROGRAMS];
    memcpy(usual, s->exec, sizeof usual);
    memset(s->exec, 0, sizeof s->exec);
    Status status = prepare_execs(s, &(ExecOptions){.check_finite = true});
    if (status == OK) status = run_iterations(s, input);
    for (int i = 0; i < SESSION_PROGRAMS; i++) exec_destroy(&s->exec[i]);
    memcpy(s->exec, usual, sizeof usual);
    return status;
}

Status session_forward(Session *session, const Batch *batch, int64_t step, int recycling)
{
    Session *s = session;
    TRY(exec_run(s->exec[SESSION_RESET]));
    for (int k = 0; k <= recycling; k++) {
        TRY(upload_features(s, batch, k, k == 0));
        TRY(write_rng(s, s->config->train.seed, step, 0, k & 7));
        TRY(exec_run(s->exec[SESSION_NOGRAD]));
    }
    return s->backend->finish(s->backend);
}

Status session_copy_params(Session *from, bool average, Session *to)
{
    const Registry *registry = from->registry;
    int64_t largest = 1;
    for (int i = 0; i < registry->n_params; i++)
        if (registry->param[i].count > largest) largest = registry->param[i].count;
    double *values = malloc((size_t)largest * sizeof *values);
    if (!values) return status_fail(ERR_MEMORY, "out of memory for %lld parameters", (long long)largest);
    Status status = OK;
    for (int i = 0; i < to->registry->n_params && status == OK; i++) {
        int source = registry_find_param(registry, to->registry->param[i].name);
        int64_t count = to->registry->param[i].count;
        if (source < 0 || registry->param[source].count != count)
            status =
                status_fail(ERR_INTERNAL, "parameter \"%s\" differs between sessions", to->registry->param[i].name);
        if (status == OK)
            status = store_read_param(from->store, average ? PLACE_SWA : PLACE_PARAM, source, DT_F64, values, count);
        if (status == OK) status = store_write_param(to->store, PLACE_PARAM, i, DT_F64, values, count);
    }
    free(values);
    return status == OK ? store_lower_params(to->store) : status;
}
