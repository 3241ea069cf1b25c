#include "data/stamp.h"

#include <string.h>
#include <sys/stat.h>

uint64_t stamp_bytes(uint64_t stamp, const void *bytes, size_t size)
{
    for (const unsigned char *at = bytes, *end = at + size; at < end; ++at) stamp = (stamp ^ *at) * 0x100000001b3u;
    return stamp;
}

uint64_t stamp_number(uint64_t stamp, int64_t number)
{
    return stamp_bytes(stamp, &number, sizeof number);
}

uint64_t stamp_file(uint64_t stamp, const char *path)
{
    struct stat info;
    if (!path) return stamp_number(stamp, -1);
    stamp = stamp_bytes(stamp, path, strlen(path) + 1);
    if (stat(path, &info) != 0) return stamp_number(stamp, -1);
    stamp = stamp_number(stamp, info.st_size);
    stamp = stamp_number(stamp, info.st_mtim.tv_sec);
    return stamp_number(stamp, info.st_mtim.tv_nsec);
}
