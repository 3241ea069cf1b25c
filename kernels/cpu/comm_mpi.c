#include "kernels/cpu/comm_internal.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>

Status comm_check(int mpi_code, const char *what)
{
    if (mpi_code == MPI_SUCCESS) return OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(mpi_code, text, &length);
    return status_fail(ERR_COMM, "%s: %s", what, text);
}

/* Variables that mpirun, srun --mpi=pmix and srun --mpi=pmi2 give to every process they start. */
static bool launched_under_mpi(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK");
}

static Status start_mpi(Comm *comm)
{
    int running = 0, finished = 0;
    MPI_Initialized(&running);
    MPI_Finalized(&finished);
    if (finished) return status_fail(ERR_COMM, "MPI was shut down before this backend was opened");
    if (!running && !launched_under_mpi()) return OK;
    int provided = MPI_THREAD_FUNNELED;
    if (!running) TRY(comm_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread"));
    if (provided < MPI_THREAD_FUNNELED)
        return status_fail(
            ERR_COMM, "this MPI library allows no threads beside it (level %d, needs MPI_THREAD_FUNNELED)", provided);
    TRY(comm_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler"));
    comm->mpi = true;
    return OK;
}

static Status make_group(Comm *comm, CommGroup group, int color)
{
    TRY(comm_check(MPI_Comm_split(MPI_COMM_WORLD, color, comm->layout.rank, &comm->group[group]), "MPI_Comm_split"));
    return comm_check(MPI_Comm_set_errhandler(comm->group[group], MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

static Status make_layout(Comm *comm, int dap)
{
    RankLayout *l = &comm->layout;
    l->world = 1;
    if (comm->mpi) {
        TRY(comm_check(MPI_Comm_size(MPI_COMM_WORLD, &l->world), "MPI_Comm_size"));
        TRY(comm_check(MPI_Comm_rank(MPI_COMM_WORLD, &l->rank), "MPI_Comm_rank"));
    }
    l->dap = dap;
    if (comm->no_comm) { /* one rank's share of a group of `dap` ranks that do not exist */
        l->dp = 1;
        return OK;
    }
    if (dap < 1 || l->world % dap)
        return status_fail(ERR_USAGE, "dap %d does not divide the %d rank%s of this job", dap, l->world,
                           l->world == 1 ? "" : "s");
    l->dap_rank = l->rank % dap;
    l->dp = l->world / dap;
    l->dp_rank = l->rank / dap;
    if (!comm->mpi) return OK;
    TRY(make_group(comm, GROUP_DAP, l->dp_rank));
    TRY(make_group(comm, GROUP_DP, l->dap_rank));
    return make_group(comm, GROUP_WORLD, 0);
}

static Status count_cores(Comm *comm)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof cores, &cores)) CPU_SET(0, &cores);
    int ranks = 1;
    if (comm->mpi) {
        /* a launcher may bind ranks to cores of their own or let all use all: the union is what the host offers */
        MPI_Comm host;
        TRY(comm_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
                       "MPI_Comm_split_type"));
        cpu_set_t mine = cores;
        int code = MPI_Allreduce(&mine, &cores, (int)sizeof cores, MPI_BYTE, MPI_BOR, host);
        MPI_Comm_size(host, &ranks);
        MPI_Comm_free(&host);
        TRY(comm_check(code, "MPI_Allreduce"));
    }
    comm->fair_threads = CPU_COUNT(&cores) / ranks;
    if (comm->fair_threads < 1) comm->fair_threads = 1;
    return OK;
}

Status comm_open(const KernelOptions *options, Comm **comm_out)
{
    Comm *comm = calloc(1, sizeof *comm);
    if (!comm) return status_fail(ERR_MEMORY, "out of memory for the communicators");
    for (int g = 0; g < GROUP_COUNT; g++) comm->group[g] = MPI_COMM_NULL;
    comm->no_comm = options->no_comm;
    Status status = start_mpi(comm);
    if (status == OK) status = make_layout(comm, options->dap);
    if (status == OK) status = count_cores(comm);
    if (status != OK) {
        comm_close(&comm);
        return status;
    }
    *comm_out = comm;
    return OK;
}

void comm_close(Comm **comm)
{
    if (!*comm) return;
    for (int g = 0; g < GROUP_COUNT; g++)
        if ((*comm)->group[g] != MPI_COMM_NULL) MPI_Comm_free(&(*comm)->group[g]);
    free((*comm)->transfer);
    free(*comm);
    *comm = NULL;
}

const RankLayout *comm_layout(const Comm *comm)
{
    return &comm->layout;
}

int comm_fair_threads(const Comm *comm)
{
    return comm->fair_threads;
}

static bool alone(const Comm *comm)
{
    return !comm->mpi || comm->no_comm;
}

Status comm_barrier(Comm *comm)
{
    return alone(comm) ? OK : comm_check(MPI_Barrier(comm->group[GROUP_WORLD]), "MPI_Barrier");
}

Status comm_sum(Comm *comm, double *values, int count)
{
    if (alone(comm)) return OK;
    return comm_check(MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM, comm->group[GROUP_WORLD]),
                      "MPI_Allreduce");
}

Status comm_gather(Comm *comm, const double *values, int count, double *all_out)
{
    if (alone(comm)) {
        for (int i = 0; i < count; i++) all_out[i] = values[i];
        return OK;
    }
    return comm_check(MPI_Allgather(values, count, MPI_DOUBLE, all_out, count, MPI_DOUBLE, comm->group[GROUP_WORLD]),
                      "MPI_Allgather");
}

Status comm_broadcast(Comm *comm, void *data, size_t bytes, int root)
{
    if (alone(comm)) return OK;
    unsigned char *at = data;
    while (bytes) {
        int part = bytes > INT_MAX / 2 ? INT_MAX / 2 : (int)bytes;
        TRY(comm_check(MPI_Bcast(at, part, MPI_BYTE, root, comm->group[GROUP_WORLD]), "MPI_Bcast"));
        at += part;
        bytes -= (size_t)part;
    }
    return OK;
}
