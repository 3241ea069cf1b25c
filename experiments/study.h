/* The points of a study: which switch settings on which ranks, how often. */
#ifndef FOLDSCALE_EXPERIMENTS_STUDY_H
#define FOLDSCALE_EXPERIMENTS_STUDY_H

#include "experiments/config.h"

typedef struct StudyPoint {
    char id[64]; /* folder of the point: says ranks, dap, switches as bits, repeat */
    SwitchSection switches;
    int ranks, dap, repeat;
} StudyPoint;

/* All points in the order of a shuffle by train.seed (drift of the machine must not look like an effect). Caller frees.
 * ERR_INPUT when no (ranks, dap) pair divides. */
Status study_points(const Config *config, StudyPoint **points_out, int *count_out);

/* "--set" values that turn the experiment into this point; returns how many (each is malloc'ed). */
Status study_overrides(const Config *config, const StudyPoint *point, Arena *arena, TextList *out);

/* Whether a study may go on beside a point that was measured before (`run`: its run.json): ERR_USAGE with the first key
 * that differs, unless a point sets it, it only adds points, or a step does not depend on it. */
Status study_check_same(const Config *asked, const char *run);

#endif
