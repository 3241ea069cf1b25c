/* Synthetic data written, read and packed: a pack gives the very samples of the files; interrupted and damaged packs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/draws.h"
#include "data/pack.h"
#include "data/synth.h"

enum { CHAINS = 14, COPIES = 2 };

static char folder[] = "/tmp/foldscale_pack_XXXXXX";
static char mmcif[128], alignments[128], pack_path[128];

static SynthOptions synth_options(void)
{
    SynthOptions options = synth_options_default();
    options.folder = folder;
    options.chains = CHAINS;
    options.length_median = 60;
    options.length_min = 30;
    options.length_max = 120;
    options.depth_median = 80;
    options.depth_max = 400;
    options.threads = 2;
    return options;
}

static int make_data(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(mmcif, sizeof mmcif, "%s/mmcif", folder);
    snprintf(alignments, sizeof alignments, "%s/alignments", folder);
    snprintf(pack_path, sizeof pack_path, "%s/chains.pack", folder);
    SynthOptions options = synth_options();
    if (synth_write(&options) == OK) return 0;
    fprintf(stderr, "%s\n", status_text());
    return -1;
}

static int remove_data(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command) == 0 ? 0 : -1;
}

static Dataset *open_files(void)
{
    ArchivePaths paths = {.mmcif = mmcif, .alignments = alignments};
    Dataset *dataset = NULL;
    Status status = dataset_open_archive(&paths, NULL, 0, NULL, &dataset);
    if (status != OK) fail_msg("%s", status_text());
    return dataset;
}

static int pack_threads = 2;

static PackOptions pack_options(void)
{
    return (PackOptions){
        .path = pack_path, .threads = pack_threads, .level = 3, .templates = true, .stop_on_error = true};
}

static PackReport write_pack(void)
{
    Dataset *dataset = open_files();
    PackOptions options = pack_options();
    PackReport report = {0};
    Status status = pack_write(dataset, &options, &report);
    if (status != OK) fail_msg("%s", status_text());
    dataset_close(&dataset);
    return report;
}

static Batch *sample(DatasetReader *reader, int64_t chain)
{
    const BatchSizes sizes = {64, 12, 24, 4, COPIES};
    Batch *batch = NULL;
    FeatureConfig config = feature_config_default();
    SampleRequest request = {
        .chain = chain, .copies = COPIES, .draws = {.seed = 5, .epoch = 2, .index = 77}, .templates = true};
    assert_int_equal(batch_create(&sizes, NULL, 0, &batch), OK);
    Status status = dataset_sample(reader, &request, &config, batch, NULL);
    if (status != OK) fail_msg("%s", status_text());
    return batch;
}

/* Every sample of the pack is that of the files; returns the number of templates in them. */
static int64_t compare_with_files(int64_t chains)
{
    Dataset *files = open_files(), *packed = NULL;
    DatasetReader *file_reader = NULL, *pack_reader = NULL;
    int64_t templates = 0;
    assert_int_equal(dataset_open_pack(pack_path, NULL, &packed), OK);
    assert_int_equal(dataset_reader_create(files, &file_reader), OK);
    assert_int_equal(dataset_reader_create(packed, &pack_reader), OK);
    assert_int_equal(dataset_count(files), chains);
    assert_int_equal(dataset_count(packed), chains);
    for (int64_t chain = 0; chain < chains; ++chain) {
        int64_t same = dataset_find(packed, dataset_name(files, chain));
        assert_true(same >= 0);
        Batch *a = sample(file_reader, chain), *b = sample(pack_reader, same);
        assert_memory_equal(a->memory, b->memory, a->bytes);
        for (int t = 0; t < 4; ++t) templates += batch_f32(a, FEAT_TEMPLATE_MASK, 0)[t] != 0.0f;
        batch_destroy(&a);
        batch_destroy(&b);
    }
    dataset_reader_destroy(&file_reader);
    dataset_reader_destroy(&pack_reader);
    dataset_close(&files);
    dataset_close(&packed);
    return templates;
}

