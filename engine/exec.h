/* Runs planned programs on a backend. */
#ifndef FOLDSCALE_ENGINE_EXEC_H
#define FOLDSCALE_ENGINE_EXEC_H

#include "engine/store.h"

/* Temporaries of several programs that never run at the same time: one arena, as large as the largest needs. */
typedef struct Workspace Workspace;
Status workspace_create(Backend *backend, size_t bytes, Workspace **workspace_out);
void workspace_destroy(Workspace **workspace);

typedef struct Exec Exec;

typedef struct ExecOptions {
    bool time_ops; /* a mark around every op, in the graph too: a replayed op is timed without the gaps of its launch */
    bool check_finite; /* after every op: ERR_NUMERIC naming the first op with a non-finite output (slow; rerun mode) */
    bool graph;        /* capture once, replay afterwards, where the backend can */
    bool time_comm;    /* marks around collectives in every run of a graph: see ExecTimes */
} ExecOptions;

/* Bytes of workspace this planned program needs on this backend: arena + scratch. */
size_t exec_workspace_bytes(const Backend *backend, const Program *program);
/* Of a workspace that several programs share; those that are NULL need none. */
size_t exec_workspace_shared(const Backend *backend, Program *const *program, int count);

/* Resolves all addresses; nothing is allocated afterwards. The program must be planned and must outlive the Exec. */
Status exec_create(Backend *backend, const Program *program, Store *store, Workspace *workspace,
                   const ExecOptions *options, Exec **exec_out);
void exec_destroy(Exec **exec);

/* Runs the whole program once (asynchronous on a GPU; the next exec_* or store_* call is ordered after it). Of one Exec
 * two runs may be in flight: a third waits until the first has ended. */
Status exec_run(Exec *exec);
int64_t exec_runs(const Exec *exec); /* how many there were: the number of the next one */

/* Wall seconds of a run's phases; waits for the run. comm_exposed_s: time the compute stream spent in or waiting for
 * collectives. Marks around collectives slow a replayed graph, so that only its second replay and every 64th run after
 * it have them, unless options say otherwise; the times of the runs between repeat what the last of these found, at
 * most the time of the stage. */
typedef struct ExecTimes {
    double stage_s[STAGE_COUNT];      /* STAGE_SYNC: in the stage it runs in */
    double comm_stage_s[STAGE_COUNT]; /* the part of stage_s spent in or waiting for collectives */
    double comm_exposed_s;            /* their sum */
    double total_s;
} ExecTimes;
enum { EXEC_TIMES_KEPT = 64 }; /* the times of older runs are gone */
Status exec_run_times(Exec *exec, int64_t run, ExecTimes *times_out);
Status exec_times(Exec *exec, ExecTimes *times_out); /* of the last run; waits for all that was enqueued */
/* Seconds of op i over all runs so far, and how often it ran; needs time_ops. */
Status exec_op_times(Exec *exec, int op, double *seconds_out, int64_t *calls_out);

/* Kernels that one run launches: an op may need several. 0 before the first run and where there are no graphs. A
 * program that the host launches is captured for it, without being run. */
Status exec_count_kernels(Exec *exec, int64_t *kernels_out);

/* Copies a named output to the host, converted. count must match. */
Status exec_output(Exec *exec, const char *name, DType host_type, void *values_out, int64_t count);
Status exec_read_value(Exec *exec, Val value, DType host_type, void *values_out, int64_t count);

/* A value as it is stored, into memory of Backend.host_alloc: does not wait, the values are there when a later mark of
 * the backend is reached. */
Status exec_read_later(Exec *exec, Val value, void *pinned);

/* Bytes of the arena actually touched by the last run (highest end of any operand): equals the plan's peak. */
size_t exec_touched_bytes(const Exec *exec);

#endif
