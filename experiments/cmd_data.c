/* foldscale data check|show: what is in a user's files. */
#include <stdio.h>
#include <string.h>

#include "data/check.h"
#include "experiments/commands.h"
#include "experiments/config.h"

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
            "Reads every file (or all files below a folder): mmCIF, a3m, Stockholm, hhr, alignment databases, caches,\n"
            "clusters, safetensors; says what is in them and what is wrong, with file and line. Exit status 1 when\n"
            "something is wrong.",
        .example = "foldscale data check data/examples --mmcif data/examples/mmcif",
        .min_operands = 1,
        .max_operands = CLI_MAX_ITEMS};
    DataCheckOptions o = {.report = print_problem};
    DataCheckCounts counts = {0};
    TextList files;
    bool help;
    const Option options[] = {
        {"mmcif", OPTION_TEXT, &o.mmcif, "DIR", "structures: alignments are compared with their chains", 0, 0},
        {"alignment-db", OPTION_TEXT, &o.alignment_db, "DIR", "folder of the .db files of an index", 0, 0},
        {0}};
    TRY(cli_parse(&usage, options, argc, argv, &files, &help));
    if (help) return OK;
    for (int i = 0; i < files.count; i++) TRY(data_check(files.item[i], &o, &counts));
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

static const struct {
    const char *name;
    DataCommand run;
} commands[] = {{"check", check}, {"show", show}};

enum { COMMANDS = sizeof commands / sizeof *commands };

Status cmd_data(int argc, char **argv)
{
    const char *names[COMMANDS + 1] = {NULL};
    for (int i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    if (argc < 2) return status_fail(ERR_USAGE, "data: what to do is missing (expected check or show)");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        printf("usage: foldscale data check|show ...\n\nexample:\n"
               "  foldscale data check data/examples\n\n'foldscale data check --help' explains one.\n");
        return OK;
    }
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc - 1, argv + 1);
    const char *near = cli_nearest(argv[1], names);
    return status_fail(ERR_USAGE, "data: unknown action \"%s\"%s%s%s (expected check or show)", argv[1],
                       near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}
