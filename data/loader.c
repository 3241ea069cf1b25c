#include "data/loader.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/clock.h"

typedef struct Worker {
    struct Loader *loader;
    pthread_t thread;
    int index;
} Worker;

struct Loader {
    LoaderOptions options;
    LoaderPrepare prepare;
    void *context;
    Arena arena;
    Worker *worker;
    int running; /* threads started */

    pthread_mutex_t lock; /* everything below */
    pthread_cond_t work, ready;
    LoaderQueue *queue;
    double *prepare_s; /* [slots] */
    bool stop;
    int64_t in_a_row; /* failures since the last good sample */
    Status failure;   /* what stopped us */
    char failure_text[1024];
    LoaderReport report;
};

static bool may_skip(const Loader *loader, Status status)
{
    if (loader->options.on_error != LOADER_SKIP || status == ERR_MEMORY || status == ERR_INTERNAL) return false;
    return status != ERR_IO || !loader->options.shared;
}

/* Failures in a row after which no good sample is to be expected: a few epochs of a small set. */
static int64_t most_skipped(const Loader *loader)
{
    enum { LEAST = 64, EPOCHS = 4 };
    int64_t epoch = loader->options.queue.epoch_length;
    if (epoch <= 0 || epoch > LOADER_MOST_SKIPPED / EPOCHS) return LOADER_MOST_SKIPPED;
    return EPOCHS * epoch > LEAST ? EPOCHS * epoch : LEAST;
}

/* Under the lock: a sample could not be prepared. */
static void fail_sample(Loader *loader, int64_t number, Status status, const char *text)
{
    if (may_skip(loader, status)) {
        ++loader->report.skipped;
        ++loader->in_a_row;
        data_warn(loader->options.log, "data", 0, "sample %lld skipped (%lld so far): %s", (long long)number,
                  (long long)loader->report.skipped, text);
        if (loader->in_a_row >= most_skipped(loader) && loader->failure == OK) {
            loader->failure = status;
            snprintf(loader->failure_text, sizeof loader->failure_text,
                     "%lld samples in a row could not be prepared, the last: %.800s", (long long)loader->in_a_row,
                     text);
            loader->stop = true;
        }
    } else if (loader->failure == OK) {
        loader->failure = status;
        snprintf(loader->failure_text, sizeof loader->failure_text, "%s", text);
        loader->stop = true;
    }
}

static void *work(void *argument)
{
    Worker *worker = argument;
    Loader *loader = worker->loader;
    pthread_mutex_lock(&loader->lock);
    while (!loader->stop) {
        int slot;
        int64_t number;
        if (!loader_queue_claim(loader->queue, &slot, &number)) {
            pthread_cond_wait(&loader->work, &loader->lock);
            continue;
        }
        pthread_mutex_unlock(&loader->lock);
        double begin = clock_now_s();
        Status status = loader->prepare(loader->context, worker->index, slot, number);
        double took = clock_now_s() - begin;
        pthread_mutex_lock(&loader->lock);
        loader->prepare_s[slot] = took;
        if (status != OK)
            fail_sample(loader, number, status, status_text());
        else
            loader->in_a_row = 0;
        loader_queue_finish(loader->queue, slot, status != OK);
        pthread_cond_broadcast(&loader->ready);
        if (status != OK) pthread_cond_broadcast(&loader->work);
    }
    pthread_cond_broadcast(&loader->ready);
    pthread_mutex_unlock(&loader->lock);
    return NULL;
}

static Status start_threads(Loader *loader)
{
    for (int i = 0; i < loader->options.workers; ++i) {
        loader->worker[i] = (Worker){.loader = loader, .index = i};
        int code = pthread_create(&loader->worker[i].thread, NULL, work, &loader->worker[i]);
        if (code) return status_fail(ERR_IO, "loader: cannot start thread %d: %s", i, strerror(code));
        ++loader->running;
    }
    return OK;
}

