#include "data/text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

static Status no_memory(const char *name, size_t bytes)
{
    return status_fail_at(ERR_MEMORY, name, 0, "no memory for %zu bytes", bytes);
}

/* Fills `bytes` from `offset`; *got_out is smaller at the end of the file. */
static Status read_at(int handle, const char *name, char *bytes, size_t size, off_t offset, size_t *got_out)
{
    size_t got = 0;
    while (got < size) {
        ssize_t step = pread(handle, bytes + got, size - got, offset + (off_t)got);
        if (step < 0 && errno == EINTR) continue;
        if (step < 0) return status_fail_at(ERR_IO, name, 0, "cannot read: %s", strerror(errno));
        if (step == 0) break;
        got += (size_t)step;
    }
    *got_out = got;
    return OK;
}

static Status open_regular(const char *path, int *handle_out, off_t *size_out)
{
    int handle = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: a fifo must not block us */
    struct stat info;
    if (handle < 0) return status_fail_at(ERR_IO, path, 0, "cannot open: %s", strerror(errno));
    if (fstat(handle, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(handle);
        return status_fail_at(ERR_INPUT, path, 0, "not a regular file");
    }
    *handle_out = handle;
    *size_out = info.st_size;
    return OK;
}

/* Reads exactly `size` bytes, followed by a NUL. */
static Status read_block(int handle, const char *name, off_t offset, size_t size, char **bytes_out)
{
    char *bytes = malloc(size + 1);
    size_t got = 0;
    if (!bytes) return no_memory(name, size);
    Status status = read_at(handle, name, bytes, size, offset, &got);
    if (status == OK && got != size)
        status = status_fail_at(ERR_IO, name, 0, "%zu bytes read, expected %zu: the file shrank", got, size);
    if (status != OK) {
        free(bytes);
        return status;
    }
    bytes[size] = '\0';
    *bytes_out = bytes;
    return OK;
}

/* Text shrinks about fourfold, alignments of near copies more; a file that grows further is made to fill the memory. */
static size_t most_text(size_t packed_size)
{
    const size_t always = (size_t)64 << 20, times = 100;
    return packed_size < (SIZE_MAX - always) / times ? always + times * packed_size : SIZE_MAX;
}

/* The caller ends the stream. Several gzip members in a row are one text. */
static Status inflate_all(z_stream *stream, const char *name, char **bytes_inout, size_t *capacity_inout,
                          size_t *size_out)
{
    const size_t most = most_text(stream->avail_in);
    size_t size = 0;
    for (;;) {
        if (size > most)
            return status_fail_at(ERR_INPUT, name, 0,
                                  "gzip stream of more than %zu bytes of text, expected at most 100 "
                                  "times the file and 64 MB",
                                  most);
        if (*capacity_inout - size < 2) {
            size_t capacity = *capacity_inout * 2;
            char *grown = realloc(*bytes_inout, capacity);
            if (!grown) return no_memory(name, capacity);
            *bytes_inout = grown;
            *capacity_inout = capacity;
        }
        size_t room = *capacity_inout - size - 1; /* one byte stays for the NUL */
        stream->next_out = (Bytef *)*bytes_inout + size;
        stream->avail_out = room < UINT_MAX ? (uInt)room : UINT_MAX;
        uInt before = stream->avail_out;
        int result = inflate(stream, Z_NO_FLUSH);
        size += before - stream->avail_out;
        if (result == Z_STREAM_END) {
            if (stream->avail_in == 0) break;
            if (inflateReset(stream) != Z_OK) return status_fail_at(ERR_INPUT, name, 0, "damaged gzip stream");
        } else if (result == Z_BUF_ERROR && stream->avail_in == 0) {
            return status_fail_at(ERR_INPUT, name, 0, "truncated gzip stream (%zu bytes of text before the end)", size);
        } else if (result != Z_OK && result != Z_BUF_ERROR) {
            return status_fail_at(ERR_INPUT, name, 0, "damaged gzip stream after %zu bytes of text: %s", size,
                                  stream->msg ? stream->msg : "unexpected data");
        }
    }
    (*bytes_inout)[size] = '\0';
    *size_out = size;
    return OK;
}

static Status gunzip(const char *name, const char *packed, size_t packed_size, char **bytes_out, size_t *size_out)
{
    if (packed_size > UINT_MAX) return status_fail_at(ERR_UNSUPPORTED, name, 0, "gzip file larger than 4 GiB");
    z_stream stream = {.next_in = (Bytef *)(uintptr_t)packed, .avail_in = (uInt)packed_size};
    size_t capacity = 4 * packed_size + 1024; /* text shrinks about fourfold */
    char *bytes = malloc(capacity);
    if (!bytes) return no_memory(name, capacity);
    const int gzip_window = 31; /* zlib.h: 15 + 16 asks for the gzip wrapper */
    Status status = inflateInit2(&stream, gzip_window) == Z_OK ? OK : no_memory(name, capacity);
    if (status == OK) {
        status = inflate_all(&stream, name, &bytes, &capacity, size_out);
        inflateEnd(&stream);
    }
    if (status != OK) {
        free(bytes);
        return status;
    }
    *bytes_out = bytes;
    return OK;
}

static bool named_gz(const char *path)
{
    size_t length = strlen(path);
    return length > 3 && strcmp(path + length - 3, ".gz") == 0;
}

static Status finish(const char *name, char *bytes, size_t size, Text *text_out)
{
    char *copy = strdup(name);
    if (!copy) {
        free(bytes);
        return no_memory(name, strlen(name));
    }
    *text_out = (Text){.name = copy, .data = bytes, .size = size, .owned = bytes, .owned_name = copy};
    return OK;
}

Status text_read(const char *path, Text *text_out)
{
    int handle;
    off_t file_size;
    char *bytes = NULL;
    TRY(open_regular(path, &handle, &file_size));
    Status status = read_block(handle, path, 0, (size_t)file_size, &bytes);
    close(handle);
    TRY(status);
    size_t size = (size_t)file_size;
    if (size >= 2 && (unsigned char)bytes[0] == 0x1f && (unsigned char)bytes[1] == 0x8b) {
        char *plain = NULL;
        status = gunzip(path, bytes, size, &plain, &size);
        free(bytes);
        TRY(status);
        bytes = plain;
    } else if (named_gz(path)) {
        free(bytes);
        return status_fail_at(ERR_INPUT, path, 0, "named .gz but not a gzip stream (%zu bytes)", size);
    }
    return finish(path, bytes, size, text_out);
}

Status text_read_range(const char *path, long long offset, long long size, const char *name, Text *text_out)
{
    int handle;
    off_t file_size;
    char *bytes = NULL;
    TRY(open_regular(path, &handle, &file_size));
    Status status;
    if (offset < 0 || size < 0 || offset > file_size || size > file_size - offset)
        status = status_fail_at(ERR_INPUT, path, 0, "%.200s: bytes %lld + %lld asked of a file of %lld", name, offset,
                                size, (long long)file_size);
    else
        status = read_block(handle, path, (off_t)offset, (size_t)size, &bytes);
    close(handle);
    TRY(status);
    return finish(name, bytes, (size_t)size, text_out);
}

Status text_from_bytes(const char *name, const void *bytes, size_t size, Text *text_out)
{
    char *copy = size < SIZE_MAX ? malloc(size + 1) : NULL;
    if (!copy) return no_memory(name, size);
    if (size) memcpy(copy, bytes, size);
    copy[size] = '\0';
    return finish(name, copy, size, text_out);
}

void text_close(Text *text)
{
    free(text->owned);
    free(text->owned_name);
    *text = (Text){0};
}

Status text_check_no_nul(const Text *text)
{
    const char *found = text->size ? memchr(text->data, '\0', text->size) : NULL;
    if (!found) return OK;
    return status_fail_at(ERR_INPUT, text->name, text_line(text, found), "NUL byte, expected text");
}

long text_line(const Text *text, const char *at)
{
    long line = 1;
    const char *next = text->data;
    while (next < at && (next = memchr(next, '\n', (size_t)(at - next)))) {
        line++;
        next++;
    }
    return line;
}
