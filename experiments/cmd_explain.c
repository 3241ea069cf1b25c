/* foldscale explain: an experiment as the program sees it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/commands.h"
#include "experiments/config.h"

static Status print_experiment(const Config *config)
{
    char *text = NULL;
    TRY(config_to_json(config, &text));
    fputs(text, stdout);
    free(text);
    return OK;
}

Status cmd_explain(int argc, char **argv)
{
    static const Usage usage = {
        .command = "explain",
        .operands = "EXP.yaml",
        .text = "Prints what an experiment file means: --stage experiment shows every key with its value, defaults "
                "filled in.",
        .example = "foldscale explain experiments/quickstart.yaml --stage experiment",
        .min_operands = 1,
        .max_operands = 1};
    const char *stage = "experiment";
    TextList overrides = {0}, operands;
    bool help;
    const Option options[] = {{"stage", OPTION_TEXT, &stage, "STAGE", "experiment", 0, 0},
                              {"set", OPTION_LIST, &overrides, "A.B=C", "override a key; may be repeated", 0, 0},
                              {0}};
    TRY(cli_parse(&usage, options, argc, argv, &operands, &help));
    if (help) return OK;
    if (strcmp(stage, "experiment") != 0)
        return status_fail(ERR_USAGE, "explain: unknown stage \"%s\" (expected experiment)", stage);
    Config *config = NULL;
    TRY(config_load(operands.item[0], &overrides, &config));
    Status status = print_experiment(config);
    config_destroy(&config);
    return status;
}
