/* Recording a step of an experiment and running the passes over it. */
#include <string.h>

#include "engine/clock.h"
#include "experiments/session.h"

const char *const session_program_names[SESSION_PROGRAMS] = {
    [SESSION_RESET] = "reset", [SESSION_NOGRAD] = "nograd", [SESSION_GRAD] = "grad", [SESSION_OPTIMIZER] = "optimizer"};

static void clear_outputs(Program *program)
{
    for (int32_t i = 0; i < program->n_values; i++) program->value[i].output = false;
}

/* What an evaluation reads; the model leaves them as taps, which cost nothing elsewhere. */
static Status keep_predictions(Program *program)
{
    static const char *const names[] = {"out.final_atom_positions", "out.plddt"};
    for (int i = 0; i < 2; i++) {
        Val v = prog_find(program, names[i]);
        if (v == VAL_NONE) return status_fail(ERR_INTERNAL, "the model has no value named \"%s\"", names[i]);
        program->value[v].output = true;
    }
    return OK;
}

/* Recycling starts from zeros (AlphaFold2 supplement, algorithm 2), on the device: the pair representation alone would
 * cost a copy of 34 MB a step. */
static Status record_reset(Registry *registry, Program *program)
{
    for (int i = 0; i < registry->n_buffers; i++) {
        const BufferInfo *buffer = &registry->buffer[i];
        if (buffer->kind != BUFFER_STATE || strncmp(buffer->name, "recycle.", 8) != 0) continue;
        const Tensor t = buffer->tensor;
        OpAttr zero = {.i = {t.rank}};
        for (int axis = 0; axis < t.rank; axis++) zero.i[1 + axis] = t.dim[axis];
        Val state = prog_state(program, buffer->name, t.dtype, t.rank, t.dim);
        prog_add_into(program, OP_FILL, 0, NULL, &zero, 1, &state);
    }
    return prog_status(program);
}

static Status record(const Config *config, bool training, Registry *registry, Program **recorded)
{
    const TrainSection *t = &config->train;
    OptimizerConfig optimizer = {t->beta1, t->beta2, t->eps, t->clip_norm, t->swa_decay};
    if (training) {
        TRY(prog_create(registry, &recorded[SESSION_GRAD]));
        TRY(model_record_forward(&config->model.size, true, recorded[SESSION_GRAD]));
    }
    if (!training || t->recycling > 0) {
        TRY(prog_create(registry, &recorded[SESSION_NOGRAD]));
        TRY(model_record_forward(&config->model.size, false, recorded[SESSION_NOGRAD]));
        /* an iteration without gradient only feeds the recycled states: nothing else is kept, so the heads fall away */
        clear_outputs(recorded[SESSION_NOGRAD]);
        if (!training) TRY(keep_predictions(recorded[SESSION_NOGRAD]));
    }
    if (training) {
        TRY(prog_create(registry, &recorded[SESSION_OPTIMIZER]));
        TRY(model_record_optimizer(&optimizer, recorded[SESSION_OPTIMIZER]));
    }
    TRY(prog_create(registry, &recorded[SESSION_RESET]));
    return record_reset(registry, recorded[SESSION_RESET]);
}

Status session_plan(const Config *config, bool training, PassStage last, SessionPlan *plan_out)
{
    SessionPlan plan = {0};
    Program *recorded[SESSION_PROGRAMS] = {NULL};
    Switches switches = config_pass_switches(config);
    if (!training) switches.dap = switches.dp = 1; /* every rank evaluates chains of its own */
    double start = clock_now_s();
    Status status = registry_create(&plan.registry);
    if (status == OK) status = record(config, training, plan.registry, recorded);
    for (int i = 0; i < SESSION_PROGRAMS; i++) {
        if (status == OK && recorded[i]) status = passes_run(recorded[i], &switches, last, &plan.program[i]);
        if (recorded[i]) prog_destroy(&recorded[i]);
    }
    plan.prepare_s = clock_now_s() - start;
    if (status == OK)
        *plan_out = plan;
    else
        session_plan_free(&plan);
    return status;
}

void session_plan_free(SessionPlan *plan)
{
    for (int i = 0; i < SESSION_PROGRAMS; i++)
        if (plan->program[i]) prog_destroy(&plan->program[i]);
    if (plan->registry) registry_destroy(&plan->registry);
    memset(plan, 0, sizeof *plan);
}

Status session_check_split(const Config *config)
{
    SessionPlan plan;
    TRY(session_plan(config, true, PASS_SHARD, &plan));
    session_plan_free(&plan);
    return OK;
}
