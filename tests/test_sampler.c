/* Sampler: filters at their edges, weights, frequencies of the draws, orders, recycling counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/sampler.h"

static Sampler *create(const SamplerOptions *options, const double *weights, int64_t chains)
{
    Sampler *sampler = NULL;
    Status status = sampler_create(options, weights, chains, &sampler);
    if (status != OK) fail_msg("%s", status_text());
    return sampler;
}

static void test_filter_and_weights(void **state)
{
    (void)state;
    static const char LETTERS[] = "ACDEFGHIKL";
    const SamplerChain chains[] = {
        {"1aaa_A", LETTERS, "2021-09-16", 8.999, 4},    {"1aab_A", LETTERS, "2021-09-17", 2.0, 4},
        {"1aac_A", LETTERS, "2000-01-01", 9.0, 4},      {"1aad_A", LETTERS, "2000-01-01", NAN, 4},
        {"1aae_A", "AAAAAAAACD", "2000-01-01", 2.0, 5}, {"1aaf_A", "AAAAAAAAAC", "2000-01-01", 2.0, 5},
        {"1aag_A", LETTERS, "2000-01-01", 2.0, -1},     {"1aah_A", LETTERS, "", 2.0, 4},
        {"1aai_A", "", "2000-01-01", 2.0, 4},
    };
    static const SamplerVerdict expected[] = {SAMPLER_KEPT,       SAMPLER_RELEASE_DATE, SAMPLER_RESOLUTION,
                                              SAMPLER_KEPT,       SAMPLER_KEPT,         SAMPLER_AA_FREQUENCY,
                                              SAMPLER_NO_CLUSTER, SAMPLER_RELEASE_DATE, SAMPLER_AA_FREQUENCY};
    enum { COUNT = sizeof chains / sizeof chains[0] };
    SamplerFilter filter = sampler_filter_default();
    Arena arena = {0};
    SamplerVerdict *verdicts;
    int64_t *sizes;
    double *weights;
    assert_int_equal(sampler_weigh(chains, COUNT, &filter, &arena, &verdicts, &sizes, &weights), OK);
    for (int i = 0; i < COUNT; ++i) {
        assert_int_equal(verdicts[i], expected[i]);
        assert_true((weights[i] > 0.0) == (expected[i] == SAMPLER_KEPT));
    }
    assert_int_equal(sizes[0], 2); /* rejected members of a cluster do not count */
    assert_true(fabs(weights[0] - 0.5 / sqrt(2.0)) < 1e-15);
    filter.need_cluster = false;
    assert_int_equal(sampler_weigh(chains, COUNT, &filter, &arena, &verdicts, &sizes, &weights), OK);
    assert_int_equal(verdicts[6], SAMPLER_KEPT);
    assert_int_equal(sizes[6], 1);
    arena_free(&arena);
}

static void test_frequencies(void **state)
{
    (void)state;
    enum { CHAINS = 4, DRAWS = 40000 };
    const double weights[CHAINS] = {1.0, 0.0, 2.0, 5.0};
    SamplerOptions options = {.order = SAMPLER_WEIGHTED, .seed = 3, .epoch_samples = DRAWS, .dp = 1};
    Sampler *sampler = create(&options, weights, CHAINS);
    int64_t counts[CHAINS] = {0};
    for (int64_t i = 0; i < DRAWS; ++i) ++counts[sampler_item(sampler, i).chain];
    assert_int_equal(counts[1], 0);
    for (int k = 0; k < CHAINS; ++k) {
        double p = weights[k] / 8.0, sigma = sqrt(DRAWS * p * (1 - p));
        assert_true(fabs((double)counts[k] - DRAWS * p) <= 5 * sigma);
    }
    /* the next epoch is another list */
    int64_t same = 0;
    for (int64_t i = 0; i < 1000; ++i) same += sampler_chain_at(sampler, 0, i) == sampler_chain_at(sampler, 1, i);
    assert_true(same < 700); /* expected 47 % */
    sampler_destroy(&sampler);
    assert_null(sampler);
}

