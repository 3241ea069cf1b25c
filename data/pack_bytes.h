/* Serialisation of pack records: little-endian numbers, strings, and arrays aligned to 16 bytes, so that a decoded
 * record can be used in place. */
#ifndef FOLDSCALE_DATA_PACK_BYTES_H
#define FOLDSCALE_DATA_PACK_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Grows as needed; a failed allocation is remembered and makes all later calls do nothing. */
typedef struct ByteWriter {
    unsigned char *data;
    size_t size, capacity;
    bool failed;
} ByteWriter;

void bytes_put(ByteWriter *writer, const void *data, size_t size);
void bytes_put_u64(ByteWriter *writer, uint64_t value);
void bytes_put_f64(ByteWriter *writer, double value);
/* Length and characters; NULL counts as "". */
void bytes_put_string(ByteWriter *writer, const char *text);
/* Aligned elements, without their count. */
void bytes_put_array(ByteWriter *writer, const void *data, size_t count, size_t size);
void bytes_free(ByteWriter *writer);

/* Reads from memory that somebody else owns, aligned to 16. Reading past the end sets `failed` and gives zeros. */
typedef struct ByteReader {
    const unsigned char *data;
    size_t size, at;
    bool failed;
} ByteReader;

uint64_t bytes_get_u64(ByteReader *reader);
double bytes_get_f64(ByteReader *reader);
/* A count that is used to read or allocate: fails when it is above `most`. */
int64_t bytes_get_count(ByteReader *reader, int64_t most);
/* In place, NUL-terminated; "" on failure. */
const char *bytes_get_string(ByteReader *reader);
/* In place; NULL on failure. */
const void *bytes_get_array(ByteReader *reader, size_t count, size_t size);

#endif
