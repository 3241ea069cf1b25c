/* A run directory: its lock, and fifos where its files belong, which must not be waited for. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "analysis/table.h"
#include "engine/output.h"
#include "engine/pipe.h"
#include "experiments/files.h"
#include "experiments/launch.h"
#include "experiments/mllog.h"
#include "experiments/run_folder.h"
#include "tests/text_file.h"

static int lock_error;

/* In place of the system's: file systems without locks are not at hand. */
int flock(int handle, int operation)
{
    (void)handle;
    (void)operation;
    errno = lock_error;
    return lock_error ? -1 : 0;
}

static char folder[64], path[128];

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/foldscale_run_folder_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/steps.csv", folder);
    alarm(60); /* a wait is a failure */
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    alarm(0);
    unlink(path);
    return rmdir(folder);
}

/* What a claim says on standard error. */
static Status claim(int error, char *said, size_t size)
{
    int lock = -1, screen = dup(STDERR_FILENO);
    FILE *file = tmpfile();
    assert_true(file && screen >= 0);
    dup2(fileno(file), STDERR_FILENO);
    lock_error = error;
    Status status = run_folder_claim(folder, &lock);
    dup2(screen, STDERR_FILENO);
    close(screen);
    run_folder_release(&lock);
    rewind(file);
    said[fread(said, 1, size - 1, file)] = '\0';
    fclose(file);
    return status;
}

static void a_folder_that_cannot_be_locked_is_told(void **state)
{
    (void)state;
    char said[512];
    assert_int_equal(claim(0, said, sizeof said), OK);
    assert_string_equal(said, "");
    assert_int_equal(claim(EBADF, said, sizeof said), OK);
    assert_non_null(strstr(said, "cannot be locked (Bad file descriptor)"));
    assert_int_equal(claim(EWOULDBLOCK, said, sizeof said), ERR_IO);
    assert_non_null(strstr(status_text(), "another foldscale is writing here"));
}

static void rows_are_a_run(void **state)
{
    (void)state;
    assert_int_equal(run_folder_expect_none(folder), OK);
    assert_int_equal(file_write_whole(path, "step\n", 5), OK);
    assert_int_equal(run_folder_expect_none(folder), OK);
    assert_int_equal(file_write_whole(path, "step\n1\n", 7), OK);
    assert_int_equal(run_folder_expect_none(folder), ERR_IO);
    unlink(path);
    assert_int_equal(symlink("/dev/null", path), 0);
    assert_int_equal(run_folder_expect_none(folder), OK);
}

static void fifos_are_refused(void **state)
{
    (void)state;
    Mllog *log = NULL;
    int code = 0;
    char *arguments[] = {"true", NULL};
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(run_folder_expect_none(folder), ERR_IO);
    assert_non_null(strstr(status_text(), "steps.csv"));
    assert_int_equal(file_write_whole(path, "x", 1), ERR_IO);
    assert_non_null(strstr(status_text(), "steps.csv: cannot write: a fifo, not a file"));
    assert_int_equal(mllog_open(path, &log), ERR_IO);
    assert_int_equal(launch_wait(arguments, path, &code), ERR_IO);
    struct stat info;
    assert_true(lstat(path, &info) == 0 && S_ISFIFO(info.st_mode));
}

static void devices_and_pipes_are_written(void **state)
{
    (void)state;
    Mllog *log = NULL;
    int code = 1, ends[2];
    char *arguments[] = {"true", NULL}, c = 0;
    assert_int_equal(mllog_open("/dev/null", &log), OK);
    assert_int_equal(mllog_close(&log), OK);
    assert_int_equal(launch_wait(arguments, "/dev/null", &code), OK);
    assert_int_equal(code, 0);
    assert_int_equal(pipe(ends), 0);
    char end[32];
    snprintf(end, sizeof end, "/proc/self/fd/%d", ends[1]); /* as /dev/stdout is */
    assert_int_equal(file_write_whole(end, "x", 1), OK);
    assert_int_equal(read(ends[0], &c, 1), 1);
    assert_int_equal(c, 'x');
    close(ends[0]);
    close(ends[1]);
}

static void log_is_refused(const char *begins, const char *message)
{
    int handle;
    assert_int_not_equal(output_open_log(path, true, begins, &handle, NULL), OK);
    if (!strstr(status_text(), message)) fail_msg("\"%s\" does not contain \"%s\"", status_text(), message);
}

