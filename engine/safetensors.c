#include "engine/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

/* The format caps the header at 100 MB, so that a foreign file cannot ask for more. */
enum { LARGEST_HEADER_BYTES = 100000000, LENGTH_BYTES = 8, MESSAGE_NAME_LENGTH = 100 };

struct StFile {
    char *path;
    unsigned char *map;
    size_t map_bytes;
    const unsigned char *data; /* the tensors, after the header */
    size_t data_bytes;
    cJSON *header; /* owns the names */
    cJSON *metadata;
    int64_t count;
    StTensor *tensor;         /* in order of the header */
    const StTensor **by_name; /* sorted */
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[ST_DTYPES] = {
    [ST_F64] = {"F64", 8}, [ST_F32] = {"F32", 4}, [ST_BF16] = {"BF16", 2}, [ST_I64] = {"I64", 8},
    [ST_I32] = {"I32", 4}, [ST_U8] = {"U8", 1},   [ST_BOOL] = {"BOOL", 1}, [ST_I16] = {"I16", 2},
};

const char *st_dtype_name(StDtype dtype)
{
    return dtypes[dtype].name;
}

size_t st_dtype_bytes(StDtype dtype)
{
    return dtypes[dtype].bytes;
}

/* A non-negative integer that a double holds exactly; cJSON keeps all numbers as double. */
static bool item_count(const cJSON *item, int64_t *value_out)
{
    const double largest = 9007199254740992.0; /* 2^53 */
    if (!cJSON_IsNumber(item)) return false;
    double value = item->valuedouble;
    if (!(value >= 0 && value < largest) || value != floor(value)) return false;
    *value_out = (int64_t)value;
    return true;
}

static Status tensor_fail(const StFile *file, const char *name, const char *what)
{
    return status_fail_at(ERR_INPUT, file->path, 0, "tensor \"%.*s\": %s", MESSAGE_NAME_LENGTH, name, what);
}

static Status parse_shape(const StFile *file, const cJSON *shape, StTensor *tensor)
{
    if (!cJSON_IsArray(shape)) return tensor_fail(file, tensor->name, "no shape");
    tensor->count = 1;
    const cJSON *item;
    cJSON_ArrayForEach(item, shape)
    {
        int64_t extent;
        if (tensor->rank == ST_MAX_RANK) return tensor_fail(file, tensor->name, "more than 8 axes");
        if (!item_count(item, &extent)) return tensor_fail(file, tensor->name, "an extent is not a whole number");
        tensor->shape[tensor->rank++] = extent;
        if (__builtin_mul_overflow(tensor->count, extent, &tensor->count))
            return tensor_fail(file, tensor->name, "shape overflows");
    }
    return OK;
}

static Status parse_tensor(const StFile *file, const cJSON *item, StTensor *tensor)
{
    tensor->name = item->string;
    if (!cJSON_IsObject(item)) return tensor_fail(file, tensor->name, "expected an object");
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    if (!cJSON_IsString(dtype)) return tensor_fail(file, tensor->name, "no dtype");
    int type = 0;
    while (type < ST_DTYPES && strcmp(dtypes[type].name, dtype->valuestring) != 0) type++;
    if (type == ST_DTYPES)
        return status_fail_at(ERR_INPUT, file->path, 0,
                              "tensor \"%.*s\": dtype \"%.20s\", expected F64, F32, BF16, I64, I32, I16, U8 or BOOL",
                              MESSAGE_NAME_LENGTH, tensor->name, dtype->valuestring);
    tensor->dtype = (StDtype)type;
    TRY(parse_shape(file, cJSON_GetObjectItemCaseSensitive(item, "shape"), tensor));

    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    int64_t begin, end, bytes;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !item_count(offsets->child, &begin) ||
        !item_count(offsets->child->next, &end))
        return tensor_fail(file, tensor->name, "data_offsets are not two whole numbers");
    if (begin > end || (size_t)end > file->data_bytes)
        return status_fail_at(ERR_INPUT, file->path, 0,
                              "tensor \"%.*s\": bytes %lld to %lld, but the file holds %zu (truncated?)",
                              MESSAGE_NAME_LENGTH, tensor->name, (long long)begin, (long long)end, file->data_bytes);
    if (__builtin_mul_overflow(tensor->count, (int64_t)dtypes[type].bytes, &bytes) || bytes != end - begin)
        return tensor_fail(file, tensor->name, "shape and dtype disagree with the number of bytes");
    tensor->data = file->data + begin;
    tensor->bytes = (size_t)bytes;
    return OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const StTensor *const *)a)->name, (*(const StTensor *const *)b)->name);
}

