/* What the training loop uses: a dataset, a sampler and a loader put together. One Feed per rank.
 *
 *     Feed *feed; FeedSample sample;
 *     TRY(feed_open(dataset, &options, NULL, &feed));
 *     for (...) {
 *         TRY(feed_next(feed, &sample));
 *         for (k = 0; k <= sample.recycling; ++k) upload batch_data(&sample.batch->feature[i], k) and run iteration k;
 *         feed_release(feed, &sample);
 *     }
 *     feed_close(&feed);
 *
 * Recycling iterations belong to the step, so that all ranks agree whatever sample each of them got: step s (counted by
 * this feed, continued by a resume) has sampler_recycling(s). With order "ordered" and on_error "stop" only the needed
 * copies are prepared; otherwise all, since it is not known before which step a sample will be used in. */
#ifndef FOLDSCALE_DATA_FEED_H
#define FOLDSCALE_DATA_FEED_H

#include "data/dataset.h"
#include "data/loader.h"
#include "data/sampler.h"

/* Pinned memory of a backend for the batches; NULL functions: ordinary memory. Called from the opening thread. */
typedef struct FeedMemory {
    void *context;
    Status (*alloc)(void *context, size_t bytes, void **memory_out);
    void (*release)(void *context, void *memory);
} FeedMemory;

typedef struct FeedOptions {
    BatchSizes sizes; /* copies is set by the feed: the largest recycling count + 1 */
    FeatureConfig features;
    bool templates;
    SamplerOptions sampler;
    const double *weights; /* [chains of the dataset], NULL: all 1 */
    int workers;           /* threads */
    int ahead;             /* samples that may wait ready, besides those in work: slots = workers + ahead */
    bool ready_first;
    int64_t window; /* ready-first: see loader_queue.h; 0: 32 x slots */
    LoaderOnError on_error;
    bool shared;        /* other ranks (of a DAP group) prepare the same samples: see loader.h */
    const DataLog *log; /* remarks about skipped samples; NULL: the dataset's */
    FeedMemory memory;
} FeedOptions;

/* crop 256, 124 clusters, 1024 extra rows, 4 templates; weighted order, 2 workers, 2 ahead, ordered, stop. */
FeedOptions feed_options_default(void);

typedef struct Feed Feed;

/* `state`: text of feed_state of the same rank, to continue after it, also with other workers; NULL: from the
 * beginning. ERR_INPUT when the state belongs to another seed, number of replicas or length of epoch. */
Status feed_open(const Dataset *dataset, const FeedOptions *options, const char *state, Feed **feed_out);
void feed_close(Feed **feed);

typedef struct FeedSample {
    const Batch *batch;
    int64_t number;    /* of this rank, over all epochs */
    int64_t recycling; /* iterations without gradient before the last one */
    SamplerItem item;
    LoaderSample loader; /* slot, times */
    SampleTimes times;   /* parts of the preparation */
} FeedSample;

/* The next sample; waits. */
Status feed_next(Feed *feed, FeedSample *sample_out);
/* The sample with this number, for ranks of a DAP group that follow the one that called feed_next. */
Status feed_take(Feed *feed, int64_t number, FeedSample *sample_out);
void feed_release(Feed *feed, FeedSample *sample);

/* Bytes of one batch, and in how many slots. */
size_t feed_batch_bytes(const Feed *feed, int *slots_out);
void feed_report(Feed *feed, LoaderReport *report_out);
/* Progress as one line of text in the arena: samples handed out by feed_next count as used. */
Status feed_state(Feed *feed, Arena *arena, char **state_out);

#endif
