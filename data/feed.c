#include "data/feed.h"

#include "data/feed_progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SLOTS = 4096 }; /* of workers, and of samples ahead */

struct Feed {
    const Dataset *dataset;
    FeedOptions options;
    Sampler *sampler;
    Loader *loader;
    int slots;
    bool exact_copies; /* the step of a sample is known while it is prepared */
    int64_t step;      /* steps handed out */
    int64_t window;
    Arena arena;
    DatasetReader **reader; /* [workers] */
    Batch **batch;          /* [slots] */
    void **pinned;          /* [slots], memory of options.memory */
    SampleTimes *times;     /* [slots] */
};

FeedOptions feed_options_default(void)
{
    return (FeedOptions){.sizes = {256, 124, 1024, 4, 4},
                         .features = feature_config_default(),
                         .templates = true,
                         .sampler = {.order = SAMPLER_WEIGHTED, .dp = 1},
                         .workers = 2,
                         .ahead = 2,
                         .on_error = LOADER_STOP};
}

static Status prepare(void *context, int worker, int slot, int64_t number)
{
    Feed *feed = context;
    SamplerItem item = sampler_item(feed->sampler, number);
    int64_t recycling = feed->exact_copies ? sampler_recycling(feed->sampler, number) : feed->options.sizes.copies - 1;
    SampleRequest request = {
        .chain = item.chain,
        .copies = recycling + 1,
        .draws = {.seed = feed->options.sampler.seed, .epoch = (uint64_t)item.epoch, .index = (uint64_t)item.position},
        .templates = feed->options.templates,
    };
    return dataset_sample(feed->reader[worker], &request, &feed->options.features, feed->batch[slot],
                          &feed->times[slot]);
}

static Status create_batches(Feed *feed)
{
    const FeedMemory *memory = &feed->options.memory;
    size_t bytes;
    TRY(batch_bytes(&feed->options.sizes, &bytes));
    for (int i = 0; i < feed->slots; ++i) {
        if (memory->alloc) TRY(memory->alloc(memory->context, bytes, &feed->pinned[i]));
        TRY(batch_create(&feed->options.sizes, feed->pinned[i], bytes, &feed->batch[i]));
    }
    return OK;
}

static Status allocate(Feed *feed)
{
    size_t slots = (size_t)feed->slots, workers = (size_t)feed->options.workers;
    feed->reader = arena_array(&feed->arena, workers, sizeof *feed->reader);
    feed->batch = arena_array(&feed->arena, slots, sizeof *feed->batch);
    feed->pinned = arena_array(&feed->arena, slots, sizeof *feed->pinned);
    feed->times = arena_array(&feed->arena, slots, sizeof *feed->times);
    if (!feed->reader || !feed->batch || !feed->pinned || !feed->times)
        return status_fail(ERR_MEMORY, "feed: no memory for %d slots", feed->slots);
    for (int i = 0; i < feed->options.workers; ++i) TRY(dataset_reader_create(feed->dataset, &feed->reader[i]));
    return create_batches(feed);
}

static Status check_options(const FeedOptions *options)
{
    if (options->workers < 1 || options->workers > MOST_SLOTS)
        return status_fail(ERR_USAGE, "feed: %d workers, expected 1 to %d", options->workers, MOST_SLOTS);
    if (options->ahead < 0 || options->ahead > MOST_SLOTS)
        return status_fail(ERR_USAGE, "feed: %d samples ahead, expected 0 to %d", options->ahead, MOST_SLOTS);
    return OK;
}

/* A state may come from a run with more slots, which was further ahead; what it can have left behind is bounded. */
static Status choose_window(Feed *feed, const FeedProgress *progress)
{
    const int64_t most = 32 * 2 * (int64_t)MOST_SLOTS;
    feed->window = feed->options.window > 0 ? feed->options.window : 32 * (int64_t)feed->slots;
    if (progress->done_count == 0) return OK;
    int64_t last = progress->done[progress->done_count - 1], needed = last - progress->next + 1;
    if (needed > most)
        return status_fail(ERR_INPUT,
                           "saved data state: sample %lld is %lld ahead of the first one missing, expected "
                           "at most %lld",
                           (long long)last, (long long)needed, (long long)most);
    if (needed > feed->window) feed->window = needed;
    return OK;
}

