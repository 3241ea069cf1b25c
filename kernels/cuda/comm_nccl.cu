/* Collectives of a model-parallel group whose GPUs reach one another go through their memory (comm_peer.cu); all others
 * through NCCL: pack, exchange, unpack. Sums over slices are taken in the order of ranks in f32, so that every rank and
 * every run gets the same bits; all-reduces of f32 (gradients) are NCCL's, whose order is fixed by its topology. */
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/device.cuh"

struct CudaComm {
    Comm *host; /* borrowed */
    RankLayout layout;
    bool no_comm;
    Peer *peer; /* NULL: NCCL serves the model-parallel group too */
    char name[200];
    ncclComm_t group[GROUP_COUNT];
    cudaStream_t aside, bulk; /* collectives of the model-parallel group; gradients, which need not be in time */
    cudaEvent_t fork;
    cudaEvent_t *arrived; /* per slot */
    int slots;
};

static Status nccl_check(ncclResult_t result, const char *what)
{
    if (result == ncclSuccess) return OK;
    return status_fail(ERR_COMM, "NCCL: %s: %s", what, ncclGetErrorString(result));
}
#define NCCL_TRY(call) TRY(nccl_check((call), #call))

enum { ID_DOUBLES = (int)(sizeof(ncclUniqueId) / sizeof(double)) };

/* Every rank proposes an id; a group takes its first member's. */
static Status group_open(CudaComm *comm, Comm *host, CommGroup group, int size, int rank, int leader)
{
    ncclUniqueId id;
    int world = comm->layout.world;
    if (size == 1 && group != GROUP_WORLD) leader = comm->layout.rank;
    double *all = (double *)malloc((size_t)world * sizeof id);
    if (!all) return status_fail(ERR_MEMORY, "no memory for %d ranks", world);
    Status status = nccl_check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    if (status == OK) status = comm_gather(host, (const double *)&id, ID_DOUBLES, all);
    if (status == OK) {
        memcpy(&id, (char *)all + (size_t)leader * sizeof id, sizeof id);
        if (size > 1) status = nccl_check(ncclCommInitRank(&comm->group[group], size, id, rank), "ncclCommInitRank");
    }
    free(all);
    return status;
}

/* To destroy them takes all their ranks. */
static void groups_abort(CudaComm *comm)
{
    for (ncclComm_t &group : comm->group) {
        if (group) ncclCommAbort(group);
        group = NULL;
    }
}

static Status groups_open(CudaComm *comm, Comm *host)
{
    const RankLayout *l = &comm->layout;
    if (l->world == 1 || comm->no_comm || (comm->peer && l->dp == 1)) return OK;
    if (!comm->peer) TRY(group_open(comm, host, GROUP_DAP, l->dap, l->dap_rank, l->dp_rank * l->dap));
    TRY(group_open(comm, host, GROUP_DP, l->dp, l->dp_rank, l->dap_rank));
    return group_open(comm, host, GROUP_WORLD, l->world, l->rank, 0);
}

static Status ways_open(CudaComm *comm, Comm *host)
{
    char why[120] = "";
    TRY(peer_open(host, comm->no_comm, &comm->peer, why, sizeof why));
    TRY(groups_open(comm, host));
    bool alone = comm->layout.world == 1 || comm->no_comm;
    if (comm->peer && comm->layout.dp > 1)
        snprintf(comm->name, sizeof comm->name, "peer memory (DAP), NCCL (DP)");
    else if (comm->peer)
        snprintf(comm->name, sizeof comm->name, alone ? "peer memory, sent to itself" : "peer memory");
    else if (!alone)
        snprintf(comm->name, sizeof comm->name, "NCCL%s%s%s", *why ? " (" : "", why, *why ? ")" : "");
    return OK;
}

const char *cuda_comm_name(const CudaComm *comm)
{
    return comm->name;
}

Peer *cuda_comm_peer(const CudaComm *comm)
{
    return comm->peer;
}

Status cuda_comm_open(Comm *host, bool no_comm, CudaComm **comm_out)
{
    CudaComm *comm = (CudaComm *)calloc(1, sizeof *comm);
    if (!comm) return status_fail(ERR_MEMORY, "no memory for the communicators");
    comm->layout = *comm_layout(host);
    comm->host = host;
    comm->no_comm = no_comm;
    int least, most; /* waiting blocks are to start before those of the computation that runs meanwhile */
    Status status = cuda_check(cudaDeviceGetStreamPriorityRange(&least, &most), "priorities of streams");
    if (status == OK)
        status = cuda_check(cudaStreamCreateWithPriority(&comm->aside, cudaStreamNonBlocking, most), "stream");
    if (status == OK)
        status = cuda_check(cudaStreamCreateWithPriority(&comm->bulk, cudaStreamNonBlocking, most), "stream");
    if (status == OK) status = cuda_check(cudaEventCreateWithFlags(&comm->fork, cudaEventDisableTiming), "event");
    if (status == OK) status = ways_open(comm, host);
    if (status != OK) {
        groups_abort(comm);
        cuda_comm_close(&comm);
        return status;
    }
    *comm_out = comm;
    return OK;
}

