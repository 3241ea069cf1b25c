/* Bytes of the pack container, shared by its writer and its reader. */
#ifndef FOLDSCALE_DATA_PACK_FORMAT_H
#define FOLDSCALE_DATA_PACK_FORMAT_H

#include "data/pack_file.h"

enum { PACK_MAGIC_SIZE = 8, PACK_HEAD_SIZE = 56, PACK_TAIL_SIZE = 24, PACK_PAD = 8, PACK_MOST_NAME = 255 };

#define PACK_MAGIC  "FSPACK02"
#define PACK_BEGINS "FSPACK" /* of any version: what a pack may replace */
#define PACK_RECORD "FSRECORD"
#define PACK_INDEX  "FSPACKIX"

typedef struct PackHead {
    PackKind kind;
    uint32_t name_length;
    uint64_t stored, raw;
    char date[9];   /* YYYYMMDD or "" */
    uint64_t stamp; /* of the inputs it was made from */
    uint32_t content_crc;
} PackHead;

/* Head and name (not terminated) -> bytes with their checksum. */
void pack_head_encode(const PackHead *head, const char *name, unsigned char out[PACK_HEAD_SIZE]);

/* What lies at `at` of a file of `size` bytes: false when it is not a whole, valid record head with all its bytes
 * inside the file. *next_out: the offset behind the record. The content's checksum is not looked at. */
bool pack_head_decode(const unsigned char *file, uint64_t size, uint64_t at, PackHead *head_out, const char **name_out,
                      const unsigned char **content_out, uint64_t *next_out);

uint32_t pack_crc(const void *data, size_t size);

void pack_store_u64(unsigned char *out, uint64_t value);
uint64_t pack_load_u64(const unsigned char *in);

#endif
