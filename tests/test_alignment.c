/* a3m and Stockholm rows, insertions, blocks; joining of databases. */
#include "tests/reader_helpers.h"

#include "data/alignment.h"

static Status parse(const char *name, const char *content, Arena *arena, Remarks *remarks, Msa *msa)
{
    Text text = text_of(name, content);
    const DataLog log = {remarks_take, remarks};
    Status status = alignment_parse(&text, name, &log, arena, msa);
    text_close(&text);
    return status;
}

static void refuse(const char *name, const char *content, const char *message)
{
    Arena arena = {0};
    Remarks remarks = {""};
    Msa msa;
    if (parse(name, content, &arena, &remarks, &msa) != ERR_INPUT) fail_msg("accepted: %s", message);
    assert_says(status_text(), message);
    arena_free(&arena);
}

/* Ids as letters of the HHblits alphabet (A C D E F G H I K L M N P Q R S T V W Y X -). */
static void assert_row(const Msa *msa, int64_t row, const char *letters, const int32_t *deletions)
{
    assert_int_equal(msa->columns, strlen(letters));
    for (int64_t c = 0; c < msa->columns; c++) {
        assert_int_equal("ACDEFGHIKLMNPQRSTVWYX-"[msa->hhblits_id[row * msa->columns + c]], letters[c]);
        assert_int_equal(msa->deletions[row * msa->columns + c], deletions ? deletions[c] : 0);
    }
}

static void test_a3m(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Msa msa;
    assert_int_equal(
        parse("x.a3m", "# comment\r\n>query words\r\nACDEF\r\nGH\r\n\r\n>a\naacAC-bbEwFGHxyz\n>b\n-------\n>c\nBZUJOX-",
              &arena, &remarks, &msa),
        OK);
    assert_string_equal(remarks.text, "");
    assert_int_equal(msa.rows, 4);
    assert_row(&msa, 0, "ACDEFGH", NULL);
    assert_row(&msa, 1, "AC-EFGH", (int32_t[]){3, 0, 0, 2, 1, 0, 0}); /* xyz after the last column: nowhere */
    assert_row(&msa, 2, "-------", NULL);
    assert_row(&msa, 3, "DECXXX-", NULL);
    assert_true(msa.odd_letters[0] == 0 && msa.odd_letters[1] == 0 && msa.odd_letters[3] != 0);
    arena_free(&arena);
}

static void test_stockholm_in_blocks(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Msa msa;
    assert_int_equal(parse("x.sto",
                           "# STOCKHOLM 1.0\n#=GS a DE words\n\nquery  AC-DE\na/1-9  ACWD-\nb  -cww.\n#=GC RF xx.xx\n\n"
                           "query  F--G\na/1-9  FKKG\nb      ....\n//\n",
                           &arena, &remarks, &msa),
                     OK);
    assert_string_equal(remarks.text, "");
    assert_int_equal(msa.rows, 3);
    assert_row(&msa, 0, "ACDEFG", NULL);
    assert_row(&msa, 1, "ACD-FG", (int32_t[]){0, 0, 1, 0, 0, 2});
    assert_row(&msa, 2, "-CW---", (int32_t[]){0, 0, 1, 0, 0, 0});
    arena_free(&arena);
}

static void test_no_rows_are_no_alignment(void **state)
{
    (void)state;
    static const char *const names[] = {"x.a3m", "x.sto"}, *const contents[] = {"\n# nothing\n",
                                                                                "# STOCKHOLM 1.0\n//\n"};
    for (int i = 0; i < 2; i++) {
        Arena arena = {0};
        Remarks remarks = {""};
        Msa msa, joined;
        assert_int_equal(parse(names[i], contents[i], &arena, &remarks, &msa), OK);
        assert_int_equal(msa.rows, 0);
        assert_says(remarks.text, "no alignment");
        assert_int_equal(alignment_check_query(&msa, names[i], "1abc_A", "ACD"), OK);
        assert_int_equal(alignment_join(&msa, 1, "ACUD", &arena, &joined), OK);
        assert_int_equal(joined.rows, 1);
        assert_row(&joined, 0, "ACCD", NULL);
        arena_free(&arena);
    }
}

