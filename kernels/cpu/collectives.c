/* The collective ops. Every one is: pack, exchange, unpack, so that start and wait of a split collective are the first
 * two steps and the last. Sums are taken in the order of ranks, hence the same on every rank and in every run. */
#include "kernels/cpu/comm_internal.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "engine/convert.h"

bool comm_is_op(OpKind kind)
{
    switch (kind) {
    case OP_SHARD_SLICE:
    case OP_ALL_GATHER:
    case OP_REDUCE_SCATTER:
    case OP_ALL_TO_ALL:
    case OP_ALL_REDUCE:
    case OP_COMM_WAIT:
        return true;
    default:
        return false;
    }
}

/* A tensor seen along one axis, cut into n equal parts: [outer][n][part bytes]. */
typedef struct Cut {
    int64_t outer;
    size_t part_bytes;
    int n;
} Cut;

static Cut cut_of(const Tensor *whole, int axis, int n)
{
    Cut cut = {.outer = 1, .n = n, .part_bytes = dtype_size(whole->dtype)};
    for (int a = 0; a < axis; a++) cut.outer *= whole->dim[a];
    for (int a = axis; a < whole->rank; a++) cut.part_bytes *= (size_t)whole->dim[a];
    cut.part_bytes /= (size_t)n;
    return cut;
}

static size_t cut_slice_bytes(const Cut *cut)
{
    return cut->part_bytes * (size_t)cut->outer;
}

/* part `index` of the whole -> contiguous slice, and back */
static void take_part(const Cut *cut, int index, const unsigned char *whole, unsigned char *slice)
{
    for (int64_t o = 0; o < cut->outer; o++)
        memcpy(slice + (size_t)o * cut->part_bytes, whole + (size_t)(o * cut->n + index) * cut->part_bytes,
               cut->part_bytes);
}

static void put_part(const Cut *cut, int index, const unsigned char *slice, unsigned char *whole)
{
    for (int64_t o = 0; o < cut->outer; o++)
        memcpy(whole + (size_t)(o * cut->n + index) * cut->part_bytes, slice + (size_t)o * cut->part_bytes,
               cut->part_bytes);
}

static void pack(const Cut *cut, const void *whole, unsigned char *slices)
{
    for (int r = 0; r < cut->n; r++) take_part(cut, r, whole, slices + (size_t)r * cut_slice_bytes(cut));
}

static void unpack(const Cut *cut, const unsigned char *slices, void *whole)
{
    for (int r = 0; r < cut->n; r++) put_part(cut, r, slices + (size_t)r * cut_slice_bytes(cut), whole);
}

static int group_size(const Comm *comm, const Op *op)
{
    const RankLayout *l = &comm->layout;
    if (op->kind != OP_ALL_REDUCE) return l->dap;
    return op->attr.i[0] == GROUP_DAP ? l->dap : op->attr.i[0] == GROUP_DP ? l->dp : l->dap * l->dp;
}

static CommGroup group_of(const Op *op)
{
    return op->kind == OP_ALL_REDUCE ? (CommGroup)op->attr.i[0] : GROUP_DAP;
}

size_t comm_scratch_bytes(const Comm *comm, const Program *program, const Op *op)
{
    if (op->kind == OP_SHARD_SLICE || op->kind == OP_COMM_WAIT) return 0;
    size_t in = tensor_bytes(&program->value[op->in[0]].t);
    switch (op->kind) {
    case OP_ALL_GATHER:
        return in * (size_t)comm->layout.dap;
    case OP_REDUCE_SCATTER:
    case OP_ALL_TO_ALL:
        return 2 * in;
    default:
        return program->value[op->in[0]].t.dtype == DT_BF16 ? in * (size_t)group_size(comm, op) : 0;
    }
}

Status comm_reserve(Comm *comm, int slots)
{
    if (slots <= comm->slots) return OK;
    Transfer *bigger = realloc(comm->transfer, (size_t)slots * sizeof *bigger);
    if (!bigger) return status_fail(ERR_MEMORY, "out of memory for %d collectives in flight", slots);
    memset(bigger + comm->slots, 0, (size_t)(slots - comm->slots) * sizeof *bigger);
    comm->transfer = bigger;
    comm->slots = slots;
    return OK;
}

