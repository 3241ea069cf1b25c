#include "experiments/runner.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/clock.h"
#include "experiments/async_eval.h"
#include "experiments/checkpoint.h"
#include "experiments/files.h"
#include "experiments/mllog.h"
#include "experiments/progress.h"
#include "experiments/provenance.h"
#include "experiments/run_folder.h"
#include "experiments/run_log.h"
#include "kernels/kernels.h"

/* Set by SIGINT and SIGTERM: a handler has no other way to tell the loop. */
static volatile sig_atomic_t stop_requested;

static void request_stop(int signal_number)
{
    (void)signal_number;
    stop_requested = 1;
}

/* A step that was started and has not been read. */
typedef struct PendingStep {
    StepInput input;
    double data_wait_s;
} PendingStep;

typedef struct Runner {
    const Config *config;
    const RunOptions *options;
    Backend *backend;
    Session *session;
    Source *source;
    Evaluator *evaluator;
    AsyncEval *async;
    RunLog *log;
    Mllog *mllog;
    RunState state;
    PendingStep pending[SESSION_STEPS_IN_FLIGHT]; /* step i: i modulo the count */
    int64_t started;                              /* the last step that was; state.step is the last that has ended */
    double after_step_s;                          /* evaluation and checkpoint after the last step */
    int64_t nograd_runs, steps_run, saved_step;
    double start_s; /* of this process, minus the time of earlier ones */
    double best, last_lddt, last_loss;
    bool target_reached;
    int lock; /* of the run directory, -1: none */
} Runner;

static bool is_root(const Runner *r)
{
    return r->backend->layout.rank == 0;
}

static double learning_rate(const TrainSection *t, int64_t step)
{
    if (t->warmup_steps <= 0 || step >= t->warmup_steps) return t->learning_rate;
    return t->learning_rate * (double)step / (double)t->warmup_steps;
}

static Status save(Runner *r)
{
    if (r->saved_step == r->state.step) return OK;
    r->state.elapsed_s = clock_now_s() - r->start_s;
    TRY(source_state(r->source, r->state.loader, sizeof r->state.loader));
    if (is_root(r)) TRY(checkpoint_save(r->session->store, r->options->folder, &r->state, r->config->train.keep));
    r->saved_step = r->state.step;
    return OK;
}

static Status record_scores(Runner *r, int64_t step, double elapsed_s, const ChainScore *scores, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++) sum += scores[i].lddt_ca;
    r->last_lddt = count ? sum / count : 0;
    if (r->last_lddt > r->best) r->best = r->last_lddt;
    mllog_at_step(r->mllog, MLLOG_POINT, "eval_accuracy", r->last_lddt, step, r->state.samples);
    if (r->config->eval.target > 0 && r->last_lddt >= r->config->eval.target) r->target_reached = true;
    return run_log_eval(r->log, step, elapsed_s, scores, count);
}

static Status evaluate_now(Runner *r)
{
    int count = evaluator_chains(r->evaluator);
    ChainScore *scores = calloc((size_t)count + 1, sizeof *scores);
    if (!scores) return status_fail(ERR_MEMORY, "out of memory for %d scores", count);
    Weights weights = {.session = r->session, .average = r->config->eval.swa};
    Status status = evaluator_run(r->evaluator, &weights, r->state.step, NULL, scores);
    if (status == OK) status = record_scores(r, r->state.step, clock_now_s() - r->start_s, scores, count);
    free(scores);
    return status;
}

/* Starts or runs the evaluation of this step, and takes in what an earlier asynchronous one found. */
static Status evaluate(Runner *r, bool last)
{
    const EvalSection *e = &r->config->eval;
    bool due = e->every > 0 && (r->state.step % e->every == 0 || last);
    if (!r->config->switches.async_eval) return due ? evaluate_now(r) : OK;
    if (!is_root(r)) return OK;
    ChainScore *scores = NULL;
    int64_t step;
    int count = 0;
    if (due) TRY(async_eval_start(r->async, r->session->store, &r->state));
    do {
        TRY(async_eval_poll(r->async, last, &step, &scores, &count));
        if (count) TRY(record_scores(r, step, clock_now_s() - r->start_s, scores, count));
        free(scores);
        scores = NULL;
    } while (count && last);
    return OK;
}

/* The terms of this rank's loss that are not finite, which the total leaves out; false: there are none. */
static bool name_terms(const Runner *r, const StepResult *result, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < r->session->losses && used < size; i++)
        if (!isfinite(result->loss[i]))
            used += (size_t)snprintf(text + used, size - used, "%s %s %g", used ? "," : " without",
                                     r->session->loss[i].name, result->loss[i]);
    return used > 0;
}

