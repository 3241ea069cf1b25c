#include "engine/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

/* Tensors start at a multiple of this in the file, so that readers may map them as they are (the format asks for 8). */
enum { DATA_ALIGNMENT = 64, LENGTH_BYTES = 8 };

typedef struct WrittenTensor {
    const void *data;
    size_t bytes;
} WrittenTensor;

struct StWriter {
    char *path, *temporary;
    cJSON *header, *metadata;
    WrittenTensor *tensor;
    size_t count, capacity;
    int64_t offset; /* bytes of the tensors so far */
};

Status st_writer_create(const char *path, StWriter **writer_out)
{
    StWriter *writer = calloc(1, sizeof *writer);
    if (!writer) return status_fail(ERR_MEMORY, "%.400s: out of memory", path);
    size_t length = strlen(path);
    writer->path = strdup(path);
    writer->temporary = malloc(length + sizeof ".tmp");
    writer->header = cJSON_CreateObject();
    if (!writer->path || !writer->temporary || !writer->header) {
        st_writer_destroy(&writer);
        return status_fail(ERR_MEMORY, "%.400s: out of memory", path);
    }
    snprintf(writer->temporary, length + sizeof ".tmp", "%s.tmp", path);
    *writer_out = writer;
    return OK;
}

void st_writer_destroy(StWriter **writer_inout)
{
    StWriter *writer = *writer_inout;
    if (!writer) return;
    cJSON_Delete(writer->header);
    free(writer->tensor);
    free(writer->temporary);
    free(writer->path);
    free(writer);
    *writer_inout = NULL;
}

Status st_writer_metadata(StWriter *writer, const char *key, const char *value)
{
    if (!writer->metadata) writer->metadata = cJSON_AddObjectToObject(writer->header, "__metadata__");
    if (!writer->metadata || !cJSON_AddStringToObject(writer->metadata, key, value))
        return status_fail(ERR_MEMORY, "%.400s: out of memory", writer->path);
    return OK;
}

/* {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]} */
static Status describe(StWriter *writer, const char *name, StDtype dtype, int rank, const int64_t *shape, size_t bytes)
{
    cJSON *item = cJSON_AddObjectToObject(writer->header, name);
    cJSON *extents = NULL, *offsets = NULL;
    bool good = item && cJSON_AddStringToObject(item, "dtype", st_dtype_name(dtype)) &&
                (extents = cJSON_AddArrayToObject(item, "shape")) &&
                (offsets = cJSON_AddArrayToObject(item, "data_offsets"));
    for (int axis = 0; good && axis < rank; axis++)
        good = cJSON_AddItemToArray(extents, cJSON_CreateNumber((double)shape[axis]));
    good = good && cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)writer->offset)) &&
           cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)(writer->offset + (int64_t)bytes)));
    return good ? OK : status_fail(ERR_MEMORY, "%.400s: out of memory", writer->path);
}

Status st_writer_add(StWriter *writer, const char *name, StDtype dtype, int rank, const int64_t *shape,
                     const void *data)
{
    /* cJSON prints whole numbers exactly below 1e15, which bounds a file to a petabyte */
    const int64_t largest = 1000000000000000;
    int64_t bytes = (int64_t)st_dtype_bytes(dtype);
    if (rank < 0 || rank > ST_MAX_RANK)
        return status_fail(ERR_INTERNAL, "%.400s: tensor \"%.100s\" of rank %d", writer->path, name, rank);
    for (int axis = 0; axis < rank; axis++)
        if (shape[axis] < 0 || __builtin_mul_overflow(bytes, shape[axis], &bytes))
            return status_fail(ERR_INTERNAL, "%.400s: tensor \"%.100s\": shape overflows", writer->path, name);
    if (bytes >= largest - writer->offset || (bytes && !data))
        return status_fail(ERR_INTERNAL, "%.400s: tensor \"%.100s\": %lld bytes", writer->path, name, (long long)bytes);
    if (writer->count == writer->capacity) {
        size_t capacity = writer->capacity ? 2 * writer->capacity : 64;
        WrittenTensor *grown = realloc(writer->tensor, capacity * sizeof *grown);
        if (!grown) return status_fail(ERR_MEMORY, "%.400s: out of memory", writer->path);
        writer->tensor = grown;
        writer->capacity = capacity;
    }
    TRY(describe(writer, name, dtype, rank, shape, (size_t)bytes));
    writer->tensor[writer->count++] = (WrittenTensor){data, (size_t)bytes};
    writer->offset += bytes;
    return OK;
}

