/* Loader: nothing lost, repeated or starved; waits of both policies; failures; resume. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/loader.h"
#include "data/loader_sim.h"

/* --- virtual time ------------------------------------------------------------------------------------------------- */

enum { STEPS = 20000, WINDOW = 1024 };

static LoaderSimReport simulate(bool ready_first, int64_t window, int64_t *delivered)
{
    LoaderSimOptions options = {.workers = 16,
                                .queue = {.slots = 32, .ready_first = ready_first, .window = window, .end = -1},
                                .times = {.median_s = 0.6, .sigma = 1.2, .seed = 5},
                                .step_s = 0.2,
                                .steps = STEPS};
    LoaderSimReport report;
    assert_int_equal(loader_simulate(&options, delivered, &report), OK);
    return report;
}

static void test_waits(void **state)
{
    (void)state;
    LoaderSimReport ordered = simulate(false, WINDOW, NULL), ready = simulate(true, WINDOW, NULL);
    assert_true(ordered.wait_fraction >= 0.10);
    assert_true(ready.wait_fraction <= 0.001);
    assert_int_equal(ordered.overtaken, 0);
}

/* Every number once; number n before any number >= n + window. */
static void check_delivery(const int64_t *delivered, int64_t count, int64_t window)
{
    char *seen = calloc((size_t)(count + window), 1);
    int64_t low = 0;
    assert_non_null(seen);
    for (int64_t i = 0; i < count; ++i) {
        assert_in_range(delivered[i], low, low + window - 1);
        assert_int_equal(seen[delivered[i]], 0);
        seen[delivered[i]] = 1;
        while (seen[low]) ++low;
    }
    assert_true(low > count - window); /* all but the youngest have been delivered */
    free(seen);
}

static void test_bound_in_virtual_time(void **state)
{
    (void)state;
    static const int64_t windows[] = {32, 64, WINDOW};
    int64_t *delivered = calloc(STEPS, sizeof *delivered);
    assert_non_null(delivered);
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; ++i) {
        LoaderSimReport report = simulate(true, windows[i], delivered);
        assert_true(report.overtaken < windows[i]);
        check_delivery(delivered, STEPS, windows[i]);
    }
    simulate(false, WINDOW, delivered);
    for (int64_t i = 0; i < STEPS; ++i) assert_int_equal(delivered[i], i);
    free(delivered);
}

static void test_preparation_times(void **state)
{
    (void)state;
    const LoaderTimes times = {.median_s = 0.6, .sigma = 1.2, .seed = 9};
    enum { COUNT = 20000 };
    double sum = 0.0, shortest = 1e9, longest = 0.0;
    for (int64_t i = 0; i < COUNT; ++i) {
        double t = loader_preparation_time(&times, i);
        assert_true(t == loader_preparation_time(&times, i));
        sum += t;
        shortest = t < shortest ? t : shortest;
        longest = t > longest ? t : longest;
    }
    /* mean 0.6 exp(0.72) = 1.2327, standard deviation 2.23: 4 sigma of the mean of 20000 is 0.063 */
    assert_true(sum / COUNT > 1.2327 - 0.063 && sum / COUNT < 1.2327 + 0.063);
    assert_true(longest / shortest > 1000.0);
}

/* --- threads ------------------------------------------------------------------------------------------------------ */

enum { TOTAL = 400, SLOTS = 12 };

typedef struct Work {
    int64_t in_slot[SLOTS]; /* what prepare has put there */
    int64_t fail_every;     /* 0: never */
    int64_t slow_every;
    Status failure; /* OK: ERR_INPUT */
} Work;

static Status prepare(void *context, int worker, int slot, int64_t number)
{
    Work *work = context;
    (void)worker;
    struct timespec span = {.tv_nsec = (long)(number * 7919 % 300) * 1000};
    if (work->slow_every && number % work->slow_every == 0) span.tv_nsec = 8000000;
    nanosleep(&span, NULL);
    if (work->fail_every && number % work->fail_every == 3 % work->fail_every)
        return status_fail(work->failure == OK ? ERR_INPUT : work->failure, "sample %lld is broken", (long long)number);
    work->in_slot[slot] = number;
    return OK;
}

