/* Worker threads that prepare numbered samples ahead of a consumer. Knows nothing of what a sample is: `prepare` fills
 * slot memory. The policy is data/loader_queue.h.
 *
 * In a DAP group all ranks need the same sample. Ordered: they get it by themselves. Ready-first: one rank of the group
 * calls loader_next and tells the others the number; they call loader_take_number. */
#ifndef FOLDSCALE_DATA_LOADER_H
#define FOLDSCALE_DATA_LOADER_H

#include "data/loader_queue.h"
#include "data/log.h"

typedef enum LoaderOnError { LOADER_STOP, LOADER_SKIP } LoaderOnError;

enum { LOADER_MOST_SKIPPED = 1000 }; /* in a row; then the data as a whole is broken and the loader stops */

typedef struct LoaderOptions {
    int workers;            /* threads, at least 1 */
    QueueOptions queue;     /* slots: workers + samples that may wait ready */
    LoaderOnError on_error; /* ERR_MEMORY and ERR_INTERNAL always stop, as does a row of failures */
    bool shared;            /* other ranks prepare the same samples: what may fail on one alone (ERR_IO) stops, too */
    const DataLog *log;     /* remarks about skipped samples; may be NULL */
} LoaderOptions;

/* Fills slot `slot` with sample `number`; called by worker `worker` (0 .. workers-1), one call at a time each. Names
 * the sample in its error message. */
typedef Status (*LoaderPrepare)(void *context, int worker, int slot, int64_t number);

typedef struct LoaderSample {
    int slot;
    int64_t number;
    double prepare_s; /* time in prepare */
    double wait_s;    /* time that loader_next waited for it */
} LoaderSample;

typedef struct LoaderReport {
    int64_t delivered, skipped;
    int64_t waits;       /* deliveries that had to wait, the first of all not counted */
    double first_wait_s; /* the pipeline filling up */
    double wait_s;       /* all others */
    double longest_wait_s;
    double prepare_s, longest_prepare_s; /* sum and largest over delivered samples */
    int64_t overtaken;                   /* most places that a sample was delivered late */
} LoaderReport;

typedef struct Loader Loader;

/* Starts the threads. `next`, `done`: as loader_queue_create. */
Status loader_create(const LoaderOptions *options, LoaderPrepare prepare, void *context, int64_t next,
                     const int64_t *done, int64_t done_count, Loader **loader_out);
/* Stops and joins the threads; samples being prepared are finished first. */
void loader_destroy(Loader **loader);

/* The next sample by the policy; waits. *sample_out has slot -1 at the end. With LOADER_STOP the first failure is
 * returned here, and again on every later call. */
Status loader_next(Loader *loader, LoaderSample *sample_out);
/* Exactly this number; waits. slot -1 when it failed and was skipped, or is beyond the end. */
Status loader_take_number(Loader *loader, int64_t number, LoaderSample *sample_out);
/* Gives the slot back. */
void loader_release(Loader *loader, int slot);

void loader_report(Loader *loader, LoaderReport *report_out);
/* As loader_queue_progress; taken samples count as delivered. */
int64_t loader_progress(Loader *loader, int64_t *done_out, int64_t room, int64_t *done_count_out);

#endif
