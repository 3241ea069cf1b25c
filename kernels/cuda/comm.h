/* Collectives, one process per GPU, bootstrapped over MPI (kernels/cpu/comm.h). */
#ifndef FOLDSCALE_KERNELS_CUDA_COMM_H
#define FOLDSCALE_KERNELS_CUDA_COMM_H

#include "kernels/cuda/entry.h"

extern "C" {
#include "kernels/cpu/comm.h"
}

typedef struct CudaComm CudaComm;

/* `host` must outlive it. The device must be the current one. */
Status cuda_comm_open(Comm *host, bool no_comm, CudaComm **comm_out);
/* How ranks exchange what they hold, in words; "" for a rank on its own. */
const char *cuda_comm_name(const CudaComm *comm);
/* NULL where ranks do not reach one another's memory. */
Peer *cuda_comm_peer(const CudaComm *comm);
void cuda_comm_close(CudaComm **comm);

/* All ranks together: slots of collectives in flight, and where outputs and scratch memory of all collectives lie. */
Status cuda_comm_reserve(CudaComm *comm, int slots, void *workspace, size_t bytes);
/* Before memory is freed; comm may be NULL. */
void cuda_comm_forget(CudaComm *comm, const void *memory);
size_t cuda_comm_scratch(const CudaComm *comm, const OpCall *call);
/* Enqueues a collective: on `compute` when call->comm_slot < 0; otherwise on a stream of its own, after all that was
 * enqueued on `compute`, and COMM_WAIT makes `compute` wait for that slot. */
Status cuda_comm_run(CudaComm *comm, const OpCall *call, cudaStream_t compute);
/* Wait for all streams, for an event; ERR_COMM when a rank is lost. */
Status cuda_comm_finish(CudaComm *comm, cudaStream_t compute);
Status cuda_comm_wait(CudaComm *comm, cudaEvent_t event);

#endif