Status st_writer_checksum(StWriter *writer)
{
    char digits[9];
    uLong crc = crc32_z(0, NULL, 0);
    for (size_t i = 0; i < writer->count; i++) /* without data it would begin anew */
        if (writer->tensor[i].bytes > 0) crc = crc32_z(crc, writer->tensor[i].data, writer->tensor[i].bytes);
    snprintf(digits, sizeof digits, "%08lx", crc);
    return st_writer_metadata(writer, "crc32", digits);
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static Status check_keys(const StWriter *writer, const cJSON *object)
{
    size_t count = (size_t)cJSON_GetArraySize(object), used = 0;
    const char **keys = calloc(count + 1, sizeof *keys);
    if (!keys) return status_fail(ERR_MEMORY, "%.400s: out of memory", writer->path);
    const cJSON *item;
    cJSON_ArrayForEach(item, object) keys[used++] = item->string;
    qsort(keys, count, sizeof *keys, compare_strings);
    Status status = OK;
    for (size_t i = 1; i < count && status == OK; i++)
        if (strcmp(keys[i - 1], keys[i]) == 0)
            status = status_fail(ERR_INTERNAL, "%.400s: \"%.100s\" written twice", writer->path, keys[i]);
    free(keys);
    return status;
}

static Status write_all(const StWriter *writer, int handle, const void *data, size_t bytes)
{
    const char *next = data;
    while (bytes) {
        ssize_t written = write(handle, next, bytes < ((size_t)1 << 30) ? bytes : (size_t)1 << 30);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return status_fail_at(ERR_IO, writer->temporary, 0, "cannot write: %s", strerror(errno));
        next += written;
        bytes -= (size_t)written;
    }
    return OK;
}

static Status write_contents(const StWriter *writer, int handle, const char *json)
{
    static const char spaces[DATA_ALIGNMENT + 1] = "                                                                ";
    size_t length = strlen(json),
           padding = (DATA_ALIGNMENT - (LENGTH_BYTES + length) % DATA_ALIGNMENT) % DATA_ALIGNMENT;
    unsigned char prefix[LENGTH_BYTES];
    for (int i = 0; i < LENGTH_BYTES; i++) prefix[i] = (unsigned char)((uint64_t)(length + padding) >> (8 * i));
    TRY(write_all(writer, handle, prefix, sizeof prefix));
    TRY(write_all(writer, handle, json, length));
    TRY(write_all(writer, handle, spaces, padding));
    for (size_t i = 0; i < writer->count; i++)
        TRY(write_all(writer, handle, writer->tensor[i].data, writer->tensor[i].bytes));
    if (fsync(handle) != 0) return status_fail_at(ERR_IO, writer->temporary, 0, "cannot flush: %s", strerror(errno));
    return OK;
}

/* A rename is durable only once the folder is on disk. */
static Status sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == path ? strdup("/") : slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
    if (!folder) return status_fail(ERR_MEMORY, "%.400s: out of memory", path);
    int handle = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    Status status = OK;
    if (handle < 0 || fsync(handle) != 0)
        status = status_fail_at(ERR_IO, folder, 0, "cannot flush the folder: %s", strerror(errno));
    if (handle >= 0) close(handle);
    free(folder);
    return status;
}

static Status write_file(StWriter *writer, const char *json)
{
    int handle = open(writer->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (handle < 0) return status_fail_at(ERR_IO, writer->temporary, 0, "cannot create: %s", strerror(errno));
    Status status = write_contents(writer, handle, json);
    if (close(handle) != 0 && status == OK)
        status = status_fail_at(ERR_IO, writer->temporary, 0, "cannot close: %s", strerror(errno));
    if (status == OK && rename(writer->temporary, writer->path) != 0)
        status = status_fail_at(ERR_IO, writer->path, 0, "cannot rename onto: %s", strerror(errno));
    if (status != OK) {
        unlink(writer->temporary);
        return status;
    }
    return sync_folder(writer->path);
}

Status st_writer_commit(StWriter *writer)
{
    TRY(check_keys(writer, writer->header));
    if (writer->metadata) TRY(check_keys(writer, writer->metadata));
    char *json = cJSON_PrintUnformatted(writer->header);
    if (!json) return status_fail(ERR_MEMORY, "%.400s: out of memory", writer->path);
    Status status = write_file(writer, json);
    cJSON_free(json);
    return status;
}