static void test_same_samples(void **state)
{
    (void)state;
    PackReport report = write_pack();
    assert_int_equal(report.chains, CHAINS);
    assert_int_equal(report.left_out, 0);
    assert_true(compare_with_files(CHAINS) > CHAINS); /* the comparison did include templates */
}

static long file_size(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 ? (long)info.st_size : -1;
}

/* Killed at any point: the file ends anywhere, perhaps inside a record. */
static void test_resume(void **state)
{
    (void)state;
    char part[160];
    snprintf(part, sizeof part, "%s.part", pack_path);
    PackReport whole = write_pack();
    long size = file_size(pack_path);
    for (int cut = 1; cut < 8; ++cut) {
        assert_int_equal(rename(pack_path, part), 0);
        assert_int_equal(truncate(part, size * cut / 8), 0);
        PackReport report = write_pack();
        assert_int_equal(report.chains, CHAINS);
        assert_int_equal(report.structures, whole.structures);
        assert_int_equal(report.raw_bytes, whole.raw_bytes);
        assert_true(cut < 4 || report.kept > 0);
        int64_t damaged = -1;
        assert_int_equal(pack_verify(pack_path, NULL, &report, &damaged), OK);
        assert_int_equal(damaged, 0);
    }
    /* something else of that name is not touched */
    FILE *file = fopen(part, "w");
    assert_non_null(file);
    fprintf(file, "not a pack at all");
    fclose(file);
    Dataset *dataset = open_files();
    PackOptions options = pack_options();
    PackReport report;
    assert_int_equal(pack_write(dataset, &options, &report), ERR_INPUT);
    assert_int_equal(file_size(part), 17);
    dataset_close(&dataset);
    unlink(part);
}

/* An interrupted run: everything but the index, and the last records. */
static void interrupt(void)
{
    char part[160];
    write_pack();
    snprintf(part, sizeof part, "%s.part", pack_path);
    assert_int_equal(rename(pack_path, part), 0);
    assert_int_equal(truncate(part, file_size(part) * 9 / 10), 0);
}

static void path_of(int64_t chain, const char *file, char path_out[256])
{
    char name[8];
    synth_name(chain, name);
    if (file)
        snprintf(path_out, 256, "%s/%s/%s", alignments, name, file);
    else
        snprintf(path_out, 256, "%s/%.4s.cif", mmcif, name);
}

/* What is made from files that have changed since the interruption is made anew, the rest is kept. */
static void test_changed_inputs(void **state)
{
    (void)state;
    char path[256], text[512] = {0}, word[200] = {0};
    pack_threads = 1; /* the same records lie in front each time */
    interrupt();
    PackReport report = write_pack();
    int64_t unchanged = report.kept;
    assert_true(unchanged > CHAINS);

    interrupt(); /* another row for the first chain */
    path_of(0, "uniref90_hits.a3m", path);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_true(fscanf(file, "%511[^\n]\n%199s", text, word) == 2);
    fseek(file, 0, SEEK_END);
    for (char *c = word; *c; ++c) *c = *c == 'A' ? 'G' : 'A';
    fprintf(file, ">another\n%s\n", word);
    fclose(file);
    report = write_pack();
    assert_int_equal(report.kept, unchanged - 1);
    compare_with_files(CHAINS);

    interrupt(); /* another structure for a chain that is a template of others */
    path_of(0, NULL, path);
    assert_int_equal(truncate(path, file_size(path)), 0);
    struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    report = write_pack();
    assert_true(report.kept < unchanged - CHAINS / 2);
    compare_with_files(CHAINS);

    interrupt(); /* a chain taken away */
    path_of(1, NULL, path);
    assert_int_equal(unlink(path), 0);
    report = write_pack();
    assert_int_equal(report.chains, CHAINS - 1);
    compare_with_files(CHAINS - 1);

    pack_threads = 2;
    unlink(pack_path);
    SynthOptions synth = synth_options(); /* the same files again */
    assert_int_equal(synth_write(&synth), OK);
}

