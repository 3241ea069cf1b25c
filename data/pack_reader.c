#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "data/name_index.h"
#include "data/pack_format.h"

typedef struct Record {
    const char *name; /* in the arena, terminated */
    PackHead head;
    const unsigned char *content;
} Record;

struct PackFile {
    char *path;
    unsigned char *file;
    uint64_t size;
    Arena arena;
    uint64_t claimed; /* bytes of all records, raw and stored: sums of either fit into 64 bits with a sign */
    int64_t count[PACK_KINDS];
    Record *record[PACK_KINDS];
    NameIndex *names[PACK_KINDS];
};

static Status not_a_pack(const PackFile *file, const char *found)
{
    return status_fail_at(ERR_INPUT, file->path, 0, "%s, expected a finished pack (foldscale data pack)", found);
}

static Status map_file(PackFile *file)
{
    struct stat info;
    int handle = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a fifo must not block us */
    if (handle < 0) return status_fail_at(ERR_IO, file->path, 0, "cannot open: %s", strerror(errno));
    Status status = OK;
    if (fstat(handle, &info) != 0 || !S_ISREG(info.st_mode))
        status = not_a_pack(file, "not a regular file");
    else if (info.st_size < PACK_MAGIC_SIZE + 8 + PACK_TAIL_SIZE)
        status = not_a_pack(file, "too short");
    if (status == OK) {
        file->size = (uint64_t)info.st_size;
        void *memory = mmap(NULL, file->size, PROT_READ, MAP_SHARED, handle, 0);
        if (memory == MAP_FAILED)
            status = status_fail_at(ERR_IO, file->path, 0, "cannot map: %s", strerror(errno));
        else
            file->file = memory;
    }
    close(handle);
    return status;
}

/* One record of the index; they come by kind and name. */
static Status add_record(PackFile *file, uint64_t offset, uint64_t limit)
{
    Record record;
    const char *name;
    uint64_t next;
    if (!pack_head_decode(file->file, limit, offset, &record.head, &name, &record.content, &next))
        return status_fail_at(ERR_INPUT, file->path, 0, "no valid record at offset %llu", (unsigned long long)offset);
    if (record.head.raw > (uint64_t)INT64_MAX - file->claimed ||
        record.head.stored > (uint64_t)INT64_MAX - file->claimed - record.head.raw)
        return status_fail_at(ERR_INPUT, file->path, 0, "the record at offset %llu claims %llu bytes",
                              (unsigned long long)offset, (unsigned long long)record.head.raw);
    file->claimed += record.head.raw + record.head.stored;
    record.name = arena_strndup(&file->arena, name, record.head.name_length);
    if (!record.name) return status_fail_at(ERR_MEMORY, file->path, 0, "no memory for the index");
    PackKind kind = record.head.kind;
    int64_t at = file->count[kind];
    if (at > 0 && strcmp(file->record[kind][at - 1].name, record.name) >= 0)
        return status_fail_at(ERR_INPUT, file->path, 0, "index out of order at %s", record.name);
    file->record[kind][file->count[kind]++] = record;
    return OK;
}

static Status read_index(PackFile *file)
{
    const unsigned char *tail = file->file + file->size - PACK_TAIL_SIZE;
    if (memcmp(file->file, PACK_MAGIC, PACK_MAGIC_SIZE) != 0) return not_a_pack(file, "no magic bytes");
    if (memcmp(tail, PACK_INDEX, PACK_MAGIC_SIZE) != 0) return not_a_pack(file, "no index at the end");
    uint64_t offset = pack_load_u64(tail + 8), count = pack_load_u64(tail + 16),
             before_tail = file->size - PACK_TAIL_SIZE;
    if (offset > before_tail || (before_tail - offset) / 8 != count + 1 || (before_tail - offset) % 8 != 0)
        return not_a_pack(file, "an index that does not fit the file");
    const unsigned char *index = file->file + offset;
    if (pack_crc(index, count * 8) != pack_load_u64(index + count * 8))
        return not_a_pack(file, "an index with a wrong checksum");
    for (int kind = 0; kind < PACK_KINDS; ++kind) {
        file->record[kind] = arena_array(&file->arena, count, sizeof(Record));
        if (!file->record[kind]) return status_fail_at(ERR_MEMORY, file->path, 0, "no memory for the index");
    }
    for (uint64_t i = 0; i < count; ++i) TRY(add_record(file, pack_load_u64(index + i * 8), offset));
    for (int kind = 0; kind < PACK_KINDS; ++kind) {
        TRY(name_index_create(file->count[kind], &file->arena, &file->names[kind]));
        for (int64_t i = 0; i < file->count[kind]; ++i)
            name_index_add(file->names[kind], file->record[kind][i].name, i);
    }
    return OK;
}

