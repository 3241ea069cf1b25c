/* bench_sample [ROUNDS] [--keep FOLDER] [--reference MS]: time to prepare one full-size sample on one core: crop 256,
 * 124 clusters, 1,024 extra rows, 4 templates, of 300-residue chains with 5,000 alignment rows (synthetic), from text
 * files and from a pack; by number of recycling copies, and the mean over the reference's equal mixture of 1 to 4
 * copies. Files are in the page cache. The first number is processor time of the one thread (so that a busy machine
 * does not disturb it), the parts are wall time. The input files are written to FOLDER and stay there, so that another
 * program can be timed on them (chains 16 to 23 in alphabetical order are the samples); MS is the time of that program
 * for 4 copies, to print the ratio. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "data/folder.h"
#include "data/pack.h"
#include "data/synth.h"

enum { CHAINS = 24, FIRST_USED = 16, COPIES = 4 };

typedef struct BenchOptions {
    int64_t rounds;
    const char *folder; /* where the inputs are written */
    bool keep;
    double reference_ms; /* 0: none */
} BenchOptions;

typedef struct Totals {
    double cpu_s, load_s, template_s, feature_s;
    int64_t samples;
} Totals;

static double milliseconds(double seconds, int64_t samples)
{
    const double thousand = 1e3;
    return samples ? seconds * thousand / (double)samples : 0.0;
}

static double processor_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void print_totals(const char *source, const char *copies, const Totals *t)
{
    printf("%-5s %-12s %7.2f ms a sample; wall %7.2f: read and parse %6.2f, templates %6.2f, features %6.2f\n", source,
           copies, milliseconds(t->cpu_s, t->samples),
           milliseconds(t->load_s + t->template_s + t->feature_s, t->samples), milliseconds(t->load_s, t->samples),
           milliseconds(t->template_s, t->samples), milliseconds(t->feature_s, t->samples));
}

static void print_ratio(const char *source, const Totals *t, double reference_ms)
{
    double own = milliseconds(t->cpu_s, t->samples);
    if (reference_ms > 0 && own > 0)
        printf("%-5s %d copies: 1/%.0f of the reference's %.0f ms\n", source, COPIES, reference_ms / own, reference_ms);
}

static Status measure(const Dataset *dataset, const char *source, const BenchOptions *options)
{
    const BatchSizes sizes = {256, 124, 1024, 4, COPIES};
    FeatureConfig config = feature_config_default();
    DatasetReader *reader = NULL;
    Batch *batch = NULL;
    Totals all = {0};
    Status status = dataset_reader_create(dataset, &reader);
    if (status == OK) status = batch_create(&sizes, NULL, 0, &batch);
    for (int64_t copies = 1; copies <= COPIES && status == OK; ++copies) {
        Totals part = {0};
        for (int64_t i = -2; i < options->rounds && status == OK; ++i) { /* two to warm up */
            SampleTimes times;
            SampleRequest request = {.chain = FIRST_USED + (i + 2) % (CHAINS - FIRST_USED),
                                     .copies = copies,
                                     .draws = {.seed = 1, .index = (uint64_t)(i + 2)},
                                     .templates = true};
            double begin = processor_seconds();
            status = dataset_sample(reader, &request, &config, batch, &times);
            if (i < 0) continue;
            Totals *sums[2] = {&part, &all};
            for (int k = 0; k < 2; ++k) {
                sums[k]->cpu_s += processor_seconds() - begin;
                sums[k]->load_s += times.load_s;
                sums[k]->template_s += times.template_s;
                sums[k]->feature_s += times.feature_s;
                ++sums[k]->samples;
            }
        }
        char label[32];
        snprintf(label, sizeof label, "%lld copies", (long long)copies);
        if (status == OK) print_totals(source, label, &part);
        if (status == OK && copies == COPIES) print_ratio(source, &part, options->reference_ms);
    }
    if (status == OK) print_totals(source, "mean of 1-4", &all);
    batch_destroy(&batch);
    dataset_reader_destroy(&reader);
    return status;
}

static int64_t bytes_below(const char *folder)
{
    Arena arena = {0};
    FolderList list;
    int64_t bytes = 0;
    if (folder_list(folder, &arena, &list) != OK) return 0;
    for (int64_t i = 0; i < list.count; ++i) {
        struct stat info;
        const char *path = arena_printf(&arena, "%s/%s", folder, list.name[i]);
        if (path && stat(path, &info) == 0) bytes += S_ISDIR(info.st_mode) ? bytes_below(path) : info.st_size;
    }
    arena_free(&arena);
    return bytes;
}

static Status run(const BenchOptions *options)
{
    const char *folder = options->folder;
    Arena arena = {0};
    SynthOptions synth = synth_options_default();
    synth.folder = folder;
    synth.chains = CHAINS;
    synth.length_median = 300;
    synth.depth_median = 5000;
    synth.length_sigma = synth.depth_sigma = 0;
    ArchivePaths paths = {.mmcif = arena_printf(&arena, "%s/mmcif", folder),
                          .alignments = arena_printf(&arena, "%s/alignments", folder)};
    Dataset *dataset = NULL;
    Status status = synth_write(&synth);
    if (status == OK) status = dataset_open_archive(&paths, NULL, 0, NULL, &dataset);
    if (status == OK) status = measure(dataset, "text", options);
    char *path = arena_printf(&arena, "%s/chains.pack", folder);
    PackOptions pack = {.path = path, .threads = 2, .level = 3, .templates = true};
    PackReport report;
    unlink(path);
    int64_t files = bytes_below(folder);
    if (status == OK) status = pack_write(dataset, &pack, &report);
    dataset_close(&dataset);
    if (status == OK) status = dataset_open_pack(path, NULL, &dataset);
    if (status == OK) {
        printf("pack: %.1f MB of %.1f MB in files; %.1f MB before compression\n", (double)report.file_bytes / 1e6,
               (double)files / 1e6, (double)report.raw_bytes / 1e6);
        status = measure(dataset, "pack", options);
    }
    dataset_close(&dataset);
    arena_free(&arena);
    return status;
}

static bool options_read(int argc, char **argv, BenchOptions *options)
{
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--keep") == 0 && i + 1 < argc) {
            options->folder = argv[++i];
            options->keep = true;
        } else if (strcmp(argv[i], "--reference") == 0 && i + 1 < argc) {
            options->reference_ms = strtod(argv[++i], NULL);
            if (!(options->reference_ms > 0)) return false;
        } else {
            options->rounds = strtoll(argv[i], NULL, 10);
        }
    }
    return options->rounds > 0;
}

int main(int argc, char **argv)
{
    char folder[] = "/tmp/foldscale_bench_XXXXXX", command[64];
    BenchOptions options = {.rounds = 16, .folder = folder};
    if (!options_read(argc, argv, &options)) {
        fprintf(stderr, "usage: bench_sample [ROUNDS] [--keep FOLDER] [--reference MS]\n");
        return 2;
    }
    if (!options.keep && !mkdtemp(folder)) {
        perror("bench_sample");
        return 1;
    }
    Status status = run(&options);
    if (status != OK) fprintf(stderr, "%s\n", status_text());
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (!options.keep && system(command) != 0) fprintf(stderr, "cannot remove %s\n", folder);
    return status_exit_code(status);
}