void cuda_comm_close(CudaComm **comm)
{
    CudaComm *c = *comm;
    if (!c) return;
    for (int g = 0; g < GROUP_COUNT; g++)
        if (c->group[g]) ncclCommDestroy(c->group[g]);
    peer_close(&c->peer);
    for (int k = 0; k < c->slots; k++) cudaEventDestroy(c->arrived[k]);
    if (c->fork) cudaEventDestroy(c->fork);
    if (c->aside) cudaStreamDestroy(c->aside);
    if (c->bulk) cudaStreamDestroy(c->bulk);
    free(c->arrived);
    free(c);
    *comm = NULL;
}

Status cuda_comm_reserve(CudaComm *comm, int slots, void *workspace, size_t bytes)
{
    if (comm->peer) TRY(peer_share(comm->peer, comm->host, workspace, bytes));
    if (slots <= comm->slots) return OK;
    cudaEvent_t *grown = (cudaEvent_t *)realloc(comm->arrived, (size_t)slots * sizeof *grown);
    if (!grown) return status_fail(ERR_MEMORY, "no memory for %d collectives in flight", slots);
    comm->arrived = grown;
    for (; comm->slots < slots; comm->slots++)
        CUDA_TRY(cudaEventCreateWithFlags(&comm->arrived[comm->slots], cudaEventDisableTiming));
    return OK;
}

void cuda_comm_forget(CudaComm *comm, const void *memory)
{
    if (comm && comm->peer) peer_unshare(comm->peer, memory);
}

/* A tensor seen along one axis that is cut into n parts: whole [outer][n][part], slices [n][outer][part]; bytes. */
typedef struct Cut {
    int64_t outer, part;
    int n;
} Cut;

static Cut cut_of(const Tensor *whole, int axis, int n)
{
    Cut cut = {1, (int64_t)dtype_size(whole->dtype), n};
    for (int k = 0; k < axis; k++) cut.outer *= whole->dim[k];
    for (int k = axis; k < whole->rank; k++) cut.part *= whole->dim[k];
    cut.part /= n;
    return cut;
}

/* Swaps the two leading axes of [a][b][part units]. */
template <typename U> __global__ void swap_kernel(const U *x, U *y, uint32_t a, uint32_t b, uint32_t part)
{
    stage_wait();
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= a * b * part) return;
    uint32_t row = e / part, unit = e - row * part, i = row / b, j = row - i * b;
    y[((int64_t)j * a + i) * part + unit] = x[e];
}

static Status swap_launch(const void *x, void *y, int64_t a, int64_t b, int64_t part, cudaStream_t stream)
{
    int64_t all = part | (int64_t)(uintptr_t)x | (int64_t)(uintptr_t)y;
    if (a * b * part == 0) return OK;
    if (all % 16 == 0)
        launch(swap_kernel<uint4>, blocks_for(a * b * part / 16, 256), 256, 0, stream, (const uint4 *)x, (uint4 *)y,
               (uint32_t)a, (uint32_t)b, (uint32_t)(part / 16));
    else
        launch(swap_kernel<uint16_t>, blocks_for(a * b * part / 2, 256), 256, 0, stream, (const uint16_t *)x,
               (uint16_t *)y, (uint32_t)a, (uint32_t)b, (uint32_t)(part / 2));
    return cuda_launched("swap_kernel");
}

/* y = factor * sum of n slices, in order */
template <typename T> __global__ void sum_slices_kernel(const T *slices, T *y, int n, int64_t count, float factor)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    float sum = to_float(slices[e]);
    for (int r = 1; r < n; r++) sum += to_float(slices[r * count + e]);
    y[e] = from_float<T>(factor * sum);
}

static Status sum_slices(const OpCall *call, const void *slices, int n, double factor, cudaStream_t stream)
{
    int64_t count = tensor_count(call->out_tensor[0]);
    if (count == 0) return OK;
    DISPATCH_REAL(call, call->out_tensor[0]->dtype, {
        launch(sum_slices_kernel<T>, blocks_for(count, 256), 256, 0, stream, (const T *)slices, (T *)call->out[0], n,
               count, (float)factor);
    });
    return cuda_launched("sum_slices_kernel");
}