Status pack_file_open(const char *path, PackFile **file_out)
{
    PackFile *file = calloc(1, sizeof *file);
    if (!file) return status_fail(ERR_MEMORY, "pack: no memory");
    file->path = arena_strdup(&file->arena, path);
    Status status = file->path ? map_file(file) : status_fail(ERR_MEMORY, "pack: no memory");
    if (status == OK) status = read_index(file);
    if (status != OK) {
        pack_file_close(&file);
        return status;
    }
    *file_out = file;
    return OK;
}

void pack_file_close(PackFile **file)
{
    if (!*file) return;
    if ((*file)->file) munmap((*file)->file, (*file)->size);
    arena_free(&(*file)->arena);
    free(*file);
    *file = NULL;
}

const char *pack_file_path(const PackFile *file)
{
    return file->path;
}

int64_t pack_file_count(const PackFile *file, PackKind kind)
{
    return file->count[kind];
}

const char *pack_file_name(const PackFile *file, PackKind kind, int64_t index)
{
    return file->record[kind][index].name;
}

int64_t pack_file_find(const PackFile *file, PackKind kind, const char *name)
{
    return name_index_find(file->names[kind], name);
}

void pack_file_date(const PackFile *file, PackKind kind, int64_t index, char date_out[11])
{
    const char *d = file->record[kind][index].head.date;
    date_out[0] = '\0';
    if (strlen(d) != 8) return;
    const char date[11] = {d[0], d[1], d[2], d[3], '-', d[4], d[5], '-', d[6], d[7], '\0'};
    memcpy(date_out, date, sizeof date);
}

void pack_file_sizes(const PackFile *file, PackKind kind, int64_t index, int64_t *raw_out, int64_t *stored_out)
{
    *raw_out = (int64_t)file->record[kind][index].head.raw;
    *stored_out = (int64_t)file->record[kind][index].head.stored;
}

Status pack_file_read(const PackFile *file, PackKind kind, int64_t index, Arena *arena, ByteReader *reader_out)
{
    const Record *record = &file->record[kind][index];
    const PackHead *head = &record->head;
    if (pack_crc(record->content, head->stored) != head->content_crc)
        return status_fail_at(ERR_INPUT, file->path, 0, "record %s has a wrong checksum", record->name);
    if (ZSTD_getFrameContentSize(record->content, head->stored) != head->raw)
        return status_fail_at(ERR_INPUT, file->path, 0, "record %s has an unexpected size", record->name);
    enum { MOST_RATIO = 1 << 16 }; /* zstd cannot do more: 128 KiB in a block of 4 bytes */
    if (head->raw / MOST_RATIO > head->stored)
        return status_fail_at(ERR_INPUT, file->path, 0, "record %s claims %llu bytes in %llu", record->name,
                              (unsigned long long)head->raw, (unsigned long long)head->stored);
    unsigned char *raw = arena_alloc(arena, head->raw);
    if (!raw)
        return status_fail_at(ERR_MEMORY, file->path, 0, "no memory for the %llu bytes of %s",
                              (unsigned long long)head->raw, record->name);
    size_t size = ZSTD_decompress(raw, head->raw, record->content, head->stored);
    if (ZSTD_isError(size) || size != head->raw)
        return status_fail_at(ERR_INPUT, file->path, 0, "record %s cannot be decompressed: %s", record->name,
                              ZSTD_isError(size) ? ZSTD_getErrorName(size) : "too short");
    *reader_out = (ByteReader){.data = raw, .size = head->raw};
    return OK;
}