static Status mpi_count(size_t bytes, DType dtype, MPI_Datatype *type_out, int *count_out)
{
    size_t count = bytes / dtype_size(dtype);
    if (count > INT_MAX)
        return status_fail(ERR_UNSUPPORTED, "a collective of %zu elements exceeds MPI's counts", count);
    *type_out = dtype == DT_F64    ? MPI_DOUBLE
                : dtype == DT_F32  ? MPI_FLOAT
                : dtype == DT_BF16 ? MPI_UINT16_T
                                   : MPI_INT32_T;
    *count_out = (int)count;
    return OK;
}

/* Sends `bytes` to every rank (gather) or its slice of `bytes` to each (all to all). request NULL: returns when done.
 */
static Status exchange(Comm *comm, bool gather, CommGroup group, int n, DType dtype, const void *send, void *receive,
                       size_t bytes, MPI_Request *request)
{
    if (!comm->mpi || comm->no_comm) {
        for (int r = 0; gather && r < n; r++) memcpy((unsigned char *)receive + (size_t)r * bytes, send, bytes);
        if (!gather) memcpy(receive, send, (size_t)n * bytes);
        return OK;
    }
    MPI_Datatype type = MPI_BYTE;
    int count = 0;
    TRY(mpi_count(bytes, dtype, &type, &count));
    MPI_Comm c = comm->group[group];
    if (gather && request)
        return comm_check(MPI_Iallgather(send, count, type, receive, count, type, c, request), "MPI_Iallgather");
    if (gather) return comm_check(MPI_Allgather(send, count, type, receive, count, type, c), "MPI_Allgather");
    if (request) return comm_check(MPI_Ialltoall(send, count, type, receive, count, type, c, request), "MPI_Ialltoall");
    return comm_check(MPI_Alltoall(send, count, type, receive, count, type, c), "MPI_Alltoall");
}

/* out = factor * sum of n slices of `count` elements, in the order of ranks; bf16 accumulates in float. */
static void sum_slices(DType dtype, const void *slices, int n, int64_t count, double factor, void *out)
{
    for (int64_t i = 0; i < count; i++) {
        if (dtype == DT_F64) {
            const double *x = slices;
            double sum = x[i];
            for (int r = 1; r < n; r++) sum += x[r * count + i];
            ((double *)out)[i] = sum * factor;
        } else if (dtype == DT_F32) {
            const float *x = slices;
            float sum = x[i];
            for (int r = 1; r < n; r++) sum += x[r * count + i];
            ((float *)out)[i] = sum * (float)factor;
        } else {
            const uint16_t *x = slices;
            float sum = bf16_to_f32(x[i]);
            for (int r = 1; r < n; r++) sum += bf16_to_f32(x[r * count + i]);
            ((uint16_t *)out)[i] = bf16_from_f32(sum * (float)factor);
        }
    }
}

static Status begin_all_reduce(Comm *comm, const OpCall *call, MPI_Request *request)
{
    const Tensor *t = call->in_tensor[0];
    if (t->dtype == DT_BF16)
        return exchange(comm, true, group_of(call->op), group_size(comm, call->op), t->dtype, call->in[0],
                        call->scratch, tensor_bytes(t), request);
    const void *send = call->in[0] == call->out[0] ? MPI_IN_PLACE : call->in[0];
    if (!comm->mpi || comm->no_comm) {
        if (send != MPI_IN_PLACE) memcpy(call->out[0], send, tensor_bytes(t));
        return OK;
    }
    MPI_Datatype type = MPI_BYTE;
    int count = 0;
    TRY(mpi_count(tensor_bytes(t), t->dtype, &type, &count));
    MPI_Comm c = comm->group[group_of(call->op)];
    if (request)
        return comm_check(MPI_Iallreduce(send, call->out[0], count, type, MPI_SUM, c, request), "MPI_Iallreduce");
    return comm_check(MPI_Allreduce(send, call->out[0], count, type, MPI_SUM, c), "MPI_Allreduce");
}

