/* Templates on made-up structures: every rule of the prefilter, order, placement, hits that are left out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/template.h"

static const char QUERY[] = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV";

/* Two entries: 1old (chain A, sequence of its own) and 2new (too young). 3gone is replaced by 1old. */
typedef struct World {
    Structure structure;
    Chain chain[2];
    int remarks;
    char last[256];
} World;

static const char TEMPLATE_A[] = "GGSSAYIAKQRXISFVKSHFWW", TEMPLATE_B[] = "PPPPLEERLGLIEVQAPILPPP";

static void make_chain(World *world, int index, const char *id, const char *sequence)
{
    int64_t length = (int64_t)strlen(sequence);
    Chain *chain = &world->chain[index];
    *chain = (Chain){.chain_id = (char *)id, .length = length, .sequence = (char *)sequence};
    chain->positions = calloc((size_t)length * ATOM37_COUNT * 3, sizeof(float));
    chain->mask = calloc((size_t)length * ATOM37_COUNT, 1);
    assert_true(chain->positions && chain->mask);
    for (int64_t i = 0; i < length; ++i)
        for (int a = 0; a < 5; ++a) {
            int64_t at = i * ATOM37_COUNT + a;
            chain->mask[at] = 1;
            chain->positions[at * 3] = 100.0f + 3.8f * (float)i;
            chain->positions[at * 3 + 1] = (float)a;
        }
}

static const char *current(void *context, const char *entry)
{
    (void)context;
    return strcmp(entry, "3gon") == 0 ? "1old" : entry;
}

static Status release_date(void *context, const char *entry, const char *chain, char date[11])
{
    (void)context;
    bool known = strcmp(chain, "A") == 0 || strcmp(chain, "B") == 0;
    const char *found = !known                       ? ""
                        : strcmp(entry, "1old") == 0 ? "2000-01-31"
                        : strcmp(entry, "2new") == 0 ? "2000-04-02"
                        : strcmp(entry, "9que") == 0 ? "1999-01-01"
                                                     : "";
    memcpy(date, found, strlen(found) + 1);
    return OK;
}

static Status structure(void *context, const char *entry, const char *chain, Arena *arena, const Structure **out)
{
    World *world = context;
    (void)chain;
    (void)arena;
    if (strcmp(entry, "1old") != 0) return status_fail(ERR_INPUT, "no structure of %s", entry);
    *out = &world->structure;
    return OK;
}

static void remark(void *context, const char *file, long line, const char *text)
{
    World *world = context;
    (void)file;
    (void)line;
    ++world->remarks;
    strncpy(world->last, text, sizeof world->last - 1);
}

static World *make_world(void)
{
    World *world = calloc(1, sizeof *world);
    assert_non_null(world);
    make_chain(world, 0, "A", TEMPLATE_A);
    make_chain(world, 1, "B", TEMPLATE_B);
    world->structure = (Structure){.entry_id = "1old", .chain_count = 2, .chain = world->chain};
    return world;
}

static void free_world(World **world)
{
    for (int i = 0; i < 2; ++i) {
        free((*world)->chain[i].positions);
        free((*world)->chain[i].mask);
    }
    free(*world);
    *world = NULL;
}

static TemplateSource source_of(World *world)
{
    return (TemplateSource){world, current, release_date, structure};
}

static TemplateQuery query(const char *date)
{
    return (TemplateQuery){.name = "9que_A", .entry_id = "9que", .sequence = QUERY, .release_date = date};
}

/* A hit from its two rows; the indices count from the given starts. */
static TemplateHit make_hit(Arena *arena, const char *name, const char *query_row, int32_t query_start,
                            const char *hit_row, int32_t hit_start, double sum_probs)
{
    TemplateHit hit = {.index = 1,
                       .name = (char *)name,
                       .sum_probs = sum_probs,
                       .query = (char *)query_row,
                       .hit_sequence = (char *)hit_row,
                       .length = (int64_t)strlen(query_row)};
    hit.query_indices = arena_array(arena, (size_t)hit.length, sizeof(int32_t));
    hit.hit_indices = arena_array(arena, (size_t)hit.length, sizeof(int32_t));
    for (int64_t i = 0; i < hit.length; ++i) {
        hit.query_indices[i] = query_row[i] == '-' ? -1 : query_start++;
        hit.hit_indices[i] = hit_row[i] == '-' ? -1 : hit_start++;
        hit.aligned_columns += query_row[i] != '-' && hit_row[i] != '-';
    }
    return hit;
}

static TemplateVerdict judge(World *world, const TemplateHit *hit, const char *date)
{
    TemplateSource source = source_of(world);
    TemplateQuery q = query(date);
    TemplateVerdict verdict;
    assert_int_equal(template_judge(&q, hit, &source, &verdict), OK);
    return verdict;
}

