/* Hits of HHsearch: rows over several blocks, indices, refusals. */
#include "tests/reader_helpers.h"

#include "data/hhr.h"

#define SUMMARY                                                                                                        \
    "Probab=99.0  E-value=1e-9  Score=20.5  Aligned_cols=%d  Identities=50%%  Similarity=0.9  Sum_probs=3.5  "         \
    "Template_Neff=2.0\n"

static Status parse(const char *content, Arena *arena, TemplateHits *hits)
{
    Text text = text_of("x.hhr", content);
    Status status = hhr_parse(&text, NULL, arena, hits);
    text_close(&text);
    return status;
}

static void refuse(const char *name, int columns, const char *rows, const char *message)
{
    Arena arena = {0};
    TemplateHits hits;
    char content[2048];
    snprintf(content, sizeof content, " No Hit\n\nNo 1\n>%s\n" SUMMARY "\n%s", name, columns, rows);
    if (parse(content, &arena, &hits) != ERR_INPUT) fail_msg("accepted: %s", message);
    assert_says(status_text(), message);
    assert_says(status_text(), "x.hhr:");
    arena_free(&arena);
}

static void test_corpus_file(void **state)
{
    (void)state;
    Arena arena = {0};
    Text text = {0};
    TemplateHits hits;
    char path[1024];
    assert_int_equal(text_read(source_path("tests/corpus/hhr/small.hhr", path), &text), OK);
    assert_int_equal(hhr_parse(&text, NULL, &arena, &hits), OK);
    assert_int_equal(hits.count, 2);
    const TemplateHit *hit = &hits.hit[0];
    assert_int_equal(hit->index, 1);
    assert_string_equal(hit->name, "9ABC_A");
    assert_string_equal(hit->description, "9ABC_A Synthetic example");
    assert_int_equal(hit->aligned_columns, 10);
    assert_true(hit->sum_probs == 9.6);
    assert_string_equal(hit->query, "ACDE-FGHIKLM");
    assert_string_equal(hit->hit_sequence, "ACDEWYGHIK-M");
    static const int32_t query[12] = {0, 1, 2, 3, -1, 4, 5, 6, 7, 8, 9, 10};
    static const int32_t template[12] = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -1, 12};
    assert_memory_equal(hit->query_indices, query, sizeof query);
    assert_memory_equal(hit->hit_indices, template, sizeof template);
    text_close(&text);
    arena_free(&arena);
}

static void test_no_hits(void **state)
{
    (void)state;
    static const char *const contents[] = {"", "Query q\n\n No Hit Prob\n  1 1ABC_A x  99.0\n"};
    for (int i = 0; i < 2; i++) {
        Arena arena = {0};
        TemplateHits hits;
        assert_int_equal(parse(contents[i], &arena, &hits), OK);
        assert_int_equal(hits.count, 0);
        arena_free(&arena);
    }
}

static void take_remark(void *context, const char *file, long line, const char *text)
{
    (void)file;
    (void)line;
    snprintf(context, 128, "%s", text);
}

/* Cut between two hits nothing is wrong but the number. */
static void test_fewer_than_listed(void **state)
{
    (void)state;
    Arena arena = {0};
    TemplateHits hits;
    char content[1024], remark[128] = "";
    const DataLog log = {take_remark, remark};
    snprintf(content, sizeof content,
             " No Hit Prob\n  1 1ABC_A x  99.0\n  2 2ABC_A x  98.0\n\nNo 1\n>1ABC_A\n" SUMMARY
             "\nQ query             1 ACDE    4 (9)\nT 1ABC_A            2 ACDE    5 (9)\n",
             4);
    Text text = text_of("x.hhr", content);
    assert_int_equal(hhr_parse(&text, &log, &arena, &hits), OK);
    text_close(&text);
    assert_int_equal(hits.count, 1);
    assert_says(remark, "1 hits, the table lists 2: truncated?");
    arena_free(&arena);
}

static void test_damage_is_named(void **state)
{
    (void)state;
    static const char q[] = "Q query             1 ACDE    4 (9)\n", t[] = "T 1ABC_A            2 ACDE    5 (9)\n";
    char rows[512];
    snprintf(rows, sizeof rows, "%s%s", q, t);
    refuse("1ABC_A", 5, rows, "4 aligned columns, expected the 5");
    refuse("1ABC", 4, rows, "expected a hit named PDBID_chain");
    refuse("../x_A", 4, rows, "expected a hit named PDBID_chain");
    refuse("1ABC_A", 4, q, "differ in number");
    refuse("1ABC_A", 4, "", "differ in number");
    snprintf(rows, sizeof rows, "%s%s%s", q, q, t);
    refuse("1ABC_A", 4, rows, "two rows of one side");
    refuse("1ABC_A", 4, "Q query             1 ACDE    4 (9)\nT 1ABC_A            2 ACD    4 (9)\n", "not as wide");
    refuse("1ABC_A", 4, "Q query             1 ACDE    5 (9)\n", "start and end do not match");
    refuse("1ABC_A", 4, "Q query             7 ACDE   10 (9)\n", "start and end do not match");
    refuse("1ABC_A", 4, "Q query             0 ACDE    3 (9)\n", "start and end do not match");
    refuse("1ABC_A", 4, "Q query           1234567890 ACDE    3 (9)\n", "start number");
    refuse("1ABC_A", 4, "Q query             1 ACDE\n", "expected START ROW END");
    Arena arena = {0};
    TemplateHits hits;
    assert_int_equal(parse("No x\n>1ABC_A\n", &arena, &hits), ERR_INPUT);
    assert_int_equal(parse("No 1\nNo 2\n", &arena, &hits), ERR_INPUT);
    assert_int_equal(parse("No 1\n", &arena, &hits), ERR_INPUT);
    assert_int_equal(parse("No 1\n>1ABC_A\nScore=1\n", &arena, &hits), ERR_INPUT);
    arena_free(&arena);
}

static void test_names(void **state)
{
    (void)state;
    char entry[5], chain[4];
    assert_int_equal(hhr_split_name("3U8V_AA", entry, sizeof entry, chain, sizeof chain), OK);
    assert_string_equal(entry, "3u8v");
    assert_string_equal(chain, "AA");
    assert_int_equal(hhr_split_name("3U8V_", entry, sizeof entry, chain, sizeof chain), ERR_INPUT);
    assert_int_equal(hhr_split_name("3U8V_ABCD", entry, sizeof entry, chain, sizeof chain), ERR_INPUT);
    assert_int_equal(hhr_split_name("3U8VX_A", entry, sizeof entry, chain, sizeof chain), ERR_INPUT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_corpus_file),
        cmocka_unit_test(test_no_hits),
        cmocka_unit_test(test_fewer_than_listed),
        cmocka_unit_test(test_damage_is_named),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
