#include "tests/data_golden_numbers.h"

#include <dirent.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void golden_check(Golden *golden, bool ok, const char *label, const char *format, ...)
{
    char detail[512];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    if (ok)
        golden_pass(golden, "%s: %s", label, detail);
    else
        golden_fail(golden, label, "%s", detail);
}

bool golden_ok(Golden *golden, Status status, const char *label)
{
    if (status != OK) golden_check(golden, false, label, "%s", status_text());
    return status == OK;
}

static const StTensor *find(Golden *golden, const StFile *file, const char *name, int64_t *count_out)
{
    const StTensor *tensor = st_find(file, name);
    if (!tensor) golden_check(golden, false, st_path(file), "no tensor '%s'", name);
    if (count_out) *count_out = tensor ? tensor->count : 0;
    return tensor;
}

#define GOLDEN_READ(function, type, read)                                                                              \
    type *function(Golden *golden, const StFile *file, const char *name, Arena *arena, int64_t *count_out)             \
    {                                                                                                                  \
        const StTensor *tensor = find(golden, file, name, count_out);                                                  \
        if (!tensor) return NULL;                                                                                      \
        type *values = arena_array(arena, (size_t)tensor->count, sizeof *values);                                      \
        if (!values) {                                                                                                 \
            golden_check(golden, false, st_path(file), "no memory for '%s'", name);                                    \
            return NULL;                                                                                               \
        }                                                                                                              \
        return golden_ok(golden, read(tensor, 0, tensor->count, values), name) ? values : NULL;                        \
    }
GOLDEN_READ(golden_f32, float, st_read_f32)
GOLDEN_READ(golden_f64, double, st_read_f64)
GOLDEN_READ(golden_i64, int64_t, st_read_i64)

void golden_match_f32(Golden *golden, const char *label, const float *got, const float *want, int64_t count,
                      double tolerance, const float *mask, int64_t each)
{
    double worst = 0.0;
    int64_t at = -1, compared = 0;
    if (!got || !want) return; /* the FAIL line is already out */
    for (int64_t i = 0; i < count; ++i) {
        if (mask && mask[i / each] == 0.0f) continue;
        ++compared;
        if (isnan(got[i]) && isnan(want[i])) continue;
        double error = fabs((double)got[i] - want[i]) / fmax(1.0, fabs((double)want[i]));
        if (!(error <= worst)) { /* also true for NaN */
            worst = isnan(error) ? INFINITY : error;
            at = i;
        }
    }
    bool ok = worst <= tolerance;
    if (ok)
        golden_check(golden, true, label, "%lld values, largest error %.2g", (long long)compared, worst);
    else
        golden_check(golden, false, label, "element %lld is %.9g, expected %.9g (error %.2g > %.2g)", (long long)at,
                     (double)got[at], (double)want[at], worst, tolerance);
}

void golden_match_i32(Golden *golden, const char *label, const int32_t *got, const int64_t *want, int64_t count)
{
    if (!got || !want) return;
    for (int64_t i = 0; i < count; ++i)
        if (got[i] != want[i]) {
            golden_check(golden, false, label, "element %lld is %d, expected %lld", (long long)i, got[i],
                         (long long)want[i]);
            return;
        }
    golden_check(golden, true, label, "%lld integers equal", (long long)count);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool matches(const char *name, const char *prefix, const char *suffix)
{
    size_t length = strlen(name), tail = strlen(suffix);
    return strncmp(name, prefix, strlen(prefix)) == 0 && length >= tail && strcmp(name + length - tail, suffix) == 0;
}

Status golden_list(const char *folder, const char *prefix, const char *suffix, Arena *arena, char ***paths_out,
                   int64_t *count_out)
{
    enum { MOST = 4096 };
    char **paths = arena_array(arena, MOST, sizeof *paths);
    int64_t count = 0;
    if (!paths) return status_fail(ERR_MEMORY, "no memory for a list of files");
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && count < MOST && (entry = readdir(dir));)
        if (matches(entry->d_name, prefix, suffix)) {
            paths[count] = arena_printf(arena, "%s/%s", folder, entry->d_name);
            if (!paths[count]) break;
            ++count;
        }
    if (dir) closedir(dir);
    qsort(paths, (size_t)count, sizeof *paths, by_name);
    *paths_out = paths;
    *count_out = count;
    return OK;
}

const char *golden_stem(const char *path, const char *suffix, Arena *arena)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t length = strlen(name), tail = strlen(suffix);
    if (length >= tail && strcmp(name + length - tail, suffix) == 0) length -= tail;
    char *stem = arena_strndup(arena, name, length);
    return stem ? stem : name;
}
