/* Triangle products. */
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/transpose.cuh"
#include "kernels/cuda/tri_product.cuh"
#include "kernels/cuda/tri_send.cuh"

/* --- triangle product: one matrix product per channel, on channel-first copies
 * ----------------------------------------- */

struct Tri {
    int64_t g, c, n, m, k;
    int64_t rows_a, columns_a, rows_b, columns_b; /* as stored */
    bool ta, tb;
    bool channels; /* first, as the product wants them */
};

static Tri tri_make(const OpCall *call)
{
    const Tensor *a = call->in_tensor[0], *b = call->in_tensor[1], *x = call->out_tensor[0];
    int off = a->rank - 3;
    Tri t = {};
    t.ta = call->op->attr.i[0] != 0, t.tb = call->op->attr.i[1] != 0, t.channels = call->op->attr.i[2] != 0;
    int first = off + (t.channels ? 1 : 0);
    t.g = off ? a->dim[0] : 1;
    t.c = a->dim[t.channels ? off : off + 2];
    t.n = x->dim[first], t.m = x->dim[first + 1], t.k = a->dim[first + (t.ta ? 0 : 1)];
    t.rows_a = a->dim[first], t.columns_a = a->dim[first + 1];
    t.rows_b = b->dim[first], t.columns_b = b->dim[first + 1];
    return t;
}

/* Elements from one channel to the next: a power of two would put all channels of a tile on the same memory channels.
 */
static int64_t tri_pitch(int64_t elements)
{
    return elements % 64 == 0 ? elements + 64 : elements;
}

static size_t tri_bytes(const Tri &t, int64_t elements, DType type)
{
    return align_up((size_t)(t.g * t.c * tri_pitch(elements)) * dtype_size(type));
}

static size_t tri_scratch(const OpCall *call)
{
    Tri t = tri_make(call);
    DType type = call->in_tensor[0]->dtype;
    if (t.channels) return 0;
    return tri_bytes(t, t.rows_a * t.columns_a, type) + tri_bytes(t, t.rows_b * t.columns_b, type) +
           tri_bytes(t, t.n * t.m, type);
}

template <typename U> static Status tri_run(CudaContext *ctx, const OpCall *call, const Tri &t)
{
    int64_t in_a = t.rows_a * t.columns_a, in_b = t.rows_b * t.columns_b, pairs = t.n * t.m;
    DType type = call->in_tensor[0]->dtype;
    char *at = (char *)call->scratch;
    U *a = (U *)at, *b = (U *)(at += tri_bytes(t, in_a, type)), *x = (U *)(at += tri_bytes(t, in_b, type));
    GemmShape s = gemm_shape(t.n, t.m, t.k, t.ta, t.tb, type, type);
    s.batch = t.g * t.c;
    s.stride_a = tri_pitch(in_a), s.stride_b = tri_pitch(in_b), s.stride_d = tri_pitch(pairs);
    TransposeShape to_a = {t.g, in_a, t.c, in_a * t.c, t.c, s.stride_a * t.c, s.stride_a};
    TransposeShape to_b = {t.g, in_b, t.c, in_b * t.c, t.c, s.stride_b * t.c, s.stride_b};
    TransposeShape from_x = {t.g, t.c, pairs, s.stride_d * t.c, s.stride_d, pairs * t.c, t.c};
    TRY(transpose_tiles_launch((const U *)call->in[0], a, to_a, ctx->stream));
    TRY(transpose_tiles_launch((const U *)call->in[1], b, to_b, ctx->stream));
    TRY(gemm_run(ctx, &s, a, b, NULL, x));
    return transpose_tiles_launch(x, (U *)call->out[0], from_x, ctx->stream);
}

/* Operands and result as they lie. */
static Status tri_channels(CudaContext *ctx, const OpCall *call, const Tri &t)
{
    DType type = call->in_tensor[0]->dtype;
    TriProductOperands o = {call->in[0], call->in[1], call->out[0], t.g * t.c, t.k, t.n, t.m, t.ta, !t.tb};
    if (type == DT_BF16 && tri_product_fits(o)) return tri_product_launch(o, ctx->stream);
    GemmShape s = gemm_shape(t.n, t.m, t.k, t.ta, t.tb, type, type);
    s.batch = t.g * t.c;
    s.stride_a = t.rows_a * t.columns_a, s.stride_b = t.rows_b * t.columns_b, s.stride_d = t.n * t.m;
    return gemm_run(ctx, &s, call->in[0], call->in[1], NULL, call->out[0]);
}

/* A sum over the ranks, shared out along rows: both operands stored along them. */
static bool tri_sends(const OpCall *call)
{
    const Send *send = &call->op->send;
    const Tensor *x = call->out_tensor[0], *y = call->send_tensor;
    Tri t = tri_make(call);
    PeerRows rows;
    bool rows_shared = send->kind == OP_REDUCE_SCATTER && send->attr.i[0] == x->rank - 2;
    if (!rows_shared || !t.channels || !t.ta || t.tb || x->dtype != DT_BF16) return false;
    return peer_send_rows(call, &rows) && tri_send_fits(t.g * t.c, t.k, t.n, t.m, t.n / y->dim[y->rank - 2]);
}

static Status tri_product(CudaContext *ctx, const OpCall *call)
{
    Tri t = tri_make(call);
    PeerSend send;
    if (t.g * t.c * t.n * t.m == 0) return OK;
    TRY(peer_send_blocks_of(ctx, call, &send));
    if (send.ranks > 0) {
        TriOperands o = {call->in[0], call->in[1], call->out[0], t.g * t.c, t.k, t.n, t.m};
        return tri_send_launch(o, send, ctx->stream);
    }
    if (t.channels) return tri_channels(ctx, call, t);
    switch (call->in_tensor[0]->dtype) {
    case DT_BF16:
        return tri_run<uint16_t>(ctx, call, t);
    case DT_F32:
        return tri_run<uint32_t>(ctx, call, t);
    default:
        return cuda_bad_type(call, call->in_tensor[0]->dtype);
    }
}

const CudaEntry cuda_triangle[] = {
    {OP_TRI_PRODUCT, tri_product, tri_scratch, tri_sends},
    {OP_COUNT, NULL, NULL},
};