static Loader *start(Work *work, bool ready_first, LoaderOnError on_error, int64_t next, const int64_t *done,
                     int64_t done_count)
{
    LoaderOptions options = {.workers = 8,
                             .queue = {.slots = SLOTS, .ready_first = ready_first, .window = 64, .end = TOTAL},
                             .on_error = on_error};
    Loader *loader = NULL;
    assert_int_equal(loader_create(&options, prepare, work, next, done, done_count, &loader), OK);
    return loader;
}

/* Takes up to `most` samples; returns how many there were. */
static int64_t consume(Loader *loader, const Work *work, int64_t most, int64_t *delivered)
{
    for (int64_t i = 0; i < most; ++i) {
        LoaderSample sample;
        assert_int_equal(loader_next(loader, &sample), OK);
        if (sample.slot < 0) return i;
        assert_int_equal(work->in_slot[sample.slot], sample.number); /* the slot still holds what was promised */
        delivered[i] = sample.number;
        loader_release(loader, sample.slot);
    }
    return most;
}

static void test_threads(void **state)
{
    (void)state;
    int64_t delivered[TOTAL + 1];
    for (int ready_first = 0; ready_first < 2; ++ready_first) {
        Work work = {.slow_every = 37};
        Loader *loader = start(&work, ready_first, LOADER_STOP, 0, NULL, 0);
        assert_int_equal(consume(loader, &work, TOTAL + 1, delivered), TOTAL);
        if (ready_first)
            check_delivery(delivered, TOTAL, 64);
        else
            for (int64_t i = 0; i < TOTAL; ++i) assert_int_equal(delivered[i], i);
        LoaderReport report;
        loader_report(loader, &report);
        assert_int_equal(report.delivered, TOTAL);
        assert_int_equal(report.skipped, 0);
        loader_destroy(&loader);
    }
}

static void count_remark(void *context, const char *file, long line, const char *text)
{
    (void)file;
    (void)line;
    assert_non_null(strstr(text, "is broken"));
    ++*(int *)context; /* called under the loader's lock */
}

static void test_skip(void **state)
{
    (void)state;
    int remarks = 0;
    int64_t delivered[TOTAL];
    Work work = {.fail_every = 10};
    DataLog log = {count_remark, &remarks};
    LoaderOptions options = {.workers = 4,
                             .queue = {.slots = SLOTS, .ready_first = true, .window = 32, .end = TOTAL},
                             .on_error = LOADER_SKIP,
                             .log = &log};
    Loader *loader = NULL;
    LoaderReport report;
    assert_int_equal(loader_create(&options, prepare, &work, 0, NULL, 0, &loader), OK);
    assert_int_equal(consume(loader, &work, TOTAL, delivered), TOTAL - TOTAL / 10);
    loader_report(loader, &report);
    assert_int_equal(report.skipped, TOTAL / 10);
    assert_int_equal(remarks, TOTAL / 10);
    loader_destroy(&loader);
}

static void test_stop(void **state)
{
    (void)state;
    Work work = {.fail_every = 50};
    Loader *loader = start(&work, false, LOADER_STOP, 0, NULL, 0);
    LoaderSample sample;
    Status status = OK;
    for (int i = 0; i < TOTAL && status == OK; ++i) {
        status = loader_next(loader, &sample);
        if (status == OK) loader_release(loader, sample.slot);
    }
    assert_int_equal(status, ERR_INPUT);
    assert_non_null(strstr(status_text(), "is broken"));
    assert_int_equal(loader_next(loader, &sample), ERR_INPUT);
    loader_destroy(&loader);
}

/* Where nothing can be read, skipping comes to an end; and what may fail on one rank alone is not skipped where other
 * ranks of the group have the same sample. */
static void test_no_more_skipping(void **state)
{
    (void)state;
    Work work = {.fail_every = 1};
    LoaderSample sample;
    Loader *loader = NULL;
    LoaderOptions options = {
        .workers = 4, .queue = {.slots = SLOTS, .window = 32, .epoch_length = 5, .end = -1}, .on_error = LOADER_SKIP};
    assert_int_equal(loader_create(&options, prepare, &work, 0, NULL, 0, &loader), OK);
    assert_int_equal(loader_next(loader, &sample), ERR_INPUT);
    assert_non_null(strstr(status_text(), "64 samples in a row"));
    loader_destroy(&loader);
    for (int shared = 0; shared < 2; ++shared) {
        work = (Work){.fail_every = 50, .failure = ERR_IO};
        options.shared = shared;
        assert_int_equal(loader_create(&options, prepare, &work, 0, NULL, 0, &loader), OK);
        Status status = OK;
        for (int i = 0; i < 60 && status == OK; ++i) {
            status = loader_next(loader, &sample);
            if (status == OK) loader_release(loader, sample.slot);
        }
        assert_int_equal(status, shared ? ERR_IO : OK);
        loader_destroy(&loader);
    }
}

