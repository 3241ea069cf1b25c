/* Pipes that whoever started us handed over: standard streams of a pipeline, process substitution. */
#ifndef FOLDSCALE_ENGINE_PIPE_H
#define FOLDSCALE_ENGINE_PIPE_H

#include <stdbool.h>

/* A pipe without a name, whose other end is held already: opening it never waits. false for a fifo, which lies under
 * its name in a file system of files, for whatever is no pipe, and for a handle that is none. */
bool pipe_is_handed_over(int handle);

/* The same of the pipe that a path leads to (/dev/stdout, /dev/fd/N), which is not opened. */
bool pipe_path_is_handed_over(const char *path);

#endif