static int compare_places(const void *a, const void *b)
{
    const StTensor *s = *(const StTensor *const *)a, *t = *(const StTensor *const *)b;
    if (s->data != t->data) return (const char *)s->data < (const char *)t->data ? -1 : 1;
    return (s->bytes > t->bytes) - (s->bytes < t->bytes);
}

/* The format allows neither holes nor overlaps nor bytes after the last tensor. */
static Status check_layout(StFile *file)
{
    size_t count = (size_t)file->count;
    if (count) qsort(file->by_name, count, sizeof *file->by_name, compare_places);
    const unsigned char *expected = file->data;
    for (size_t i = 0; i < count; i++) {
        const StTensor *tensor = file->by_name[i];
        const unsigned char *begin = tensor->data;
        if (begin < expected) return tensor_fail(file, tensor->name, "overlaps another tensor");
        if (begin > expected) return tensor_fail(file, tensor->name, "unused bytes before it");
        expected = begin + tensor->bytes;
    }
    size_t used = (size_t)(expected - file->data);
    if (used != file->data_bytes)
        return status_fail_at(ERR_INPUT, file->path, 0, "%zu bytes after the last tensor", file->data_bytes - used);
    if (count) qsort(file->by_name, count, sizeof *file->by_name, compare_names);
    for (size_t i = 1; i < count; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            return tensor_fail(file, file->by_name[i]->name, "named twice");
    return OK;
}

static Status check_metadata(const StFile *file)
{
    if (!file->metadata) return OK;
    if (!cJSON_IsObject(file->metadata))
        return status_fail_at(ERR_INPUT, file->path, 0, "__metadata__ is not an object");
    const cJSON *item;
    cJSON_ArrayForEach(item, file->metadata) if (!cJSON_IsString(item)) return status_fail_at(
        ERR_INPUT, file->path, 0, "__metadata__ \"%.*s\" is not a string", MESSAGE_NAME_LENGTH, item->string);
    return OK;
}

static Status parse_header(StFile *file)
{
    uint64_t length = 0;
    if (file->map_bytes < LENGTH_BYTES)
        return status_fail_at(ERR_INPUT, file->path, 0, "%zu bytes: not a safetensors file", file->map_bytes);
    for (int i = LENGTH_BYTES - 1; i >= 0; i--) length = length << 8 | file->map[i];
    if (length > LARGEST_HEADER_BYTES || length > file->map_bytes - LENGTH_BYTES)
        return status_fail_at(ERR_INPUT, file->path, 0,
                              "header of %llu bytes in a file of %zu: truncated, or not a safetensors file",
                              (unsigned long long)length, file->map_bytes);
    const char *text = (const char *)file->map + LENGTH_BYTES, *end = text + length;
    file->data = file->map + LENGTH_BYTES + length;
    file->data_bytes = file->map_bytes - LENGTH_BYTES - length;
    const char *stop = NULL;
    if (!length || *text != '{' || !(file->header = cJSON_ParseWithLengthOpts(text, length, &stop, 0)))
        return status_fail_at(ERR_INPUT, file->path, 0, "header is not JSON near byte %lld",
                              stop ? (long long)(stop - text + LENGTH_BYTES) : (long long)LENGTH_BYTES);
    while (stop < end && *stop == ' ') stop++;
    if (stop != end)
        return status_fail_at(ERR_INPUT, file->path, 0, "header continues after its JSON at byte %lld",
                              (long long)(stop - text + LENGTH_BYTES));

    size_t items = (size_t)cJSON_GetArraySize(file->header);
    file->tensor = calloc(items + 1, sizeof *file->tensor);
    file->by_name = calloc(items + 1, sizeof *file->by_name);
    if (!file->tensor || !file->by_name) return status_fail(ERR_MEMORY, "%.400s: %zu tensors", file->path, items);
    cJSON *item;
    cJSON_ArrayForEach(item, file->header)
    {
        if (strcmp(item->string, "__metadata__") == 0) {
            if (file->metadata) return status_fail_at(ERR_INPUT, file->path, 0, "__metadata__ twice");
            file->metadata = item;
            continue;
        }
        TRY(parse_tensor(file, item, &file->tensor[file->count]));
        file->by_name[file->count] = &file->tensor[file->count];
        file->count++;
    }
    TRY(check_metadata(file));
    return check_layout(file);
}

static Status map_file(StFile *file)
{
    int handle = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a fifo must not block us */
    struct stat info;
    if (handle < 0 || fstat(handle, &info) != 0) {
        int reason = errno;
        if (handle >= 0) close(handle);
        return status_fail_at(ERR_IO, file->path, 0, "cannot open: %s", strerror(reason));
    }
    Status status = OK;
    if (!S_ISREG(info.st_mode)) {
        status = status_fail_at(ERR_IO, file->path, 0, "not a regular file");
    } else if (info.st_size > 0) { /* an empty mapping is refused by the system; parse_header says what is wrong */
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, handle, 0);
        if (map == MAP_FAILED)
            status = status_fail_at(ERR_IO, file->path, 0, "cannot map: %s", strerror(errno));
        else {
            file->map = map;
            file->map_bytes = (size_t)info.st_size;
        }
    }
    close(handle);
    return status;
}