static CommGroup group_of(const Op *op)
{
    return op->kind == OP_ALL_REDUCE ? (CommGroup)op->attr.i[0] : GROUP_DAP;
}

static int group_size(const CudaComm *comm, const Op *op)
{
    const RankLayout *l = &comm->layout;
    CommGroup group = group_of(op);
    return group == GROUP_DAP ? l->dap : group == GROUP_DP ? l->dp : l->dap * l->dp;
}

static bool through_peers(const CudaComm *comm, const Op *op)
{
    CommGroup group = group_of(op);
    return comm->peer && (group == GROUP_DAP || (group == GROUP_WORLD && comm->layout.dp == 1));
}

static size_t in_bytes(const OpCall *call)
{
    return tensor_bytes(call->in_tensor[0]);
}

size_t cuda_comm_scratch(const CudaComm *comm, const OpCall *call)
{
    size_t bytes = align_up(in_bytes(call));
    if (through_peers(comm, call->op)) return peer_scratch(comm->peer, call);
    switch (call->op->kind) {
    case OP_ALL_GATHER:
        return bytes * (size_t)comm->layout.dap;
    case OP_REDUCE_SCATTER:
    case OP_ALL_TO_ALL:
        return 2 * bytes;
    case OP_ALL_REDUCE:
        return call->in_tensor[0]->dtype == DT_BF16 ? in_bytes(call) * (size_t)group_size(comm, call->op) : 0;
    default:
        return 0;
    }
}

/* Sends `bytes` to all (gather), or slice r to rank r. Left out: everybody is taken to have sent what this rank has. */
static Status exchange(CudaComm *comm, CommGroup group, bool gather, int n, const void *send, void *receive,
                       size_t bytes, cudaStream_t stream)
{
    ncclComm_t c = comm->group[group];
    if (!c) {
        for (int r = 0; gather && r < n; r++)
            CUDA_TRY(
                cudaMemcpyAsync((char *)receive + (size_t)r * bytes, send, bytes, cudaMemcpyDeviceToDevice, stream));
        if (!gather) CUDA_TRY(cudaMemcpyAsync(receive, send, (size_t)n * bytes, cudaMemcpyDeviceToDevice, stream));
        return OK;
    }
    if (gather) return nccl_check(ncclAllGather(send, receive, bytes, ncclInt8, c, stream), "ncclAllGather");
    NCCL_TRY(ncclGroupStart());
    Status status = OK;
    for (int r = 0; r < n && status == OK; r++) {
        size_t at = (size_t)r * bytes;
        status = nccl_check(ncclSend((const char *)send + at, bytes, ncclInt8, r, c, stream), "ncclSend");
        if (status == OK)
            status = nccl_check(ncclRecv((char *)receive + at, bytes, ncclInt8, r, c, stream), "ncclRecv");
    }
    ncclResult_t end = ncclGroupEnd(); /* an open group would take all that follows */
    return status == OK ? nccl_check(end, "ncclGroupEnd") : status;
}

static Status all_gather(CudaComm *comm, const OpCall *call, cudaStream_t stream)
{
    int n = comm->layout.dap;
    Cut cut = cut_of(call->out_tensor[0], (int)call->op->attr.i[0], n);
    void *receive = cut.outer == 1 ? call->out[0] : call->scratch;
    TRY(exchange(comm, GROUP_DAP, true, n, call->in[0], receive, in_bytes(call), stream));
    if (cut.outer == 1) return OK;
    return swap_launch(receive, call->out[0], n, cut.outer, cut.part, stream);
}

/* Packs input 0 along `axis` and gives each rank its slice; the slices received lie in [n][outer][part] order. */
static Status scatter(CudaComm *comm, const OpCall *call, int axis, char **received_out, cudaStream_t stream)
{
    int n = comm->layout.dap;
    Cut cut = cut_of(call->in_tensor[0], axis, n);
    char *packed = (char *)call->scratch, *received = packed + align_up(in_bytes(call));
    const void *send = call->in[0];
    if (cut.outer > 1) {
        TRY(swap_launch(call->in[0], packed, cut.outer, n, cut.part, stream));
        send = packed;
    }
    *received_out = received;
    return exchange(comm, GROUP_DAP, false, n, send, received, (size_t)(cut.outer * cut.part), stream);
}

static Status reduce_scatter(CudaComm *comm, const OpCall *call, cudaStream_t stream)
{
    char *received;
    TRY(scatter(comm, call, (int)call->op->attr.i[0], &received, stream));
    return sum_slices(call, received, comm->layout.dap, 1, stream);
}

