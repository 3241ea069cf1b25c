/* sampler/: filters and weights, orders, recycling counts. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/sampler.h"
#include "tests/data_golden_numbers.h"

static const double WEIGHT_TOLERANCE = 1e-12;

static bool read_table(Golden *golden, const char *name, Arena *arena, GoldenTable *table)
{
    char *path = golden_path(arena, golden->golden, "sampler/%s", name);
    if (golden_exists(path)) return golden_table_read(golden, path, arena, table);
    golden_skip(golden, name, "not in the golden folder");
    return false;
}

static SamplerChain chain_of_row(const GoldenTable *table, int64_t row)
{
    const char *resolution = golden_cell(table, row, "resolution");
    return (SamplerChain){.name = golden_cell(table, row, "pdb_chain_id"),
                          .sequence = golden_cell(table, row, "sequence"),
                          .release_date = golden_cell(table, row, "release_date"),
                          .resolution = *resolution ? strtod(resolution, NULL) : NAN,
                          .cluster = strtoll(golden_cell(table, row, "pdb_cluster_id"), NULL, 10)};
}

static int64_t find_row(const GoldenTable *table, const char *column, const char *value)
{
    for (int64_t row = 0; row < table->rows; ++row)
        if (strcmp(golden_cell(table, row, column), value) == 0) return row;
    return -1;
}

/* chains_with_edge_cases.csv -> filter_and_weights.csv */
static void check_filter(Golden *golden, Arena *arena)
{
    GoldenTable chains, expected;
    if (!read_table(golden, "chains_with_edge_cases.csv", arena, &chains)) return;
    if (!read_table(golden, "filter_and_weights.csv", arena, &expected)) return;
    SamplerChain *list = arena_array(arena, (size_t)chains.rows, sizeof *list);
    SamplerFilter filter = sampler_filter_default();
    SamplerVerdict *verdicts;
    int64_t *sizes;
    double *weights;
    for (int64_t i = 0; list && i < chains.rows; ++i) list[i] = chain_of_row(&chains, i);
    if (!list || !golden_ok(golden, sampler_weigh(list, chains.rows, &filter, arena, &verdicts, &sizes, &weights),
                            "filter_and_weights"))
        return;
    for (int64_t i = 0; i < chains.rows; ++i) {
        int64_t row = find_row(&expected, "pdb_chain_id", list[i].name);
        char *label = arena_printf(arena, "filter and weight of %s", list[i].name);
        if (row < 0) {
            golden_check(golden, false, label, "not in filter_and_weights.csv");
            continue;
        }
        bool kept = strcmp(golden_cell(&expected, row, "kept"), "1") == 0;
        bool same = kept == (verdicts[i] == SAMPLER_KEPT) &&
                    strcmp(golden_cell(&expected, row, "rejected_by"), sampler_verdict_name(verdicts[i])) == 0;
        if (same && kept)
            same = sizes[i] == strtoll(golden_cell(&expected, row, "cluster_size_after_filter"), NULL, 10) &&
                   fabs(weights[i] - strtod(golden_cell(&expected, row, "weight"), NULL)) <= WEIGHT_TOLERANCE;
        golden_check(golden, same, label, "%s, cluster of %lld, weight %.12g",
                     verdicts[i] == SAMPLER_KEPT ? "kept" : sampler_verdict_name(verdicts[i]), (long long)sizes[i],
                     weights[i]);
    }
}

static void check_weight_table(Golden *golden, Arena *arena)
{
    GoldenTable table;
    double worst = 0.0;
    if (!read_table(golden, "weight_table.csv", arena, &table)) return;
    for (int64_t row = 0; row < table.rows; ++row) {
        double weight = sampler_weight(strtoll(golden_cell(&table, row, "sequence_length"), NULL, 10),
                                       strtoll(golden_cell(&table, row, "cluster_size"), NULL, 10));
        worst = fmax(worst, fabs(weight - strtod(golden_cell(&table, row, "weight"), NULL)));
    }
    golden_check(golden, worst <= WEIGHT_TOLERANCE, "weight_table", "%lld weights, largest error %.2g",
                 (long long)table.rows, worst);
}

static void check_openfold(Golden *golden, Arena *arena)
{
    GoldenTable chains, expected;
    if (!read_table(golden, "chains.csv", arena, &chains)) return;
    if (!read_table(golden, "openfold_cache_weights.csv", arena, &expected)) return;
    for (int64_t row = 0; row < expected.rows; ++row) {
        const char *name = golden_cell(&expected, row, "chain");
        int64_t from = find_row(&chains, "pdb_chain_id", name);
        char *label = arena_printf(arena, "OpenFold's probability of %s", name);
        bool kept;
        if (from < 0) {
            golden_check(golden, false, label, "not in chains.csv");
            continue;
        }
        double probability = sampler_openfold_probability(
            golden_cell(&chains, from, "sequence"), strtod(golden_cell(&expected, row, "resolution"), NULL),
            strtoll(golden_cell(&expected, row, "cluster_size"), NULL, 10), &kept);
        bool same = kept == (strcmp(golden_cell(&expected, row, "kept"), "1") == 0) &&
                    fabs(probability - strtod(golden_cell(&expected, row, "probability"), NULL)) <= WEIGHT_TOLERANCE;
        golden_check(golden, same, label, "%.12g", probability);
    }
}

static int64_t number(const cJSON *object, const char *name)
{
    const cJSON *value = cJSON_GetObjectItem(object, name);
    return cJSON_IsNumber(value) ? (int64_t)value->valuedouble : -1;
}