/* Interrupted anywhere, continued from the saved progress: every sample exactly once over both runs. */
static void test_resume(void **state)
{
    (void)state;
    for (int64_t cut = 1; cut < TOTAL; cut += 57) {
        int64_t first[TOTAL], second[TOTAL], done[64], done_count;
        Work work = {.slow_every = 11};
        Loader *loader = start(&work, true, LOADER_STOP, 0, NULL, 0);
        assert_int_equal(consume(loader, &work, cut, first), cut);
        int64_t next = loader_progress(loader, done, 64, &done_count);
        loader_destroy(&loader);
        assert_int_equal(next + done_count, cut);
        loader = start(&work, true, LOADER_STOP, next, done, done_count);
        assert_int_equal(consume(loader, &work, TOTAL, second), TOTAL - cut);
        loader_destroy(&loader);
        char seen[TOTAL] = {0};
        for (int64_t i = 0; i < cut; ++i) ++seen[first[i]];
        for (int64_t i = 0; i < TOTAL - cut; ++i) ++seen[second[i]];
        for (int64_t i = 0; i < TOTAL; ++i) assert_int_equal(seen[i], 1);
    }
}

/* A follower takes the very samples its leader got, whatever order that was. */
static void test_follower(void **state)
{
    (void)state;
    Work leader_work = {.slow_every = 13}, follower_work = {.slow_every = 17};
    Loader *leader = start(&leader_work, true, LOADER_STOP, 0, NULL, 0);
    Loader *follower = start(&follower_work, true, LOADER_STOP, 0, NULL, 0);
    for (int64_t i = 0; i < TOTAL; ++i) {
        LoaderSample led, followed;
        assert_int_equal(loader_next(leader, &led), OK);
        assert_int_equal(loader_take_number(follower, led.number, &followed), OK);
        assert_int_equal(followed.number, led.number);
        assert_true(followed.slot >= 0);
        loader_release(leader, led.slot);
        loader_release(follower, followed.slot);
    }
    LoaderSample again;
    assert_int_equal(loader_take_number(follower, 0, &again), OK);
    assert_int_equal(again.slot, -1);
    loader_destroy(&leader);
    loader_destroy(&follower);
}

static void test_epochs(void **state)
{
    (void)state;
    enum { EPOCH = 50 };
    Work work = {.slow_every = 25};
    LoaderOptions options = {
        .workers = 8,
        .queue = {.slots = SLOTS, .ready_first = true, .window = 64, .epoch_length = EPOCH, .end = TOTAL}};
    Loader *loader = NULL;
    int64_t delivered[TOTAL];
    assert_int_equal(loader_create(&options, prepare, &work, 0, NULL, 0, &loader), OK);
    assert_int_equal(consume(loader, &work, TOTAL, delivered), TOTAL);
    for (int64_t i = 0; i < TOTAL; ++i) assert_int_equal(delivered[i] / EPOCH, i / EPOCH);
    loader_destroy(&loader);
}

static void test_options(void **state)
{
    (void)state;
    Loader *loader = NULL;
    LoaderOptions options = {.workers = 0, .queue = {.slots = 1, .window = 1, .end = 1}};
    assert_int_equal(loader_create(&options, prepare, NULL, 0, NULL, 0, &loader), ERR_USAGE);
    options.workers = 1;
    options.queue.slots = 0;
    assert_int_equal(loader_create(&options, prepare, NULL, 0, NULL, 0, &loader), ERR_USAGE);
    options.queue.slots = 1;
    options.queue.window = 0;
    assert_int_equal(loader_create(&options, prepare, NULL, 0, NULL, 0, &loader), ERR_USAGE);
    options.queue.window = 8;
    const int64_t far = 100;
    assert_int_equal(loader_create(&options, prepare, NULL, 0, &far, 1, &loader), ERR_INPUT);
    assert_null(loader);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_waits),
        cmocka_unit_test(test_bound_in_virtual_time),
        cmocka_unit_test(test_preparation_times),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_skip),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_no_more_skipping),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_follower),
        cmocka_unit_test(test_epochs),
        cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
