#include "data/pack_format.h"

#include <string.h>
#include <zlib.h>

/* Places of the fields of a record's head. */
enum {
    AT_KIND = 8,
    AT_NAME = 12,
    AT_STORED = 16,
    AT_RAW = 24,
    AT_DATE = 32,
    AT_STAMP = 40,
    AT_CONTENT_CRC = 48,
    AT_HEAD_CRC = 52
};

static void store_u32(unsigned char *out, uint32_t value)
{
    for (int i = 0; i < 4; ++i) out[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t load_u32(const unsigned char *in)
{
    return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

void pack_store_u64(unsigned char *out, uint64_t value)
{
    store_u32(out, (uint32_t)value);
    store_u32(out + 4, (uint32_t)(value >> 32));
}

uint64_t pack_load_u64(const unsigned char *in)
{
    return load_u32(in) | (uint64_t)load_u32(in + 4) << 32;
}

uint32_t pack_crc(const void *data, size_t size)
{
    return (uint32_t)crc32_z(0, data, size);
}

static uint32_t head_crc(const unsigned char *head, const void *name, size_t name_length)
{
    return (uint32_t)crc32_z(crc32_z(0, head, AT_HEAD_CRC), name, name_length);
}

void pack_head_encode(const PackHead *head, const char *name, unsigned char out[PACK_HEAD_SIZE])
{
    memset(out, 0, PACK_HEAD_SIZE);
    memcpy(out, PACK_RECORD, PACK_MAGIC_SIZE);
    store_u32(out + AT_KIND, (uint32_t)head->kind);
    store_u32(out + AT_NAME, head->name_length);
    pack_store_u64(out + AT_STORED, head->stored);
    pack_store_u64(out + AT_RAW, head->raw);
    memcpy(out + AT_DATE, head->date, strlen(head->date));
    pack_store_u64(out + AT_STAMP, head->stamp);
    store_u32(out + AT_CONTENT_CRC, head->content_crc);
    store_u32(out + AT_HEAD_CRC, head_crc(out, name, head->name_length));
}

bool pack_head_decode(const unsigned char *file, uint64_t size, uint64_t at, PackHead *head_out, const char **name_out,
                      const unsigned char **content_out, uint64_t *next_out)
{
    if (at > size || size - at < PACK_HEAD_SIZE) return false;
    const unsigned char *head = file + at;
    uint64_t left = size - at - PACK_HEAD_SIZE;
    if (memcmp(head, PACK_RECORD, PACK_MAGIC_SIZE) != 0) return false;
    PackHead decoded = {.name_length = load_u32(head + AT_NAME),
                        .stored = pack_load_u64(head + AT_STORED),
                        .raw = pack_load_u64(head + AT_RAW),
                        .stamp = pack_load_u64(head + AT_STAMP),
                        .content_crc = load_u32(head + AT_CONTENT_CRC)};
    uint32_t kind = load_u32(head + AT_KIND);
    if (kind >= PACK_KINDS || decoded.name_length > PACK_MOST_NAME || decoded.name_length > left ||
        decoded.stored > left - decoded.name_length)
        return false;
    const unsigned char *name = head + PACK_HEAD_SIZE;
    if (head_crc(head, name, decoded.name_length) != load_u32(head + AT_HEAD_CRC)) return false;
    if (memchr(name, '\0', decoded.name_length)) return false;
    decoded.kind = (PackKind)kind;
    memcpy(decoded.date, head + AT_DATE, 8);
    *head_out = decoded;
    *name_out = (const char *)name;
    *content_out = name + decoded.name_length;
    uint64_t end = at + PACK_HEAD_SIZE + decoded.name_length + decoded.stored;
    *next_out = (end + PACK_PAD - 1) / PACK_PAD * PACK_PAD;
    return *next_out <= size;
}
