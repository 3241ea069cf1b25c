/* A bar with rate and time left on standard error, only when that is a terminal. */
#ifndef FOLDSCALE_EXPERIMENTS_PROGRESS_H
#define FOLDSCALE_EXPERIMENTS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Progress {
    const char *what; /* "step", "point" */
    int64_t total, done, first;
    double start_s, drawn_s;
    bool active;
} Progress;

/* `first` of `total` are already done (a resumed run). `show` false keeps it silent (other ranks). */
void progress_begin(Progress *progress, const char *what, int64_t first, int64_t total, bool show);
/* `note` (may be NULL) follows the numbers, e.g. "loss 3.21". Redraws at most ten times a second. */
void progress_update(Progress *progress, int64_t done, const char *note);
void progress_end(Progress *progress);

#endif
