#include "engine/output.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/pipe.h"

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Also where standard output was sent to a file: bytes go behind what is there. */
static bool is_stdout(const struct stat *info)
{
    struct stat out;
    return fstat(STDOUT_FILENO, &out) == 0 && same_file(info, &out);
}

/* The path behind all links, of a file that need not be there (realpath wants it to be). */
static Status follow(const char *path, char target[PATH_MAX])
{
    enum { MOST_LINKS = 40 };
    char link[PATH_MAX];
    if (strlen(path) >= PATH_MAX) return status_fail_at(ERR_IO, path, 0, "the path is too long");
    strcpy(target, path);
    for (int i = 0; i < MOST_LINKS; i++) {
        ssize_t length = readlink(target, link, sizeof link - 1);
        if (length < 0) return OK; /* not a link */
        link[length] = '\0';
        char *slash = strrchr(target, '/');
        size_t folder = link[0] == '/' || !slash ? 0 : (size_t)(slash - target) + 1;
        if (folder + (size_t)length >= PATH_MAX) break;
        strcpy(target + folder, link);
    }
    return status_fail_at(ERR_IO, path, 0, "cannot write: a link that leads too far");
}

/* `refusal`: what does not happen to a file that begins otherwise. */
static Status check_beginning(const char *path, const char *begins, const char *refusal)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return status_fail_at(ERR_IO, path, 0, "%s: cannot read what it begins with: %s", refusal, strerror(errno));
    const char *at = begins;
    int c = ' ';
    while (*at) {
        while (c != EOF && isspace(c)) c = getc(file);
        while (isspace((unsigned char)*at)) at++;
        if (*at == '*') {
            while (c != EOF && c != '"') c = getc(file);
            at++;
        }
        if (c != (unsigned char)*at) break;
        at++;
        c = ' ';
    }
    bool same = !*at || (c == EOF && at == begins);
    fclose(file);
    if (same) return OK;
    return status_fail_at(ERR_INPUT, path, 0,
                          "%s: it does not begin with \"%s\", so it is something else; remove it or name another file",
                          refusal, begins);
}

static Status place(const char *path, const char *begins, const char *refusal, Arena *arena, char **target_out)
{
    struct stat info;
    char target[PATH_MAX];
    bool there = stat(path, &info) == 0;
    *target_out = NULL;
    if (there && (is_stdout(&info) || S_ISCHR(info.st_mode) || S_ISFIFO(info.st_mode))) return OK;
    if (there && !S_ISREG(info.st_mode))
        return status_fail_at(ERR_IO, path, 0, "cannot write: %s, not a file",
                              S_ISDIR(info.st_mode) ? "a folder" : "a device or socket");
    if (there && begins) TRY(check_beginning(path, begins, refusal));
    TRY(follow(path, target));
    *target_out = arena_strdup(arena, target);
    return *target_out ? OK : status_fail_at(ERR_MEMORY, path, 0, "out of memory");
}

Status output_place(const char *path, const char *begins, Arena *arena, char **target_out)
{
    return place(path, begins, "not replaced", arena, target_out);
}

Status output_refuse_fifo(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISFIFO(info.st_mode) || pipe_path_is_handed_over(path)) return OK;
    return status_fail_at(ERR_IO, path, 0, "cannot write: a fifo, not a file");
}

/* Standard output once more where `path` leads there: opened by its path, a file would be written from its beginning.
 */
static int open_handle(const char *path, int flags)
{
    struct stat info;
    if (stat(path, &info) != 0 || !is_stdout(&info)) return open(path, flags | O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    return fflush(stdout) == 0 ? fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1) : -1;
}

static FILE *open_device(const char *path)
{
    int handle = open_handle(path, 0);
    FILE *file = handle < 0 ? NULL : fdopen(handle, "wb");
    if (handle >= 0 && !file) close(handle);
    return file;
}

/* Where standard output or error is closed, a file that is opened takes its place: a child that is given the handle as
 * its output would lose it, for dup2 onto itself leaves it to be closed, and messages would get into the file. */
