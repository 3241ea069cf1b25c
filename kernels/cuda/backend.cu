/* The CUDA backend: memory, dispatch by op kind, timing marks, graphs. */
#include "kernels/cuda/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/comm.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/upload.h"

extern "C" {
#include "engine/send.h"
}

typedef struct CudaBackend {
    Backend base;
    Comm *host;
    CudaComm *comm;
    CudaUpload *upload;
    CudaContext context, aside; /* of the computation, of the ops that run beside it */
    bool within;                /* between aside_begin and aside_end */
    cudaEvent_t begin, end[ASIDE_GROUPS];
    const CudaEntry *entry[OP_COUNT];
    cudaEvent_t *mark;
    int marks;
    bool capturing;
    char device[300];
} CudaBackend;

static const CudaEntry *const families[] = {
#define TABLE(name) name,
#include "kernels/cuda/tables.def"
#undef TABLE
};

static CudaBackend *self(Backend *backend)
{
    return (CudaBackend *)backend;
}
static const CudaBackend *self_const(const Backend *backend)
{
    return (const CudaBackend *)backend;
}

static bool is_collective(OpKind kind)
{
    return kind == OP_ALL_GATHER || kind == OP_REDUCE_SCATTER || kind == OP_ALL_TO_ALL || kind == OP_ALL_REDUCE ||
           kind == OP_COMM_WAIT;
}

/* --- memory
 * ----------------------------------------------------------------------------------------------------------- */

static Status backend_alloc(Backend *backend, size_t bytes, void **memory_out)
{
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1);
    if (error != cudaSuccess) {
        size_t free_bytes = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total);
        return status_fail(ERR_MEMORY, "%s: %zu bytes wanted, %zu of %zu free", self(backend)->device, bytes,
                           free_bytes, total);
    }
    Status status = cuda_check(cudaMemsetAsync(memory, 0, bytes, self(backend)->context.stream), "zeroing memory");
    if (status != OK) {
        cudaFree(memory);
        return status;
    }
    *memory_out = memory;
    return OK;
}

static void backend_release(Backend *backend, void *memory)
{
    cuda_comm_forget(self(backend)->comm, memory);
    cudaFree(memory);
}

static Status backend_host_alloc(Backend *, size_t bytes, void **memory_out)
{
    CUDA_TRY(cudaMallocHost(memory_out, bytes ? bytes : 1));
    memset(*memory_out, 0, bytes);
    return OK;
}

static void backend_host_release(Backend *, void *memory)
{
    cudaFreeHost(memory);
}

static size_t memory_free(const Backend *backend)
{
    size_t there = 0, all = 0;
    if (cudaMemGetInfo(&there, &all) == cudaSuccess) return there;
    cudaGetLastError(); /* the next launch is not to tell it */
    return backend->memory_bytes;
}

static Status backend_upload(Backend *backend, void *target, const void *host, size_t bytes)
{
    return cuda_upload(self(backend)->upload, target, host, bytes, self(backend)->context.stream);
}

static Status backend_upload_finish(Backend *backend)
{
    return cuda_upload_finish(self(backend)->upload);
}

static Status backend_finish(Backend *backend)
{
    return cuda_comm_finish(self(backend)->comm, self(backend)->context.stream);
}

static Status backend_download(Backend *backend, void *host, const void *source, size_t bytes)
{
    CUDA_TRY(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, self(backend)->context.stream));
    return backend_finish(backend);
}

static Status backend_read_later(Backend *backend, void *host, const void *source, size_t bytes)
{
    return cuda_check(cudaMemcpyAsync(host, source, bytes, cudaMemcpyDeviceToHost, self(backend)->context.stream),
                      "read");
}

/* --- ops
 * -------------------------------------------------------------------------------------------------------------- */

