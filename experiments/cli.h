/* Command lines: a table of options per subcommand, from which the parser and --help are made. */
#ifndef FOLDSCALE_EXPERIMENTS_CLI_H
#define FOLDSCALE_EXPERIMENTS_CLI_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/status.h"

enum { CLI_MAX_ITEMS = 256 };

/* Values of an option that may be given several times, or of all operands. Borrowed from argv. */
typedef struct TextList {
    int count;
    const char *item[CLI_MAX_ITEMS];
} TextList;

typedef enum OptionKind {
    OPTION_FLAG, /* bool */
    OPTION_INT,  /* int64_t in [min, max] */
    OPTION_REAL, /* double in [min, max] */
    OPTION_TEXT, /* const char * */
    OPTION_LIST  /* TextList: may be repeated */
} OptionKind;

typedef struct Option {
    const char *name; /* without the dashes; NULL ends the table */
    OptionKind kind;
    void *target;      /* keeps its value when the option is not given */
    const char *value; /* what --help calls the value, e.g. "N" */
    const char *help;
    double min, max; /* of OPTION_INT and OPTION_REAL; both 0: any */
} Option;

typedef struct Usage {
    const char *command;  /* "train" */
    const char *operands; /* "EXP.yaml", "RUNS.csv...", "" */
    const char *text;     /* what it does, a few lines */
    const char *example;  /* one runnable line */
    int min_operands, max_operands;
} Usage;

/* argv[0] is the subcommand. --help prints the usage to standard output and sets *help_out: the caller returns OK then.
 * ERR_USAGE for an unknown option (with the nearest known one), a missing or malformed value, too many or too few
 * operands. "--" ends the options. */
Status cli_parse(const Usage *usage, const Option *options, int argc, char **argv, TextList *operands_out,
                 bool *help_out);

/* The nearest of `names` (NULL-terminated) to `word` by edit distance, or NULL when none is near. */
const char *cli_nearest(const char *word, const char *const *names);

/* "a,b,c" of whole numbers in [min, max] -> values; ERR_USAGE naming `what`. */
Status cli_int_list(const char *text, const char *what, int64_t min, int64_t max, int limit, int64_t *values_out,
                    int *count_out);

#endif