static void test_prefilter(void **state)
{
    (void)state;
    World *world = make_world();
    Arena arena = {0};
    TemplateHit hit = make_hit(&arena, "1OLD_A", "AYIAKQRQISFV", 3, "AYIAKQRXISFV", 4, 5.0);
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_ACCEPTED);
    /* 60 days before 2000-04-01 (a leap year) is 2000-02-01, before 2000-03-31 it is 2000-01-31, before that too early
     */
    assert_int_equal(judge(world, &hit, "2000-04-01"), TEMPLATE_ACCEPTED);
    assert_int_equal(judge(world, &hit, "2000-03-31"), TEMPLATE_ACCEPTED);
    assert_int_equal(judge(world, &hit, "2000-03-30"), TEMPLATE_TOO_NEW);
    assert_int_equal(judge(world, &hit, ""), TEMPLATE_ACCEPTED);
    hit.name = "3GON_A"; /* by its new name */
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_ACCEPTED);
    hit.name = "2new_A";
    assert_int_equal(judge(world, &hit, "2000-05-31"), TEMPLATE_TOO_NEW);
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_ACCEPTED);
    hit.name = "1old_C";
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_UNKNOWN_CHAIN);
    hit.name = "nonsense";
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_UNKNOWN_CHAIN);
    hit.name = "9QUE_A";
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_SAME_ENTRY);
    hit.name = "1old_A";
    hit.aligned_columns = 7; /* of 70: exactly 10 % */
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_TOO_FEW_COLUMNS);
    hit.aligned_columns = 8;
    hit.hit_sequence = "AYIAKQRQ-I";
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_TOO_SHORT);
    hit.hit_sequence = (char *)QUERY + 3; /* 67 of 70 residues: more than 95 % */
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_DUPLICATE);
    hit.hit_sequence = (char *)QUERY + 4; /* 66 of 70: not */
    assert_int_equal(judge(world, &hit, "2000-06-01"), TEMPLATE_ACCEPTED);
    arena_free(&arena);
    free_world(&world);
}

static void test_order(void **state)
{
    (void)state;
    enum { COUNT = 30 };
    World *world = make_world();
    Arena arena = {0};
    TemplateHit hit[COUNT];
    TemplateHits hits = {COUNT, hit};
    TemplateSource source = source_of(world);
    TemplateQuery q = query("2000-06-01");
    int32_t *order;
    int64_t count;
    for (int i = 0; i < COUNT; ++i)
        hit[i] = make_hit(&arena, i == 11 ? "1old_C" : "1old_A", "AYIAKQRQISFV", 3, "AYIAKQRXISFV", 4, i % 7);
    assert_int_equal(template_select(&q, &hits, &source, &arena, &order, &count), OK);
    assert_int_equal(count, COUNT - 1);
    for (int64_t k = 0; k < count; ++k) assert_int_not_equal(order[k], 11);
    for (int64_t k = 1; k < count; ++k) {
        double before = hit[order[k - 1]].sum_probs, here = hit[order[k]].sum_probs;
        assert_true(before > here || (before == here && order[k - 1] < order[k])); /* stable */
    }
    assert_true(hit[order[count - 1]].sum_probs == 0.0);
    arena_free(&arena);
    free_world(&world);
}

static TemplateFeatures build(World *world, TemplateHit *hit, int64_t count, Arena *arena)
{
    static const int32_t ORDER[4] = {0, 1, 2, 3};
    TemplateSource source = source_of(world);
    TemplateQuery q = query("2000-06-01");
    TemplateHits hits = {count, hit};
    DataLog log = {remark, world};
    TemplateFeatures features;
    world->remarks = 0;
    assert_int_equal(template_build(&q, &hits, ORDER, count, 4, &source, &log, arena, &features), OK);
    return features;
}

static void test_placement(void **state)
{
    (void)state;
    World *world = make_world();
    Arena arena = {0};
    /* a gap on either side: query position 5 has no template residue, template residue 7 no query position */
    TemplateHit hit = make_hit(&arena, "1old_A", "AYI-AKQRQISFV", 3, "AY-IAKQRXISFV", 4, 5.0);
    TemplateFeatures f = build(world, &hit, 1, &arena);
    assert_int_equal(f.count, 1);
    assert_int_equal(world->remarks, 0);
    assert_int_equal(f.columns, 70);
    double mean = 100.0 + 3.8 * 10.5; /* of the whole chain of 22 residues */
    for (int64_t c = 0; c < 70; ++c) {
        bool aligned = c >= 3 && c < 15 && c != 5;
        assert_int_equal(f.aatype[c] != RESTYPE_GAP, aligned);
        assert_int_equal(f.mask[c * ATOM37_COUNT + 1], aligned);
        assert_int_equal(f.mask[c * ATOM37_COUNT + 30], 0);
        /* columns 3 and 4 lie on template residues 4 and 5, columns from 6 on one further: residue c + 1 in both cases
         */
        double x = aligned ? 100.0 + 3.8 * (double)(c + 1) - mean : 0.0;
        assert_true(fabs(f.positions[(c * ATOM37_COUNT + 1) * 3] - x) < 1e-3);
    }
    assert_int_equal(f.aatype[10], RESTYPE_UNKNOWN); /* X */
    assert_true(f.sum_probs[0] == 5.0f);
    arena_free(&arena);
    free_world(&world);
}

