/* From the files of data/examples to batches: dataset, feed, resume, reproducibility. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/feed.h"
#include "data/synth.h"
#include "tests/source_dir.h"

static const char *const CHAINS[] = {"1ubq_A", "1a7g_E", "2q2k_A", "1a8q_A"};
enum { CHAIN_COUNT = sizeof CHAINS / sizeof CHAINS[0], EPOCH = 9 };

static Dataset *open_examples(void)
{
    static char mmcif[4096], alignments[4096];
    snprintf(mmcif, sizeof mmcif, "%s/data/examples/mmcif", source_dir());
    snprintf(alignments, sizeof alignments, "%s/data/examples/alignments", source_dir());
    ArchivePaths paths = {.mmcif = mmcif, .alignments = alignments};
    Dataset *dataset = NULL;
    Status status = dataset_open_archive(&paths, CHAINS, CHAIN_COUNT, NULL, &dataset);
    if (status != OK) fail_msg("%s", status_text());
    return dataset;
}

static FeedOptions small_options(bool ready_first)
{
    FeedOptions options = feed_options_default();
    options.sizes = (BatchSizes){48, 8, 16, 2, 1};
    options.sampler.seed = 11;
    options.sampler.epoch_samples = EPOCH;
    options.ready_first = ready_first;
    return options;
}

static uint64_t checksum(const Batch *batch, int64_t copies)
{
    uint64_t sum = 1469598103934665603ull;
    for (int i = 0; i < FEATURE_COUNT; ++i)
        for (int64_t k = 0; k < (batch->feature[i].per_copy ? copies : 1); ++k) {
            const unsigned char *bytes = batch_data(&batch->feature[i], k);
            for (int64_t b = 0; b < batch->feature[i].count * 4; ++b) sum = (sum ^ bytes[b]) * 1099511628211ull;
        }
    return sum;
}

static Feed *open_feed(const Dataset *dataset, const FeedOptions *options, const char *state)
{
    Feed *feed = NULL;
    Status status = feed_open(dataset, options, state, &feed);
    if (status != OK) fail_msg("%s", status_text());
    return feed;
}

static FeedSample next(Feed *feed)
{
    FeedSample sample;
    Status status = feed_next(feed, &sample);
    if (status != OK) fail_msg("%s", status_text());
    return sample;
}

static void test_batches(void **state)
{
    (void)state;
    Dataset *dataset = open_examples();
    FeedOptions options = small_options(false);
    Feed *feed = open_feed(dataset, &options, NULL);
    for (int step = 0; step < 2 * EPOCH; ++step) {
        FeedSample sample = next(feed);
        const Batch *batch = sample.batch;
        assert_int_equal(sample.number, step);
        assert_int_equal(batch->copies_filled, sample.recycling + 1);
        assert_string_equal(batch->chain, dataset_name(dataset, sample.item.chain));
        assert_int_equal(batch_i32(batch, FEAT_SEQ_LENGTH, 0)[0], batch->residues);
        assert_true(batch->residues <= 48 && batch->residues > 0);
        for (int i = 0; i < FEATURE_COUNT; ++i) {
            if (batch->feature[i].tensor.dtype != DT_F32 || i == FEAT_RESOLUTION) continue;
            const float *values = batch_data(&batch->feature[i], sample.recycling);
            for (int64_t v = 0; v < batch->feature[i].count; ++v) assert_true(isfinite(values[v]));
        }
        /* the first row is the chain itself in every copy, the masked positions aside */
        for (int64_t k = 0; k <= sample.recycling; ++k)
            for (int64_t r = 0; r < batch->residues; ++r)
                assert_int_equal(batch_i32(batch, FEAT_TRUE_MSA, k)[r], batch_i32(batch, FEAT_AATYPE, 0)[r]);
        feed_release(feed, &sample);
    }
    feed_close(&feed);
    dataset_close(&dataset);
}

