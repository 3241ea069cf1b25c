/* Opening what a user names as an input. */
#ifndef FOLDSCALE_ENGINE_INPUT_H
#define FOLDSCALE_ENGINE_INPUT_H

#include <stdio.h>

#include "engine/status.h"

/* Opens for reading a regular file, a pipe that was handed over (standard input, process substitution) or a terminal.
 * ERR_IO when it cannot be opened; ERR_INPUT for all else: a fifo that nobody writes to would wait for ever, a device
 * never ends. */
Status input_open(const char *path, FILE **file_out);

#endif
