#include "analysis/process.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

Status process_run(const char *folder, char *const *argv, const char *output, const char *errors)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_t actions;
    if (posix_spawn_file_actions_init(&actions)) return status_fail(ERR_MEMORY, "cannot start %s", argv[0]);
    int code = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!code) code = posix_spawn_file_actions_addopen(&actions, 1, output ? output : "/dev/null", flags, 0644);
    if (!code) code = posix_spawn_file_actions_addopen(&actions, 2, errors ? errors : "/dev/null", flags, 0644);
    if (!code && folder) code = posix_spawn_file_actions_addchdir_np(&actions, folder);
    pid_t child = 0;
    if (!code) code = posix_spawnp(&child, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code) return status_fail(ERR_UNSUPPORTED, "cannot start %s: %s", argv[0], strerror(code));
    int state = 0;
    while (waitpid(child, &state, 0) < 0)
        if (errno != EINTR) return status_fail(ERR_INTERNAL, "cannot wait for %s: %s", argv[0], strerror(errno));
    if (WIFSIGNALED(state)) return status_fail(ERR_INTERNAL, "%s was killed by signal %d", argv[0], WTERMSIG(state));
    if (WEXITSTATUS(state))
        return status_fail(ERR_INTERNAL, "%s failed with exit code %d", argv[0], WEXITSTATUS(state));
    return OK;
}
