/* The layouts of a data set, built in a temporary folder; data check and data show over them. */
#include "tests/reader_helpers.h"

#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "data/archive.h"
#include "data/check.h"

static char root[64];

/* Valid until the fourth call after it. */
static const char *at(const char *name)
{
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static void put(const char *name, const char *content)
{
    char folder[256];
    snprintf(folder, sizeof folder, "%s", at(name));
    for (char *slash = folder + strlen(root) + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = '\0';
        mkdir(folder, 0700);
    }
    FILE *stream = fopen(at(name), "wb");
    assert_non_null(stream);
    fputs(content, stream);
    assert_int_equal(fclose(stream), 0);
}

#define CIF(ID)                                                                                                        \
    "data_" ID "\n_entry.id " ID "\n_pdbx_audit_revision_history.revision_date 2001-02-03\n"                           \
    "loop_\n_entity_poly_seq.entity_id\n_entity_poly_seq.num\n_entity_poly_seq.mon_id\n1 1 ALA\n1 2 CYS\n1 3 GLY\n"    \
    "loop_\n_chem_comp.id\n_chem_comp.type\nALA 'L-peptide linking'\n_struct_asym.id A\n_struct_asym.entity_id 1\n"    \
    "loop_\n_atom_site.label_atom_id\n_atom_site.label_comp_id\n_atom_site.label_asym_id\n"                            \
    "_atom_site.label_seq_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n_atom_site.Cartn_z\nCA ALA A 1 1 2 3\n"          \
    "CA GLY A 3 1 2 3\n"
#define HHR                                                                                                            \
    "No 1\n>2DEF_A x\nProbab=9 E-value=1 Score=1 Aligned_cols=3 Identities=9% Similarity=1 Sum_probs=2.5\n"            \
    "Q query             1 ACG    3 (3)\nT 2DEF_A            1 ACG    3 (3)\n"

static int make_data_set(void **state)
{
    (void)state;
    strcpy(root, "/tmp/foldscale_archive_XXXXXX");
    if (!mkdtemp(root)) return -1;
    put("mmcif/1abc.cif", CIF("1ABC"));
    put("mmcif/de/2def.cif", CIF("2DEF")); /* divided as in the archive's own copy */
    put("mmcif/readme.txt", "x");
    gzFile gz = gzopen(at("mmcif/3ghi.cif.gz"), "wb");
    gzputs(gz, CIF("3GHI"));
    gzclose(gz);
    put("flat/1abc_A/mgnify_hits.a3m", ">q\nACG\n>m\nAC-\n");
    put("flat/1abc_A/uniref90_hits.sto", "# STOCKHOLM 1.0\nq ACG\nu A-G\n//\n");
    put("flat/1abc_A/pdb70_hits.hhr", HHR);
    put("flat/1abc_A/hmm_output.sto", "# STOCKHOLM 1.0\n2def_A/2-3 CG\n//\n"); /* no alignment of the chain */
    put("set/2def_A/a3m/bfd_uniclust_hits.a3m", ">q\nACG\n>b\n-CG\n");
    put("set/2def_A/hhr/pdb70_hits.hhr", HHR);
    put("db/0.db", ">q\nACG\n>d\nA--\n");
    put("db/0.index", "{\"1abc_A\": [[\"uniref90_hits.a3m\", 0, 14]]}");
    put("db/super.index", "{\"3ghi_A\": {\"db\": \"0.db\", \"files\": [[\"uniref90_hits.a3m\", 0, 14]]}}");
    put("duplicates.txt", "1abc_A 5xyz_A\n\n2def_A 3ghi_A 4jkl_B\n");
    put("obsolete.dat", "OBSLTE    31-JUL-94 0OLD     0MID\nOBSLTE 31-JUL-94 0MID 1ABC\nOBSLTE 31-JUL-94 9LOS\n");
    put("clusters.txt", "1ABC_1 2DEF_1\n3GHI_1\n");
    put("chain_data_cache.json",
        "{\"1abc_A\": {\"release_date\": \"2001-02-03\", \"seq\": \"ACG\", \"resolution\": 0.0, \"cluster_size\": 2}}");
    put("mmcif_cache.json", "{\"1abc\": {\"release_date\": \"2001-02-03\", \"chain_ids\": [\"A\", \"B\"], "
                            "\"seqs\": [\"ACG\", \"AC\"], \"resolution\": 1.5, \"no_chains\": 2}}");
    return 0;
}

static int remove_data_set(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command);
}

static Archive *open_archive(const ArchivePaths *paths)
{
    Archive *archive = NULL;
    if (archive_open(paths, NULL, &archive) != OK) fail_msg("%s", status_text());
    return archive;
}

