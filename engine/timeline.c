#include "engine/timeline.h"

/* Adds call i to both; what keeps gradients in step runs between the ops of the backward pass: its stage is theirs. */
static void add(Timeline *stages, Timeline *fine, int call, const Op *op, bool every_op)
{
    Interval *last = stages->n ? &stages->interval[stages->n - 1] : NULL;
    Interval next = {call, op->stage, op_def(op->kind)->flags & OPF_COMM};
    if (last && op->stage == STAGE_SYNC) next.stage = last->stage;
    if (!last || last->stage != next.stage)
        stages->interval[stages->n++] = next;
    else
        last->comm = last->comm && next.comm;
    last = fine->n ? &fine->interval[fine->n - 1] : NULL;
    if (every_op || !last || last->stage != next.stage || last->comm != next.comm) fine->interval[fine->n++] = next;
}

Status timelines_create(int n_calls, const OpCall *call, bool every_op, Arena *arena, Timeline *stages_out,
                        Timeline *fine_out)
{
    size_t intervals = (size_t)n_calls + 1;
    Timeline stages = {0, arena_array(arena, intervals, sizeof(Interval))};
    Timeline fine = {0, arena_array(arena, intervals, sizeof(Interval))};
    if (!stages.interval || !fine.interval) return status_fail(ERR_MEMORY, "out of memory for %d calls", n_calls);
    for (int i = 0; i < n_calls; i++) add(&stages, &fine, i, call[i].op, every_op);
    stages.interval[stages.n] = fine.interval[fine.n] = (Interval){.first_call = n_calls};
    *stages_out = stages;
    *fine_out = fine;
    return OK;
}

Status timeline_read(const Timeline *timeline, Backend *backend, int first_mark, const OpCall *call,
                     ExecTimes *times_out, double *op_seconds)
{
    ExecTimes times = {0};
    TRY(backend->mark_wait(backend, first_mark + timeline->n));
    for (int i = 0; i < timeline->n; i++) {
        const Interval *interval = &timeline->interval[i];
        double seconds;
        TRY(backend->elapsed(backend, first_mark + i, first_mark + i + 1, &seconds));
        times.stage_s[interval->stage] += seconds;
        if (interval->comm) times.comm_stage_s[interval->stage] += seconds;
        times.total_s += seconds;
        if (op_seconds) op_seconds[call[interval->first_call].op_index] += seconds;
    }
    *times_out = times;
    return OK;
}
