#include "data/pack_bytes.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 16, FIRST_CAPACITY = 1 << 16 };

static bool reserve(ByteWriter *writer, size_t more)
{
    size_t need;
    if (writer->failed || __builtin_add_overflow(writer->size, more, &need) || need > SIZE_MAX / 2)
        return !(writer->failed = true);
    if (need <= writer->capacity) return true;
    size_t capacity = writer->capacity ? writer->capacity : FIRST_CAPACITY;
    while (capacity < need) capacity *= 2;
    unsigned char *grown = realloc(writer->data, capacity);
    if (!grown) return !(writer->failed = true);
    writer->data = grown;
    writer->capacity = capacity;
    return true;
}

void bytes_put(ByteWriter *writer, const void *data, size_t size)
{
    if (!reserve(writer, size)) return;
    if (size) memcpy(writer->data + writer->size, data, size);
    writer->size += size;
}

void bytes_put_u64(ByteWriter *writer, uint64_t value)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = (unsigned char)(value >> (8 * i));
    bytes_put(writer, bytes, sizeof bytes);
}

void bytes_put_f64(ByteWriter *writer, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bytes_put_u64(writer, bits);
}

void bytes_put_string(ByteWriter *writer, const char *text)
{
    size_t length = text ? strlen(text) : 0;
    bytes_put_u64(writer, length);
    bytes_put(writer, text ? text : "", length + 1);
}

void bytes_put_array(ByteWriter *writer, const void *data, size_t count, size_t size)
{
    static const unsigned char zeros[ALIGN];
    bytes_put(writer, zeros, (ALIGN - writer->size % ALIGN) % ALIGN);
    if (size && count > SIZE_MAX / size)
        writer->failed = true;
    else
        bytes_put(writer, data, count * size);
}

void bytes_free(ByteWriter *writer)
{
    free(writer->data);
    *writer = (ByteWriter){0};
}

/* `size` bytes in place; NULL when there are not so many. */
static const unsigned char *take(ByteReader *reader, size_t size)
{
    if (reader->failed || size > reader->size - reader->at) {
        reader->failed = true;
        return NULL;
    }
    reader->at += size;
    return reader->data + reader->at - size;
}

uint64_t bytes_get_u64(ByteReader *reader)
{
    const unsigned char *bytes = take(reader, 8);
    uint64_t value = 0;
    for (int i = 0; bytes && i < 8; ++i) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

double bytes_get_f64(ByteReader *reader)
{
    uint64_t bits = bytes_get_u64(reader);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

int64_t bytes_get_count(ByteReader *reader, int64_t most)
{
    uint64_t value = bytes_get_u64(reader);
    if (value <= (uint64_t)most) return (int64_t)value;
    reader->failed = true;
    return 0;
}

const char *bytes_get_string(ByteReader *reader)
{
    size_t length = (size_t)bytes_get_count(reader, (int64_t)(reader->size / 2));
    const char *text = (const char *)take(reader, length + 1);
    if (text && text[length] == '\0' && strlen(text) == length) return text;
    reader->failed = true;
    return "";
}

const void *bytes_get_array(ByteReader *reader, size_t count, size_t size)
{
    if (!take(reader, (ALIGN - reader->at % ALIGN) % ALIGN)) return NULL;
    if (size && count > (reader->size - reader->at) / size) {
        reader->failed = true;
        return NULL;
    }
    return take(reader, count * size);
}