/* The same four numbers give the same batch, whatever the threads do. */
static void test_reproducible(void **state)
{
    (void)state;
    Dataset *dataset = open_examples();
    uint64_t sums[EPOCH];
    for (int workers = 1; workers <= 4; workers += 3) {
        FeedOptions options = small_options(workers > 1);
        options.workers = workers;
        options.on_error = LOADER_SKIP; /* all copies are prepared in either run */
        Feed *feed = open_feed(dataset, &options, NULL);
        for (int step = 0; step < EPOCH; ++step) {
            FeedSample sample = next(feed);
            uint64_t sum = checksum(sample.batch, 4);
            if (workers == 1)
                sums[sample.number] = sum;
            else
                assert_true(sums[sample.number] == sum);
            feed_release(feed, &sample);
        }
        feed_close(&feed);
    }
    dataset_close(&dataset);
}

/* Stopped in mid-epoch and continued: the same samples in all, and the same recycling counts per step. */
static void test_resume(void **state)
{
    (void)state;
    Dataset *dataset = open_examples();
    FeedOptions options = small_options(true);
    options.workers = 3;
    for (int cut = 1; cut < EPOCH; cut += 3) {
        Arena arena = {0};
        char *saved = NULL, seen[EPOCH] = {0};
        int64_t recycling[EPOCH];
        Feed *feed = open_feed(dataset, &options, NULL);
        for (int step = 0; step < EPOCH; ++step) {
            if (step == cut) {
                assert_int_equal(feed_state(feed, &arena, &saved), OK);
                feed_close(&feed);
                feed = open_feed(dataset, &options, saved);
            }
            FeedSample sample = next(feed);
            assert_true(sample.number < EPOCH); /* no sample of the next epoch before the last of this one */
            ++seen[sample.number];
            recycling[step] = sample.recycling;
            feed_release(feed, &sample);
        }
        feed_close(&feed);
        for (int i = 0; i < EPOCH; ++i) assert_int_equal(seen[i], 1);
        feed = open_feed(dataset, &options, NULL);
        for (int step = 0; step < EPOCH; ++step) {
            FeedSample sample = next(feed);
            assert_int_equal(sample.recycling, recycling[step]);
            feed_release(feed, &sample);
        }
        feed_close(&feed);
        arena_free(&arena);
    }
    dataset_close(&dataset);
}

/* A run with many workers was 300 samples ahead of one that takes long; one with few goes on where it stopped. */
static void test_fewer_workers(void **state)
{
    (void)state;
    enum { AHEAD = 300, LONG_EPOCH = 1000 };
    Dataset *dataset = open_examples();
    FeedOptions options = small_options(true);
    options.sampler.epoch_samples = LONG_EPOCH;
    options.workers = options.ahead = 1;
    options.window = 8;
    char text[256] = "seed=11 dp=1 rank=0 epoch=1000 step=300 next=2 done=e";
    for (int digit = 1; digit < AHEAD / 4; ++digit) strcat(text, "f"); /* 3 to 301 are done */
    Feed *feed = open_feed(dataset, &options, text);
    FeedSample sample = next(feed);
    assert_int_equal(sample.number, 2);
    feed_release(feed, &sample);
    for (int i = 0; i < 3; ++i) {
        sample = next(feed);
        assert_true(sample.number >= AHEAD + 2 && sample.number < AHEAD + 5);
        feed_release(feed, &sample);
    }
    feed_close(&feed);
    dataset_close(&dataset);
}

static void test_wrong_state(void **state)
{
    (void)state;
    static const char *const WRONG[] = {
        "",
        "nonsense",
        "seed=12 dp=1 rank=0 epoch=9 step=1 next=1 done=",
        "seed=11 dp=2 rank=0 epoch=9 step=1 next=1 done=",
        "seed=11 dp=1 rank=0 epoch=8 step=1 next=1 done=",
        "seed=11 dp=1 rank=0 epoch=9 step=1 next=-1 done=",
        "seed=11 dp=1 rank=0 epoch=9 step=1 next=5 done=x",
        "seed=11 dp=1 rank=0 epoch=9 step=1 next=5 done=4 1",
        "seed=11 dp=1 rank=0 epoch=9 step=1 next=5 done=4G",
    };
    Dataset *dataset = open_examples();
    FeedOptions options = small_options(true);
    Feed *feed = NULL;
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; ++i) {
        assert_int_equal(feed_open(dataset, &options, WRONG[i], &feed), ERR_INPUT);
        assert_null(feed);
    }
    dataset_close(&dataset);
}