/* A gradient norm that is not finite is the same on all ranks, so that all of them come here: a term that is not finite
 * makes it so as well (LOSS_TOTAL_BWD). Every replica tells of its own terms. */
static Status check_result(Runner *r, const StepInput *input, const StepResult *result)
{
    char terms[512];
    const RankLayout *l = &r->backend->layout;
    if (isfinite(result->gradient_norm)) return OK;
    if ((name_terms(r, result, terms, sizeof terms) && l->dap_rank == 0) || is_root(r))
        fprintf(stderr, "foldscale: step %lld: rank %d: loss %g%s, gradient norm %g: the update is skipped%s\n",
                (long long)input->step, l->rank, result->total_loss, terms, result->gradient_norm,
                r->options->check_finite ? ""
                                         : "; --resume --check-finite from the last checkpoint names the first op");
    return r->options->check_finite ? session_check_finite(r->session, input) : OK;
}

/* The wait for a batch counts only where it left the device without work. */
static Status start_step(Runner *r)
{
    int64_t step = r->started + 1;
    SourceSample sample;
    TRY(source_next(r->source, &sample));
    PendingStep *pending = &r->pending[step % SESSION_STEPS_IN_FLIGHT];
    pending->data_wait_s = session_busy(r->session) ? 0 : sample.wait_s;
    pending->input = (StepInput){.batch = sample.batch,
                                 .step = step,
                                 .sample = r->backend->layout.dp_rank,
                                 .recycling = sample.recycling,
                                 .learning_rate = learning_rate(&r->config->train, step)};
    TRY(session_step_start(r->session, &pending->input));
    r->started = step;
    return OK;
}

static Status finish_step(Runner *r, StepRow *row, StepResult *result)
{
    int64_t step = r->state.step + 1;
    const PendingStep *pending = &r->pending[step % SESSION_STEPS_IN_FLIGHT];
    const StepInput *input = &pending->input;
    TRY(session_step_finish(r->session, result));
    TRY(check_result(r, input, result));
    r->state.step = step;
    r->state.samples += r->backend->layout.dp;
    r->nograd_runs += input->recycling;
    r->steps_run++;
    row->step = step;
    row->rank = r->backend->layout.rank;
    row->recycling = input->recycling;
    row->loss = r->last_loss = result->total_loss;
    row->gradient_norm = result->gradient_norm;
    row->learning_rate = input->learning_rate;
    row->phase_s[PHASE_DATA_WAIT] = pending->data_wait_s;
    row->phase_s[PHASE_FORWARD_NOGRAD] = result->forward_nograd_s;
    row->phase_s[PHASE_FORWARD] = result->forward_s;
    row->phase_s[PHASE_BACKWARD] = result->backward_s;
    row->phase_s[PHASE_COMM_EXPOSED] = result->comm_exposed_s;
    row->phase_s[PHASE_OPTIMIZER] = result->optimizer_s;
    return OK;
}

static bool wants_stop(const Runner *r)
{
    const TrainSection *t = &r->config->train;
    return stop_requested || r->target_reached || (t->max_seconds > 0 && clock_now_s() - r->start_s >= t->max_seconds);
}

