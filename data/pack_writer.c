#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "data/pack_format.h"
#include "engine/output.h"

typedef struct Entry {
    PackKind kind;
    char *name;
    uint64_t offset, stamp;
} Entry;

enum { BUCKETS = 1 << 16 };

/* Names already written, by hash. */
typedef struct Node {
    struct Node *next;
    Entry entry;
} Node;

struct PackWriter {
    char *path, *part;
    int level, handle;
    pthread_mutex_t lock; /* everything below */
    Arena arena;
    Node **bucket;
    uint64_t end;    /* offset behind the last record */
    uint64_t length; /* of the finished file */
    int64_t records, kept, raw, stored;
};

static Node **find(PackWriter *writer, PackKind kind, const char *name)
{
    uint32_t hash = pack_crc(name, strlen(name)) * 2 + (uint32_t)kind;
    Node **node = &writer->bucket[hash % BUCKETS];
    while (*node && ((*node)->entry.kind != kind || strcmp((*node)->entry.name, name) != 0)) node = &(*node)->next;
    return node;
}

static Status remember(PackWriter *writer, const PackHead *head, const char *name, uint64_t offset)
{
    Node *node = arena_alloc(&writer->arena, sizeof *node);
    char *copy = arena_strndup(&writer->arena, name, head->name_length);
    if (!node || !copy) return status_fail_at(ERR_MEMORY, writer->part, 0, "no memory for the index");
    Node **place = find(writer, head->kind, copy);
    if (*place) { /* made anew by a later run: the later one counts */
        (*place)->entry.offset = offset;
        (*place)->entry.stamp = head->stamp;
        return OK;
    }
    *node = (Node){.entry = {head->kind, copy, offset, head->stamp}};
    *place = node;
    ++writer->records;
    return OK;
}

static Status write_all(PackWriter *writer, const void *data, size_t size, uint64_t offset)
{
    const char *at = data;
    while (size) {
        ssize_t done = pwrite(writer->handle, at, size, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0)
            return status_fail_at(ERR_IO, writer->part, 0, "cannot write: %s", done ? strerror(errno) : "no progress");
        at += done;
        offset += (uint64_t)done;
        size -= (size_t)done;
    }
    return OK;
}

/* Keeps the valid records of an interrupted run and cuts off what follows them. */
static Status scan(PackWriter *writer, uint64_t size)
{
    unsigned char *file = mmap(NULL, size, PROT_READ, MAP_SHARED, writer->handle, 0);
    if (file == MAP_FAILED) return status_fail_at(ERR_IO, writer->part, 0, "cannot map: %s", strerror(errno));
    Status status = OK;
    if (memcmp(file, PACK_MAGIC, PACK_MAGIC_SIZE) != 0)
        status = status_fail_at(ERR_INPUT, writer->part, 0, "exists and is not an unfinished pack: remove it first");
    PackHead head;
    const char *name;
    const unsigned char *content;
    uint64_t next;
    writer->end = PACK_MAGIC_SIZE;
    while (status == OK && pack_head_decode(file, size, writer->end, &head, &name, &content, &next) &&
           pack_crc(content, head.stored) == head.content_crc) {
        status = remember(writer, &head, name, writer->end);
        writer->end = next;
    }
    munmap(file, size);
    writer->kept = writer->records;
    if (status == OK && ftruncate(writer->handle, (off_t)writer->end) != 0)
        status = status_fail_at(ERR_IO, writer->part, 0, "cannot cut: %s", strerror(errno));
    return status;
}