static void test_other_chain_and_wildcards(void **state)
{
    (void)state;
    World *world = make_world();
    Arena arena = {0};
    TemplateHit hit = make_hit(&arena, "1old_A", "LEERLGLIEVQAPIL", 22, "LEERLGLIEVQAPIL", 0, 1.0);
    TemplateFeatures f = build(world, &hit, 1, &arena); /* in chain B */
    assert_int_equal(f.count, 1);
    hit = make_hit(&arena, "1old_B", "AYIAKQRQISFV", 3, "AYIAKQRQISFV", 0, 1.0);
    f = build(world, &hit, 1, &arena); /* in chain A, Q against its X */
    assert_int_equal(f.count, 1);
    assert_int_equal(world->remarks, 0);
    arena_free(&arena);
    free_world(&world);
}

static void test_left_out(void **state)
{
    (void)state;
    World *world = make_world();
    Arena arena = {0};
    TemplateHit hit[4] = {
        make_hit(&arena, "1old_A", "AYIAKQRQISFV", 3, "AYIAKQRWWWFV", 4, 1.0), /* not in the structure */
        make_hit(&arena, "2new_A", "AYIAKQRQISFV", 3, "AYIAKQRQISFV", 4, 1.0), /* no file */
        make_hit(&arena, "1old_A", "AYIWWWRQISFV", 3, "AYIAKQRXISFV", 4, 1.0), /* of another query */
        make_hit(&arena, "1old_A", "AYIAKQRQISFV", 3, "AYIAKQRXISFV", 4, 1.0)};
    TemplateFeatures f = build(world, hit, 4, &arena);
    assert_int_equal(f.count, 1);
    assert_int_equal(world->remarks, 3);
    assert_non_null(strstr(world->last, "not part of the chain"));
    /* a break of more than 150 Angstrom */
    world->chain[0].positions[(9 * ATOM37_COUNT + 1) * 3] += 400.0f;
    f = build(world, &hit[3], 1, &arena);
    assert_int_equal(f.count, 0);
    world->chain[0].positions[(9 * ATOM37_COUNT + 1) * 3] -= 400.0f;
    /* four atoms in all are too few */
    memset(world->chain[0].mask, 0, (size_t)world->chain[0].length * ATOM37_COUNT);
    memset(world->chain[0].mask + 5 * ATOM37_COUNT, 1, 4);
    f = build(world, &hit[3], 1, &arena);
    assert_int_equal(f.count, 0);
    memset(world->chain[0].mask + 5 * ATOM37_COUNT, 1, 5);
    f = build(world, &hit[3], 1, &arena);
    assert_int_equal(f.count, 1);
    arena_free(&arena);
    free_world(&world);
}

/* Where the best 20 cannot be used, those behind them are, in order and whatever the shuffle. */
static void test_behind_the_best(void **state)
{
    (void)state;
    enum { COUNT = 27, USABLE_FROM = 22 };
    World *world = make_world();
    Arena arena = {0};
    TemplateHit hit[COUNT];
    TemplateHits hits = {COUNT, hit};
    TemplateSource source = source_of(world);
    TemplateQuery q = query("2000-06-01");
    Draws draws = {.seed = 3};
    for (int i = 0; i < COUNT; ++i)
        hit[i] = make_hit(&arena, "1old_A", "AYIAKQRQISFV", 3, i < USABLE_FROM ? "AYIAKQRWWWFV" : "AYIAKQRXISFV", 4,
                          100.0 - i);
    for (int selected = 0; selected < 2; ++selected) {
        TemplateFeatures f;
        assert_int_equal(template_features(&q, &hits, selected, true, &draws, TEMPLATE_MOST, &source, NULL, &arena, &f),
                         OK);
        assert_int_equal(f.count, TEMPLATE_MOST);
        for (int k = 0; k < TEMPLATE_MOST; ++k) assert_true(f.sum_probs[k] == (float)(100 - USABLE_FROM - k));
    }
    arena_free(&arena);
    free_world(&world);
}

static void test_dates(void **state)
{
    (void)state;
    int64_t days;
    assert_true(template_date_days("1970-01-01", &days) && days == 0);
    assert_true(template_date_days("1969-12-31", &days) && days == -1);
    assert_true(template_date_days("2000-03-01", &days) && days == 11017);
    assert_true(template_date_days("2021-09-16", &days) && days == 18886);
    static const char *const WRONG[] = {"",           "2000",       "2000-1-01", "2000-13-01",
                                        "2000-00-10", "2000-01-00", "20x0-01-01"};
    for (size_t i = 0; i < sizeof WRONG / sizeof WRONG[0]; ++i) assert_false(template_date_days(WRONG[i], &days));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefilter), cmocka_unit_test(test_order),
        cmocka_unit_test(test_placement), cmocka_unit_test(test_other_chain_and_wildcards),
        cmocka_unit_test(test_left_out),  cmocka_unit_test(test_behind_the_best),
        cmocka_unit_test(test_dates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
