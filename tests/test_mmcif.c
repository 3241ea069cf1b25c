/* What the golden entries do not show: microheterogeneity, old files, doubled chains, grammar. */
#include "tests/reader_helpers.h"

#include <math.h>

#include "data/cif.h"
#include "data/mmcif.h"

#define HEADER "data_9ABC\n_entry.id 9ABC\nloop_\n_pdbx_audit_revision_history.revision_date\n2011-07-13\n2001-02-03\n"
#define SEQUENCE                                                                                                       \
    "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n"                               \
    "1 3 MSE\n1 4 SER\n1 4 THR\n1 5 GLY\n2 1 DA\n"
#define COMPONENTS                                                                                                     \
    "loop_\n_chem_comp.id\n_chem_comp.type\nMSE 'L-PEPTIDE LINKING'\nSER 'L-peptide linking'\n"                        \
    "THR 'L-peptide linking'\nGLY 'peptide linking'\nDA 'DNA linking'\n"
#define ASYMS "loop_\n_struct_asym.id\n_struct_asym.entity_id\nB 2\nA 1\nC 3\n"
#define ATOM_COLUMNS                                                                                                   \
    "loop_\n_atom_site.label_atom_id\n_atom_site.label_alt_id\n_atom_site.label_comp_id\n"                             \
    "_atom_site.label_asym_id\n_atom_site.label_seq_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n"                      \
    "_atom_site.Cartn_z\n_atom_site.occupancy\n_atom_site.auth_asym_id\n_atom_site.pdbx_PDB_model_num\n"
#define ATOMS                                                                                                          \
    "N . MSE A 3 1.5 -2.25 3.125 1.00 X 1\nSE . MSE A 3 4.5 0 0 1.00 X 1\n"                                            \
    "CA A SER A 4 5 0 0 0.40 X 1\nCA B THR A 4 6 0 0 0.60 X 1\nOG1 B THR A 4 7 0 0 0.60 X 1\n"                         \
    "CA A GLY A 5 8 0 0 0.30 X 1\nCA B GLY A 5 9 0 0 0.70 X 1\nH . GLY A 5 0 0 1 1 X 1\n"                              \
    "\"O5'\" . DA B 1 0 1 0 1.00 Y 1\nO . HOH C . 1 1 1 1.00 X 1\nC . GLY A 5 2 2 2 1.00 X 2\n"

enum { N = 0, CA = 1, C = 2, SD = 18, OG1 = 9 };

static Status parse(const char *content, Arena *arena, Remarks *remarks, Structure **structure)
{
    Text text = text_of("made.cif", content);
    const DataLog log = {remarks_take, remarks};
    Status status = mmcif_parse(&text, &log, arena, structure);
    text_close(&text);
    return status;
}

static void refuse(const char *content, const char *message)
{
    Arena arena = {0};
    Remarks remarks = {""};
    Structure *structure = NULL;
    if (parse(content, &arena, &remarks, &structure) != ERR_INPUT) fail_msg("accepted: %s", message);
    assert_null(structure);
    assert_says(status_text(), message);
    assert_says(status_text(), "made.cif");
    arena_free(&arena);
}

static float x_of(const Chain *chain, int residue, int atom)
{
    return chain->positions[3 * (37 * residue + atom)];
}

static void test_one_of_everything(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Structure *structure = NULL;
    assert_int_equal(parse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS ATOMS, &arena, &remarks, &structure), OK);
    assert_string_equal(remarks.text, "");
    assert_string_equal(structure->entry_id, "9abc");
    assert_string_equal(structure->release_date, "2001-02-03");
    assert_true(isnan(structure->resolution));
    assert_int_equal(structure->models, 2);
    assert_int_equal(structure->chain_count, 1);
    const Chain *chain = structure_find_chain(structure, "X");
    assert_non_null(chain);
    assert_null(structure_find_chain(structure, "A"));
    assert_string_equal(chain->label_id, "A");
    assert_string_equal(chain->entity_id, "1");
    assert_string_equal(chain->sequence, "MSG"); /* one residue at the mixed position, the first listed */
    assert_int_equal(chain->residue_index[2], 2);
    assert_true(x_of(chain, 0, N) == 1.5f && x_of(chain, 0, SD) == 4.5f);
    assert_true(x_of(chain, 1, CA) == 5.0f); /* of SER, though THR has the higher occupancy */
    assert_int_equal(chain->mask[37 + OG1], 0);
    assert_true(x_of(chain, 2, CA) == 9.0f);      /* the higher occupancy */
    assert_int_equal(chain->mask[2 * 37 + C], 0); /* second model */
    int atoms = 0;
    for (int i = 0; i < 3 * 37; i++) atoms += chain->mask[i];
    assert_int_equal(atoms, 4);
    arena_free(&arena);
}