/* Makes the first `count` hits of a file its best, with rows that are in no structure. */
static void spoil_hits(const char *path, int count)
{
    static char text[1 << 18];
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    size_t size = fread(text, 1, sizeof text - 1, file);
    text[size] = '\0';
    for (char *line = text; line && count >= 0; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        count -= strncmp(line, "No ", 3) == 0;
        if (strncmp(line, "T 9", 3) == 0)
            for (char *c = line + 22; *c != ' ' && *c != '\n'; ++c) *c = *c == '-' ? '-' : 'W';
        char *sum = strncmp(line, "Probab=", 7) == 0 ? strstr(line, "Sum_probs=") : NULL;
        for (char *c = sum ? sum + 10 : line; sum && *c != ' '; ++c) *c = *c == '.' ? '.' : '9';
    }
    rewind(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    fclose(file);
}

/* Where the best 20 hits cannot be used, a pack has those behind them. */
static void test_behind_the_best(void **state)
{
    (void)state;
    enum { MORE_CHAINS = 44, FIRST_SPOILT = 40, SPOILT = 22 };
    char path[256], command[300];
    SynthOptions synth = synth_options();
    synth.chains = synth.hits = MORE_CHAINS; /* a hit to each older chain */
    assert_int_equal(synth_write(&synth), OK);
    write_pack();
    int64_t templates = compare_with_files(MORE_CHAINS);
    for (int64_t chain = FIRST_SPOILT; chain < MORE_CHAINS; ++chain) {
        path_of(chain, "pdb70_hits.hhr", path);
        spoil_hits(path, SPOILT);
    }
    write_pack();
    assert_int_equal(compare_with_files(MORE_CHAINS), templates);
    snprintf(command, sizeof command, "rm -rf %s %s %s", pack_path, mmcif, alignments);
    assert_int_equal(system(command), 0);
    synth = synth_options(); /* the same files as before */
    assert_int_equal(synth_write(&synth), OK);
}

static void flip(const char *path, long at)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    fseek(file, at, SEEK_SET);
    int byte = fgetc(file);
    fseek(file, at, SEEK_SET);
    fputc(byte ^ 0x5a, file);
    fclose(file);
}

static void count_remark(void *context, const char *file, long line, const char *text)
{
    (void)file;
    (void)line;
    (void)text;
    ++*(int64_t *)context;
}

/* A damaged byte is found wherever it is: the file does not open, or exactly one record is reported. Padding aside,
 * which nobody reads. */
static void test_damage(void **state)
{
    (void)state;
    write_pack();
    long size = file_size(pack_path);
    int64_t unopened = 0, found = 0, padding = 0;
    for (int i = 0; i < 200; ++i) {
        Draws draws = {.seed = 3, .index = (uint64_t)i};
        long at = i == 0 ? 0 : i == 1 ? size - 1 : (long)(draws_bits(&draws, DRAW_SYNTH, 0, 0) % (uint64_t)size);
        flip(pack_path, at);
        int64_t remarks = 0, damaged = 0;
        DataLog log = {count_remark, &remarks};
        PackReport report;
        Status status = pack_verify(pack_path, &log, &report, &damaged);
        assert_true(status == OK || status == ERR_INPUT);
        assert_int_equal(remarks, damaged);
        unopened += status != OK;
        found += status == OK && damaged == 1;
        padding += status == OK && damaged == 0;
        flip(pack_path, at);
    }
    assert_true(unopened > 0 && found > 0);
    assert_true(padding <= 2); /* at most 7 bytes of each record of some thousand */
    for (long cut = 0; cut < 64; ++cut) {
        assert_int_equal(truncate(pack_path, size - 1 - cut), 0);
        Dataset *dataset = NULL;
        assert_int_equal(dataset_open_pack(pack_path, NULL, &dataset), ERR_INPUT);
        assert_null(dataset);
    }
    unlink(pack_path);
}