static void test_structures(void **state)
{
    (void)state;
    Archive *archive = open_archive(&(ArchivePaths){.mmcif = at("mmcif"), .obsolete = at("obsolete.dat")});
    static const char *const entries[] = {"1abc", "2def", "3ghi"};
    Arena arena = {0};
    Structure *structure;
    char **listed, *path;
    int64_t count;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(archive_structure_read(archive, entries[i], &arena, &structure), OK);
        assert_string_equal(structure->entry_id, entries[i]);
    }
    assert_int_equal(archive_list_entries(archive, &arena, &listed, &count), OK);
    assert_int_equal(count, 3);
    for (int i = 0; i < 3; i++) assert_string_equal(listed[i], entries[i]);
    assert_int_equal(archive_structure_path(archive, "9zzz", &arena, &path), OK);
    assert_null(path);
    assert_int_equal(archive_structure_path(archive, "../mmcif/1abc", &arena, &path), OK);
    assert_null(path);
    assert_int_equal(archive_structure_read(archive, "9zzz", &arena, &structure), ERR_INPUT);
    assert_string_equal(archive_current_entry(archive, "0old"), "1abc"); /* twice superseded */
    assert_string_equal(archive_current_entry(archive, "9los"), "9los");
    assert_string_equal(archive_current_entry(archive, "1abc"), "1abc");
    arena_free(&arena);
    archive_close(&archive);
}

static void assert_rows(const Archive *archive, const char *chain, int64_t rows, int64_t hits)
{
    Arena arena = {0};
    Msa msa;
    TemplateHits found;
    if (archive_chain_msa(archive, chain, "ACG", &arena, &msa) != OK) fail_msg("%s", status_text());
    assert_int_equal(msa.rows, rows);
    assert_int_equal(archive_chain_hits(archive, chain, &arena, &found), OK);
    assert_int_equal(found.count, hits);
    arena_free(&arena);
}

static void test_alignments_in_folders(void **state)
{
    (void)state;
    Archive *archive = open_archive(&(ArchivePaths){.alignments = at("flat"), .duplicates = at("duplicates.txt")});
    Arena arena = {0};
    ArchiveFile *files;
    char **chains;
    int64_t count;
    assert_int_equal(archive_chain_files(archive, "1abc_A", &arena, &files, &count), OK);
    assert_int_equal(count, 3);
    assert_string_equal(files[0].name, "uniref90_hits.sto");
    assert_string_equal(files[1].name, "mgnify_hits.a3m");
    assert_string_equal(files[2].name, "pdb70_hits.hhr");
    assert_rows(archive, "1abc_A", 3, 1);
    assert_rows(archive, "5xyz_A", 3, 1); /* by its group */
    assert_rows(archive, "2def_A", 1, 0); /* not in this folder */
    assert_rows(archive, "../flat/1abc_A", 1, 0);
    assert_int_equal(archive_list_chains(archive, &arena, &chains, &count), OK);
    assert_int_equal(count, 2);
    assert_string_equal(chains[1], "5xyz_A");
    archive_close(&archive);
    archive = open_archive(&(ArchivePaths){.alignments = at("set"), .duplicates = at("duplicates.txt")});
    assert_rows(archive, "2def_A", 2, 1);
    assert_rows(archive, "4jkl_B", 2, 1);
    archive_close(&archive);
    arena_free(&arena);
}

static void test_alignment_databases(void **state)
{
    (void)state;
    Archive *archive = open_archive(&(ArchivePaths){.alignment_index = at("db/super.index")});
    assert_rows(archive, "3ghi_A", 2, 0);
    assert_rows(archive, "1abc_A", 1, 0);
    archive_close(&archive);
    archive = open_archive(&(ArchivePaths){.alignment_index = at("db/0.index"), .alignments = at("set")});
    assert_rows(archive, "1abc_A", 2, 0);
    assert_rows(archive, "2def_A", 2, 1); /* from the folder */
    archive_close(&archive);
    put("db/bad.index", "{\"1abc_A\": {\"db\": \"0.db\", \"files\": [[\"uniref90_hits.a3m\", 4, 14]]}}");
    assert_int_equal(archive_open(&(ArchivePaths){.alignment_index = at("db/bad.index")}, NULL, &archive), ERR_INPUT);
    assert_says(status_text(), "1abc_A");
    assert_int_equal(archive_open(&(ArchivePaths){.alignment_index = at("db/none.index")}, NULL, &archive), ERR_IO);
    assert_null(archive);
    unlink(at("db/bad.index"));
}