Status st_open(const char *path, StFile **file_out)
{
    StFile *file = calloc(1, sizeof *file);
    if (file) file->path = strdup(path);
    if (!file || !file->path) {
        free(file);
        return status_fail(ERR_MEMORY, "%.400s: out of memory", path);
    }
    Status status = map_file(file);
    if (status == OK) status = parse_header(file);
    if (status != OK) {
        st_close(&file);
        return status;
    }
    *file_out = file;
    return OK;
}

void st_close(StFile **file_inout)
{
    StFile *file = *file_inout;
    if (!file) return;
    cJSON_Delete(file->header);
    if (file->map) munmap(file->map, file->map_bytes);
    free(file->tensor);
    free(file->by_name);
    free(file->path);
    free(file);
    *file_inout = NULL;
}

const char *st_path(const StFile *file)
{
    return file->path;
}

int64_t st_count(const StFile *file)
{
    return file->count;
}

const StTensor *st_at(const StFile *file, int64_t index)
{
    return index >= 0 && index < file->count ? &file->tensor[index] : NULL;
}

const StTensor *st_find(const StFile *file, const char *name)
{
    StTensor key = {.name = name};
    const StTensor *pointer = &key;
    const StTensor **found =
        file->count ? bsearch(&pointer, file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names)
                    : NULL;
    return found ? *found : NULL;
}

const char *st_metadata(const StFile *file, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file->metadata, key));
}

Status st_verify(const StFile *file)
{
    const char *expected = st_metadata(file, "crc32");
    char digits[9];
    if (!expected) return OK;
    uLong crc = crc32_z(0, NULL, 0);
    for (int64_t i = 0; i < file->count; i++)
        if (file->tensor[i].bytes > 0) crc = crc32_z(crc, file->tensor[i].data, file->tensor[i].bytes);
    snprintf(digits, sizeof digits, "%08lx", crc);
    if (strcmp(digits, expected) == 0) return OK;
    return status_fail_at(ERR_INPUT, file->path, 0, "the tensors are damaged: their CRC-32 is %s, expected %.40s",
                          digits, expected);
}

