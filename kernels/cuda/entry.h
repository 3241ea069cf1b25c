/* How CUDA kernels are found: a table per op family, listed in tables.def; and what they may use. */
#ifndef FOLDSCALE_KERNELS_CUDA_ENTRY_H
#define FOLDSCALE_KERNELS_CUDA_ENTRY_H

#include <cuda_runtime.h>

extern "C" {
#include "engine/backend.h"
}

typedef struct Gemm Gemm;
typedef struct WeightsBatch WeightsBatch;
typedef struct Peer Peer;

/* Where a kernel is enqueued. One per stream. */
typedef struct CudaContext {
    cudaStream_t stream;
    const RankLayout *layout;
    Gemm *gemm;
    bool aside;          /* beside the computation: nothing is shared with ops of the other stream */
    WeightsBatch *batch; /* NULL: weight gradients run at once */
    Peer *peer;          /* NULL: memory of other ranks cannot be reached */
} CudaContext;

/* Enqueues one op; operands are device addresses. */
typedef Status (*CudaKernel)(CudaContext *context, const OpCall *call);

/* Row of a family's table; a row without `run` ends it. types: bit DTYPE of every dtype that an operand may have.
 * `scratch` (may be NULL) tells the bytes of OpCall.scratch; only the tensors of the call are filled in then. `sends`
 * (may be NULL): of a call whose op sends, that the kernel itself can write to where the collective would; it is the
 * same on all ranks, for it depends on the tensors and on addresses, which lie alike on all. Otherwise the kernel is
 * run without the collective. */
typedef struct CudaEntry {
    OpKind kind;
    CudaKernel run;
    size_t (*scratch)(const OpCall *call);
    bool (*sends)(const OpCall *call) = NULL;
} CudaEntry;

#define TABLE(name) extern const CudaEntry name[];
#include "kernels/cuda/tables.def"
#undef TABLE

/* Fails with ERR_INTERNAL naming the CUDA error when a launch or a call did not go through. */
Status cuda_check(cudaError_t error, const char *what);
#define CUDA_TRY(call) TRY(cuda_check((call), #call))
/* After a launch: `name` is the kernel. */
Status cuda_launched(const char *name);

/* ERR_UNSUPPORTED naming the op's kind and the dtype. */
Status cuda_bad_type(const OpCall *call, DType dtype);

/* NULL-safe shape of operand i. */
static inline const Tensor *call_in(const OpCall *call, int i)
{
    return i < call->op->n_in ? call->in_tensor[i] : NULL;
}
/* `count` operands from the first-th on, but for those that are not there, are steady (OpCall): a kernel may read them
 * before stage_wait(). */
static inline bool call_steady(const OpCall *call, int first, int count)
{
    bool all = true;
    for (int k = first; k < first + count; k++) all = all && (!call_in(call, k) || (call->steady >> k & 1));
    return all;
}
static inline size_t align_up(size_t bytes)
{
    return (bytes + 255) & ~(size_t)255;
}

#endif