static void test_wrong_alignment_is_an_error(void **state)
{
    (void)state;
    Archive *archive = open_archive(&(ArchivePaths){.alignments = at("flat")});
    Arena arena = {0};
    Msa msa;
    assert_int_equal(archive_chain_msa(archive, "1abc_A", "ACW", &arena, &msa), ERR_INPUT);
    assert_says(status_text(), "residue 3");
    arena_free(&arena);
    archive_close(&archive);
}

static void test_lists(void **state)
{
    (void)state;
    Archive *archive = open_archive(&(ArchivePaths){.clusters = at("clusters.txt"),
                                                    .chain_data_cache = at("chain_data_cache.json"),
                                                    .mmcif_cache = at("mmcif_cache.json")});
    const ClusterTable *clusters = archive_clusters(archive);
    assert_int_equal(archive_cluster_count(clusters), 2);
    assert_int_equal(archive_cluster_find(clusters, "2def_1"), 0);
    assert_int_equal(archive_cluster_find(clusters, "3GHI_1"), 1);
    assert_int_equal(archive_cluster_find(clusters, "3ghi_2"), -1);
    assert_int_equal(archive_cluster_size(clusters, 0), 2);
    assert_int_equal(archive_cluster_size(clusters, -1), 0);
    const ChainTable *table = archive_chain_cache(archive);
    assert_int_equal(table->count, 1);
    assert_string_equal(table->record[0].entry_id, "1abc");
    assert_int_equal(table->record[0].cluster_size, 2);
    table = archive_mmcif_cache(archive);
    assert_int_equal(table->count, 2);
    assert_string_equal(table->record[1].chain, "1abc_B");
    assert_int_equal(table->record[1].cluster_size, -1);
    archive_close(&archive);
}

typedef struct Report {
    char text[4096];
} Report;

static void take(void *context, bool error, const char *text)
{
    Report *report = context;
    size_t used = strlen(report->text);
    snprintf(report->text + used, sizeof report->text - used, "%s %s\n", error ? "error" : "remark", text);
}

static void test_check(void **state)
{
    (void)state;
    Report report = {""};
    char mmcif[256];
    snprintf(mmcif, sizeof mmcif, "%s", at("mmcif"));
    const DataCheckOptions options = {.mmcif = mmcif, .report = take, .context = &report};
    DataCheckCounts counts = {0};
    assert_int_equal(data_check(root, &options, &counts), OK);
    assert_string_equal(report.text, "");
    assert_int_equal(counts.errors, 0);
    assert_int_equal(counts.files[DATA_MMCIF], 3);
    assert_int_equal(counts.files[DATA_INDEX], 2);
    assert_int_equal(counts.protein_chains, 3);
    put("flat/1abc_A/homologs.a3m", ">q\nACW\n");
    put("mmcif/4bad.cif", "data_x\n_a.b\n");
    counts = (DataCheckCounts){0};
    assert_int_equal(data_check(root, &options, &counts), OK);
    assert_int_equal(counts.errors, 2);
    assert_says(report.text, "residue 3 of the first row is not the G of chain 1abc_A");
    assert_says(report.text, "4bad.cif:2: _a.b has no value");
    unlink(at("flat/1abc_A/homologs.a3m"));
    unlink(at("mmcif/4bad.cif"));
    assert_int_equal(data_check(at("nothing"), &options, &counts), ERR_IO);
}

static void test_show(void **state)
{
    (void)state;
    Archive *archive =
        open_archive(&(ArchivePaths){.mmcif = at("mmcif"), .alignments = at("flat"), .clusters = at("clusters.txt")});
    char text[4096] = "";
    FILE *stream = fmemopen(text, sizeof text, "w");
    assert_non_null(stream);
    assert_int_equal(data_show(archive, "1abc_A", stream), OK);
    fclose(stream);
    assert_says(text, "residues      3, 2 with CA");
    assert_says(text, "AcG");
    assert_says(text, "3 different rows");
    assert_says(text, "2DEF_A");
    assert_says(text, "cluster       0, of 2 members");
    assert_int_equal(data_show(archive, "1abc", stdout), ERR_USAGE);
    assert_int_equal(data_show(archive, "1abc_Q", stdout), ERR_INPUT);
    archive_close(&archive);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_structures),
        cmocka_unit_test(test_alignments_in_folders),
        cmocka_unit_test(test_alignment_databases),
        cmocka_unit_test(test_wrong_alignment_is_an_error),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_show),
    };
    return cmocka_run_group_tests(tests, make_data_set, remove_data_set);
}