Status loader_create(const LoaderOptions *options, LoaderPrepare prepare, void *context, int64_t next,
                     const int64_t *done, int64_t done_count, Loader **loader_out)
{
    enum { MOST_WORKERS = 4096 };
    if (options->workers < 1 || options->workers > MOST_WORKERS)
        return status_fail(ERR_USAGE, "loader: %d workers, expected 1 to %d", options->workers, MOST_WORKERS);
    Loader *loader = calloc(1, sizeof *loader);
    if (!loader) return status_fail(ERR_MEMORY, "loader: no memory");
    loader->options = *options;
    loader->prepare = prepare;
    loader->context = context;
    pthread_mutex_init(&loader->lock, NULL);
    pthread_cond_init(&loader->work, NULL);
    pthread_cond_init(&loader->ready, NULL);
    Status status = loader_queue_create(&options->queue, next, done, done_count, &loader->arena, &loader->queue);
    if (status == OK) {
        loader->worker = arena_array(&loader->arena, (size_t)options->workers, sizeof *loader->worker);
        loader->prepare_s = arena_array(&loader->arena, (size_t)options->queue.slots, sizeof *loader->prepare_s);
        status = loader->worker && loader->prepare_s ? OK : status_fail(ERR_MEMORY, "loader: no memory");
    }
    if (status == OK) status = start_threads(loader);
    if (status != OK) {
        loader_destroy(&loader);
        return status;
    }
    *loader_out = loader;
    return OK;
}

void loader_destroy(Loader **loader_pointer)
{
    Loader *loader = *loader_pointer;
    if (!loader) return;
    pthread_mutex_lock(&loader->lock);
    loader->stop = true;
    pthread_cond_broadcast(&loader->work);
    pthread_mutex_unlock(&loader->lock);
    for (int i = 0; i < loader->running; ++i) pthread_join(loader->worker[i].thread, NULL);
    pthread_cond_destroy(&loader->ready);
    pthread_cond_destroy(&loader->work);
    pthread_mutex_destroy(&loader->lock);
    arena_free(&loader->arena);
    free(loader);
    *loader_pointer = NULL;
}

/* Under the lock: books a delivery. */
static void account(Loader *loader, LoaderSample *sample, double waited, bool had_to_wait)
{
    LoaderReport *report = &loader->report;
    sample->prepare_s = loader->prepare_s[sample->slot];
    sample->wait_s = waited;
    if (report->delivered++ == 0) {
        report->first_wait_s = waited;
    } else if (had_to_wait) {
        ++report->waits;
        report->wait_s += waited;
        if (waited > report->longest_wait_s) report->longest_wait_s = waited;
    }
    report->prepare_s += sample->prepare_s;
    if (sample->prepare_s > report->longest_prepare_s) report->longest_prepare_s = sample->prepare_s;
    pthread_cond_broadcast(&loader->work); /* the window may have moved */
}

/* number < 0: by the policy */
static Status take(Loader *loader, int64_t number, LoaderSample *sample_out)
{
    LoaderSample sample = {.slot = -1, .number = number};
    double begin = clock_now_s();
    bool waited = false;
    Status status = OK;
    pthread_mutex_lock(&loader->lock);
    for (;;) {
        if (loader->failure != OK) {
            status = status_fail(loader->failure, "%s", loader->failure_text);
            break;
        }
        bool found = number < 0 ? loader_queue_take(loader->queue, &sample.slot, &sample.number)
                                : loader_queue_take_number(loader->queue, number, &sample.slot);
        if (found) {
            account(loader, &sample, clock_now_s() - begin, waited);
            break;
        }
        if (loader_queue_at_end(loader->queue) || (number >= 0 && loader_queue_is_past(loader->queue, number))) break;
        waited = true;
        pthread_cond_wait(&loader->ready, &loader->lock);
    }
    pthread_mutex_unlock(&loader->lock);
    if (status == OK) *sample_out = sample;
    return status;
}

Status loader_next(Loader *loader, LoaderSample *sample_out)
{
    return take(loader, -1, sample_out);
}

Status loader_take_number(Loader *loader, int64_t number, LoaderSample *sample_out)
{
    if (number < 0) return status_fail(ERR_USAGE, "loader: sample %lld asked", (long long)number);
    return take(loader, number, sample_out);
}

void loader_release(Loader *loader, int slot)
{
    pthread_mutex_lock(&loader->lock);
    loader_queue_release(loader->queue, slot);
    pthread_cond_signal(&loader->work);
    pthread_mutex_unlock(&loader->lock);
}

void loader_report(Loader *loader, LoaderReport *report_out)
{
    pthread_mutex_lock(&loader->lock);
    *report_out = loader->report;
    report_out->overtaken = loader_queue_overtaken(loader->queue);
    pthread_mutex_unlock(&loader->lock);
}

int64_t loader_progress(Loader *loader, int64_t *done_out, int64_t room, int64_t *done_count_out)
{
    pthread_mutex_lock(&loader->lock);
    int64_t low = loader_queue_progress(loader->queue, done_out, room, done_count_out);
    pthread_mutex_unlock(&loader->lock);
    return low;
}
