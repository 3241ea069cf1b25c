/* foldscale data check|show|index|pack|synth: what is in a user's files. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "data/cache.h"
#include "data/check.h"
#include "engine/output.h"
#include "experiments/cli.h"
#include "experiments/commands.h"
#include "experiments/data_commands.h"

typedef Status (*DataCommand)(int argc, char **argv);

static void print_problem(void *context, bool error, const char *text)
{
    (void)context;
    fprintf(stderr, "foldscale: %s%s\n", error ? "" : "note: ", text);
}

static Status check(int argc, char **argv)
{
    static const Usage usage = {
        .command = "data check",
        .operands = "FILE...",
        .text =
            "Reads every file (or all files below a folder): mmCIF, a3m, Stockholm, hhr (each also .gz), alignment\n"
            "databases (.index), caches (mmcif*.json, chain*.json), lists (*duplicate*.txt, *cluster*.txt,\n"
            "*obsolete*.dat), packs (.pack), safetensors; says what is in them and what is wrong, with file and\n"
            "line. Exit status 1 when something is wrong.",
        .example = "foldscale data check data/examples --mmcif data/examples/mmcif",
        .min_operands = 1,
        .max_operands = CLI_MAX_ITEMS};
    DataCheckOptions o = {.report = print_problem};
    DataCheckCounts counts = {0};
    TextList files;
    bool help;
    const Option options[] = {
        {"mmcif", OPTION_TEXT, &o.mmcif, "DIR", "structures: alignments are compared with their chains", 0, 0},
        {"chain", OPTION_TEXT, &o.chain, "CHAIN", "ENTRY_CHAIN of alignments whose folder names none", 0, 0},
        {"alignment-db", OPTION_TEXT, &o.alignment_db, "DIR", "folder of the .db files of an index", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &files, &help));
    if (help) return OK;
    for (int i = 0; i < files.count; i++) {
        if (data_check(files.item[i], &o, &counts) == OK) continue;
        print_problem(NULL, true, status_text()); /* the other operands are read all the same */
        counts.errors++;
    }
    data_check_summary(&counts, stdout);
    if (counts.errors)
        return status_fail(ERR_INPUT, "%lld problems in %d operands (listed above)", (long long)counts.errors,
                           files.count);
    return OK;
}

