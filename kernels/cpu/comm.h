/* Collectives of the CPU backend over Open MPI. The only header in which MPI shows, and only as opaque Comm. */
#ifndef FOLDSCALE_KERNELS_CPU_COMM_H
#define FOLDSCALE_KERNELS_CPU_COMM_H

#include "kernels/kernels.h"

typedef struct Comm Comm;

/* Joins the job this process was launched in; a process on its own is a job of one rank and starts no MPI. */
Status comm_open(const KernelOptions *options, Comm **comm_out);
void comm_close(Comm **comm);

const RankLayout *comm_layout(const Comm *comm);
/* Cores this rank may use: the cores open to the ranks of this host, divided by their number, at least 1. */
int comm_fair_threads(const Comm *comm);

/* collectives.c: the ops of engine/ops/comm.c */
bool comm_is_op(OpKind kind);
size_t comm_scratch_bytes(const Comm *comm, const Program *program, const Op *op);
Status comm_reserve(Comm *comm, int slots);
Status comm_run(Comm *comm, const OpCall *call); /* whole, or start and COMM_WAIT by call->comm_slot */
Status comm_progress(Comm *comm);                /* moves collectives in flight on; cheap when there are none */

Status comm_barrier(Comm *comm);
Status comm_sum(Comm *comm, double *values, int count);
Status comm_gather(Comm *comm, const double *values, int count, double *all_out);
Status comm_broadcast(Comm *comm, void *data, size_t bytes, int root);

#endif
