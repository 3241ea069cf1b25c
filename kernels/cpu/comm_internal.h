/* Shared by comm_mpi.c and collectives.c. */
#ifndef FOLDSCALE_KERNELS_CPU_COMM_INTERNAL_H
#define FOLDSCALE_KERNELS_CPU_COMM_INTERNAL_H

#include <mpi.h>

#include "kernels/cpu/comm.h"

/* One collective between its start and its wait. */
typedef struct Transfer {
    OpCall call;
    MPI_Request request;
    bool active;
} Transfer;

struct Comm {
    RankLayout layout;
    bool mpi;     /* false: one process on its own */
    bool no_comm; /* leave the exchange out, keep packing and unpacking */
    int fair_threads;
    MPI_Comm group[GROUP_COUNT];
    Transfer *transfer; /* by slot */
    int slots, in_flight;
};

/* OK for MPI_SUCCESS, else ERR_COMM with MPI's text. */
Status comm_check(int mpi_code, const char *what);

#endif