static bool is_multiple(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

/* Whether the step after `step` may start before that one is read: not where its parameters are evaluated or saved, nor
 * where a failed step would have to be repeated. The same on all ranks. */
static bool may_run_ahead(const Runner *r, int64_t step)
{
    const Config *c = r->config;
    return step < c->train.steps && !r->options->check_finite && !is_multiple(step, c->eval.every) &&
           !is_multiple(step, c->train.checkpoint_every);
}

static Status next_step(Runner *r, bool stopping, StepRow *row, StepResult *result)
{
    if (r->started == r->state.step) TRY(start_step(r));
    if (!stopping && may_run_ahead(r, r->started)) TRY(start_step(r));
    return finish_step(r, row, result);
}

/* Evaluation and checkpoint of the step that has just ended. Their time is its own, not the next one's. */
static Status after_step(Runner *r, StepRow *row, const StepResult *result)
{
    const TrainSection *t = &r->config->train;
    double before_s = r->after_step_s, start = clock_now_s();
    TRY(evaluate(r, r->state.step >= t->steps));
    row->phase_s[PHASE_EVAL] = clock_now_s() - start;
    if (is_multiple(r->state.step, t->checkpoint_every)) TRY(save(r));
    r->after_step_s = session_busy(r->session) ? 0 : clock_now_s() - start;
    row->step_s = result->span_s - before_s + r->after_step_s;
    row->phase_s[PHASE_OTHER] = row->step_s;
    for (int i = 0; i < PHASE_OTHER; i++) row->phase_s[PHASE_OTHER] -= row->phase_s[i];
    if (row->phase_s[PHASE_OTHER] < 0) row->phase_s[PHASE_OTHER] = 0; /* two clocks, rounded differently */
    return OK;
}

static Status train_loop(Runner *r)
{
    const TrainSection *t = &r->config->train;
    Progress progress;
    bool stop = r->state.step >= t->steps, stopping = false;
    r->started = r->state.step;
    progress_begin(&progress, "step", r->state.step, t->steps, is_root(r));
    while (!stop) {
        StepRow row = {0};
        StepResult result;
        char note[96];
        TRY(next_step(r, stopping, &row, &result));
        TRY(after_step(r, &row, &result));
        TRY(run_log_step(r->log, &row, &result, stopping || wants_stop(r), &stopping));
        /* a step that is in flight when the run is told to stop still ends */
        stop = r->state.step >= t->steps || (stopping && r->started == r->state.step);
        snprintf(note, sizeof note, "loss %.4g%s%.3f", r->last_loss, r->best > 0 ? "  lDDT-Ca " : "  ", r->last_lddt);
        progress_update(&progress, r->state.step, note);
    }
    progress_end(&progress);
    return t->checkpoint_last || stop_requested ? save(r) : OK;
}

_Static_assert((int)SESSION_PROGRAMS <= (int)PROVENANCE_PROGRAMS, "run.json has room for every program");

static void add_program_facts(const Session *s, RunFacts *facts)
{
    for (int i = 0; i < SESSION_PROGRAMS; i++) {
        const Program *p = s->program[i];
        if (!p) continue;
        ProgramFacts *f = &facts->program[facts->programs++];
        *f = (ProgramFacts){.name = session_program_names[i], .ops = p->n_ops, .arena_bytes = (double)p->arena_bytes};
        for (int32_t k = 0; k < p->n_ops; k++) {
            Cost cost = {0};
            prog_op_cost(p, &p->op[k], &cost);
            f->flops += cost.flops;
            f->bytes += cost.bytes;
            f->wire_bytes += cost.wire_bytes;
        }
    }
}

static Status write_provenance(Runner *r, int64_t resumed_from)
{
    char path[4096];
    RunFacts facts = {.argc = r->options->argc,
                      .argv = r->options->argv,
                      .config = r->config,
                      .backend = r->backend,
                      .parameters = r->session->registry->param_count,
                      .store_bytes = (double)r->session->store_bytes,
                      .workspace_bytes = (double)r->session->workspace_bytes,
                      .prepare_s = r->session->prepare_s,
                      .resumed_from = resumed_from};
    add_program_facts(r->session, &facts);
    snprintf(path, sizeof path, "%s/run.json", r->options->folder);
    return provenance_write(path, &facts);
}

/* What the evaluations' process would say too late. */
static Status try_evaluation(Runner *r)
{
    Evaluator *trial = NULL;
    TRY(evaluator_create(r->backend, r->config, &trial));
    evaluator_destroy(&trial);
    return OK;
}

/* What would end a run that has just begun, before it takes the place of another. On all ranks: none goes on before
 * all know. */
static Status check_start(Runner *r)
{
    TRY(source_peek(r->source));
    return r->backend->barrier(r->backend);
}

static Status prepare(Runner *r)
{
    const Config *c = r->config;
    char path[4096];
    bool found = false;
    TRY(session_create(r->backend, c, true, r->options->profile, &r->session));
    TRY(store_init_params(r->session->store, (uint64_t)c->train.seed));
    r->state.seed = c->train.seed;
    if (r->options->resume)
        TRY(checkpoint_resume(r->session->store, r->options->folder, is_root(r), &r->state, &found));
    r->saved_step = found ? r->state.step : -1;
    r->start_s = clock_now_s() - r->state.elapsed_s;
    TRY(source_open(c, r->backend, r->state.loader, &r->source));
    if (c->eval.every > 0 && !c->switches.async_eval) TRY(evaluator_create(r->backend, c, &r->evaluator));
    if (is_root(r) && c->eval.every > 0 && c->switches.async_eval) TRY(try_evaluation(r));
    if (r->options->replace && !found) TRY(check_start(r));
    /* from here on the folder is this run's */
    if (is_root(r) && !found) TRY(run_folder_clear(r->options->folder));
    if (is_root(r)) TRY(write_provenance(r, found ? r->state.step : -1));
    TRY(run_log_open(r->options->folder, r->session, r->state.step, &r->log));
    if (c->eval.every > 0 && c->switches.async_eval && is_root(r))
        TRY(async_eval_create(c, r->options->folder, &r->async));
    if (!is_root(r)) return OK;
    snprintf(path, sizeof path, "%s/mlperf.log", r->options->folder);
    return mllog_open(path, &r->mllog);
}

static void log_start(Runner *r)
{
    const TrainSection *t = &r->config->train;
    mllog_text(r->mllog, MLLOG_POINT, "submission_benchmark", "openfold");
    mllog_text(r->mllog, MLLOG_POINT, "submission_platform", r->backend->device);
    mllog_number(r->mllog, MLLOG_POINT, "number_of_ranks", r->backend->layout.world);
    mllog_number(r->mllog, MLLOG_POINT, "global_batch_size", r->backend->layout.dp);
    mllog_number(r->mllog, MLLOG_POINT, "seed", (double)t->seed);
    mllog_number(r->mllog, MLLOG_POINT, "opt_base_learning_rate", t->learning_rate);
    mllog_number(r->mllog, MLLOG_POINT, "opt_gradient_clip_norm", t->clip_norm);
    mllog_text(r->mllog, MLLOG_END, "init_stop", NULL);
    mllog_text(r->mllog, MLLOG_START, "run_start", NULL);
}

static void log_end(Runner *r)
{
    mllog_number(r->mllog, MLLOG_POINT, "train_samples", (double)r->state.samples);
    mllog_at_step(r->mllog, MLLOG_END, "run_stop", r->last_lddt, r->state.step, r->state.samples);
    if (!is_root(r) || r->options->quiet) return;
    printf("%s: %lld steps", r->config->name, (long long)r->state.step);
    if (r->steps_run > 0) printf(", loss %.6g", r->last_loss);
    if (r->best > 0) printf(", lDDT-Ca %.4f (best %.4f)", r->last_lddt, r->best);
    printf(", %.1f s -> %s%s\n", clock_now_s() - r->start_s, r->options->folder,
           stop_requested ? " (stopped by a signal; --resume goes on)" : "");
}

static Status check_ranks(const Runner *r)
{
    int world = r->backend->layout.world, expected = config_processes(r->config);
    if (world == expected) return OK;
    return status_fail(ERR_USAGE, "%s: the launcher started %d ranks (expected %d: parallel.ranks%s)", r->config->name,
                       world, expected, expected == 1 ? ", or one under parallel.comm: null" : "");
}

/* On one rank, for all. */
static Status claim(Runner *r)
{
    const RunOptions *o = r->options;
    if (!is_root(r)) return OK;
    TRY(run_folder_claim(o->folder, &r->lock));
    return o->resume || o->replace ? OK : run_folder_expect_none(o->folder);
}

Status runner_train(const Config *config, const RunOptions *options)
{
    Runner r = {.config = config, .options = options, .lock = -1};
    KernelOptions kernels = {.dap = config->parallel.dap,
                             .threads = config->parallel.threads,
                             .no_comm = config->parallel.comm == COMM_NULL,
                             .tune_cache = config->parallel.tune_cache[0] ? config->parallel.tune_cache : NULL};
    struct sigaction stop = {.sa_handler = request_stop};
    sigemptyset(&stop.sa_mask);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    TRY(files_make_folder(options->folder));
    TRY(kernels_open(config_backend_name(config->backend), &kernels, &r.backend));
    Status status = check_ranks(&r);
    if (status == OK) status = claim(&r);
    if (status == OK) status = prepare(&r);
    if (status == OK) {
        log_start(&r);
        status = train_loop(&r);
    }
    if (status == OK) log_end(&r);
    if (status == OK && options->profile && is_root(&r))
        status = run_log_ops(options->folder, r.session, r.steps_run, r.nograd_runs);
    async_eval_destroy(&r.async);
    char first[2048]; /* what ended the run is told, not what the end brought */
    snprintf(first, sizeof first, "%s", status_text());
    Status logged = run_log_close(&r.log), logged_too = mllog_close(&r.mllog);
    if (status != OK)
        status_fail(status, "%s", first);
    else
        status = logged != OK ? logged : logged_too;
    run_folder_release(&r.lock);
    if (!kernels_may_close(r.backend, status)) return status;
    evaluator_destroy(&r.evaluator);
    source_close(&r.source);
    session_destroy(&r.session);
    kernels_close(&r.backend);
    return status;
}
