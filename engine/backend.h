/* What a backend must offer. Implemented in kernels/, opened by name through kernels/kernels.h; the executor sees only
 * this table. Memory handles are addresses in the backend's own memory: the host may not dereference them. */
#ifndef FOLDSCALE_ENGINE_BACKEND_H
#define FOLDSCALE_ENGINE_BACKEND_H

#include "engine/program.h"

typedef enum CommGroup { GROUP_DAP, GROUP_DP, GROUP_WORLD, GROUP_COUNT } CommGroup;

/* Position of this process: world = dp x dap ranks, rank = dp_rank * dap + dap_rank. */
typedef struct RankLayout {
    int world, rank, dap, dap_rank, dp, dp_rank;
} RankLayout;

enum { ASIDE_GROUPS = 2 }; /* groups of ops aside in flight at a time */

/* One op ready to run: addresses resolved. in[i]/out[i] are NULL where the op has no such operand. */
typedef struct OpCall {
    const Op *op;
    const Tensor *in_tensor[OP_MAX_IN];
    const Tensor *out_tensor[OP_MAX_OUT];
    const void *in[OP_MAX_IN];
    void *out[OP_MAX_OUT];
    /* An op that sends: out_tensor[send.output] is what it computes, send_tensor what out[send.output] holds after the
     * collective, and send_area memory for as much as it computes, at the same place of the workspace on all ranks,
     * where the ranks may write between the collective's begin and end. */
    const Tensor *send_tensor;
    void *send_area;
    void *scratch;     /* scratch_bytes(...) of backend memory: one area for all calls without comm_slot, one for those
                          aside, one per slot */
    int32_t op_index;  /* in the program: the key of timings */
    int32_t comm_slot; /* pairs a started collective (stream 1) with its COMM_WAIT; reused afterwards; -1 otherwise */
    bool beside;       /* of an op with Send.shares: the ops aside run beside it, not in a line with it */
    uint32_t steady;   /* bit k: in[k] may be read while the call before this one still runs (engine/steady.h) */
} OpCall;

typedef struct Backend Backend;
struct Backend {
    const char *name;   /* "cpu", "cuda" */
    const char *device; /* e.g. "AMD EPYC, 2 threads", "NVIDIA H200" */
    const char *comm;   /* how its ranks exchange tensors, e.g. "NCCL"; NULL or "" when there is nothing to tell */
    RankLayout layout;
    size_t memory_bytes;                    /* of the device, 0 when unknown */
    size_t (*memory_free)(const Backend *); /* backend_memory_free() */

    void (*close)(Backend *);

    Status (*alloc)(Backend *, size_t bytes, void **memory_out); /* zeroed */
    void (*release)(Backend *, void *memory);
    /* Host memory from which uploads overlap computation (pinned on a GPU). */
    Status (*host_alloc)(Backend *, size_t bytes, void **memory_out);
    void (*host_release)(Backend *, void *memory);
    /* Between earlier and later runs. Memory of host_alloc has to keep its values until upload_finish, which waits for
     * the copies alone, not for runs; other memory may change at once. */
    Status (*upload)(Backend *, void *target, const void *host, size_t bytes);
    Status (*upload_finish)(Backend *);
    Status (*download)(Backend *, void *host, const void *source, size_t bytes); /* ordered after earlier runs, waits */
    /* Does not wait: host (of host_alloc) has the values when a later mark is reached. */
    Status (*read_later)(Backend *, void *host, const void *source, size_t bytes);

    /* ERR_UNSUPPORTED when there is no kernel for this op at these dtypes: asked once, when an executor is made. */
    Status (*supports)(const Backend *, const Program *, const Op *);
    size_t (*scratch_bytes)(const Backend *, const Program *, const Op *);

    Status (*run)(Backend *, const OpCall *); /* enqueue or execute one op */
    /* What is run between begin and end starts when all that was enqueued before has ended, in its order and beside
     * what is enqueued after; wait: what is enqueued from now on starts when the group that last ended in this slot,
     * below ASIDE_GROUPS, is done. All NULL where the backend runs one thing after the other. */
    Status (*aside_begin)(Backend *);
    Status (*aside_end)(Backend *, int slot);
    Status (*aside_wait)(Backend *, int slot);
    /* Told once per executor of a program with collectives, by all ranks together: how many it may have in flight, and
     * the workspace in which they write. NULL where the backend needs neither. */
    Status (*comm_reserve)(Backend *, int slots, void *workspace, size_t bytes);
    Status (*finish)(Backend *); /* wait for everything enqueued; reports deferred failures */

    /* Timing: an executor reserves a range of marks (freed with the backend), sets them in the order of execution and
     * reads what elapsed between two of them once the later one is reached. */
    Status (*marks_reserve)(Backend *, int marks, int *first_out);
    Status (*mark)(Backend *, int index);
    Status (*mark_wait)(Backend *, int index); /* until all that precedes it has run; reports deferred failures */
    Status (*mark_reached)(Backend *, int index, bool *reached_out);
    Status (*elapsed)(Backend *, int from, int to, double *seconds_out);

    /* Capture and replay of a whole run; NULL where the backend cannot. */
    Status (*capture_begin)(Backend *);
    Status (*capture_end)(Backend *, void **graph_out);
    Status (*replay)(Backend *, void *graph);
    void (*graph_release)(Backend *, void *graph);
    int64_t (*graph_kernels)(const Backend *, const void *graph); /* how many kernels a replay launches */

    /* Host-side collectives over all ranks, for set-up, metrics and the clock. */
    Status (*barrier)(Backend *);
    Status (*host_all_reduce_sum)(Backend *, double *values, int count);
    Status (*host_all_gather)(Backend *, const double *value, int count, double *all_out);
    Status (*host_broadcast)(Backend *, void *data, size_t bytes, int root);
};

/* What nobody has now of the device's memory; where that is not known all of it, 0 when that is not known either. */
static inline size_t backend_memory_free(const Backend *backend)
{
    return backend->memory_free ? backend->memory_free(backend) : backend->memory_bytes;
}

#endif
