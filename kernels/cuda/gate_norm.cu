/* The gradient of a gate, a linear layer and a channel-first layer norm: one kernel (gate_norm.cuh), or its parts. */
#include "kernels/cuda/channels.h"
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/gate_norm.cuh"
#include "kernels/cuda/pointwise.h"

enum { DY = NORM_RSTD + 1, G, Y, W };
enum { DX, DGAMMA, DBETA, DG, D };

/* Places of a group of x. */
static int64_t places_of(const OpCall *call)
{
    const Tensor *x = call->in_tensor[NORM_X];
    return x->dim[x->rank - 2] * x->dim[x->rank - 1];
}

static bool gate_norm_fits(const OpCall *call)
{
    const Tensor *w = call->in_tensor[W];
    int64_t c = w->dim[1], rows = tensor_rows(call->in_tensor[DY]);
    bool fits = (c == 64 || c == 128) && w->dim[0] == c && rows > 0 && rows * c <= INT32_MAX;
    fits = fits && places_of(call) % GATE_NORM_ROWS == 0;
    for (int k = DY; k <= W; k++) fits = fits && call->in_tensor[k]->dtype == DT_BF16 && aligned16(call->in[k]);
    fits = fits && call->in_tensor[NORM_X]->dtype == DT_BF16 && aligned16(call->in[NORM_X]);
    return fits && aligned16(call->out[DX]) && aligned16(call->out[DG]) && aligned16(call->out[D]);
}

template <int C> static Status gate_norm_launch(const OpCall *call, const PeerSend &send, cudaStream_t stream)
{
    typedef GateNormShape<C> S;
    int64_t rows = tensor_rows(call->in_tensor[DY]), places = places_of(call), channels = rows / places * C;
    int64_t tiles = rows / GATE_NORM_ROWS;
    int most = send.shares ? GATE_NORM_SHARING : GATE_NORM_BLOCKS;
    unsigned blocks = (unsigned)(tiles < most ? tiles : most);
    GateNorm p = {};
    p.edge.gamma = (const float *)call->in[NORM_GAMMA], p.edge.mean = (const float *)call->in[NORM_MEAN];
    p.edge.rstd = (const float *)call->in[NORM_RSTD], p.edge.partial = (float *)call->scratch;
    p.edge.rows = (int)rows, p.places = (int)places, p.send = send;
    p.early = call_steady(call, W, 1) && call_steady(call, NORM_GAMMA, 1);
    TRY(tensor_map(call->in[DY], rows, C, GATE_NORM_ROWS, &p.dy));
    TRY(tensor_map(call->in[G], rows, C, GATE_NORM_ROWS, &p.g));
    TRY(tensor_map(call->in[Y], rows, C, GATE_NORM_ROWS, &p.y));
    TRY(tensor_map(call->in[NORM_X], channels, places, C, &p.x));
    TRY(tensor_map(call->in[W], C, C, C, &p.w));
    TRY(tensor_map(call->out[DG], rows, C, GATE_NORM_ROWS, &p.dg));
    TRY(tensor_map(call->out[D], rows, C, GATE_NORM_ROWS, &p.d));
    if (send.ranks == 0) TRY(tensor_map(call->out[DX], channels, places, C, &p.dx));
    for (int r = 0; r < send.ranks; r++) TRY(tensor_map(send.out[r], channels, send.ranks * places, C, &p.sent_to[r]));
    CUDA_TRY(cudaFuncSetAttribute(gate_norm_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES));
    launch(gate_norm_kernel<C>, blocks, GATE_NORM_THREADS, S::BYTES, stream, p);
    TRY(cuda_launched("gate_norm_kernel"));
    return sum_partials_split_launch(p.edge.partial, (float *)call->out[DGAMMA], (float *)call->out[DBETA], blocks, C,
                                     stream);
}

/* The layer norm's part, d: the gradient of what it made. */
static OpCall norm_part(const OpCall *call, Op *op, void *d)
{
    OpCall norm = {};
    *op = Op{};
    op->kind = OP_LAYER_NORM_CHANNELS_BWD, op->n_in = 5, op->n_out = 3;
    norm.op = op;
    norm.in[0] = d;
    for (int k = NORM_X; k <= NORM_RSTD; k++) norm.in[1 + k] = call->in[k], norm.in_tensor[1 + k] = call->in_tensor[k];
    for (int k = DX; k <= DBETA; k++) norm.out[k] = call->out[k], norm.out_tensor[k] = call->out_tensor[k];
    return norm;
}

static size_t d_room(const OpCall *call)
{
    const Tensor *x = call->in_tensor[NORM_X];
    return align_up((size_t)tensor_count(x) * dtype_size(x->dtype));
}

static Status gate_norm_in_parts(CudaContext *ctx, const OpCall *call)
{
    Tensor made = *call->in_tensor[DY]; /* by the layer norm */
    Op op = {};
    OpCall gate = {}, product = {};
    op.kind = OP_GATE_BWD, op.n_in = 3, op.n_out = 2;
    gate.op = product.op = &op;
    for (int k = 0; k < 3; k++) gate.in[k] = call->in[DY + k], gate.in_tensor[k] = call->in_tensor[DY + k];
    for (int k = 0; k < 2; k++) gate.out[k] = call->out[DG + k], gate.out_tensor[k] = call->out_tensor[DG + k];
    TRY(gate_bwd_run(ctx, &gate));
    made.dim[made.rank - 1] = call->in_tensor[W]->dim[1];
    op.kind = OP_LINEAR_DX, op.n_in = 2, op.n_out = 1;
    product.in[0] = call->out[D], product.in_tensor[0] = call->out_tensor[D];
    product.in[1] = call->in[W], product.in_tensor[1] = call->in_tensor[W];
    product.out[0] = call->scratch, product.out_tensor[0] = &made;
    TRY(linear_dx_run(ctx, &product));
    OpCall norm = norm_part(call, &op, call->scratch);
    norm.in_tensor[0] = &made;
    norm.scratch = (char *)call->scratch + d_room(call);
    return layer_norm_channels_bwd_run(ctx, &norm);
}

/* dx to all ranks, cut along the first axis of the places. */
static bool gate_norm_sends(const OpCall *call)
{
    const Send *send = &call->op->send;
    PeerRows rows;
    bool places =
        send->output == DX && send->kind == OP_ALL_GATHER && send->attr.i[0] == call->out_tensor[DX]->rank - 2;
    return places && peer_send_rows(call, &rows) && gate_norm_fits(call);
}

static Status gate_norm_channels_dx(CudaContext *ctx, const OpCall *call)
{
    bool fits = gate_norm_fits(call);
    if (call->op->send.active && !fits)
        return status_fail(ERR_INTERNAL, "gate_norm_channels_dx was to send and cannot");
    if (!fits) return gate_norm_in_parts(ctx, call);
    PeerSend send;
    TRY(peer_send_of(ctx, call, &send));
    if (call->in_tensor[W]->dim[1] == 64) return gate_norm_launch<64>(call, send, ctx->stream);
    return gate_norm_launch<128>(call, send, ctx->stream);
}

/* For the parts: addresses, known when it runs, may want them. */
static size_t gate_norm_scratch(const OpCall *call)
{
    Op op;
    OpCall norm = norm_part(call, &op, NULL);
    return d_room(call) + layer_norm_channels_bwd_scratch(&norm);
}

const CudaEntry cuda_gate_norm[] = {
    {OP_GATE_NORM_CHANNELS_DX, gate_norm_channels_dx, gate_norm_scratch, gate_norm_sends},
    {OP_COUNT, NULL, NULL},
};
