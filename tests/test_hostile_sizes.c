/* Megabytes of the same few bytes: no reader may take the square of the size, or memory that the size does not justify.
 * A quadratic step over four megabytes would take hours; the limit is generous for a loaded machine. */
#include "tests/reader_helpers.h"

#include <sys/resource.h>
#include <unistd.h>
#include <zlib.h>

#include "tests/reader_trials.h"

enum { BYTES = 4000000, SECONDS = 120 };

#define CIF_START "data_x\n_entry.id x\n"

static const struct {
    const char *what;
    bool (*trial)(const Text *);
    const char *start, *unit, *end;
} cases[] = {
    {"headers without rows", trial_a3m, "", ">\n", ""},
    {"rows of one column", trial_a3m, "", ">\nA\n", ""},
    {"one long row", trial_a3m, ">\n", "A", "\n"},
    {"insertions everywhere", trial_a3m, ">q\nA\n", ">\naA\n", ""},
    {"one long insertion", trial_a3m, ">q\nA\n>a\n", "a", "A\n"},
    {"letters that share ids", trial_a3m, ">q\n", "B", "\n"},
    {"rows of one name", trial_sto, "# STOCKHOLM 1.0\n", "q A\n", "//\n"},
    {"two names in turn", trial_sto, "# STOCKHOLM 1.0\n", "q A\nr A\n", "//\n"},
    {"names without rows", trial_sto, "# STOCKHOLM 1.0\n", "q\n", "//\n"},
    {"hits without anything", trial_hhr, "", "No 1\n", ""},
    {"rows of one side", trial_hhr,
     "No 1\n>1ABC_A\nProbab=9 E-value=1 Score=1 Aligned_cols=3 Identities=9% Similarity=1 Sum_probs=2.5\n",
     "Q query             1 A    1 (3)\nT 1ABC_A            1 A    1 (3)\n", ""},
    {"nested lists", trial_json, "{\"a\":", "[", ""},
    {"keys", trial_json, "{", "\"a\":1,", "\"b\":2}"},
    {"chains of an index", trial_index, "{", "\"a_A\":[],", "\"b_A\":[]}"},
    {"files of an index", trial_index, "{\"a_A\":[", "[\"x\",0,1],", "[\"x\",0,1]]}"},
    {"words on one line", trial_lists, "", "1abc_A ", ""},
    {"words on many lines", trial_lists, "", "1abc_A\n", ""},
    {"superseded by itself", trial_lists, "", "OBSLTE x 116l 116l\n", ""},
    {"loops", trial_mmcif, CIF_START, "loop_\n_a.b\n1\n", ""},
    {"columns of a loop", trial_mmcif, CIF_START "loop_\n", "_a.b\n", "1\n"},
    {"items", trial_mmcif, CIF_START, "_a.b 1\n", ""},
    {"comments", trial_mmcif, CIF_START, "#\n", ""},
    {"text blocks", trial_mmcif, CIF_START "loop_\n_a.b\n", ";\n;\n", ""},
    {"resolutions that are no numbers", trial_mmcif, CIF_START "loop_\n_refine.ls_d_res_high\n", "x\n", ""},
    {"methods", trial_mmcif, CIF_START "loop_\n_exptl.method\n", "x\n", ""},
    {"one entity", trial_mmcif,
     CIF_START "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n"
               "_entity_poly_seq.mon_id\n",
     "1 1 GLY\n", ""},
    {"two entities in turn", trial_mmcif,
     CIF_START "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n"
               "_entity_poly_seq.mon_id\n",
     "1 1 GLY 2 1 GLY\n", ""},
    {"equal asyms", trial_mmcif, CIF_START "loop_\n_struct_asym.id\n_struct_asym.entity_id\n", "A 1\n", ""},
    {"models in turn", trial_mmcif,
     CIF_START "loop_\n_atom_site.label_asym_id\n_atom_site.label_seq_id\n_atom_site.label_comp_id\n"
               "_atom_site.label_atom_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\n"
               "_atom_site.pdbx_PDB_model_num\n",
     "A 1 GLY CA 0 0 0 1 A 1 GLY CA 0 0 0 2\n", ""},
};

static void test_repeated_bytes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t unit = strlen(cases[i].unit), size = 0;
        char *bytes = malloc(BYTES + 1000);
        Text text = {0};
        assert_non_null(bytes);
        size += (size_t)sprintf(bytes, "%s", cases[i].start);
        for (; size < BYTES; size += unit) memcpy(bytes + size, cases[i].unit, unit);
        size += (size_t)sprintf(bytes + size, "%s", cases[i].end);
        assert_int_equal(text_from_bytes("made", bytes, size, &text), OK);
        free(bytes);
        alarm(SECONDS);
        bool read = cases[i].trial(&text);
        alarm(0);
        print_message("%-32s %s\n", cases[i].what, read ? "read" : "refused");
        text_close(&text);
    }
    /* the index reader holds a JSON tree of 64 bytes an item, the hungriest of all; in kB */
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    print_message("largest memory: %ld MB for files of %d MB\n", usage.ru_maxrss / 1000, BYTES / 1000000);
#ifndef __SANITIZE_ADDRESS__
    assert_in_range(usage.ru_maxrss, 1, 400L * 1000);
#endif
}

/* A hundred gzip members of two megabytes of blanks each: 200 MB of text in 200 kB. */
static void test_gzip(void **state)
{
    (void)state;
    enum { BLANKS = 2000000, MEMBERS = 100, ROOM = 10000, WINDOW = 31 };
    char *blanks = malloc(BLANKS), *bytes = malloc((size_t)ROOM * MEMBERS);
    Text text = {0};
    assert_non_null(blanks);
    assert_non_null(bytes);
    memset(blanks, ' ', BLANKS);
    z_stream stream = {.next_in = (Bytef *)blanks, .avail_in = BLANKS, .next_out = (Bytef *)bytes, .avail_out = ROOM};
    assert_int_equal(deflateInit2(&stream, 9, Z_DEFLATED, WINDOW, 9, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    size_t member = ROOM - stream.avail_out;
    deflateEnd(&stream);
    for (size_t i = 1; i < MEMBERS; i++) memcpy(bytes + i * member, bytes, member);
    assert_int_equal(text_from_bytes("made", bytes, 10 * member, &text), OK);
    assert_true(trial_gzip(&text)); /* 20 MB */
    text_close(&text);
    assert_int_equal(text_from_bytes("made", bytes, MEMBERS * member, &text), OK);
    assert_false(trial_gzip(&text));
    assert_says(status_text(), "gzip stream of more than");
    text_close(&text);
    free(blanks);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_repeated_bytes), cmocka_unit_test(test_gzip)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
