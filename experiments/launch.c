#include "experiments/launch.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/output.h"

/* The child that signals are passed on to: a handler has no other way to know it. */
static volatile sig_atomic_t running_child, signal_passed;

static const char *const size_variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};

static const char *world_variable(void)
{
    for (size_t i = 0; i < sizeof size_variables / sizeof *size_variables; i++) {
        const char *text = getenv(size_variables[i]);
        if (text && *text) return text;
    }
    return NULL;
}

bool launch_under_mpi(void)
{
    return world_variable() != NULL;
}

int launch_world_size(void)
{
    const char *text = world_variable();
    int size = text ? atoi(text) : 1;
    return size > 0 ? size : 1;
}

Status launch_self(char *path_out, int size)
{
    ssize_t length = readlink("/proc/self/exe", path_out, (size_t)size - 1);
    if (length <= 0) return status_fail(ERR_IO, "cannot find this program (%s)", strerror(errno));
    path_out[length] = '\0';
    return OK;
}

static void pass_on(int signal_number)
{
    signal_passed = 1;
    if (running_child > 0) kill(running_child, signal_number);
}

bool launch_interrupted(void)
{
    return signal_passed != 0;
}

/* log: -1 for none */
static void start_child(char *const arguments[], int log, pid_t parent)
{
    /* a parent that is killed passes nothing on: its child would go on, and keep the folder locked */
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != parent) _exit(127);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    if (log >= 0 && (dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0)) {
        fprintf(stderr, "foldscale: cannot write the log of %s (%s)\n", arguments[0], strerror(errno));
        _exit(127);
    }
    execvp(arguments[0], arguments);
    fprintf(stderr, "foldscale: cannot start %s (%s)\n", arguments[0], strerror(errno));
    _exit(127);
}

Status launch_wait(char *const arguments[], const char *log_path, int *exit_out)
{
    struct sigaction pass = {.sa_handler = pass_on}, old_int, old_term;
    sigemptyset(&pass.sa_mask);
    int log = -1;
    if (log_path) TRY(output_open_log(log_path, false, NULL, &log, NULL));
    fflush(NULL);
    pid_t parent = getpid(), child = fork();
    int error = errno;
    if (child == 0) start_child(arguments, log, parent);
    if (log >= 0) close(log);
    if (child < 0) return status_fail(ERR_IO, "cannot start %s (%s)", arguments[0], strerror(error));
    running_child = child;
    sigaction(SIGINT, &pass, &old_int);
    sigaction(SIGTERM, &pass, &old_term);
    int state = 0;
    pid_t done;
    do done = waitpid(child, &state, 0);
    while (done < 0 && errno == EINTR);
    running_child = 0;
    sigaction(SIGINT, &old_int, NULL);
    sigaction(SIGTERM, &old_term, NULL);
    if (done < 0) return status_fail(ERR_IO, "lost %s (%s)", arguments[0], strerror(errno));
    *exit_out = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    return OK;
}

Status launch_ranks(int ranks, int argc, char **argv)
{
    enum { FIXED = 24 };
    char count[16], self[4096];
    int exit_status = 0, n = 0;
    char **arguments = calloc((size_t)argc + FIXED, sizeof *arguments);
    if (!arguments) return status_fail(ERR_MEMORY, "out of memory for a command line");
    snprintf(count, sizeof count, "%d", ranks);
    /* ranks on one machine give up their core while they wait; no pinning, as there may be more ranks than cores */
    const char *const fixed[] = {"mpirun",
                                 "-q",
                                 "-np",
                                 count,
                                 "--oversubscribe",
                                 "--allow-run-as-root",
                                 "--bind-to",
                                 "none",
                                 "--mca",
                                 "mpi_yield_when_idle",
                                 "1",
                                 "--mca",
                                 "btl_vader_single_copy_mechanism",
                                 "none"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) arguments[n++] = (char *)fixed[i];
    Status status = launch_self(self, sizeof self);
    arguments[n++] = self;
    for (int i = 0; i < argc; i++) arguments[n++] = argv[i];
    if (status == OK) status = launch_wait(arguments, NULL, &exit_status);
    free(arguments);
    if (status != OK) return status;
    if (exit_status == 0) return OK;
    Status code = exit_status == 2 ? ERR_USAGE : ERR_COMM;
    return status_fail(code, "%d ranks: the job ended with status %d (a rank failed: its message is above)", ranks,
                       exit_status);
}