static Status check_range(const StTensor *tensor, int64_t first, int64_t count)
{
    if (first >= 0 && count >= 0 && first <= tensor->count && count <= tensor->count - first) return OK;
    return status_fail(ERR_INPUT, "tensor \"%.*s\": %lld elements from %lld asked of %lld", MESSAGE_NAME_LENGTH,
                       tensor->name, (long long)count, (long long)first, (long long)tensor->count);
}

/* The bytes may lie unaligned in the map, hence memcpy per element; compilers turn it into a plain load. */
#define READ_AS(TYPE, CONVERT)                                                                                         \
    for (int64_t i = 0; i < count; i++) {                                                                              \
        TYPE element;                                                                                                  \
        memcpy(&element, source + (size_t)i * sizeof element, sizeof element);                                         \
        values_out[i] = CONVERT(element);                                                                              \
    }                                                                                                                  \
    break

static float from_bf16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

Status st_read_f64(const StTensor *tensor, int64_t first, int64_t count, double *values_out)
{
    TRY(check_range(tensor, first, count));
    const char *source = (const char *)tensor->data + (size_t)first * dtypes[tensor->dtype].bytes;
    switch (tensor->dtype) {
    case ST_F64:
        READ_AS(double, (double));
    case ST_F32:
        READ_AS(float, (double));
    case ST_BF16:
        READ_AS(uint16_t, (double)from_bf16);
    case ST_I64:
        READ_AS(int64_t, (double));
    case ST_I32:
        READ_AS(int32_t, (double));
    case ST_I16:
        READ_AS(int16_t, (double));
    case ST_U8:
    case ST_BOOL:
        READ_AS(uint8_t, (double));
    case ST_DTYPES:
        break;
    }
    return OK;
}

Status st_read_f32(const StTensor *tensor, int64_t first, int64_t count, float *values_out)
{
    TRY(check_range(tensor, first, count));
    const char *source = (const char *)tensor->data + (size_t)first * dtypes[tensor->dtype].bytes;
    switch (tensor->dtype) {
    case ST_F64:
        READ_AS(double, (float));
    case ST_F32:
        if (count) memcpy(values_out, source, (size_t)count * sizeof *values_out);
        break;
    case ST_BF16:
        READ_AS(uint16_t, from_bf16);
    case ST_I64:
        READ_AS(int64_t, (float));
    case ST_I32:
        READ_AS(int32_t, (float));
    case ST_I16:
        READ_AS(int16_t, (float));
    case ST_U8:
    case ST_BOOL:
        READ_AS(uint8_t, (float));
    case ST_DTYPES:
        break;
    }
    return OK;
}

static Status read_whole_numbers(const StTensor *tensor, int64_t first, int64_t count, int64_t *values_out)
{
    for (int64_t i = 0; i < count; i++) {
        double value = 0;
        TRY(st_read_f64(tensor, first + i, 1, &value));
        if (!(value >= -0x1p63 && value < 0x1p63) || value != floor(value))
            return status_fail(ERR_INPUT, "tensor \"%.*s\": element %lld is %g, expected a whole number",
                               MESSAGE_NAME_LENGTH, tensor->name, (long long)(first + i), value);
        values_out[i] = (int64_t)value;
    }
    return OK;
}

Status st_read_i64(const StTensor *tensor, int64_t first, int64_t count, int64_t *values_out)
{
    TRY(check_range(tensor, first, count));
    const char *source = (const char *)tensor->data + (size_t)first * dtypes[tensor->dtype].bytes;
    switch (tensor->dtype) {
    case ST_I64:
        READ_AS(int64_t, (int64_t));
    case ST_I32:
        READ_AS(int32_t, (int64_t));
    case ST_I16:
        READ_AS(int16_t, (int64_t));
    case ST_U8:
    case ST_BOOL:
        READ_AS(uint8_t, (int64_t));
    case ST_F64:
    case ST_F32:
    case ST_BF16:
        return read_whole_numbers(tensor, first, count, values_out);
    case ST_DTYPES:
        break;
    }
    return OK;
}
