#include "kernels/kernels.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/backend.h"
#ifdef FOLDSCALE_HAVE_CUDA
#include "kernels/cuda/backend.h"
#endif

Status kernels_open(const char *name, const KernelOptions *options, Backend **backend_out)
{
    if (!strcmp(name, "cpu")) return cpu_backend_open(options, backend_out);
    if (!strcmp(name, "cuda")) {
#ifdef FOLDSCALE_HAVE_CUDA
        return cuda_backend_open(options, backend_out);
#else
        return status_fail(ERR_UNSUPPORTED, "this build has no cuda backend: it was configured without nvcc");
#endif
    }
    return status_fail(ERR_USAGE, "unknown backend \"%s\" (expected cpu or cuda)", name);
}

void kernels_close(Backend **backend)
{
    if (!*backend) return;
    (*backend)->close(*backend);
    *backend = NULL;
}

static bool mpi_is_up(void)
{
    int running = 0, finished = 0;
    MPI_Initialized(&running);
    MPI_Finalized(&finished);
    return running && !finished;
}

void kernels_abort(int exit_code)
{
    if (!mpi_is_up()) return;
    int world = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    if (world > 1) MPI_Abort(MPI_COMM_WORLD, exit_code);
}

bool kernels_may_close(const Backend *backend, Status status)
{
    return status == OK || !backend || backend->layout.world == 1;
}

void kernels_finalize(void)
{
    if (mpi_is_up()) MPI_Finalize();
}
