#include "experiments/data_commands.h"

#include <stdio.h>
#include <string.h>

#include "data/pack.h"
#include "data/synth.h"
#include "experiments/cli.h"
#include "experiments/progress.h"
#include "experiments/source_internal.h"

static void show_progress(void *context, int64_t done, int64_t total)
{
    Progress *progress = context;
    progress->total = total;
    progress_update(progress, done, NULL);
}

/* --- pack
 * ---------------------------------------------------------------------------------------------------------------- */

static Status verify(const char *path)
{
    const DataLog log = {.warn = source_print_remark};
    PackReport report;
    int64_t damaged = 0;
    TRY(pack_verify(path, &log, &report, &damaged));
    printf("%s: %lld chains, %lld structures, %.1f MB, %lld damaged records\n", path, (long long)report.chains,
           (long long)report.structures, (double)report.file_bytes / 1e6, (long long)damaged);
    return damaged ? status_fail(ERR_INPUT, "%s: %lld records are damaged", path, (long long)damaged) : OK;
}

static Status write_pack(const ArchivePaths *paths, PackOptions *options)
{
    const DataLog log = {.warn = source_print_remark};
    Dataset *dataset = NULL;
    PackReport report;
    Progress progress;
    TRY(dataset_open_archive(paths, NULL, 0, &log, &dataset));
    progress_begin(&progress, "chain", 0, dataset_count(dataset), true);
    options->log = &log;
    options->progress = show_progress;
    options->progress_context = &progress;
    Status status = pack_write(dataset, options, &report);
    progress_end(&progress);
    dataset_close(&dataset);
    if (status != OK) return status;
    printf("%s: %lld chains, %lld structures, %lld left out, %.1f MB of %.1f MB\n", options->path,
           (long long)report.chains, (long long)report.structures, (long long)report.left_out,
           (double)report.file_bytes / 1e6, (double)report.raw_bytes / 1e6);
    return OK;
}

Status data_command_pack(int argc, char **argv)
{
    static const Usage usage = {
        .command = "data pack",
        .operands = "PACK",
        .text =
            "Packs structures, alignments and template hits, in any layout, into one compressed and checksummed file\n"
            "that training maps (data.pack). Samples from it are those from the files. An interrupted run is "
            "continued\n"
            "by the next one. --verify reads a pack instead.",
        .example =
            "foldscale data pack examples.pack --mmcif data/examples/mmcif --alignments data/examples/alignments",
        .min_operands = 1,
        .max_operands = 1};
    ArchivePaths paths = {0};
    PackOptions o = {.level = 3, .templates = true};
    int64_t threads = 2, level = 3;
    bool help, check = false, plain = false;
    TextList operands;
    const Option options[] = {
        {"mmcif", OPTION_TEXT, &paths.mmcif, "DIR", "folder of structures", 0, 0},
        {"alignments", OPTION_TEXT, &paths.alignments, "DIR", "folder of alignments, one folder per chain", 0, 0},
        {"alignment-index", OPTION_TEXT, &paths.alignment_index, "FILE", "index of an alignment database", 0, 0},
        {"duplicates", OPTION_TEXT, &paths.duplicates, "FILE", "duplicate_pdb_chains.txt", 0, 0},
        {"obsolete", OPTION_TEXT, &paths.obsolete, "FILE", "obsolete.dat", 0, 0},
        {"mmcif-cache", OPTION_TEXT, &paths.mmcif_cache, "FILE", "mmcif_cache.json", 0, 0},
        {"no-templates", OPTION_FLAG, &plain, NULL, "leave template hits out", 0, 0},
        {"strict", OPTION_FLAG, &o.stop_on_error, NULL, "stop at the first chain that cannot be read", 0, 0},
        {"threads", OPTION_INT, &threads, "N", "default 2", 1, 256},
        {"level", OPTION_INT, &level, "N", "of zstd (default 3)", 1, 19},
        {"verify", OPTION_FLAG, &check, NULL, "read every record of a pack", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (check) return verify(operands.item[0]);
    if (!paths.mmcif) return status_fail(ERR_USAGE, "data pack: --mmcif DIR is missing");
    o.path = operands.item[0];
    o.threads = (int)threads;
    o.level = (int)level;
    o.templates = !plain;
    return write_pack(&paths, &o);
}

/* --- synth
 * --------------------------------------------------------------------------------------------------------------- */

Status data_command_synth(int argc, char **argv)
{
    static const Usage usage = {
        .command = "data synth",
        .operands = "DIR",
        .text = "Writes synthetic chains with alignments and template hits in the layouts of real data: lengths and "
                "numbers\n"
                "of alignment rows are log-normal, so that preparation times spread as those of real sets do.",
        .example = "foldscale data synth /tmp/synthetic --chains 50 --seed 7",
        .min_operands = 1,
        .max_operands = 1};
    SynthOptions o = synth_options_default();
    int64_t seed = 1, chains = 100, threads = 2, hits = o.hits;
    TextList operands;
    Progress progress;
    bool help;
    const Option options[] = {
        {"chains", OPTION_INT, &chains, "N", "number of chains (default 100)", 1, 46656 * 9},
        {"seed", OPTION_INT, &seed, "N", "default 1", 0, 9e15},
        {"length-median", OPTION_REAL, &o.length_median, "N", "residues (default 250)", 10, 5000},
        {"length-sigma", OPTION_REAL, &o.length_sigma, "S", "of its logarithm (default 0.6)", 0, 3},
        {"length-min", OPTION_INT, &o.length_min, "N", "default 30", 10, 5000},
        {"length-max", OPTION_INT, &o.length_max, "N", "default 2000", 10, 5000},
        {"depth-median", OPTION_REAL, &o.depth_median, "N", "alignment rows (default 1500)", 1, 100000},
        {"depth-sigma", OPTION_REAL, &o.depth_sigma, "S", "of its logarithm (default 1.7)", 0, 4},
        {"depth-min", OPTION_INT, &o.depth_min, "N", "default 1", 1, 100000},
        {"depth-max", OPTION_INT, &o.depth_max, "N", "default 50000", 1, 100000},
        {"hits", OPTION_INT, &hits, "N", "template hits per chain (default 20)", 0, 200},
        {"threads", OPTION_INT, &threads, "N", "default 2", 1, 256},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    o.folder = operands.item[0];
    o.seed = (uint64_t)seed;
    o.chains = chains;
    o.threads = (int)threads;
    o.hits = (int)hits;
    o.progress = show_progress;
    o.progress_context = &progress;
    progress_begin(&progress, "chain", 0, chains, true);
    Status status = synth_write(&o);
    progress_end(&progress);
    if (status == OK) printf("%lld chains in %s/mmcif and %s/alignments\n", (long long)chains, o.folder, o.folder);
    return status;
}