static int above_standard(int handle)
{
    if (handle < 0 || handle > STDERR_FILENO) return handle;
    int moved = fcntl(handle, F_DUPFD_CLOEXEC, STDERR_FILENO + 1), error = errno;
    close(handle);
    errno = error;
    return moved;
}

Status output_open_log(const char *path, bool keep, const char *begins, int *handle_out, bool *fresh_out)
{
    Arena arena = {0};
    char *target;
    struct stat info;
    TRY(output_refuse_fifo(path));
    TRY(place(path, begins, keep ? "not continued" : "not replaced", &arena, &target));
    int handle = above_standard(open_handle(target ? target : path, keep ? O_APPEND : O_TRUNC));
    Status status = handle >= 0 ? OK : status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    bool fresh = !target || (handle >= 0 && fstat(handle, &info) == 0 && info.st_size == 0);
    arena_free(&arena);
    if (status != OK) return status;
    *handle_out = handle;
    if (fresh_out) *fresh_out = fresh;
    return OK;
}

Status output_open(const char *path, const char *begins, Output *output_out)
{
    Output o = {0};
    Status status = output_place(path, begins, &o.arena, &o.target);
    if (status == OK) {
        o.path = arena_strdup(&o.arena, path);
        if (o.target) o.temporary = arena_printf(&o.arena, "%s.tmp", o.target);
        if (!o.path || (o.target && !o.temporary)) status = status_fail_at(ERR_MEMORY, path, 0, "out of memory");
    }
    if (status == OK && !(o.file = o.temporary ? fopen(o.temporary, "wb") : open_device(path)))
        status = status_fail_at(ERR_IO, path, 0, "cannot create: %s", strerror(errno));
    if (status != OK) {
        arena_free(&o.arena);
        return status;
    }
    *output_out = o;
    return OK;
}

Status output_close(Output *output)
{
    Output *o = output;
    bool bad = fflush(o->file) != 0 || ferror(o->file) || (o->temporary && fsync(fileno(o->file)) != 0);
    int error = bad ? errno : 0;
    if (fclose(o->file) != 0 && !bad) bad = true, error = errno;
    if (o->temporary && !bad && rename(o->temporary, o->target) != 0) bad = true, error = errno;
    Status status = bad ? status_fail_at(ERR_IO, o->path, 0, "cannot write: %s", strerror(error)) : OK;
    if (o->temporary && bad) unlink(o->temporary);
    arena_free(&o->arena);
    *o = (Output){0};
    return status;
}

void output_abandon(Output *output)
{
    if (output->file) fclose(output->file);
    if (output->temporary) unlink(output->temporary);
    arena_free(&output->arena);
    *output = (Output){0};
}

/* Splits a path in place. */
static const char *folder_of(char *path, const char **name_out)
{
    char *slash = strrchr(path, '/');
    *name_out = slash ? slash + 1 : path;
    if (!slash) return ".";
    if (slash == path) return "/";
    *slash = '\0';
    return path;
}

bool output_same(const char *a, const char *b)
{
    struct stat x, y;
    char path_a[PATH_MAX], path_b[PATH_MAX];
    const char *name_a, *name_b;
    bool there = stat(a, &x) == 0;
    if (there != (stat(b, &y) == 0)) return false;
    if (there) return S_ISREG(x.st_mode) && same_file(&x, &y);
    if (follow(a, path_a) != OK || follow(b, path_b) != OK) return false;
    const char *folder_a = folder_of(path_a, &name_a), *folder_b = folder_of(path_b, &name_b);
    return strcmp(name_a, name_b) == 0 && stat(folder_a, &x) == 0 && stat(folder_b, &y) == 0 && same_file(&x, &y);
}

Status output_check(const char *what, const char *path, const char *begins, const char *const *inputs, int count)
{
    Arena arena = {0};
    char *target;
    for (int i = 0; i < count; i++)
        if (inputs[i] && access(inputs[i], F_OK) == 0 && output_same(path, inputs[i]))
            return status_fail(ERR_USAGE, "%s is the input %.400s", what, inputs[i]);
    Status status = output_place(path, begins, &arena, &target);
    arena_free(&arena);
    return status;
}