static void test_tie_of_occupancies_keeps_the_first(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Structure *structure = NULL;
    assert_int_equal(parse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA A GLY A 5 1 0 0 0.5 X 1\n"
                                                                         "CA B GLY A 5 2 0 0 0.5 X 1\n"
                                                                         "C B GLY A 5 3 0 0 0 X 1\n"
                                                                         "C A GLY A 5 4 0 0 ? X 1\n",
                           &arena, &remarks, &structure),
                     OK);
    assert_true(x_of(&structure->chain[0], 2, CA) == 1.0f && x_of(&structure->chain[0], 2, C) == 3.0f);
    arena_free(&arena);
}

static void test_unusual_entries_are_read_with_a_remark(void **state)
{
    (void)state;
    Arena arena = {0};
    Remarks remarks = {""};
    Structure *structure = NULL;
    /* no revision history; D repeats the author id of A; E has no atoms */
    assert_int_equal(parse("data_pdb_00009abc\n_database_PDB_rev.date 1999-12-31\n" SEQUENCE COMPONENTS
                           "loop_\n_struct_asym.id\n_struct_asym.entity_id\nA 1\nD 1\nE 1\n" ATOM_COLUMNS
                           "CA . GLY A 5 1 0 0 1 X 1\nCA . GLY D 5 2 0 0 1 X 1\n",
                           &arena, &remarks, &structure),
                     OK);
    assert_string_equal(structure->entry_id, "pdb_00009abc");
    assert_string_equal(structure->release_date, "1999-12-31");
    assert_int_equal(structure->chain_count, 1);
    assert_string_equal(structure->chain[0].label_id, "A");
    assert_says(remarks.text, "no _pdbx_audit_revision_history");
    assert_says(remarks.text, "chain D has the author id X");
    assert_says(remarks.text, "chain E has no atoms");
    arena_free(&arena);
}

static void test_resolution_takes_the_largest_of_the_first_source(void **state)
{
    (void)state;
    static const struct {
        const char *items;
        double expected;
    } cases[] = {{"_refine.ls_d_res_high 2.10\n_reflns.d_resolution_high 1.0\n", 2.10},
                 {"loop_\n_refine.ls_d_res_high\n2.0\n2.5\nabc\n", 2.5},
                 {"_refine.ls_d_res_high ?\n_em_3d_reconstruction.resolution 6.1\n", 6.1},
                 {"_reflns.d_resolution_high 1.25(3)\n", 1.25},
                 {"_refine.ls_d_res_high nan\n", NAN}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Arena arena = {0};
        Remarks remarks = {""};
        Structure *structure = NULL;
        char content[4096];
        snprintf(content, sizeof content, "%s%s%s", HEADER, cases[i].items,
                 SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS ATOMS);
        assert_int_equal(parse(content, &arena, &remarks, &structure), OK);
        float expected = (float)cases[i].expected, found = structure->resolution;
        assert_true(found == expected || (isnan(found) && isnan(expected)));
        arena_free(&arena);
    }
}

static void test_damage_is_named(void **state)
{
    (void)state;
    refuse("", "empty file");
    refuse("# only a comment\n", "empty file");
    refuse("ATOM 1 N\n", "made.cif:1: not mmCIF");
    refuse(HEADER, "_atom_site is missing");
    refuse(HEADER COMPONENTS ASYMS ATOM_COLUMNS ATOMS, "_entity_poly_seq is missing");
    refuse(HEADER SEQUENCE ASYMS ATOM_COLUMNS ATOMS, "_chem_comp is missing");
    refuse(HEADER SEQUENCE COMPONENTS ATOM_COLUMNS ATOMS, "_struct_asym is missing");
    refuse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA . GLY A 6 1 0 0 1 X 1\n",
           "label_seq_id 6, expected 3 to 5");
    refuse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA . GLY A 2 1 0 0 1 X 1\n",
           "label_seq_id 2, expected 3 to 5");
    refuse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA . GLY Q 3 1 0 0 1 X 1\n", "label_asym_id \"Q\"");
    refuse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA . GLY A 3 1e40 0 0 1 X 1\n", "coordinate \"1e40\"");
    refuse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA . GLY A 3 0x1p3 0 0 1 X 1\n", "coordinate \"0x1p3\"");
    refuse(HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS "CA A GLY A 5 1 0 0 1 X 1\nCA A GLY A 5 1 0 0 1 X 1\n",
           "atom CA of residue 5 is given twice");
    refuse(HEADER "_entry.id X\n", "is given twice");
    refuse(HEADER SEQUENCE SEQUENCE, "_entity_poly_seq is given twice");
    refuse("data_x\nloop_\n_a.b\n_c.d\n1 2\n", "two categories");
    refuse("data_x\n_a.b\n_a.c 1\n", "_a.b has no value");
    refuse("data_x\n_a.b 1 2\n", "made.cif:2: a value without a name");
    refuse("data_x\nloop_\n1 2\n", "loop_ without column names");
    refuse("data_x\nsave_frame\n", "a value without a name");
    refuse("data_x\n_a.b 'open\n", "made.cif:2: quote");
    refuse("data_x\n_a.b\n;open\n", "made.cif:3: text block");
}