/* The tensors of an op as a call without addresses. */
static OpCall shape_call(const Program *program, const Op *op)
{
    OpCall call;
    memset(&call, 0, sizeof call);
    call.op = op;
    call.comm_slot = -1;
    for (int k = 0; k < op->n_in; k++)
        if (op->in[k] != VAL_NONE) call.in_tensor[k] = prog_tensor(program, op->in[k]);
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) call.out_tensor[k] = prog_tensor(program, op->out[k]);
    return call;
}

static Status backend_supports(const Backend *backend, const Program *program, const Op *op)
{
    const char *name = op_def(op->kind)->name;
    OpCall call = shape_call(program, op);
    for (int k = 0; k < op->n_in + op->n_out; k++) {
        const Tensor *t = k < op->n_in ? call.in_tensor[k] : call.out_tensor[k - op->n_in];
        if (t && t->dtype == DT_F64)
            return status_fail(ERR_UNSUPPORTED, "cuda: %s in f64 (use the cpu backend for checks in f64)", name);
    }
    if (!is_collective(op->kind) && !self_const(backend)->entry[op->kind])
        return status_fail(ERR_UNSUPPORTED, "cuda: there is no kernel for %s", name);
    return OK;
}

static size_t backend_scratch_bytes(const Backend *backend, const Program *program, const Op *op)
{
    const CudaBackend *cuda = self_const(backend);
    OpCall call = shape_call(program, op);
    if (op->kind == OP_COMM_WAIT) return 0;
    if (is_collective(op->kind)) return cuda_comm_scratch(cuda->comm, &call);
    const CudaEntry *entry = cuda->entry[op->kind];
    return entry && entry->scratch ? align_up(entry->scratch(&call)) : 0;
}

/* Every rank decides alike: by the tensors, and by where the workspace of all of them lies. */
static bool sends(const CudaBackend *cuda, const OpCall *call)
{
    const CudaEntry *entry = cuda->entry[call->op->kind];
    return cuda->context.peer && entry && entry->sends && entry->sends(call);
}

static Status backend_run(Backend *backend, const OpCall *call)
{
    CudaBackend *cuda = self(backend);
    OpKind kind = call->op->kind;
    if (call->op->send.active && !sends(cuda, call)) return send_run_apart(backend, call);
    if (is_collective(kind)) return cuda_comm_run(cuda->comm, call, cuda->context.stream);
    if (!cuda->entry[kind]) return status_fail(ERR_UNSUPPORTED, "cuda: there is no kernel for %s", op_def(kind)->name);
    /* weight gradients do not need one another; others may need them */
    if (cuda->within && kind != OP_LINEAR_DW && kind != OP_LINEAR_GROUP_DW) TRY(weights_flush(&cuda->aside));
    return cuda->entry[kind]->run(cuda->within ? &cuda->aside : &cuda->context, call);
}

static Status backend_aside_begin(Backend *backend)
{
    CudaBackend *cuda = self(backend);
    cuda->within = true;
    CUDA_TRY(cudaEventRecord(cuda->begin, cuda->context.stream));
    return cuda_check(cudaStreamWaitEvent(cuda->aside.stream, cuda->begin, 0), "begin of a group aside");
}

static Status backend_aside_end(Backend *backend, int slot)
{
    CudaBackend *cuda = self(backend);
    cuda->within = false;
    TRY(weights_flush(&cuda->aside));
    return cuda_check(cudaEventRecord(cuda->end[slot], cuda->aside.stream), "end of a group aside");
}

static Status backend_aside_wait(Backend *backend, int slot)
{
    CudaBackend *cuda = self(backend);
    return cuda_check(cudaStreamWaitEvent(cuda->context.stream, cuda->end[slot], 0), "waiting for a group aside");
}

static Status backend_comm_reserve(Backend *backend, int slots, void *workspace, size_t bytes)
{
    return cuda_comm_reserve(self(backend)->comm, slots, workspace, bytes);
}

/* --- timing
 * ------------------------------------------------------------------------------------------------------------ */

