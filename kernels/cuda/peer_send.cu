/* What kernels need to write to the ranks of their group, seen from the host. */
#include "kernels/cuda/peer_send.cuh"

#include <string.h>

#include "kernels/cuda/comm_peer_internal.h"
#include "kernels/cuda/peer_exchange.cuh"

/* Extents [from, until) multiplied. */
static int64_t extent(const Tensor *t, int64_t from, int64_t until)
{
    int64_t product = 1;
    for (int64_t k = from; k < until; k++) product *= t->dim[k];
    return product;
}

bool peer_send_rows(const OpCall *call, PeerRows *rows_out)
{
    const Op *op = call->op;
    const Tensor *x = call->out_tensor[op->send.output], *y = call->send_tensor;
    const int64_t *axis = op->send.attr.i;
    if (tensor_count(x) == 0 || tensor_count(y) == 0) return false;
    int64_t last = x->rank - 1, rows = tensor_rows(x), ranks, run, inner = 1, stride, place;
    switch (op->send.kind) {
    case OP_ALL_GATHER:
        ranks = y->dim[axis[0]] / x->dim[axis[0]];
        run = place = extent(x, axis[0], last);
        stride = run * ranks;
        break;
    case OP_REDUCE_SCATTER:
        ranks = x->dim[axis[0]] / y->dim[axis[0]];
        stride = run = extent(x, axis[0], last) / ranks;
        place = rows / ranks;
        break;
    case OP_ALL_TO_ALL:
        ranks = y->dim[axis[0]] / x->dim[axis[0]];
        if (axis[0] < axis[1]) {
            if (extent(x, 0, axis[0]) > 1) return false;
            stride = run = extent(x, axis[1], last) / ranks;
            place = rows / ranks;
        } else {
            run = place = extent(x, axis[0], last);
            stride = run * ranks;
            inner = extent(x, axis[1], axis[0]) / ranks;
        }
        if (axis[1] >= last) return false;
        break;
    default:
        return false;
    }
    if (axis[0] >= last || rows == 0 || rows * ranks > INT32_MAX || ranks > PEER_RANKS) return false;
    *rows_out = {(uint32_t)run, (uint32_t)inner, (uint32_t)stride, (uint32_t)place, op->send.kind == OP_ALL_GATHER};
    return true;
}

/* channel: whose flags and turns. */
static Status send_of(const CudaContext *ctx, const OpCall *call, int channel, PeerSend *send_out)
{
    const Peer *p = ctx->peer;
    PeerSend s;
    memset(&s, 0, sizeof s);
    if (call->op->send.active) {
        char *target =
            (char *)(call->op->send.kind == OP_REDUCE_SCATTER ? call->send_area : call->out[call->op->send.output]);
        const Region *region = p ? peer_region_of(p, target) : NULL;
        if (!region || !peer_send_rows(call, &s.rows))
            return status_fail(ERR_INTERNAL, "%s cannot send its output %d", op_def(call->op->kind)->name,
                               (int)call->op->send.output);
        s.ranks = p->ranks, s.rank = p->rank, s.loopback = p->loopback;
        s.shares = call->beside && !p->loopback; /* in loopback nothing is on the wire */
        for (int r = 0; r < p->ranks; r++) {
            s.out[r] = p->loopback ? target : region->base[r] + (target - region->base[p->rank]);
            s.flag[r] = p->flags[r] + channel * PEER_FLAGS;
        }
        s.turn = p->turn + channel * PEER_BLOCKS;
        s.failed = p->failed, s.status = p->status;
    }
    *send_out = s;
    return OK;
}

Status peer_send_of(const CudaContext *ctx, const OpCall *call, PeerSend *send_out)
{
    return send_of(ctx, call, PEER_SEND, send_out);
}

Status peer_send_blocks_of(const CudaContext *ctx, const OpCall *call, PeerSend *send_out)
{
    return send_of(ctx, call, PEER_COMPUTE, send_out);
}

PeerExchange peer_exchange_of(const Peer *p, int channel, const Region *region, const void *landing)
{
    PeerExchange e;
    memset(&e, 0, sizeof e);
    e.ranks = p->ranks, e.rank = p->rank, e.loopback = p->loopback;
    for (int r = 0; r < p->ranks; r++) {
        e.landing[r] = region->base[r] + ((const char *)landing - region->base[p->rank]);
        e.flag[r] = p->flags[r] + channel * PEER_FLAGS;
    }
    e.turn = p->turn + channel * PEER_BLOCKS;
    e.failed = p->failed, e.status = p->status;
    return e;
}

Status peer_sum_of(const CudaContext *ctx, const OpCall *call, uint32_t piece, uint32_t share,
                   PeerExchange *exchange_out)
{
    const Peer *p = ctx->peer;
    const Region *region = p ? peer_region_of(p, call->send_area) : NULL;
    if (!region)
        return status_fail(ERR_INTERNAL, "%s cannot send its output %d", op_def(call->op->kind)->name,
                           (int)call->op->send.output);
    PeerExchange e = peer_exchange_of(p, PEER_COMPUTE, region, call->send_area);
    e.piece = piece, e.share = share;
    e.factor = 1;
    *exchange_out = e;
    return OK;
}
