/* A group of linear layers, pairs of which are gated: the products by way of the group, then the gates in one pass. */
#include <string.h>

#include "kernels/cuda/channels.h"
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/map.cuh"

/* a = sigmoid(g) value m */
struct MaskedGate {
    AnyReal mask;
    uint32_t inner;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float m = mask[first / inner];
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = sigmoidf(x[0][j]) * x[1][j] * m;
    }
};

/* Products that are not outputs lie in scratch, behind the room for the biases. */
static size_t bias_room(const OpCall *call)
{
    size_t widest = 0;
    for (int k = 2; k < call->op->n_in; k += 2)
        if (call->in_tensor[k]) widest += align_up((size_t)call->in_tensor[k]->dim[0] * sizeof(bf16));
    return widest;
}

static size_t product_bytes(const OpCall *call, int k)
{
    return align_up((size_t)(tensor_rows(call->in_tensor[0]) * call->in_tensor[2 + 2 * k]->dim[0]) *
                    dtype_size(call->in_tensor[0]->dtype));
}

static size_t linear_gates_scratch(const OpCall *call)
{
    size_t bytes = bias_room(call);
    for (int k = 0; !call->op->attr.i[2] && k < 2 * call->op->attr.i[1]; k++) bytes += product_bytes(call, k);
    return bytes;
}

static Group group_of(const OpCall *call)
{
    int n = (int)call->op->attr.i[0], pairs = (int)call->op->attr.i[1];
    char *room = (char *)call->scratch + bias_room(call);
    Group g;
    memset(&g, 0, sizeof g);
    g.members = n;
    g.rows = tensor_rows(call->in_tensor[0]), g.inner = tensor_last(call->in_tensor[0]);
    g.x = call->in[0], g.type = call->in_tensor[0]->dtype, g.early = call_steady(call, 2, 2 * n);
    for (int k = 0; k < n; k++) {
        g.w[k] = call->in[2 + 2 * k];
        g.out[k] = call->in_tensor[2 + 2 * k]->dim[0];
        if (call_in(call, 3 + 2 * k)) g.bias[k] = (const float *)call->in[3 + 2 * k];
        if (k >= 2 * pairs) {
            g.y[k] = call->out[k - pairs];
        } else if (call->op->attr.i[2]) {
            g.y[k] = call->out[n - pairs + k];
        } else {
            g.y[k] = room;
            room += product_bytes(call, k);
        }
    }
    return g;
}

/* The kernel with the gates at the edge of the product; false where it does not fit. */
static bool gates_operands(const OpCall *call, const Group &g, GatesOperands *o)
{
    const Tensor *a = call->out_tensor[0], *mask = call->in_tensor[1];
    memset(o, 0, sizeof *o);
    if (!call->op->attr.i[3] || g.type != DT_BF16 || mask->dtype != DT_F32 || g.members > GATES_MEMBERS) return false;
    o->members = g.members, o->pairs = (int)call->op->attr.i[1], o->keep = call->op->attr.i[2] != 0;
    if (o->pairs > GATES_PAIRS) return false;
    o->inner = g.inner, o->width = g.out[0];
    o->groups = a->rank > 3 ? a->dim[0] : 1;
    o->places = a->dim[a->rank - 2] * a->dim[a->rank - 1];
    if (o->groups * o->places != g.rows) return false;
    o->x = (const bf16 *)g.x, o->w = (const bf16 *)g.w[0], o->mask = (const float *)call->in[1];
    for (int k = 0; k < g.members; k++) {
        if (g.out[k] != o->width) return false;
        if (k > 0 && (const bf16 *)g.w[k] != (const bf16 *)g.w[k - 1] + o->width * o->inner) return false;
        o->y[k] = (bf16 *)g.y[k], o->bias[k] = g.bias[k];
    }
    for (int q = 0; q < o->pairs; q++) o->a[q] = (bf16 *)call->out[q];
    return gates_fit(*o);
}

/* A pair whose places all ranks get. */
static bool linear_gates_sends(const OpCall *call)
{
    const Send *send = &call->op->send;
    GatesOperands o;
    PeerRows rows;
    if (call->op->attr.i[0] > GROUP_MAX || send->kind != OP_ALL_GATHER || send->output >= call->op->attr.i[1])
        return false;
    bool places = send->attr.i[0] == call->out_tensor[send->output]->rank - 2;
    return places && peer_send_rows(call, &rows) && gates_operands(call, group_of(call), &o);
}

static Status linear_gates(CudaContext *ctx, const OpCall *call)
{
    int n = (int)call->op->attr.i[0], pairs = (int)call->op->attr.i[1];
    if (n > GROUP_MAX) return status_fail(ERR_UNSUPPORTED, "a group of %d linear layers", n);
    if (tensor_count(call->out_tensor[0]) == 0) return OK;
    Group g = group_of(call);
    GatesOperands o;
    if (gates_operands(call, g, &o)) {
        TRY(peer_send_of(ctx, call, &o.send));
        o.sent = call->op->send.output, o.early = g.early;
        return gates_launch(o, ctx->stream);
    }
    TRY(dense_group_run(ctx, call, &g));
    for (int k = 0; k < pairs; k++) {
        const Tensor *a = call->out_tensor[k];
        GateChannels gates = {};
        for (; call->op->attr.i[3] && k + gates.count < pairs && gates.count < GATE_CHANNELS_MAX &&
               tensor_count(call->out_tensor[k + gates.count]) == tensor_count(a);
             gates.count++) {
            int at = k + gates.count;
            gates.value[gates.count] = g.y[2 * at], gates.gate[gates.count] = g.y[2 * at + 1];
            gates.a[gates.count] = call->out[at];
        }
        if (gates.count > 0) {
            TRY(gate_channels_launch(call, gates, a, any_in(call, 1), ctx->stream));
            k += gates.count - 1;
            continue;
        }
        MaskedGate f = {any_in(call, 1), (uint32_t)tensor_last(a)};
        DISPATCH_REAL(call, a->dtype, {
            MapArgs<T, 2, 1> args = {
                {(const T *)g.y[2 * k + 1], (const T *)g.y[2 * k]}, {(T *)call->out[k]}, tensor_count(a)};
            TRY(map_launch(args, tensor_last(a), f, ctx->stream));
        });
    }
    return OK;
}

const CudaEntry cuda_linear_gates[] = {
    {OP_LINEAR_GATES, linear_gates, linear_gates_scratch, linear_gates_sends},
    {OP_COUNT, NULL, NULL},
};