static void test_shuffled(void **state)
{
    (void)state;
    static const int64_t SIZES[] = {1, 2, 3, 16, 17, 1000};
    for (size_t s = 0; s < sizeof SIZES / sizeof SIZES[0]; ++s) {
        int64_t n = SIZES[s], fixed = 0;
        SamplerOptions options = {.order = SAMPLER_SHUFFLED, .seed = 3, .dp = 1};
        Sampler *sampler = create(&options, NULL, n);
        char *seen = calloc((size_t)n, 1);
        assert_non_null(seen);
        assert_int_equal(sampler_local_count(sampler), n);
        for (int64_t i = 0; i < n; ++i) {
            int64_t chain = sampler_chain_at(sampler, 4, i);
            ++seen[chain];
            fixed += chain == i;
        }
        for (int64_t i = 0; i < n; ++i) assert_int_equal(seen[i], 1);
        assert_true(n < 1000 || fixed < 10);
        free(seen);
        sampler_destroy(&sampler);
    }
}

/* Any split over replicas covers each position of each epoch exactly once. */
static void test_ranks(void **state)
{
    (void)state;
    for (int dp = 1; dp <= 5; ++dp) {
        char seen[2][25] = {{0}};
        int64_t local = 0;
        for (int rank = 0; rank < dp; ++rank) {
            SamplerOptions options = {.seed = 1, .epoch_samples = 20, .dp = dp, .dp_rank = rank};
            Sampler *sampler = create(&options, NULL, 7);
            local = sampler_local_count(sampler);
            for (int64_t i = 0; i < 2 * local; ++i) {
                SamplerItem item = sampler_item(sampler, i);
                assert_in_range(item.epoch, 0, 1);
                ++seen[item.epoch][item.position];
                assert_int_equal(item.chain, sampler_chain_at(sampler, item.epoch, item.position));
            }
            sampler_destroy(&sampler);
        }
        for (int64_t i = 0; i < local * dp; ++i) assert_true(seen[0][i] == 1 && seen[1][i] == 1);
    }
}

static void test_recycling(void **state)
{
    (void)state;
    SamplerOptions options = {.seed = 1, .dp = 1}, other = {.seed = 1, .dp = 4, .dp_rank = 3, .epoch_samples = 50};
    Sampler *sampler = create(&options, NULL, 1), *elsewhere = create(&other, NULL, 9);
    int orders = 0;
    assert_int_equal(sampler_recycling_max(sampler), 3);
    for (int64_t block = 0; block < 50; ++block) {
        int seen[4] = {0};
        for (int64_t i = 0; i < 4; ++i) {
            int64_t r = sampler_recycling(sampler, block * 4 + i);
            assert_int_equal(r, sampler_recycling(elsewhere, block * 4 + i)); /* the same on all ranks */
            ++seen[r];
            orders += r == sampler_recycling(sampler, i);
        }
        for (int k = 0; k < 4; ++k) assert_int_equal(seen[k], 1);
    }
    assert_true(orders < 120); /* not the same order in every block: expected 50 + 4 */
    sampler_destroy(&sampler);
    sampler_destroy(&elsewhere);
    const int32_t none[1] = {0};
    SamplerOptions fixed = {.seed = 1, .dp = 1, .recycling = none, .recycling_count = 1};
    sampler = create(&fixed, NULL, 1);
    assert_int_equal(sampler_recycling(sampler, 17), 0);
    assert_int_equal(sampler_recycling_max(sampler), 0);
    sampler_destroy(&sampler);
}

static void test_refusals(void **state)
{
    (void)state;
    Sampler *sampler = NULL;
    const double nothing[2] = {0.0, NAN};
    SamplerOptions options = {.seed = 1, .dp = 2, .dp_rank = 2};
    assert_int_equal(sampler_create(&options, NULL, 3, &sampler), ERR_USAGE);
    options.dp_rank = 0;
    assert_int_equal(sampler_create(&options, NULL, 0, &sampler), ERR_INPUT);
    assert_int_equal(sampler_create(&options, nothing, 2, &sampler), ERR_INPUT);
    options.epoch_samples = -1;
    assert_int_equal(sampler_create(&options, NULL, 3, &sampler), ERR_USAGE);
    assert_null(sampler);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_filter_and_weights), cmocka_unit_test(test_frequencies),
                                       cmocka_unit_test(test_shuffled),           cmocka_unit_test(test_ranks),
                                       cmocka_unit_test(test_recycling),          cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