static Status backend_marks_reserve(Backend *backend, int marks, int *first_out)
{
    CudaBackend *cuda = self(backend);
    size_t count = (size_t)cuda->marks + (size_t)marks;
    cudaEvent_t *grown = (cudaEvent_t *)realloc(cuda->mark, (count + 1) * sizeof *grown);
    if (!grown) return status_fail(ERR_MEMORY, "no memory for %d timing marks", marks);
    cuda->mark = grown;
    *first_out = cuda->marks;
    for (; (size_t)cuda->marks < count; cuda->marks++) CUDA_TRY(cudaEventCreate(&cuda->mark[cuda->marks]));
    return OK;
}

/* Inside a capture the mark becomes a node of the graph, set by every replay. */
static Status backend_mark(Backend *backend, int index)
{
    CudaBackend *cuda = self(backend);
    unsigned flags = cuda->capturing ? cudaEventRecordExternal : cudaEventRecordDefault;
    return cuda_check(cudaEventRecordWithFlags(cuda->mark[index], cuda->context.stream, flags), "timing mark");
}

static Status backend_mark_wait(Backend *backend, int index)
{
    return cuda_comm_wait(self(backend)->comm, self(backend)->mark[index]);
}

static Status backend_mark_reached(Backend *backend, int index, bool *reached_out)
{
    cudaError_t state = cudaEventQuery(self(backend)->mark[index]);
    if (state != cudaErrorNotReady) CUDA_TRY(state);
    *reached_out = state == cudaSuccess;
    return OK;
}

static Status backend_elapsed(Backend *backend, int from, int to, double *seconds_out)
{
    float milliseconds = 0;
    CUDA_TRY(cudaEventElapsedTime(&milliseconds, self(backend)->mark[from], self(backend)->mark[to]));
    *seconds_out = (double)milliseconds * 1e-3;
    return OK;
}

/* --- graphs
 * ------------------------------------------------------------------------------------------------------------ */

/* Relaxed: products met for the first time are measured on a stream outside of the capture. */
static Status backend_capture_begin(Backend *backend)
{
    CUDA_TRY(cudaStreamBeginCapture(self(backend)->context.stream, cudaStreamCaptureModeRelaxed));
    self(backend)->capturing = true;
    return OK;
}

typedef struct CudaGraph {
    cudaGraphExec_t exec;
    int64_t kernels;
} CudaGraph;

static Status count_kernels(cudaGraph_t graph, int64_t *kernels_out)
{
    size_t count = 0;
    int64_t kernels = 0;
    CUDA_TRY(cudaGraphGetNodes(graph, NULL, &count));
    cudaGraphNode_t *node = (cudaGraphNode_t *)calloc(count + 1, sizeof *node);
    if (!node) return status_fail(ERR_MEMORY, "no memory for %zu nodes of a graph", count);
    Status status = cuda_check(cudaGraphGetNodes(graph, node, &count), "nodes of a graph");
    for (size_t k = 0; k < count && status == OK; k++) {
        cudaGraphNodeType type;
        status = cuda_check(cudaGraphNodeGetType(node[k], &type), "type of a node");
        kernels += type == cudaGraphNodeTypeKernel;
    }
    free(node);
    if (status == OK) *kernels_out = kernels;
    return status;
}

static void backend_graph_release(Backend *, void *graph)
{
    CudaGraph *captured = (CudaGraph *)graph;
    if (!captured) return;
    if (captured->exec) cudaGraphExecDestroy(captured->exec);
    free(captured);
}