/* A chain of many residues named by many asyms must not allocate more than the file can justify. */
static void test_memory_is_bounded_by_the_file(void **state)
{
    (void)state;
    enum { RESIDUES = 2000, CHAINS = 2000, ROOM = 400000 };
    char *content = malloc(ROOM), *at = content;
    assert_non_null(content);
    at += sprintf(at, HEADER COMPONENTS "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n"
                                        "_entity_poly_seq.mon_id\n");
    for (int i = 1; i <= RESIDUES; i++) at += sprintf(at, "1 %d GLY\n", i);
    at += sprintf(at, "loop_\n_struct_asym.id\n_struct_asym.entity_id\n");
    for (int i = 0; i < CHAINS; i++) at += sprintf(at, "A%d 1\n", i);
    at += sprintf(at, ATOM_COLUMNS);
    for (int i = 0; i < CHAINS; i++) at += sprintf(at, "CA . GLY A%d 1 0 0 0 1 A%d 1\n", i, i);
    assert_in_range(at - content, 1, ROOM);
    refuse(content, "more than the file has bytes");
    free(content);
}

static void test_header_alone(void **state)
{
    (void)state;
    static const char strands[] =
        "loop_\n_pdbx_poly_seq_scheme.asym_id\n_pdbx_poly_seq_scheme.pdb_strand_id\nA X\nB Y\n";
    for (int with_strands = 0; with_strands < 2; with_strands++) {
        Arena arena = {0};
        Structure *structure = NULL;
        char content[4096];
        snprintf(content, sizeof content, "%s%s%s", HEADER SEQUENCE COMPONENTS ASYMS ATOM_COLUMNS ATOMS "#\n",
                 with_strands ? strands : "", "_exptl.method 'SOLUTION NMR'\n");
        Text text = text_of("made.cif", content);
        assert_int_equal(mmcif_parse_header(&text, NULL, &arena, &structure), OK);
        assert_string_equal(structure->method, "SOLUTION NMR"); /* after the atoms */
        assert_int_equal(structure->chain_count, 1);
        assert_string_equal(structure->chain[0].chain_id, "X");
        assert_string_equal(structure->chain[0].sequence, "MSG");
        assert_null(structure->chain[0].positions);
        text_close(&text);
        arena_free(&arena);
    }
}

static void test_numbers(void **state)
{
    (void)state;
    static const char *const good[] = {"0",
                                       "-0",
                                       "+1.5",
                                       "12.345",
                                       "-12.345",
                                       ".5",
                                       "5.",
                                       "1e3",
                                       "1E-3",
                                       "9.99",
                                       "0.1",
                                       "123456789012345",
                                       "1234567890123456.7",
                                       "1.5(2)",
                                       "-7.000(12)"};
    static const char *const bad[] = {"",     "-",   ".",    "1.2.3", "1e", "nan", "inf",
                                      "0x10", "1 2", "12,3", "1(2",   "()", "1()"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        double number;
        char plain[64];
        snprintf(plain, sizeof plain, "%.*s", (int)strcspn(good[i], "("), good[i]);
        if (!cif_real((CifValue){good[i], strlen(good[i]), false}, &number)) fail_msg("%s", good[i]);
        assert_true(number == strtod(plain, NULL)); /* correctly rounded */
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double number;
        if (cif_real((CifValue){bad[i], strlen(bad[i]), false}, &number)) fail_msg("%s", bad[i]);
    }
    int32_t whole;
    assert_true(cif_integer((CifValue){"-2147483647", 11, false}, &whole) && whole == -2147483647);
    assert_false(cif_integer((CifValue){"2147483648", 10, false}, &whole));
    assert_false(cif_integer((CifValue){"1.0", 3, false}, &whole));
}

static void test_examples_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *file, *chain;
        int residues, resolved;
    } examples[] = {{"1gbt", "A", 223, 223}, {"1a7g", "E", 82, 82},  {"1ubq", "A", 76, 76},
                    {"2q2k", "A", 70, 45},   {"2q2k", "B", 70, 44},  {"1a8q", "A", 274, 274},
                    {"1y57", "A", 452, 452}, {"7l39", "A", 164, 162}}; /* data/examples/README.md */
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        Arena arena = {0};
        Structure *structure = NULL;
        char name[64], path[1024];
        snprintf(name, sizeof name, "data/examples/mmcif/%s.cif", examples[i].file);
        if (mmcif_read(source_path(name, path), NULL, &arena, &structure) != OK) fail_msg("%s", status_text());
        const Chain *chain = structure_find_chain(structure, examples[i].chain);
        assert_non_null(chain);
        int resolved = 0;
        for (int64_t r = 0; r < chain->length; r++) resolved += chain->mask[37 * r + CA];
        assert_int_equal(chain->length, examples[i].residues);
        assert_int_equal(resolved, examples[i].resolved);
        arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_of_everything),
        cmocka_unit_test(test_tie_of_occupancies_keeps_the_first),
        cmocka_unit_test(test_unusual_entries_are_read_with_a_remark),
        cmocka_unit_test(test_resolution_takes_the_largest_of_the_first_source),
        cmocka_unit_test(test_damage_is_named),
        cmocka_unit_test(test_memory_is_bounded_by_the_file),
        cmocka_unit_test(test_header_alone),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_examples_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
