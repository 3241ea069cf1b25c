/* A user's file as one block of bytes, plain or gzip (known by its first two bytes; a name ending in .gz must be gzip).
 *
 * The bytes are read, not mapped: a file that shrinks while we parse it must not become a SIGBUS. Decompression grows
 * with what the stream really holds (deflate expands at most 1032-fold); no size field of the file is believed. */
#ifndef FOLDSCALE_DATA_TEXT_H
#define FOLDSCALE_DATA_TEXT_H

#include <stddef.h>

#include "engine/status.h"

typedef struct Text {
    const char *name; /* for messages; a path or e.g. "0.db (2crb_A/uniref90_hits.a3m)" */
    const char *data; /* `size` bytes, then a NUL that stops the scanners */
    size_t size;
    char *owned; /* freed by text_close; NULL when the bytes are borrowed */
    char *owned_name;
} Text;

/* ERR_IO: missing or unreadable. ERR_INPUT: a truncated or damaged gzip stream, or a folder. */
Status text_read(const char *path, Text *text_out);

/* `size` bytes at `offset` of a file (an alignment database); ERR_INPUT when they are not all there. `name` is copied.
 */
Status text_read_range(const char *path, long long offset, long long size, const char *name, Text *text_out);

/* Copies the bytes, so that they are followed by a NUL. */
Status text_from_bytes(const char *name, const void *bytes, size_t size, Text *text_out);

/* Safe on a zeroed Text, and twice. */
void text_close(Text *text);

/* ERR_INPUT naming the line of the first NUL byte: such a file is damaged, and much software stops reading there. */
Status text_check_no_nul(const Text *text);

/* Number (from 1) of the line that holds `at`, a pointer into text->data (the end included). */
long text_line(const Text *text, const char *at);

#endif