static Status all_to_all(CudaComm *comm, const OpCall *call, cudaStream_t stream)
{
    char *received;
    int n = comm->layout.dap;
    TRY(scatter(comm, call, (int)call->op->attr.i[1], &received, stream));
    Cut cut = cut_of(call->out_tensor[0], (int)call->op->attr.i[0], n);
    return swap_launch(received, call->out[0], n, cut.outer, cut.part, stream);
}

static Status all_reduce(CudaComm *comm, const OpCall *call, cudaStream_t stream)
{
    const Tensor *t = call->in_tensor[0];
    CommGroup group = group_of(call->op);
    int n = group_size(comm, call->op);
    double factor = call->op->attr.f[0];
    if (t->dtype == DT_BF16) {
        TRY(exchange(comm, group, true, n, call->in[0], call->scratch, in_bytes(call), stream));
        return sum_slices(call, call->scratch, n, factor, stream);
    }
    if (t->dtype != DT_F32) return cuda_bad_type(call, t->dtype);
    if (!comm->group[group]) return sum_slices(call, call->in[0], 1, factor, stream);
    bool mean = factor * n > 1 - 1e-9 && factor * n < 1 + 1e-9;
    NCCL_TRY(ncclAllReduce(call->in[0], call->out[0], (size_t)tensor_count(t), ncclFloat, mean ? ncclAvg : ncclSum,
                           comm->group[group], stream));
    return mean || factor == 1 ? OK : sum_slices(call, call->out[0], 1, factor, stream);
}

static Status collective(CudaComm *comm, const OpCall *call, cudaStream_t stream)
{
    int channel = stream == comm->aside ? PEER_ASIDE : stream == comm->bulk ? PEER_BULK : PEER_COMPUTE;
    if (through_peers(comm, call->op)) return peer_run(comm->peer, call, channel, stream);
    switch (call->op->kind) {
    case OP_ALL_GATHER:
        return all_gather(comm, call, stream);
    case OP_REDUCE_SCATTER:
        return reduce_scatter(comm, call, stream);
    case OP_ALL_TO_ALL:
        return all_to_all(comm, call, stream);
    default:
        return all_reduce(comm, call, stream);
    }
}

Status cuda_comm_run(CudaComm *comm, const OpCall *call, cudaStream_t compute)
{
    int slot = call->comm_slot;
    if (slot >= comm->slots) return status_fail(ERR_INTERNAL, "slot %d of collectives was not reserved", slot);
    if (call->op->kind == OP_COMM_WAIT) {
        if (slot >= 0) CUDA_TRY(cudaStreamWaitEvent(compute, comm->arrived[slot], 0));
        return OK;
    }
    if (slot < 0) return collective(comm, call, compute);
    /* without peers NCCL does both, and runs best in one line */
    cudaStream_t stream = call->op->kind == OP_ALL_REDUCE && comm->peer ? comm->bulk : comm->aside;
    CUDA_TRY(cudaEventRecord(comm->fork, compute));
    CUDA_TRY(cudaStreamWaitEvent(stream, comm->fork, 0));
    TRY(collective(comm, call, stream));
    return cuda_check(cudaEventRecord(comm->arrived[slot], stream), "end of a collective");
}

/* A rank that died leaves the others waiting for ever: look after it while waiting. */
static Status look_after_ranks(CudaComm *comm)
{
    for (int g = 0; g < GROUP_COUNT; g++) {
        ncclResult_t result = ncclSuccess;
        if (comm->group[g]) ncclCommGetAsyncError(comm->group[g], &result);
        TRY(nccl_check(result, "another rank failed"));
    }
    return comm->peer ? peer_check(comm->peer) : OK;
}

template <typename Query> static Status wait_watching(CudaComm *comm, Query query)
{
    cudaError_t state;
    while ((state = query()) == cudaErrorNotReady) {
        TRY(look_after_ranks(comm));
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    return cuda_check(state, "waiting for the device");
}

static bool is_alone(const CudaComm *comm)
{
    return comm->layout.world == 1 || comm->no_comm;
}

Status cuda_comm_finish(CudaComm *comm, cudaStream_t compute)
{
    cudaStream_t streams[3] = {compute, comm->aside, comm->bulk};
    for (cudaStream_t s : streams) {
        if (is_alone(comm))
            CUDA_TRY(cudaStreamSynchronize(s));
        else
            TRY(wait_watching(comm, [s] { return cudaStreamQuery(s); }));
    }
    return is_alone(comm) ? OK : look_after_ranks(comm);
}

Status cuda_comm_wait(CudaComm *comm, cudaEvent_t event)
{
    if (is_alone(comm)) return cuda_check(cudaEventSynchronize(event), "waiting for the device");
    return wait_watching(comm, [event] { return cudaEventQuery(event); });
}
