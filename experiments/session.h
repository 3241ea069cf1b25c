/* One training session on one rank: a backend, the recorded programs after all passes, their memory and executors.
 *
 * A step runs the no-gradient program r times, the gradient program once and the optimizer program once; recycled
 * states stay in buffers. Before anything is allocated the plan's bytes are compared with the device's memory. */
#ifndef FOLDSCALE_EXPERIMENTS_SESSION_H
#define FOLDSCALE_EXPERIMENTS_SESSION_H

#include "data/batch.h"
#include "engine/exec.h"
#include "experiments/config.h"

typedef enum SessionProgram {
    SESSION_RESET, /* zeroes the recycled states: recycling starts from zeros */
    SESSION_NOGRAD,
    SESSION_GRAD,
    SESSION_OPTIMIZER,
    SESSION_PROGRAMS
} SessionProgram;

enum { SESSION_MAX_LOSSES = 64, SESSION_STEPS_IN_FLIGHT = 2, SESSION_ENDS = SESSION_STEPS_IN_FLIGHT + 1 };

typedef struct LossOutput {
    const char *name; /* "fape", "distogram", ... as the program names it after "loss." */
    Val value;
} LossOutput;

/* A step that was started and not finished. */
typedef struct StepFlight {
    int recycling;
    int64_t run[SESSION_PROGRAMS]; /* numbers of its first runs */
    void *results;                 /* host memory of the backend: losses, total, gradient norm, 8 bytes each */
} StepFlight;

typedef struct Session {
    Backend *backend; /* borrowed */
    const Config *config;
    Registry *registry;
    Program *program[SESSION_PROGRAMS]; /* planned; SESSION_NOGRAD alone for evaluation */
    Store *store;
    Workspace *workspace;
    Exec *exec[SESSION_PROGRAMS];
    int rng_buffer, hyper_buffer; /* -1 when the programs have none */
    int losses;
    LossOutput loss[SESSION_MAX_LOSSES];
    Val total_loss, gradient_norm; /* of GRAD and OPTIMIZER */
    size_t store_bytes, workspace_bytes;
    double prepare_s;                           /* recording and passes */
    StepFlight flight[SESSION_STEPS_IN_FLIGHT]; /* of step i: i modulo the count */
    int64_t started, finished;                  /* steps */
    int end_mark[SESSION_ENDS];                 /* the end of step i: i + 1 modulo the count; 0 first marks the start */
} Session;

/* Bytes that a session would take on each rank, and the planned programs, without a backend's memory. */
typedef struct SessionPlan {
    Registry *registry;
    Program *program[SESSION_PROGRAMS];
    double prepare_s;
} SessionPlan;
/* training false: the forward program alone, with its outputs (evaluation). `last` stops the passes early. */
Status session_plan(const Config *config, bool training, PassStage last, SessionPlan *plan_out);
void session_plan_free(SessionPlan *plan);
/* ERR_INPUT naming the value when the model cannot be split over parallel.dap ranks. */
Status session_check_split(const Config *config);

/* ERR_MEMORY when the device of this session's backend has less than store_bytes + workspace_bytes: says how much is
 * missing and which switches would make it fit, found by planning with them (session_memory.c). */
Status session_check_memory(const Session *session, bool training);
/* The same of a session that is not there yet. */
Status session_foresee(Backend *backend, const Config *config, bool training);

/* ERR_MEMORY with the sizes when the device is too small. `profile` times every op. */
Status session_create(Backend *backend, const Config *config, bool training, bool profile, Session **session_out);
void session_destroy(Session **session);

/* What happens in one step on this rank. */
typedef struct StepInput {
    const Batch *batch;
    int64_t step;   /* from 1 */
    int64_t sample; /* which replica's random numbers */
    int recycling;  /* iterations without gradient before the last */
    double learning_rate;
} StepInput;

typedef struct StepResult {
    double loss[SESSION_MAX_LOSSES]; /* Session.loss order */
    double total_loss, gradient_norm;
    double forward_nograd_s, forward_s, backward_s, comm_exposed_s, optimizer_s;
    double span_s; /* from the end of the step before (of the first: from its start) to the end of this one */
} StepResult;

/* A step is enqueued by _start, which returns as soon as the batch has been copied, and read by _finish, which waits
 * for the oldest one. Two may be in flight: started before the last one is read, a step leaves the device no time to
 * idle. */
Status session_step_start(Session *session, const StepInput *input);
Status session_step_finish(Session *session, StepResult *result_out);
bool session_busy(const Session *session); /* whether the device still works on a step that was started */

/* Runs the iterations of that step again, op by op, with every output checked: ERR_NUMERIC naming the first op that
 * produced a value that is not finite, OK when all are. A step whose gradient norm is not finite leaves no trace in the
 * parameters (its clip factor is 0), so that this repeats it exactly as long as no other was started. On all ranks, as
 * it communicates. */
Status session_check_finite(Session *session, const StepInput *input);

/* Forward passes alone: recycling + 1 iterations on copies 0..recycling of the batch. Read results with exec_output on
 * session->exec[SESSION_NOGRAD]. */
Status session_forward(Session *session, const Batch *batch, int64_t step, int recycling);

/* Copies parameters (or the average) of a training session into an evaluation session of another size. */
Status session_copy_params(Session *from, bool average, Session *to);

extern const char *const session_program_names[SESSION_PROGRAMS]; /* "reset", "nograd", ... */

#endif
