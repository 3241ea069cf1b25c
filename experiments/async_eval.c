#include "experiments/async_eval.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "analysis/schema.h"
#include "engine/output.h"
#include "experiments/files.h"
#include "experiments/launch.h"

enum { MAX_WAITING = 64 };

struct AsyncEval {
    const Config *config;
    char folder[3072]; /* RUN/async_eval */
    char experiment[3200];
    char log_path[3200]; /* what all evaluations say */
    int log;
    int64_t waiting[MAX_WAITING]; /* steps handed over, oldest first */
    int count;
    pid_t child; /* evaluates waiting[0]; 0: none */
};

Status async_eval_create(const Config *config, const char *folder, AsyncEval **async_out)
{
    AsyncEval *a = calloc(1, sizeof *a);
    char *text = NULL;
    if (!a) return status_fail(ERR_MEMORY, "out of memory for the evaluation");
    a->config = config;
    snprintf(a->folder, sizeof a->folder, "%s/async_eval", folder);
    snprintf(a->experiment, sizeof a->experiment, "%s/experiment.yaml", a->folder);
    snprintf(a->log_path, sizeof a->log_path, "%s/log.txt", a->folder);
    a->log = -1;
    Status status = files_make_folder(a->folder);
    if (status == OK) status = checkpoint_remove_all(a->folder); /* what a run that was killed left waiting */
    if (status == OK) status = config_to_json(config, &text);
    if (status == OK) status = file_write_whole(a->experiment, text, strlen(text));
    /* now, as a log that cannot be written should not end a run that is under way */
    if (status == OK) status = output_open_log(a->log_path, true, NULL, &a->log, NULL);
    free(text);
    if (status == OK)
        *async_out = a;
    else
        free(a);
    return status;
}

void async_eval_destroy(AsyncEval **async)
{
    AsyncEval *a = *async;
    if (!a) return;
    if (a->child > 0) {
        kill(a->child, SIGTERM);
        waitpid(a->child, NULL, 0);
    }
    close(a->log);
    free(a);
    *async = NULL;
}

static void weights_path(const AsyncEval *a, int64_t step, char *path, size_t size)
{
    snprintf(path, size, "%s/ckpt_%06lld.safetensors", a->folder, (long long)step);
}

static void scores_path(const AsyncEval *a, int64_t step, char *path, size_t size)
{
    snprintf(path, size, "%s/eval_%06lld.csv", a->folder, (long long)step);
}

/* The evaluation is a process of its own: it must not believe that it is a rank of this job. */
static void become_evaluation(const AsyncEval *a, int64_t step)
{
    extern char **environ;
    char self[4096], weights[4096], scores[4096];
    weights_path(a, step, weights, sizeof weights);
    scores_path(a, step, scores, sizeof scores);
    for (char **e = environ; *e;) {
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        bool launcher = strncmp(name, "OMPI_", 5) == 0 || strncmp(name, "PMI", 3) == 0 || strncmp(name, "ORTE", 4) == 0;
        if (!launcher || unsetenv(name) != 0) e++;
    }
    if (dup2(a->log, STDOUT_FILENO) < 0 || dup2(a->log, STDERR_FILENO) < 0) {
        fprintf(stderr, "foldscale: the evaluation cannot write %s (%s)\n", a->log_path, strerror(errno));
        _exit(127);
    }
    if (launch_self(self, sizeof self) != OK) {
        fprintf(stderr, "foldscale: %s\n", status_text());
        _exit(127);
    }
    const char *weights_of = a->config->eval.swa ? "swa" : "current";
    execl(self, self, "eval", weights, "--experiment", a->experiment, "--csv", scores, "--weights", weights_of,
          (char *)NULL);
    fprintf(stderr, "foldscale: cannot start %s (%s)\n", self, strerror(errno));
    _exit(127);
}

static Status start_next(AsyncEval *a)
{
    if (a->child > 0 || a->count == 0) return OK;
    fflush(NULL);
    a->child = fork();
    if (a->child < 0) {
        a->child = 0;
        return status_fail(ERR_IO, "cannot start the evaluation (%s)", strerror(errno));
    }
    if (a->child == 0) become_evaluation(a, a->waiting[0]);
    return OK;
}

Status async_eval_start(AsyncEval *async, Store *store, const RunState *state)
{
    if (async->count == MAX_WAITING)
        return status_fail(ERR_USAGE, "evaluation is %d evaluations behind training (eval.every is too small)",
                           MAX_WAITING);
    TRY(checkpoint_save(store, async->folder, state, MAX_WAITING));
    async->waiting[async->count++] = state->step;
    return start_next(async);
}

static Status read_scores(const AsyncEval *a, int64_t step, ChainScore **scores_out, int *count_out)
{
    char path[4096];
    Table *table = NULL;
    scores_path(a, step, path, sizeof path);
    TRY(table_read(path, &table));
    static const char *const names[] = {"lddt_ca", "seconds", "length", "drmsd", "gdt_ts", "gdt_ha", "plddt"};
    int chain, column[7];
    ChainScore *scores = calloc((size_t)table->rows + 1, sizeof *scores);
    Status status = scores ? table_column(table, "chain", &chain) : status_fail(ERR_MEMORY, "%s: out of memory", path);
    for (int i = 0; i < 7 && status == OK; i++) status = table_column(table, names[i], &column[i]);
    for (int64_t row = 0; status == OK && row < table->rows; row++) {
        ChainScore *s = &scores[row];
        double length = 0;
        double *target[] = {&s->lddt_ca, &s->seconds, &length, &s->drmsd, &s->gdt_ts, &s->gdt_ha, &s->plddt};
        snprintf(s->chain, sizeof s->chain, "%s", table_cell(table, row, chain));
        for (int i = 0; i < 7 && status == OK; i++) status = table_double_or(table, row, column[i], 0, target[i]);
        s->length = (int64_t)length;
    }
    *count_out = status == OK ? (int)table->rows : 0;
    table_destroy(&table);
    if (status == OK)
        *scores_out = scores;
    else
        free(scores);
    return status;
}

Status async_eval_poll(AsyncEval *async, bool wait, int64_t *step_out, ChainScore **scores_out, int *count_out)
{
    *count_out = 0;
    if (!async || async->child <= 0) return OK; /* nothing is evaluated, or nothing runs */
    int state = 0;
    pid_t done = waitpid(async->child, &state, wait ? 0 : WNOHANG);
    if (done == 0 || (done < 0 && errno == EINTR)) return OK;
    async->child = 0;
    if (done < 0 || !WIFEXITED(state) || WEXITSTATUS(state) != 0)
        return status_fail(ERR_COMM, "the evaluation of step %lld failed; its output is in %s",
                           (long long)async->waiting[0], async->log_path);
    int64_t step = async->waiting[0];
    char weights[4096];
    memmove(async->waiting, async->waiting + 1, (size_t)--async->count * sizeof *async->waiting);
    TRY(read_scores(async, step, scores_out, count_out));
    weights_path(async, step, weights, sizeof weights);
    unlink(weights);
    *step_out = step;
    return start_next(async);
}