static Status backend_capture_end(Backend *backend, void **graph_out)
{
    cudaGraph_t graph = NULL;
    self(backend)->capturing = false;
    CUDA_TRY(cudaStreamEndCapture(self(backend)->context.stream, &graph));
    CudaGraph *captured = (CudaGraph *)calloc(1, sizeof *captured);
    Status status =
        captured ? count_kernels(graph, &captured->kernels) : status_fail(ERR_MEMORY, "no memory for a graph");
    if (status == OK)
        status = cuda_check(cudaGraphInstantiate(&captured->exec, graph, cudaGraphInstantiateFlagUseNodePriority),
                            "cudaGraphInstantiate");
    if (status == OK) /* here rather than within the first replay */
        status = cuda_check(cudaGraphUpload(captured->exec, self(backend)->context.stream), "cudaGraphUpload");
    cudaGraphDestroy(graph);
    if (status == OK)
        *graph_out = captured;
    else
        backend_graph_release(backend, captured);
    return status;
}

static Status backend_replay(Backend *backend, void *graph)
{
    return cuda_check(cudaGraphLaunch(((CudaGraph *)graph)->exec, self(backend)->context.stream), "cudaGraphLaunch");
}

static int64_t backend_graph_kernels(const Backend *, const void *graph)
{
    return ((const CudaGraph *)graph)->kernels;
}

/* --- host collectives
 * -------------------------------------------------------------------------------------------------- */

static Status backend_barrier(Backend *backend)
{
    return comm_barrier(self(backend)->host);
}
static Status backend_host_sum(Backend *backend, double *values, int count)
{
    return comm_sum(self(backend)->host, values, count);
}
static Status backend_host_gather(Backend *backend, const double *value, int count, double *all_out)
{
    return comm_gather(self(backend)->host, value, count, all_out);
}
static Status backend_host_broadcast(Backend *backend, void *data, size_t bytes, int root)
{
    return comm_broadcast(self(backend)->host, data, bytes, root);
}

/* --- opening and closing
 * ----------------------------------------------------------------------------------------------- */

static void backend_close(Backend *backend)
{
    CudaBackend *cuda = self(backend);
    if (cuda->context.stream) cudaStreamSynchronize(cuda->context.stream);
    for (int k = 0; k < cuda->marks; k++) cudaEventDestroy(cuda->mark[k]);
    free(cuda->mark);
    cuda_upload_close(&cuda->upload);
    cuda_comm_close(&cuda->comm);
    weights_batch_destroy(&cuda->aside.batch);
    gemm_destroy(&cuda->context.gemm);
    for (cudaEvent_t end : cuda->end)
        if (end) cudaEventDestroy(end);
    if (cuda->begin) cudaEventDestroy(cuda->begin);
    if (cuda->aside.stream) cudaStreamDestroy(cuda->aside.stream);
    if (cuda->context.stream) cudaStreamDestroy(cuda->context.stream);
    comm_close(&cuda->host);
    free(cuda);
}

static void fill_operations(Backend *b)
{
    b->name = "cuda";
    b->close = backend_close;
    b->alloc = backend_alloc;
    b->release = backend_release;
    b->host_alloc = backend_host_alloc;
    b->host_release = backend_host_release;
    b->memory_free = memory_free;
    b->upload = backend_upload;
    b->upload_finish = backend_upload_finish;
    b->download = backend_download;
    b->read_later = backend_read_later;
    b->supports = backend_supports;
    b->scratch_bytes = backend_scratch_bytes;
    b->run = backend_run;
    b->aside_begin = backend_aside_begin;
    b->aside_end = backend_aside_end;
    b->aside_wait = backend_aside_wait;
    b->comm_reserve = backend_comm_reserve;
    b->finish = backend_finish;
    b->marks_reserve = backend_marks_reserve;
    b->mark = backend_mark;
    b->mark_wait = backend_mark_wait;
    b->mark_reached = backend_mark_reached;
    b->elapsed = backend_elapsed;
    b->capture_begin = backend_capture_begin;
    b->capture_end = backend_capture_end;
    b->replay = backend_replay;
    b->graph_release = backend_graph_release;
    b->graph_kernels = backend_graph_kernels;
    b->barrier = backend_barrier;
    b->host_all_reduce_sum = backend_host_sum;
    b->host_all_gather = backend_host_gather;
    b->host_broadcast = backend_host_broadcast;
}