static Status show(int argc, char **argv)
{
    static const Usage usage = {.command = "data show",
                                .operands = "CHAIN",
                                .text =
                                    "Prints what there is about a chain: structure, unresolved stretches, alignments, "
                                    "hits, cluster.",
                                .example = "foldscale data show 1ubq_A --mmcif data/examples/mmcif --alignments "
                                           "data/examples/alignments",
                                .min_operands = 1,
                                .max_operands = 1};
    ArchivePaths paths = {0};
    Archive *archive = NULL;
    TextList operands;
    bool help;
    const Option options[] = {
        {"mmcif", OPTION_TEXT, &paths.mmcif, "DIR", "folder of structures", 0, 0},
        {"alignments", OPTION_TEXT, &paths.alignments, "DIR", "folder of alignments, one folder per chain", 0, 0},
        {"alignment-index", OPTION_TEXT, &paths.alignment_index, "FILE", "index of an alignment database", 0, 0},
        {"duplicates", OPTION_TEXT, &paths.duplicates, "FILE", "duplicate_pdb_chains.txt", 0, 0},
        {"obsolete", OPTION_TEXT, &paths.obsolete, "FILE", "obsolete.dat", 0, 0},
        {"clusters", OPTION_TEXT, &paths.clusters, "FILE", "clusters, one a line", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    TRY(archive_open(&paths, NULL, &archive));
    Status status = data_show(archive, operands.item[0], stdout);
    archive_close(&archive);
    return status;
}

static void take_remark(void *context, const char *file, long line, const char *text)
{
    (void)context;
    if (line > 0)
        fprintf(stderr, "foldscale: note: %s:%ld: %s\n", file, line, text);
    else
        fprintf(stderr, "foldscale: note: %s: %s\n", file, text);
}

static void print_progress(void *context, int64_t done, int64_t total)
{
    (void)context;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%lld of %lld structures%s", (long long)done, (long long)total, done == total ? "\n" : "");
}

static Status check_caches(const char *clusters, const char *mmcif_cache, const char *chain_cache)
{
    if (output_same(mmcif_cache, chain_cache))
        return status_fail(ERR_USAGE, "data index: --mmcif-cache and --chain-cache are one file, %s", chain_cache);
    TRY(output_check("data index: --mmcif-cache", mmcif_cache, CACHE_BEGINS, &clusters, 1));
    return output_check("data index: --chain-cache", chain_cache, CACHE_BEGINS, &clusters, 1);
}

static Status make_caches(const Archive *archive, const char *folder, int threads, const char *mmcif_cache,
                          const char *chain_cache)
{
    static const DataLog log = {take_remark, NULL};
    Arena arena = {0};
    ChainTable table;
    CacheCounts counts;
    Status status = cache_build(archive, threads, &log, print_progress, NULL, &arena, &table, &counts);
    if (status == OK && counts.entries == 0)
        status = status_fail(ERR_INPUT, "%s: no structure in it could be read (%lld left out): no caches are written",
                             folder, (long long)counts.unreadable);
    if (status == OK) status = cache_write_mmcif(&table, mmcif_cache);
    if (status == OK) status = cache_write_chains(&table, chain_cache);
    if (status == OK)
        printf("%lld chains of %lld structures (%lld left out) -> %s, %s\n", (long long)counts.chains,
               (long long)counts.entries, (long long)counts.unreadable, mmcif_cache, chain_cache);
    arena_free(&arena);
    return status;
}

static Status index_structures(int argc, char **argv)
{
    static const Usage usage = {
        .command = "data index",
        .operands = "",
        .text = "Reads every structure of a folder and writes the caches that sampling and templates need:\n"
                "mmcif_cache.json and chain_data_cache.json, in OpenFold's form. Structures that cannot be read are\n"
                "left out, each with a note.",
        .example = "foldscale data index --mmcif data/examples/mmcif --mmcif-cache mmcif_cache.json "
                   "--chain-cache chain_data_cache.json",
    };
    ArchivePaths paths = {0};
    const char *mmcif_cache = "mmcif_cache.json", *chain_cache = "chain_data_cache.json";
    int64_t threads = sysconf(_SC_NPROCESSORS_ONLN);
    Archive *archive = NULL;
    TextList operands;
    bool help;
    const Option options[] = {
        {"mmcif", OPTION_TEXT, &paths.mmcif, "DIR", "folder of structures (needed)", 0, 0},
        {"clusters", OPTION_TEXT, &paths.clusters, "FILE", "clusters, one a line", 0, 0},
        {"mmcif-cache", OPTION_TEXT, &mmcif_cache, "FILE", "written; mmcif_cache.json", 0, 0},
        {"chain-cache", OPTION_TEXT, &chain_cache, "FILE", "written; chain_data_cache.json", 0, 0},
        {"threads", OPTION_INT, &threads, "N", "all processors", 1, 1024},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (!paths.mmcif) return status_fail(ERR_USAGE, "data index: --mmcif DIR is missing");
    TRY(check_caches(paths.clusters, mmcif_cache, chain_cache));
    TRY(archive_open(&paths, NULL, &archive));
    Status status = make_caches(archive, paths.mmcif, (int)threads, mmcif_cache, chain_cache);
    archive_close(&archive);
    return status;
}

static const struct {
    const char *name;
    DataCommand run;
} commands[] = {{"check", check},
                {"show", show},
                {"index", index_structures},
                {"pack", data_command_pack},
                {"synth", data_command_synth}};

enum { COMMANDS = sizeof commands / sizeof *commands };

Status cmd_data(int argc, char **argv)
{
    const char *names[COMMANDS + 1] = {NULL};
    for (int i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    if (argc < 2)
        return status_fail(ERR_USAGE, "data: what to do is missing (expected check, show, index, pack or synth)");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        printf("usage: foldscale data check|show|index|pack|synth ...\n\nexample:\n"
               "  foldscale data check data/examples\n\n'foldscale data check --help' explains one.\n");
        return OK;
    }
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    const char *near = cli_nearest(argv[1], names);
    return status_fail(ERR_USAGE, "data: unknown action \"%s\"%s%s%s (expected check, show, index, pack or synth)",
                       argv[1], near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}