static void test_left_out(void **state)
{
    (void)state;
    char broken[256], name[8];
    synth_name(3, name);
    snprintf(broken, sizeof broken, "%s/%s/uniref90_hits.a3m", alignments, name);
    FILE *file = fopen(broken, "a");
    assert_non_null(file);
    fprintf(file, ">short\nACD\n");
    fclose(file);
    int64_t remarks = 0;
    DataLog log = {count_remark, &remarks};
    Dataset *dataset = open_files();
    PackOptions options = pack_options();
    PackReport report;
    assert_int_equal(pack_write(dataset, &options, &report), ERR_INPUT);
    options.stop_on_error = false;
    options.log = &log;
    assert_int_equal(pack_write(dataset, &options, &report), OK);
    assert_int_equal(report.left_out, 1);
    assert_int_equal(report.chains, CHAINS - 1);
    assert_int_equal(remarks, 1);
    dataset_close(&dataset);
    unlink(pack_path);
    SynthOptions synth = synth_options(); /* the same files again */
    assert_int_equal(synth_write(&synth), OK);
}

static void test_synth(void **state)
{
    (void)state;
    SynthOptions options = synth_options_default();
    enum { COUNT = 4000 };
    double length = 0.0, depth = 0.0, shallow = 1e9, deep = 0.0;
    for (int64_t i = 0; i < COUNT; ++i) {
        int64_t l = synth_length(&options, i), d = synth_depth(&options, i);
        assert_in_range(l, options.length_min, options.length_max);
        assert_in_range(d, options.depth_min, options.depth_max);
        length += log((double)l);
        depth += log((double)d);
        shallow = d < shallow ? (double)d : shallow;
        deep = d > deep ? (double)d : deep;
    }
    /* mean of the logarithms: that of the median, within 5 standard errors and what clamping takes */
    assert_true(fabs(length / COUNT - log(options.length_median)) < 0.08);
    assert_true(fabs(depth / COUNT - log(options.depth_median)) < 0.2);
    assert_true(deep / shallow > 1000.0);
    options.chains = 0;
    assert_int_equal(synth_write(&options), ERR_USAGE);
    options.chains = 1;
    options.folder = "/nonexistent/folder";
    assert_int_equal(synth_write(&options), ERR_IO);
    /* neighbouring residues are a peptide bond apart */
    Dataset *dataset = open_files();
    Arena arena = {0};
    RawSample raw;
    const DatasetSource *source = dataset_source(dataset);
    assert_int_equal(source->load(source->context, 0, false, &arena, &raw), OK);
    for (int64_t i = 1; i < raw.chain.length; ++i) {
        int64_t c = (i - 1) * ATOM37_COUNT + 2, n = i * ATOM37_COUNT;
        if (!raw.chain.mask[c] || !raw.chain.mask[n]) continue;
        double square = 0.0;
        for (int k = 0; k < 3; ++k) {
            double d = (double)raw.chain.positions[c * 3 + k] - raw.chain.positions[n * 3 + k];
            square += d * d;
        }
        assert_true(fabs(sqrt(square) - 1.329) < 0.06); /* N-CA-C differs by up to 2.1 degrees x 1.46 A */
    }
    arena_free(&arena);
    dataset_close(&dataset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_synth),           cmocka_unit_test(test_same_samples),
                                       cmocka_unit_test(test_resume),          cmocka_unit_test(test_changed_inputs),
                                       cmocka_unit_test(test_behind_the_best), cmocka_unit_test(test_left_out),
                                       cmocka_unit_test(test_damage)};
    return cmocka_run_group_tests(tests, make_data, remove_data);
}