static Status open_parts(Feed *feed, const char *state)
{
    FeedOptions *o = &feed->options;
    FeedProgress progress = {0};
    TRY(sampler_create(&o->sampler, o->weights, dataset_count(feed->dataset), &feed->sampler));
    o->sizes.copies = sampler_recycling_max(feed->sampler) + 1;
    feed->slots = o->workers + o->ahead;
    feed->exact_copies = !o->ready_first && o->on_error == LOADER_STOP;
    if (state)
        TRY(feed_progress_parse(state, &o->sampler, sampler_local_count(feed->sampler), &feed->arena, &progress));
    feed->step = progress.step;
    TRY(choose_window(feed, &progress));
    TRY(allocate(feed));
    LoaderOptions loader = {
        .workers = o->workers,
        .queue = {.slots = feed->slots,
                  .ready_first = o->ready_first,
                  .window = feed->window,
                  .epoch_length = sampler_local_count(feed->sampler),
                  .end = -1},
        .on_error = o->on_error,
        .shared = o->shared,
        .log = o->log ? o->log : dataset_log(feed->dataset),
    };
    return loader_create(&loader, prepare, feed, progress.next, progress.done, progress.done_count, &feed->loader);
}

Status feed_open(const Dataset *dataset, const FeedOptions *options, const char *state, Feed **feed_out)
{
    TRY(check_options(options));
    Feed *feed = calloc(1, sizeof *feed);
    if (!feed) return status_fail(ERR_MEMORY, "feed: no memory");
    feed->dataset = dataset;
    feed->options = *options;
    Status status = open_parts(feed, state);
    if (status != OK) {
        feed_close(&feed);
        return status;
    }
    *feed_out = feed;
    return OK;
}

void feed_close(Feed **feed_pointer)
{
    Feed *feed = *feed_pointer;
    if (!feed) return;
    loader_destroy(&feed->loader);
    for (int i = 0; feed->reader && i < feed->options.workers; ++i) dataset_reader_destroy(&feed->reader[i]);
    for (int i = 0; feed->batch && i < feed->slots; ++i) batch_destroy(&feed->batch[i]);
    for (int i = 0; feed->pinned && i < feed->slots; ++i)
        if (feed->pinned[i]) feed->options.memory.release(feed->options.memory.context, feed->pinned[i]);
    sampler_destroy(&feed->sampler);
    arena_free(&feed->arena);
    free(feed);
    *feed_pointer = NULL;
}

static Status hand_out(Feed *feed, const LoaderSample *taken, FeedSample *sample_out)
{
    if (taken->slot < 0)
        return status_fail(ERR_INPUT, "data: sample %lld was skipped on this rank", (long long)taken->number);
    *sample_out = (FeedSample){.batch = feed->batch[taken->slot],
                               .number = taken->number,
                               .recycling = sampler_recycling(feed->sampler, feed->step++),
                               .item = sampler_item(feed->sampler, taken->number),
                               .loader = *taken,
                               .times = feed->times[taken->slot]};
    return OK;
}

Status feed_next(Feed *feed, FeedSample *sample_out)
{
    LoaderSample taken;
    TRY(loader_next(feed->loader, &taken));
    return hand_out(feed, &taken, sample_out);
}

Status feed_take(Feed *feed, int64_t number, FeedSample *sample_out)
{
    LoaderSample taken;
    TRY(loader_take_number(feed->loader, number, &taken));
    return hand_out(feed, &taken, sample_out);
}

void feed_release(Feed *feed, FeedSample *sample)
{
    loader_release(feed->loader, sample->loader.slot);
    sample->batch = NULL;
}

size_t feed_batch_bytes(const Feed *feed, int *slots_out)
{
    *slots_out = feed->slots;
    return feed->batch[0]->bytes;
}

void feed_report(Feed *feed, LoaderReport *report_out)
{
    loader_report(feed->loader, report_out);
}

Status feed_state(Feed *feed, Arena *arena, char **state_out)
{
    FeedProgress progress = {.step = feed->step};
    progress.done = arena_array(arena, (size_t)feed->window, sizeof *progress.done);
    if (!progress.done) return status_fail(ERR_MEMORY, "feed: no memory for its state");
    progress.next = loader_progress(feed->loader, progress.done, feed->window, &progress.done_count);
    return feed_progress_format(&progress, &feed->options.sampler, sampler_local_count(feed->sampler), arena,
                                state_out);
}