/* Ranks see disjoint positions that together are the whole list. */
static void test_ranks(void **state)
{
    (void)state;
    Dataset *dataset = open_examples();
    char seen[12] = {0};
    for (int rank = 0; rank < 3; ++rank) {
        FeedOptions options = small_options(false);
        options.sampler.epoch_samples = 12;
        options.sampler.dp = 3;
        options.sampler.dp_rank = rank;
        Feed *feed = open_feed(dataset, &options, NULL);
        for (int step = 0; step < 4; ++step) {
            FeedSample sample = next(feed);
            ++seen[sample.item.position];
            feed_release(feed, &sample);
        }
        feed_close(&feed);
    }
    for (int i = 0; i < 12; ++i) assert_int_equal(seen[i], 1);
    dataset_close(&dataset);
}

static void count_skip(void *context, const char *file, long line, const char *text)
{
    (void)file;
    (void)line;
    if (strstr(text, "skipped")) ++*(int64_t *)context;
}

/* One of four chains has a broken alignment: skipped and counted, or the end of the run, as asked. */
static void test_broken_chain(void **state)
{
    (void)state;
    char folder[] = "/tmp/foldscale_feed_XXXXXX", mmcif[64], alignments[64], broken[128], command[64], name[8];
    assert_non_null(mkdtemp(folder));
    SynthOptions synth = synth_options_default();
    synth.folder = folder;
    synth.chains = 4;
    synth.length_median = 40;
    synth.depth_median = 20;
    assert_int_equal(synth_write(&synth), OK);
    synth_name(2, name);
    snprintf(mmcif, sizeof mmcif, "%s/mmcif", folder);
    snprintf(alignments, sizeof alignments, "%s/alignments", folder);
    snprintf(broken, sizeof broken, "%s/%s/uniref90_hits.a3m", alignments, name);
    FILE *file = fopen(broken, "a");
    assert_non_null(file);
    fprintf(file, ">short\nACD\n");
    fclose(file);

    ArchivePaths paths = {.mmcif = mmcif, .alignments = alignments};
    Dataset *dataset = NULL;
    int64_t remarks = 0;
    DataLog log = {count_skip, &remarks};
    assert_int_equal(dataset_open_archive(&paths, NULL, 0, NULL, &dataset), OK);
    FeedOptions options = small_options(false);
    options.sampler.order = SAMPLER_SHUFFLED;
    options.sampler.epoch_samples = 0;
    options.on_error = LOADER_SKIP;
    options.log = &log;
    options.workers = options.ahead = 1;
    Feed *feed = open_feed(dataset, &options, NULL);
    LoaderReport report;
    for (int step = 0; step < 6; ++step) { /* two epochs of three good chains */
        FeedSample sample = next(feed);
        assert_string_not_equal(sample.batch->chain, name);
        assert_int_equal(sample.item.epoch, step / 3);
        feed_release(feed, &sample);
    }
    feed_report(feed, &report);
    assert_true(report.skipped >= 1 && report.skipped <= 3); /* the third epoch may have begun */
    feed_close(&feed);
    assert_true(remarks >= report.skipped);

    options.on_error = LOADER_STOP;
    feed = open_feed(dataset, &options, NULL);
    Status status = OK;
    for (int step = 0; step < 4 && status == OK; ++step) {
        FeedSample sample;
        status = feed_next(feed, &sample);
        if (status == OK) feed_release(feed, &sample);
    }
    assert_int_equal(status, ERR_INPUT);
    assert_non_null(strstr(status_text(), "uniref90_hits.a3m"));
    feed_close(&feed);
    dataset_close(&dataset);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_batches),     cmocka_unit_test(test_reproducible),
                                       cmocka_unit_test(test_resume),      cmocka_unit_test(test_fewer_workers),
                                       cmocka_unit_test(test_wrong_state), cmocka_unit_test(test_ranks),
                                       cmocka_unit_test(test_broken_chain)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
