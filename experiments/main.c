/* foldscale: finds the subcommand, runs it, prints its failure, maps it to an exit status. */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "experiments/cli.h"
#include "experiments/commands.h"
#include "experiments/version.h"
#include "kernels/kernels.h"

typedef struct Command {
    const char *name, *summary;
    Status (*run)(int argc, char **argv);
} Command;

static const Command commands[] = {
#define COMMAND(name, summary) {#name, summary, cmd_##name},
#include "experiments/commands.def"
#undef COMMAND
    {NULL, NULL, NULL}};

static void print_usage(FILE *stream)
{
    fprintf(stream, "usage: foldscale SUBCOMMAND [operands] [options]\n\nsubcommands:\n");
    for (const Command *c = commands; c->name; c++) fprintf(stream, "  %-10s %s\n", c->name, c->summary);
    fprintf(stream, "\n'foldscale SUBCOMMAND --help' explains one and shows an example.\n");
}

static Status run(int argc, char **argv)
{
    const char *names[64] = {NULL};
    int count = 0;
    for (const Command *c = commands; c->name; c++) {
        if (strcmp(argv[1], c->name) == 0) return c->run(argc - 1, argv + 1);
        names[count++] = c->name;
    }
    const char *near = cli_nearest(argv[1], names);
    if (near) return status_fail(ERR_USAGE, "unknown subcommand \"%s\"; did you mean \"%s\"?", argv[1], near);
    return status_fail(ERR_USAGE, "unknown subcommand \"%s\"; 'foldscale --help' lists them", argv[1]);
}

/* Waiting OpenMP threads sleep instead of spinning: on cores shared with other ranks or programs a spinning thread
 * keeps the one it waits for from running (measured on two busy cores: 8 s instead of 0.9 s a step). libgomp reads its
 * environment before main(), hence the second start. */
static void polite_threads(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || setenv("OMP_WAIT_POLICY", "passive", 1) != 0) return;
    execv("/proc/self/exe", argv); /* if that fails, we go on as we are */
}

int main(int argc, char **argv)
{
    /* what one pass over a program frees serves the next one, instead of being returned to the system and faulted in
     * again: a third of the time of all passes */
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    /* beyond the limit on file sizes (ulimit -f) a write fails with "File too large", which is reported like a full
     * disk; the signal would end the process without a word and leave half-written files */
    signal(SIGXFSZ, SIG_IGN);
    polite_threads(argv);
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("foldscale %s (%s)\n", FOLDSCALE_VERSION, version_commit());
        return 0;
    }
    Status status = run(argc, argv);
    if (status == OK && fflush(stdout) != 0)
        status = status_fail(ERR_IO, "standard output: cannot write (is the disk full?)");
    if (status != OK) {
        fprintf(stderr, "foldscale: %s\n", status_text());
        kernels_abort(status_exit_code(status)); /* the other ranks would wait for this one for ever */
    }
    kernels_finalize();
    return status_exit_code(status);
}