static void test_damage_is_named(void **state)
{
    (void)state;
    refuse("x.a3m", "ACD\n", "x.a3m:1: a row before");
    refuse("x.a3m", ">q\nACD\n>a\nAC\n", "x.a3m:4: row 2 has 2 columns, expected 3");
    refuse("x.a3m", ">q\nACD\n>a\n>b\nACD\n", "x.a3m:3: a header without");
    refuse("x.a3m", ">q\nACD\n>a", "x.a3m:3: a header without");
    refuse("x.a3m", ">q\nAcD\n", "x.a3m:2: insertions");
    refuse("x.a3m", ">q\nACDk\n", "x.a3m:2: insertions");
    refuse("x.a3m", ">q\nAC D\n", "x.a3m:2: byte 0x20");
    refuse("x.a3m", ">q\nACD\n>a\nA1D\n", "x.a3m:4: '1'");
    refuse("x.a3m", ">q\nA.D\n", "x.a3m:2: '.'");
    refuse("x.sto", "# STOCKHOLM 1.0\nq ACD\na AC\n//\n", "x.sto:3: row 2 (a) has 2 columns, expected 3");
    refuse("x.sto", "# STOCKHOLM 1.0\nq ACD\na\n//\n", "x.sto:3: \"a\" without");
    refuse("x.sto", "# STOCKHOLM 1.0\nq ACD\na ACD E\n//\n", "x.sto:3: three words");
    refuse("x.sto", "# STOCKHOLM 1.0\nq ACD\na A*D\n//\n", "x.sto:3: '*'");
    refuse("x.sto", "# STOCKHOLM 1.0\nq ---\n//\n", "x.sto:2: the first row has no columns");
    refuse("x.sto", "# STOCKHOLM 1.0\nq ACD\n//\nq ACD\n", "x.sto:4: more after");
    refuse("x.fasta", ">q\nACD\n", "neither .a3m nor .sto");
}

static void test_query_is_compared_with_the_chain(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Msa msa;
    assert_int_equal(parse("x.a3m", ">q\nACDX\n>a\n----\n", &arena, &remarks, &msa), OK);
    assert_int_equal(alignment_check_query(&msa, "x.a3m", "1abc_A", "ACDX"), OK);
    assert_int_equal(alignment_check_query(&msa, "x.a3m", "1abc_A", "ACD"), ERR_INPUT);
    assert_says(status_text(), "4 residues, expected the 3 of chain 1abc_A");
    assert_int_equal(alignment_check_query(&msa, "x.a3m", "1abc_A", "AWDX"), ERR_INPUT);
    assert_says(status_text(), "residue 2");
    arena_free(&arena);
}

static void test_joining_keeps_the_first_of_equal_rows(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Msa parts[3], joined;
    assert_int_equal(
        parse("1.a3m", ">q\nACDEFGHIKLMN\n>a\nAC-kEFGHIKLMN\n>b\nACBEFGHIKLMN\n", &arena, &remarks, &parts[0]), OK);
    assert_int_equal(parse("2.a3m", "", &arena, &remarks, &parts[1]), OK);
    assert_int_equal(parse("3.a3m", ">q\nACDEFGHIKLMN\n>a\nAC-EFGHIKLMN\n>c\nACDEFGHIKLMM\n>b\nACBEFGHIKLMN\n", &arena,
                           &remarks, &parts[2]),
                     OK);
    assert_int_equal(alignment_join(parts, 3, "ACDEFGHIKLMN", &arena, &joined), OK);
    /* ACB... has the ids of the query, but not its letters */
    assert_int_equal(joined.rows, 4);
    assert_row(&joined, 0, "ACDEFGHIKLMN", NULL);
    assert_row(&joined, 1, "AC-EFGHIKLMN", (int32_t[12]){0, 0, 0, 1});
    assert_row(&joined, 2, "ACDEFGHIKLMN", NULL);
    assert_row(&joined, 3, "ACDEFGHIKLMM", NULL);
    assert_int_equal(alignment_join(parts, 3, "ACD", &arena, &joined), ERR_INPUT);
    arena_free(&arena);
}

static void test_order_of_databases(void **state)
{
    (void)state;
    static const char *const order[] = {
        "uniref90_hits.sto", "bfd_uniclust_hits.a3m", "small_bfd_hits.sto", "mgnify_hits.a3m", "a.a3m",
        "homologs.a3m",      "uniclust30_hits.a3m",   "uniprot_hits.sto"};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        for (size_t k = 0; k < sizeof order / sizeof *order; k++) {
            int sign = alignment_order(order[i], order[k]);
            assert_true(i == k ? sign == 0 : (sign < 0) == (i < k));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a3m),
        cmocka_unit_test(test_stockholm_in_blocks),
        cmocka_unit_test(test_no_rows_are_no_alignment),
        cmocka_unit_test(test_damage_is_named),
        cmocka_unit_test(test_query_is_compared_with_the_chain),
        cmocka_unit_test(test_joining_keeps_the_first_of_equal_rows),
        cmocka_unit_test(test_order_of_databases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