static void check_validation(Golden *golden, const cJSON *item)
{
    int64_t count = number(item, "dataset_length"), world = number(item, "world_size");
    const cJSON *order = cJSON_GetObjectItem(item, "order");
    char label[64];
    snprintf(label, sizeof label, "validation order of %lld on %lld ranks", (long long)count, (long long)world);
    bool same = count > 0 && world > 0 && cJSON_GetArraySize(order) == world;
    for (int64_t rank = 0; same && rank < world; ++rank) {
        const cJSON *mine = cJSON_GetArrayItem(order, (int)rank);
        same = cJSON_GetArraySize(mine) == sampler_validation_count(count, world);
        for (int k = 0; same && k < cJSON_GetArraySize(mine); ++k)
            same = sampler_validation_index(count, world, rank, k) == (int64_t)cJSON_GetArrayItem(mine, k)->valuedouble;
    }
    golden_check(golden, same, label, "%lld each", (long long)sampler_validation_count(count, world));
}

/* Positions of each rank: ours for dp = world, continued after num_prev_iters global batches. */
static void check_training(Golden *golden, const cJSON *item)
{
    int64_t world = number(item, "world_size"), batch = number(item, "local_batch_size");
    int64_t iterations = number(item, "num_train_iters"), before = number(item, "num_prev_iters");
    const cJSON *ranks = cJSON_GetObjectItem(item, "per_rank_positions");
    char label[96];
    snprintf(label, sizeof label, "training positions, %lld ranks, local batch %lld, after %lld", (long long)world,
             (long long)batch, (long long)before);
    bool same = world > 0 && batch > 0 && cJSON_GetArraySize(ranks) == world;
    for (int rank = 0; same && rank < world; ++rank) {
        SamplerOptions options = {
            .seed = 1, .epoch_samples = world * batch * iterations, .dp = (int)world, .dp_rank = rank};
        Sampler *sampler = NULL;
        if (!golden_ok(golden, sampler_create(&options, NULL, 10, &sampler), label)) return;
        const cJSON *mine = cJSON_GetArrayItem(ranks, rank);
        same = cJSON_GetArraySize(mine) == sampler_local_count(sampler) - before * batch;
        for (int k = 0; same && k < cJSON_GetArraySize(mine); ++k)
            same =
                sampler_item(sampler, before * batch + k).position == (int64_t)cJSON_GetArrayItem(mine, k)->valuedouble;
        sampler_destroy(&sampler);
    }
    golden_check(golden, same, label, "%lld samples in all", (long long)(world * batch * iterations));
}

/* The reference's own random order cannot be redrawn; its rule can be checked on it and on ours: every run of as many
 * steps as there are counts holds each count once. */
static bool deals_fairly(const int64_t *dealt, int64_t count, const int64_t *counts, int64_t kinds)
{
    for (int64_t first = 0; first + kinds <= count; first += kinds)
        for (int64_t k = 0; k < kinds; ++k) {
            int64_t times = 0;
            for (int64_t i = 0; i < kinds; ++i) times += dealt[first + i] == counts[k];
            if (times != 1) return false;
        }
    return true;
}

static void check_recycling(Golden *golden, const cJSON *example)
{
    enum { MOST = 64, STEPS = 400 };
    const cJSON *list = cJSON_GetObjectItem(example, "uniform_recycling_iters");
    const cJSON *first = cJSON_GetObjectItem(example, "first_40");
    int64_t counts[MOST], dealt[STEPS];
    int32_t given[MOST];
    int kinds = cJSON_GetArraySize(list), shown = cJSON_GetArraySize(first);
    if (kinds < 1 || kinds > MOST || shown > STEPS) return;
    for (int i = 0; i < kinds; ++i) given[i] = (int32_t)(counts[i] = (int64_t)cJSON_GetArrayItem(list, i)->valuedouble);
    for (int i = 0; i < shown; ++i) dealt[i] = (int64_t)cJSON_GetArrayItem(first, i)->valuedouble;
    golden_check(golden, deals_fairly(dealt, shown, counts, kinds), "recycling counts, rule read from the example",
                 "%d counts in runs of %d", shown, kinds);
    SamplerOptions options = {.seed = 3, .dp = 1, .recycling = given, .recycling_count = kinds};
    Sampler *sampler = NULL;
    if (!golden_ok(golden, sampler_create(&options, NULL, 1, &sampler), "recycling counts")) return;
    for (int i = 0; i < STEPS; ++i) dealt[i] = sampler_recycling(sampler, i);
    golden_check(golden, deals_fairly(dealt, STEPS, counts, kinds), "recycling counts, ours", "%d counts in runs of %d",
                 STEPS, kinds);
    sampler_destroy(&sampler);
}

static void check_orders(Golden *golden, Arena *arena)
{
    enum { LARGEST = 1 << 24 };
    char *path = golden_path(arena, golden->golden, "sampler/orders.json");
    FILE *file = fopen(path, "rb");
    if (!file) {
        golden_skip(golden, "orders.json", "not in the golden folder");
        return;
    }
    char *text = arena_alloc(arena, LARGEST);
    cJSON *root = cJSON_ParseWithLength(text ? text : "", text ? fread(text, 1, LARGEST - 1, file) : 0);
    fclose(file);
    const cJSON *item;
    if (!root) golden_check(golden, false, "orders.json", "not JSON");
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(root, "validation")) check_validation(golden, item);
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(root, "training")) check_training(golden, item);
    if (cJSON_GetObjectItem(root, "recycling_example"))
        check_recycling(golden, cJSON_GetObjectItem(root, "recycling_example"));
    cJSON_Delete(root);
}

void golden_sampler(Golden *golden)
{
    Arena arena = {0};
    check_filter(golden, &arena);
    check_weight_table(golden, &arena);
    check_openfold(golden, &arena);
    check_orders(golden, &arena);
    arena_free(&arena);
}
