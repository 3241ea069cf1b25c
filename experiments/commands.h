/* The subcommands; argv[0] is the subcommand's name. */
#ifndef FOLDSCALE_EXPERIMENTS_COMMANDS_H
#define FOLDSCALE_EXPERIMENTS_COMMANDS_H

#include "engine/status.h"

#define COMMAND(name, summary) Status cmd_##name(int argc, char **argv);
#include "experiments/commands.def"
#undef COMMAND

#endif