/* Logs lie where other outputs would: behind links, which stay, and never in a file of another kind. */
static void logs_follow_links_as_outputs_do(void **state)
{
    (void)state;
    char other[128];
    int handle, code = 1;
    bool fresh;
    struct stat info;
    Mllog *log = NULL;
    char *arguments[] = {"echo", "said", NULL};
    snprintf(other, sizeof other, "%s/other", folder);
    assert_int_equal(symlink("other", path), 0);
    assert_int_equal(output_open_log(path, true, "a", &handle, &fresh), OK); /* nothing is there yet */
    assert_true(fresh && write(handle, "a\n", 2) == 2 && close(handle) == 0);
    assert_int_equal(output_open_log(path, true, "a", &handle, &fresh), OK);
    assert_true(!fresh && write(handle, "b\n", 2) == 2 && close(handle) == 0);
    check_text(other, "a\nb\n");
    assert_int_equal(launch_wait(arguments, path, &code), OK);
    check_text(other, "said\n");
    write_text(other, "My thesis\n");
    log_is_refused("a", "steps.csv: not continued: it does not begin with \"a\"");
    assert_int_equal(mllog_open(path, &log), ERR_INPUT);
    check_text(other, "My thesis\n");
    assert_true(lstat(path, &info) == 0 && S_ISLNK(info.st_mode));
    unlink(other);
    assert_int_equal(mkdir(other, 0700), 0);
    log_is_refused(NULL, "cannot write: a folder, not a file");
    assert_int_equal(launch_wait(arguments, path, &code), ERR_IO);
    rmdir(other);
    assert_int_equal(symlink("other", other), 0);
    log_is_refused(NULL, "a link that leads too far");
    unlink(other);
}

/* Its file is neither emptied nor written from its beginning, and a pipe is not read. */
static void logs_go_to_standard_output(void **state)
{
    (void)state;
    static const char *const names[] = {"a", "b"};
    char other[128], *arguments[] = {"echo", "said", NULL};
    int code = 1, ends[2], screen = dup(STDOUT_FILENO);
    TableWriter *writer = NULL;
    snprintf(other, sizeof other, "%s/other", folder);
    assert_int_equal(symlink("/proc/self/fd/1", path), 0); /* as /dev/stdout is */
    fflush(stdout);
    int file = open(other, O_WRONLY | O_CREAT, 0600);
    dup2(file, STDOUT_FILENO);
    printf("before\n");
    Status launched = launch_wait(arguments, path, &code);
    Status appended = table_writer_append(path, names, 2, &writer);
    if (appended == OK) appended = table_writer_close(&writer);
    int flags = fcntl(STDOUT_FILENO, F_GETFL);
    printf("behind\n");
    fflush(stdout);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDOUT_FILENO);
    close(ends[1]);
    Status piped = table_writer_append(path, names, 2, &writer);
    if (piped == OK) piped = table_writer_close(&writer);
    dup2(screen, STDOUT_FILENO);
    close(screen);
    close(file);
    assert_true(launched == OK && appended == OK && piped == OK);
    assert_int_equal(flags & O_APPEND, 0); /* others write there too */
    check_text(other, "before\nsaid\na,b\nbehind\n");
    char found[16] = "";
    assert_int_equal(read(ends[0], found, sizeof found - 1), 4);
    assert_string_equal(found, "a,b\n");
    close(ends[0]);
    unlink(other);
}

/* The log must not take the place of what is closed: the child would be without it. */
static void children_of_the_closed_have_logs(void **state)
{
    (void)state;
    char *arguments[] = {"sh", "-c", "echo said; echo told >&2", NULL};
    for (int which = STDOUT_FILENO; which <= STDERR_FILENO; which++) {
        int code = 1;
        fflush(NULL);
        int screen = dup(which);
        close(which);
        Status launched = launch_wait(arguments, path, &code);
        dup2(screen, which);
        close(screen);
        assert_true(launched == OK && code == 0);
        check_text(path, "said\ntold\n");
        unlink(path);
    }
}

/* Inputs and outputs take the same pipes for handed over. */
static void handed_over_pipes_are_known(void **state)
{
    (void)state;
    int ends[2];
    char end[32];
    assert_int_equal(pipe(ends), 0);
    snprintf(end, sizeof end, "/dev/fd/%d", ends[1]);
    assert_true(pipe_is_handed_over(ends[0]) && pipe_path_is_handed_over(end));
    close(ends[0]);
    close(ends[1]);
    assert_false(pipe_is_handed_over(ends[0]));
    assert_false(pipe_path_is_handed_over(end));
    assert_false(pipe_path_is_handed_over("/dev/null"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(pipe_path_is_handed_over(path));
    int fifo = open(path, O_RDWR);
    assert_true(fifo >= 0 && !pipe_is_handed_over(fifo));
    close(fifo);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_folder_that_cannot_be_locked_is_told),
        TEST(rows_are_a_run),
        TEST(fifos_are_refused),
        TEST(devices_and_pipes_are_written),
        TEST(handed_over_pipes_are_known),
        TEST(logs_follow_links_as_outputs_do),
        TEST(logs_go_to_standard_output),
        TEST(children_of_the_closed_have_logs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
