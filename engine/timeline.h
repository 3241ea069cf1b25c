/* Where an executor sets its timing marks. */
#ifndef FOLDSCALE_ENGINE_TIMELINE_H
#define FOLDSCALE_ENGINE_TIMELINE_H

#include "engine/exec.h"

/* A stretch of calls between two marks. */
typedef struct Interval {
    int32_t first_call;
    uint8_t stage;
    bool comm; /* all of them are collectives */
} Interval;

typedef struct Timeline {
    int n;
    Interval *interval; /* one more than n: the end */
} Timeline;

/* stages: a mark where the stage changes; fine: also around collectives, or around every op. */
Status timelines_create(int n_calls, const OpCall *call, bool every_op, Arena *arena, Timeline *stages_out,
                        Timeline *fine_out);
/* Times of a run that set its marks from first_mark on; op_seconds, per op of the program, may be NULL. */
Status timeline_read(const Timeline *timeline, Backend *backend, int first_mark, const OpCall *call,
                     ExecTimes *times_out, double *op_seconds);

#endif