static Status open_part(PackWriter *writer)
{
    struct stat info;
    writer->handle = open(writer->part, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (writer->handle < 0 || fstat(writer->handle, &info) != 0)
        return status_fail_at(ERR_IO, writer->part, 0, "cannot open: %s", strerror(errno));
    if (flock(writer->handle, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) /* some file systems have no locks */
        return status_fail_at(ERR_INPUT, writer->part, 0, "is being written by another process");
    if (info.st_size >= PACK_MAGIC_SIZE) return scan(writer, (uint64_t)info.st_size);
    if (info.st_size > 0)
        return status_fail_at(ERR_INPUT, writer->part, 0, "exists and is not an unfinished pack: remove it first");
    writer->end = PACK_MAGIC_SIZE;
    return write_all(writer, PACK_MAGIC, PACK_MAGIC_SIZE, 0);
}

Status pack_writer_open(const char *path, int level, PackWriter **writer_out)
{
    if (level < 1 || level > ZSTD_maxCLevel())
        return status_fail(ERR_USAGE, "pack: compression level %d, expected 1 to %d", level, ZSTD_maxCLevel());
    PackWriter *writer = calloc(1, sizeof *writer);
    if (!writer) return status_fail(ERR_MEMORY, "pack: no memory");
    writer->handle = -1;
    writer->level = level;
    pthread_mutex_init(&writer->lock, NULL);
    Status status = output_place(path, PACK_BEGINS, &writer->arena, &writer->path);
    if (status == OK && !writer->path) status = status_fail_at(ERR_IO, path, 0, "cannot write a pack: not a file");
    if (status == OK) {
        writer->part = arena_printf(&writer->arena, "%s.part", writer->path);
        writer->bucket = arena_array(&writer->arena, BUCKETS, sizeof *writer->bucket);
        status = writer->part && writer->bucket ? open_part(writer) : status_fail(ERR_MEMORY, "pack: no memory");
    }
    if (status != OK) {
        pack_writer_close(&writer);
        return status;
    }
    *writer_out = writer;
    return OK;
}

void pack_writer_close(PackWriter **writer)
{
    if (!*writer) return;
    if ((*writer)->handle >= 0) close((*writer)->handle);
    pthread_mutex_destroy(&(*writer)->lock);
    arena_free(&(*writer)->arena);
    free(*writer);
    *writer = NULL;
}

void pack_writer_revise(PackWriter *writer,
                        bool (*keep)(void *context, PackKind kind, const char *name, uint64_t stamp), void *context)
{
    for (int b = 0; b < BUCKETS; ++b)
        for (Node **node = &writer->bucket[b]; *node;) {
            const Entry *entry = &(*node)->entry;
            if (keep(context, entry->kind, entry->name, entry->stamp)) {
                node = &(*node)->next;
            } else {
                *node = (*node)->next;
                --writer->records;
            }
        }
    writer->kept = writer->records;
    if (writer->records == 0) writer->end = PACK_MAGIC_SIZE;
}

bool pack_writer_has(PackWriter *writer, PackKind kind, const char *name)
{
    pthread_mutex_lock(&writer->lock);
    bool found = *find(writer, kind, name) != NULL;
    pthread_mutex_unlock(&writer->lock);
    return found;
}

/* Under the lock. `record`: head, name, frame, padding in one block, so that a record is one write. */
static Status append(PackWriter *writer, const PackHead *head, const char *name, const unsigned char *record,
                     size_t size)
{
    if (*find(writer, head->kind, name)) return OK;
    TRY(write_all(writer, record, size, writer->end));
    TRY(remember(writer, head, name, writer->end));
    writer->end += size;
    writer->raw += (int64_t)head->raw;
    writer->stored += (int64_t)head->stored;
    return OK;
}

Status pack_writer_add(PackWriter *writer, PackKind kind, const char *name, const char *release_date, uint64_t stamp,
                       const ByteWriter *content)
{
    if (content->failed) return status_fail(ERR_MEMORY, "pack: no memory for %s", name);
    if (strlen(name) > PACK_MOST_NAME) return status_fail(ERR_INPUT, "pack: name of %zu bytes", strlen(name));
    PackHead head = {.kind = kind, .name_length = (uint32_t)strlen(name), .raw = content->size, .stamp = stamp};
    if (strlen(release_date) == 10)
        for (int i = 0, at = 0; i < 10; ++i)
            if (release_date[i] != '-' && at < 8) head.date[at++] = release_date[i];
    size_t before = PACK_HEAD_SIZE + head.name_length, bound = ZSTD_compressBound(content->size);
    unsigned char *record = malloc(before + bound + PACK_PAD);
    if (!record) return status_fail(ERR_MEMORY, "pack: no memory for %s", name);
    size_t stored = ZSTD_compress(record + before, bound, content->data, content->size, writer->level);
    Status status = OK;
    if (ZSTD_isError(stored)) {
        status = status_fail(ERR_INTERNAL, "pack: cannot compress %s: %s", name, ZSTD_getErrorName(stored));
    } else {
        size_t size = (before + stored + PACK_PAD - 1) / PACK_PAD * PACK_PAD;
        head.stored = stored;
        head.content_crc = pack_crc(record + before, stored);
        memset(record + before + stored, 0, size - before - stored);
        memcpy(record + PACK_HEAD_SIZE, name, head.name_length);
        pack_head_encode(&head, name, record);
        pthread_mutex_lock(&writer->lock);
        status = append(writer, &head, name, record, size);
        pthread_mutex_unlock(&writer->lock);
    }
    free(record);
    return status;
}

void pack_writer_sizes(PackWriter *writer, int64_t *kept_out, int64_t *raw_out, int64_t *stored_out)
{
    pthread_mutex_lock(&writer->lock);
    *kept_out = writer->kept;
    *raw_out = writer->raw;
    *stored_out = writer->stored;
    pthread_mutex_unlock(&writer->lock);
}

static int by_kind_and_name(const void *a, const void *b)
{
    const Entry *x = a, *y = b;
    return x->kind != y->kind ? (x->kind > y->kind) - (x->kind < y->kind) : strcmp(x->name, y->name);
}

static Status write_index(PackWriter *writer)
{
    size_t count = (size_t)writer->records, bytes = count * 8, at = 0;
    Entry *entry = arena_array(&writer->arena, count, sizeof *entry);
    unsigned char *index = arena_alloc(&writer->arena, bytes + 8 + PACK_TAIL_SIZE);
    if (!entry || !index) return status_fail_at(ERR_MEMORY, writer->part, 0, "no memory for the index");
    for (int b = 0; b < BUCKETS; ++b)
        for (const Node *node = writer->bucket[b]; node; node = node->next) entry[at++] = node->entry;
    qsort(entry, count, sizeof *entry, by_kind_and_name);
    for (size_t i = 0; i < count; ++i) pack_store_u64(index + i * 8, entry[i].offset);
    pack_store_u64(index + bytes, pack_crc(index, bytes));
    memcpy(index + bytes + 8, PACK_INDEX, PACK_MAGIC_SIZE);
    pack_store_u64(index + bytes + 16, writer->end);
    pack_store_u64(index + bytes + 24, count);
    writer->length = writer->end + bytes + 8 + PACK_TAIL_SIZE;
    return write_all(writer, index, bytes + 8 + PACK_TAIL_SIZE, writer->end);
}

Status pack_writer_finish(PackWriter *writer)
{
    pthread_mutex_lock(&writer->lock);
    Status status = write_index(writer);
    if (status == OK && ftruncate(writer->handle, (off_t)writer->length) != 0) /* dropped records may lie behind */
        status = status_fail_at(ERR_IO, writer->part, 0, "cannot cut: %s", strerror(errno));
    if (status == OK && fsync(writer->handle) != 0)
        status = status_fail_at(ERR_IO, writer->part, 0, "cannot sync: %s", strerror(errno));
    if (status == OK && rename(writer->part, writer->path) != 0)
        status = status_fail_at(ERR_IO, writer->path, 0, "cannot rename: %s", strerror(errno));
    pthread_mutex_unlock(&writer->lock);
    return status;
}