static Status fill_table(CudaBackend *cuda)
{
    for (const CudaEntry *entry : families)
        for (; entry->run; entry++) {
            if (cuda->entry[entry->kind])
                return status_fail(ERR_INTERNAL, "cuda: two kernels for %s", op_def(entry->kind)->name);
            cuda->entry[entry->kind] = entry;
        }
    return OK;
}

/* One process per GPU: ranks of a host take its devices in turn. */
static Status choose_device(CudaBackend *cuda)
{
    int devices = 0;
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
        return status_fail(ERR_UNSUPPORTED, "the cuda backend finds no device: %s", cudaGetErrorString(error));
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    int rank = local ? atoi(local) : cuda->base.layout.rank, device = rank % devices;
    CUDA_TRY(cudaSetDevice(device));
    CUDA_TRY(cudaGetDeviceProperties(&properties, device));
    if (properties.major != 9 || properties.minor != 0)
        return status_fail(ERR_UNSUPPORTED, "%s has compute capability %d.%d; the kernels are built for 9.0 (Hopper)",
                           properties.name, properties.major, properties.minor);
    snprintf(cuda->device, sizeof cuda->device, "%.250s", properties.name);
    cuda->base.device = cuda->device;
    cuda->base.memory_bytes = properties.totalGlobalMem;
    return OK;
}

/* The chain that others wait for goes first. */
static Status open_streams(CudaBackend *cuda)
{
    int least, most; /* collectives have the highest (comm_nccl.cu) */
    CUDA_TRY(cudaDeviceGetStreamPriorityRange(&least, &most));
    CUDA_TRY(cudaStreamCreateWithPriority(&cuda->context.stream, cudaStreamNonBlocking, most + 1));
    CUDA_TRY(cudaStreamCreateWithPriority(&cuda->aside.stream, cudaStreamNonBlocking, least));
    CUDA_TRY(cudaEventCreateWithFlags(&cuda->begin, cudaEventDisableTiming));
    for (cudaEvent_t &end : cuda->end) CUDA_TRY(cudaEventCreateWithFlags(&end, cudaEventDisableTiming));
    return OK;
}

static Status open_parts(CudaBackend *cuda, const KernelOptions *options)
{
    TRY(fill_table(cuda));
    TRY(comm_open(options, &cuda->host));
    cuda->base.layout = *comm_layout(cuda->host);
    TRY(choose_device(cuda));
    TRY(open_streams(cuda));
    cuda->context.layout = &cuda->base.layout;
    GemmMeasure measure = GEMM_FIRST;
    if (options->tune_cache && cuda->base.layout.rank == 0)
        measure = cuda->base.layout.world == 1 ? GEMM_FASTEST : GEMM_FASTEST_LATER;
    TRY(gemm_create(options->tune_cache, measure, &cuda->context.gemm));
    cuda->aside = (CudaContext){cuda->aside.stream, cuda->context.layout, cuda->context.gemm, true, NULL, NULL};
    TRY(weights_batch_create(&cuda->aside.batch));
    TRY(cuda_upload_open(&cuda->upload));
    TRY(cuda_comm_open(cuda->host, options->no_comm, &cuda->comm));
    cuda->context.peer = cuda_comm_peer(cuda->comm);
    cuda->base.comm = cuda_comm_name(cuda->comm);
    return OK;
}

Status cuda_backend_open(const KernelOptions *options, Backend **backend_out)
{
    CudaBackend *cuda = (CudaBackend *)calloc(1, sizeof *cuda);
    if (!cuda) return status_fail(ERR_MEMORY, "no memory for a backend");
    fill_operations(&cuda->base);
    Status status = open_parts(cuda, options);
    if (status != OK) {
        backend_close(&cuda->base);
        return status;
    }
    *backend_out = &cuda->base;
    return OK;
}
