#include "experiments/checkpoint.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/folder.h"
#include "engine/safetensors.h"

#define FORMAT "foldscale-1"
/* Steps and samples of more than any run: what is made of them stays far from overflow. */
static const int64_t MOST_COUNTED = INT64_C(1) << 48;

/* Step of "ckpt_STEP.safetensors", -1 for any other name. */
static int64_t step_of(const char *name)
{
    char *end = NULL;
    if (strncmp(name, "ckpt_", 5) != 0 || name[5] < '0' || name[5] > '9') return -1;
    long long step = strtoll(name + 5, &end, 10);
    return strcmp(end, ".safetensors") == 0 ? step : -1;
}

static int newest_first(const void *a, const void *b)
{
    int64_t x = step_of(*(char *const *)a), y = step_of(*(char *const *)b);
    return (x < y) - (x > y);
}

/* Names of the checkpoints of a folder, newest first. */
static Status list(const char *folder, Arena *arena, char ***names_out, int *count_out)
{
    FolderList files;
    int kept = 0;
    TRY(folder_list(folder, arena, &files));
    char **names = files.name;
    for (int64_t i = 0; i < files.count; i++)
        if (step_of(names[i]) >= 0) names[kept++] = names[i];
    if (kept) qsort(names, (size_t)kept, sizeof *names, newest_first);
    *names_out = names;
    *count_out = kept;
    return OK;
}

/* Removes all but the newest `keep` of those up to step `last`. What is later is of a run that was given up: a resume
 * passes over checkpoints that are damaged. */
static Status keep_newest(const char *folder, int64_t last, int keep)
{
    Arena arena = {0};
    char **names = NULL, path[4096];
    int count = 0;
    Status status = list(folder, &arena, &names, &count);
    for (int i = 0, kept = 0; status == OK && i < count; i++) {
        if (step_of(names[i]) <= last && kept++ < keep) continue;
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (unlink(path) != 0 && errno != ENOENT)
            status = status_fail(ERR_IO, "%s: cannot remove the old checkpoint (%s)", path, strerror(errno));
    }
    arena_free(&arena);
    return status;
}

Status checkpoint_save(Store *store, const char *folder, const RunState *state, int keep)
{
    char path[4096], step[32], samples[32], seed[32], elapsed[40];
    snprintf(path, sizeof path, "%s/ckpt_%06lld.safetensors", folder, (long long)state->step);
    snprintf(step, sizeof step, "%lld", (long long)state->step);
    snprintf(samples, sizeof samples, "%lld", (long long)state->samples);
    snprintf(seed, sizeof seed, "%lld", (long long)state->seed);
    snprintf(elapsed, sizeof elapsed, "%.17g", state->elapsed_s);
    const MetaPair meta[] = {{"format", FORMAT}, {"step", step},         {"samples", samples},
                             {"seed", seed},     {"elapsed_s", elapsed}, {"loader", state->loader}};
    TRY(store_save(store, path, sizeof meta / sizeof *meta, meta));
    return keep_newest(folder, state->step, keep);
}

Status checkpoint_remove_all(const char *folder)
{
    return keep_newest(folder, 0, 0);
}

Status checkpoint_newest(const char *folder, int64_t *step_out)
{
    Arena arena = {0};
    char **names = NULL;
    int count = 0;
    Status status = list(folder, &arena, &names, &count);
    if (status == OK) *step_out = count ? step_of(names[0]) : -1;
    arena_free(&arena);
    return status;
}

static Status bad_metadata(const StFile *file, const char *key, const char *expected)
{
    const char *text = st_metadata(file, key);
    return status_fail(ERR_INPUT, "%s: not a checkpoint of foldscale (metadata \"%s\": found %.40s, expected %s)",
                       st_path(file), key, text ? text : "nothing", expected);
}

static Status whole_number(const StFile *file, const char *key, int64_t most, int64_t *value_out)
{
    const char *text = st_metadata(file, key);
    char *end = NULL;
    errno = 0;
    long long value = text ? strtoll(text, &end, 10) : 0;
    if (!text || end == text || *end || errno || value < 0 || value > most)
        return bad_metadata(file, key, "a whole number");
    *value_out = value;
    return OK;
}

static Status seconds(const StFile *file, const char *key, double *value_out)
{
    const char *text = st_metadata(file, key);
    char *end = NULL;
    double value = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end || !isfinite(value) || value < 0) return bad_metadata(file, key, "seconds");
    *value_out = value;
    return OK;
}

/* All but the tensors. */
static Status read_state(const StFile *file, int64_t named, RunState *state)
{
    const char *format = st_metadata(file, "format"), *loader = st_metadata(file, "loader");
    if (!format || strcmp(format, FORMAT) != 0) return bad_metadata(file, "format", FORMAT);
    TRY(whole_number(file, "step", MOST_COUNTED, &state->step));
    TRY(whole_number(file, "samples", MOST_COUNTED, &state->samples));
    TRY(whole_number(file, "seed", INT64_MAX, &state->seed));
    TRY(seconds(file, "elapsed_s", &state->elapsed_s));
    if (!loader) return bad_metadata(file, "loader", "the loader's state");
    if (strlen(loader) >= sizeof state->loader)
        return status_fail(ERR_INPUT, "%s: the loader's state is too long", st_path(file));
    snprintf(state->loader, sizeof state->loader, "%s", loader);
    if (named >= 0 && named != state->step)
        return status_fail(ERR_INPUT, "%s: a checkpoint of step %lld (expected that of its name)", st_path(file),
                           (long long)state->step);
    return OK;
}

Status checkpoint_state(const char *path, RunState *state_out)
{
    StFile *file = NULL;
    RunState state = {0};
    const char *name = strrchr(path, '/');
    TRY(st_open(path, &file));
    Status status = read_state(file, step_of(name ? name + 1 : path), &state);
    st_close(&file);
    if (status == OK) *state_out = state;
    return status;
}

Status checkpoint_resume(Store *store, const char *folder, bool report, RunState *state_out, bool *found_out)
{
    Arena arena = {0};
    char **names = NULL, path[4096];
    int count = 0;
    Status status = list(folder, &arena, &names, &count);
    *found_out = false;
    for (int i = 0; status == OK && i < count && !*found_out; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        Status loaded = checkpoint_state(path, state_out);
        if (loaded == OK) loaded = store_load(store, path, false);
        *found_out = loaded == OK;
        if (loaded == OK) break;
        if (i + 1 == count)
            status = loaded;
        else if (report)
            fprintf(stderr, "foldscale: %s; trying the one before\n", status_text());
    }
    arena_free(&arena);
    return status;
}

Status checkpoint_find(const char *path, Arena *arena, char **path_out)
{
    struct stat info;
    if (stat(path, &info) != 0) return status_fail(ERR_IO, "%s: cannot open (%s)", path, strerror(errno));
    if (!S_ISDIR(info.st_mode)) {
        *path_out = arena_strdup(arena, path);
        return *path_out ? OK : status_fail(ERR_MEMORY, "%s: out of memory", path);
    }
    char **names = NULL;
    int count = 0;
    TRY(list(path, arena, &names, &count));
    if (count == 0)
        return status_fail(ERR_INPUT, "%s: no checkpoint in this folder (expected ckpt_STEP.safetensors)", path);
    *path_out = arena_printf(arena, "%s/%s", path, names[0]);
    return *path_out ? OK : status_fail(ERR_MEMORY, "%s: out of memory", path);
}
