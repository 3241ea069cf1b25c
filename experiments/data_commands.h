/* The actions of `foldscale data` that make data sets. */
#ifndef FOLDSCALE_EXPERIMENTS_DATA_COMMANDS_H
#define FOLDSCALE_EXPERIMENTS_DATA_COMMANDS_H

#include "engine/status.h"

Status data_command_pack(int argc, char **argv);
Status data_command_synth(int argc, char **argv);

#endif
