/* Stamps: numbers that change when files do (their size or time of modification), to tell whether something made from
 * them is still current. FNV-1a over what is mixed in. */
#ifndef FOLDSCALE_DATA_STAMP_H
#define FOLDSCALE_DATA_STAMP_H

#include <stddef.h>
#include <stdint.h>

#define STAMP_START UINT64_C(0xcbf29ce484222325)

uint64_t stamp_bytes(uint64_t stamp, const void *bytes, size_t size);
uint64_t stamp_number(uint64_t stamp, int64_t number);
/* Path, size and time of modification; `path` may be NULL or name nothing. */
uint64_t stamp_file(uint64_t stamp, const char *path);

#endif