/* Packs and exchanges. */
static Status begin(Comm *comm, const OpCall *call, MPI_Request *request)
{
    const Op *op = call->op;
    const Tensor *in = call->in_tensor[0];
    int n = comm->layout.dap;
    unsigned char *packed = call->scratch, *received = packed + tensor_bytes(in);
    switch (op->kind) {
    case OP_ALL_GATHER: {
        bool direct = cut_of(in, (int)op->attr.i[0], 1).outer == 1;
        return exchange(comm, true, GROUP_DAP, n, in->dtype, call->in[0], direct ? call->out[0] : call->scratch,
                        tensor_bytes(in), request);
    }
    case OP_REDUCE_SCATTER:
    case OP_ALL_TO_ALL: {
        Cut cut = cut_of(in, (int)op->attr.i[op->kind == OP_ALL_TO_ALL], n);
        pack(&cut, call->in[0], packed);
        return exchange(comm, false, GROUP_DAP, n, in->dtype, packed, received, cut_slice_bytes(&cut), request);
    }
    default:
        return begin_all_reduce(comm, call, request);
    }
}

static void scale(const Tensor *t, double factor, void *values)
{
    if (factor == 1) return;
    int64_t count = tensor_count(t);
    for (int64_t i = 0; i < count; i++)
        if (t->dtype == DT_F64)
            ((double *)values)[i] *= factor;
        else
            ((float *)values)[i] *= (float)factor;
}

/* Unpacks what has arrived. */
static void end(Comm *comm, const OpCall *call)
{
    const Op *op = call->op;
    const Tensor *in = call->in_tensor[0], *out = call->out_tensor[0];
    int n = comm->layout.dap;
    const unsigned char *received = (const unsigned char *)call->scratch + tensor_bytes(in);
    switch (op->kind) {
    case OP_ALL_GATHER: {
        Cut cut = cut_of(out, (int)op->attr.i[0], n);
        if (cut.outer > 1) unpack(&cut, call->scratch, call->out[0]);
        break;
    }
    case OP_REDUCE_SCATTER:
        sum_slices(in->dtype, received, n, tensor_count(out), 1, call->out[0]);
        break;
    case OP_ALL_TO_ALL: {
        Cut cut = cut_of(out, (int)op->attr.i[0], n);
        unpack(&cut, received, call->out[0]);
        break;
    }
    default:
        if (in->dtype == DT_BF16)
            sum_slices(in->dtype, call->scratch, group_size(comm, op), tensor_count(out), op->attr.f[0], call->out[0]);
        else
            scale(out, op->attr.f[0], call->out[0]);
    }
}

static Status wait(Comm *comm, int slot)
{
    Transfer *t = slot >= 0 && slot < comm->slots ? &comm->transfer[slot] : NULL;
    if (!t || !t->active) return status_fail(ERR_INTERNAL, "nothing was started in slot %d of collectives", slot);
    t->active = false;
    comm->in_flight--;
    if (comm->mpi && !comm->no_comm) TRY(comm_check(MPI_Wait(&t->request, MPI_STATUS_IGNORE), "MPI_Wait"));
    end(comm, &t->call);
    return OK;
}

Status comm_run(Comm *comm, const OpCall *call)
{
    if (call->op->kind == OP_COMM_WAIT) return wait(comm, call->comm_slot);
    if (call->op->kind == OP_SHARD_SLICE) {
        Cut cut = cut_of(call->in_tensor[0], (int)call->op->attr.i[0], comm->layout.dap);
        take_part(&cut, comm->layout.dap_rank, call->in[0], call->out[0]);
        return OK;
    }
    if (call->comm_slot < 0) {
        TRY(begin(comm, call, NULL));
        end(comm, call);
        return OK;
    }
    if (call->comm_slot >= comm->slots || comm->transfer[call->comm_slot].active)
        return status_fail(ERR_INTERNAL, "slot %d of collectives is not free", call->comm_slot);
    Transfer *t = &comm->transfer[call->comm_slot];
    t->call = *call;
    TRY(begin(comm, call, &t->request));
    t->active = true;
    comm->in_flight++;
    return OK;
}

Status comm_progress(Comm *comm)
{
    if (!comm->in_flight || !comm->mpi || comm->no_comm) return OK;
    for (int s = 0; s < comm->slots; s++) {
        if (!comm->transfer[s].active || comm->transfer[s].request == MPI_REQUEST_NULL) continue;
        int done;
        return comm_check(MPI_Test(&comm->transfer[s].request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    }
    return OK;
}
