/* Linear layers: y = x W^T + b, alone and in groups that share x, perhaps with a layer norm in front. */
#include <string.h>

#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dense.h"
#include "kernels/cuda/flow_launch.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/small.cuh"
#include "kernels/cuda/stream.cuh"

/* y (+= bias) (relu), in place: for products whose shape the tiled kernel does not take. V elements a thread, of one
 * row; Index: what count fits into, as a division of 64 bits would take longer than the memory. */
template <typename T, int V, typename Index>
__global__ void __launch_bounds__(256) bias_kernel(T *y, const float *bias, Index count, uint32_t columns, bool relu)
{
    stage_wait();
    Index first = ((Index)blockIdx.x * 256 + threadIdx.x) * V;
    if (first >= count) return;
    float v[V], add[V] = {};
    load_floats<V>(y + first, v);
    if (bias) load_floats<V>(bias + first % columns, add);
#pragma unroll
    for (int j = 0; j < V; j++) {
        v[j] += add[j];
        if (relu) v[j] = fmaxf(v[j], 0.0f);
    }
    store_floats<V>(y + first, v);
}

template <typename T, int V>
static void bias_launch_packs(T *y, const float *bias, int64_t count, uint32_t columns, bool relu, cudaStream_t stream)
{
    unsigned blocks = blocks_for(count / V, 256);
    if (count < INT64_C(0xffff0000))
        launch(bias_kernel<T, V, uint32_t>, blocks, 256, 0, stream, y, bias, (uint32_t)count, columns, relu);
    else
        launch(bias_kernel<T, V, int64_t>, blocks, 256, 0, stream, y, bias, count, columns, relu);
}

static Status bias_launch(const OpCall *call, void *y, DType type, const float *bias, int64_t rows, int64_t columns,
                          bool relu, cudaStream_t stream)
{
    int64_t count = rows * columns;
    if ((!bias && !relu) || count == 0) return OK;
    DISPATCH_REAL(call, type, {
        constexpr int V = Pack<T>::N;
        if (columns % V == 0 && aligned16(y) && aligned16(bias))
            bias_launch_packs<T, V>((T *)y, bias, count, (uint32_t)columns, relu, stream);
        else
            bias_launch_packs<T, 1>((T *)y, bias, count, (uint32_t)columns, relu, stream);
    });
    return cuda_launched("bias_kernel");
}

struct BiasList {
    const float *p[GROUP_MAX];
    int count;
    int64_t width;
};

/* Biases of a batch, side by side in bf16: the type that the library's epilogue takes beside bf16 results. */
__global__ void lower_biases_kernel(BiasList list, bf16 *low)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= list.width) return;
    for (int k = 0; k < list.count; k++) low[k * list.width + e] = from_float<bf16>(list.p[k][e]);
}

static int64_t element_gap(const void *from, const void *to, DType type)
{
    return ((const char *)to - (const char *)from) / (int64_t)dtype_size(type);
}

/* How many members from `first` on are one batched product: same width, a bias each or none, equal distances of weights
 * and of outputs. */
static int group_run_length(const Group *g, int first)
{
    int length = 1;
    if (first + 1 >= g->members) return 1;
    int64_t dw = element_gap(g->w[first], g->w[first + 1], g->type);
    int64_t dy = element_gap(g->y[first], g->y[first + 1], g->type);
    if (dw % 8 != 0 || dy % 8 != 0 || dy <= 0) return 1;
    while (first + length < g->members) {
        int k = first + length;
        bool alike = g->out[k] == g->out[first] && !g->bias[k] == !g->bias[first] &&
                     element_gap(g->w[k - 1], g->w[k], g->type) == dw &&
                     element_gap(g->y[k - 1], g->y[k], g->type) == dy;
        if (!alike) break;
        length++;
    }
    return length;
}

/* Members [first, first + count): one call of the library. */
static Status group_batch(CudaContext *ctx, const OpCall *call, const Group *g, int first, int count)
{
    GemmShape s = gemm_shape(g->rows, g->out[first], g->inner, false, true, g->type, g->type);
    const void *bias = g->bias[first];
    bool edges = (bias || g->relu) && g->type == DT_BF16 && g->out[first] % 8 == 0;
    s.batch = count;
    if (count > 1) {
        s.stride_b = element_gap(g->w[first], g->w[first + 1], g->type);
        s.stride_d = element_gap(g->y[first], g->y[first + 1], g->type);
    }
    if (edges) {
        s.relu = g->relu;
        s.bias = bias != NULL;
        s.stride_bias = bias && count > 1 ? g->out[first] : 0;
    }
    if (edges && bias) {
        BiasList list = {};
        list.count = count;
        list.width = g->out[first];
        for (int k = 0; k < count; k++) list.p[k] = g->bias[first + k];
        launch(lower_biases_kernel, blocks_for(list.width, 128), 128, 0, ctx->stream, list, (bf16 *)call->scratch);
        TRY(cuda_launched("lower_biases_kernel"));
        bias = call->scratch;
    }
    TRY(gemm_run(ctx, &s, g->x, g->w[first], bias, g->y[first]));
    for (int k = first; !edges && k < first + count; k++)
        TRY(bias_launch(call, g->y[k], g->type, g->bias[k], g->rows, g->out[k], g->relu, ctx->stream));
    return OK;
}

static bool weights_adjoin(const Group *g)
{
    for (int k = 1; k < g->members; k++)
        if ((const bf16 *)g->w[k] != (const bf16 *)g->w[k - 1] + g->out[k - 1] * g->inner) return false;
    return true;
}

/* The streaming kernel: one product for all members. */
static bool group_streams(const Group *g, StreamProblem *p)
{
    memset(p, 0, sizeof *p);
    if (g->type != DT_BF16 || g->rows < 4096 || !weights_adjoin(g)) return false;
    p->x = (const bf16 *)g->x, p->w = (const bf16 *)g->w[0];
    p->rows = (int)g->rows, p->members = g->members;
    p->relu = g->relu, p->early = g->early;
    for (int k = 0; k < g->members; k++) {
        p->y[k] = (bf16 *)g->y[k];
        p->bias[k] = g->bias[k];
        p->start[k + 1] = p->start[k] + (int)g->out[k];
    }
    p->columns = p->start[g->members];
    if (g->send) p->send = *g->send, p->sent = g->sent;
    return !g->gamma && stream_fits(*p, g->inner);
}

static FrontNorm front_norm(const Group *g)
{
    FrontNorm n = {g->gamma, g->beta, g->eps, (bf16 *)g->normal, g->mean, g->rstd};
    return n;
}

/* One product for all members; the first or the last may have few columns, and be sent. */
static bool group_flows(const Group *g, FlowOperands *o)
{
    memset(o, 0, sizeof *o);
    if (g->type != DT_BF16 || g->rows < 1024 || g->members > FLOW_MEMBERS || !weights_adjoin(g)) return false;
    int from = g->members > 1 && g->out[0] <= FLOW_FEW, last = g->members - 1;
    int until = from == 0 && g->members > 1 && g->out[last] <= FLOW_FEW ? last : g->members;
    int few = from ? 0 : until < g->members ? last : -1;
    if (g->send && g->sent != few) return false;
    o->x = (const bf16 *)g->x, o->w = (const bf16 *)g->w[from];
    o->rows = g->rows, o->inner = g->inner, o->members = until - from;
    o->relu = g->relu, o->early = g->early;
    o->norm = front_norm(g);
    for (int k = from; k < until; k++) {
        o->y[k - from] = (bf16 *)g->y[k];
        o->bias[k - from] = g->bias[k];
        o->start[k - from + 1] = o->start[k - from] + (int)g->out[k];
    }
    if (few >= 0) o->few = {(const bf16 *)g->w[few], g->bias[few], (bf16 *)g->y[few], (int)g->out[few]};
    if (g->send) o->send = *g->send;
    return flow_fits(*o, g->gamma ? FLOW_NORMED : FLOW_PLAIN);
}

/* Few columns behind a layer norm: without one the library is as fast. */
static bool group_is_narrow(const Group *g, NarrowProblem *p)
{
    memset(p, 0, sizeof *p);
    bool fits = g->gamma && g->type == DT_BF16 && !g->relu && g->rows >= 4096 && g->members <= NARROW_MEMBERS &&
                weights_adjoin(g) && (!g->send || g->members == 1);
    if (!fits || g->rows > INT32_MAX) return false;
    p->x = (const bf16 *)g->x, p->w = (const bf16 *)g->w[0];
    p->rows = (int)g->rows, p->members = g->members;
    p->norm = front_norm(g);
    if (g->send) p->send = *g->send;
    for (int k = 0; k < g->members; k++) {
        p->y[k] = (bf16 *)g->y[k], p->bias[k] = g->bias[k];
        p->start[k + 1] = p->start[k] + (int)g->out[k];
    }
    return narrow_fits(*p, g->inner);
}

/* Small products in f32: all members in one launch. */
static bool group_is_small(const Group *g, SmallBatch *batch)
{
    memset(batch, 0, sizeof *batch);
    batch->early = g->early;
    if (g->type != DT_F32 || g->members > SMALL_PRODUCTS) return false;
    for (int k = 0; k < g->members; k++) {
        SmallProduct p = small_product(g->rows, g->out[k]);
        if (!small_add(&p, g->inner, g->x, g->w[k])) return false;
        p.d = (float *)g->y[k], p.bias = g->bias[k], p.relu = g->relu;
        batch->p[batch->count++] = p;
    }
    return true;
}

/* The layer norm in a kernel of its own: g then is a plain product. */
static Status front_run(CudaContext *ctx, const OpCall *call, Group *g)
{
    NormRows n = {};
    n.x = g->x, n.gamma = g->gamma, n.beta = g->beta, n.y = g->normal ? g->normal : g->room;
    n.mean = g->mean, n.rstd = g->rstd, n.eps = g->eps;
    n.rows = g->rows, n.c = g->inner, n.type = g->type;
    g->x = n.y, g->gamma = NULL, g->normal = NULL;
    return g->rows > 0 ? norm_rows_run(ctx, call, &n) : OK;
}

Status dense_group_run(CudaContext *ctx, const OpCall *call, const Group *g)
{
    StreamProblem p;
    FlowOperands o;
    NarrowProblem narrow;
    if (group_flows(g, &o)) return flow_launch(o, g->gamma ? FLOW_NORMED : FLOW_PLAIN, ctx->stream);
    if (group_is_narrow(g, &narrow)) return narrow_launch(narrow, g->inner, ctx->stream);
    if (g->send && group_streams(g, &p)) return stream_launch(p, g->inner, ctx->stream);
    if (g->send) return status_fail(ERR_INTERNAL, "%s cannot send", op_def(call->op->kind)->name);
    if (g->gamma) {
        Group plain = *g;
        TRY(front_run(ctx, call, &plain));
        return dense_group_run(ctx, call, &plain);
    }
    /* alone, the library's product is faster: 13.6 us against 18.2 for [32768, 256] x 256 on an H200 */
    if (g->members > 1 && group_streams(g, &p)) return stream_launch(p, g->inner, ctx->stream);
    SmallBatch few;
    if (group_is_small(g, &few)) return small_launch<false, true>(&few, ctx->stream);
    for (int first = 0; first < g->members;) {
        int count = group_run_length(g, first);
        TRY(group_batch(ctx, call, g, first, count));
        first += count;
    }
    return OK;
}

/* A layer norm in front: where its gamma (beta is next) and its first output are among those of an op. */
struct Front {
    int gamma, out;
};
static const Front linear_front = {3, 1}, group_front = {13, 6};

/* Bytes for what the product reads where it is no output. */
static size_t front_room(const OpCall *call, Front front)
{
    const Tensor *x = call->in_tensor[0];
    bool in_scratch = call_in(call, front.gamma) && !call->out_tensor[front.out];
    return in_scratch ? align_up((size_t)tensor_count(x) * dtype_size(x->dtype)) : 0;
}

static void front_read(const OpCall *call, Front front, void *room, Group *g)
{
    if (!call_in(call, front.gamma)) return;
    g->gamma = (const float *)call->in[front.gamma], g->beta = (const float *)call->in[front.gamma + 1];
    g->eps = (float)call->op->attr.f[0];
    if (call->out_tensor[front.out]) g->normal = call->out[front.out];
    if (call->out_tensor[front.out + 1]) g->mean = (float *)call->out[front.out + 1];
    if (call->out_tensor[front.out + 2]) g->rstd = (float *)call->out[front.out + 2];
    g->room = room;
}

/* Room for the biases in bf16. */
static size_t bias_room(const OpCall *call, int members)
{
    size_t bytes = 0;
    for (int k = 0; k < members; k++) bytes += align_up((size_t)call->in_tensor[1 + 2 * k]->dim[0] * sizeof(bf16));
    return bytes;
}

static size_t linear_scratch(const OpCall *call)
{
    return bias_room(call, 1) + front_room(call, linear_front);
}

static size_t linear_group_scratch(const OpCall *call)
{
    return bias_room(call, (int)call->op->attr.i[0]) + front_room(call, group_front);
}

static Group linear_operands(const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    Group g;
    memset(&g, 0, sizeof g);
    g.members = 1;
    g.rows = tensor_rows(x), g.inner = tensor_last(x), g.out[0] = call->in_tensor[1]->dim[0];
    g.x = call->in[0], g.w[0] = call->in[1], g.y[0] = call->out[0];
    if (call_in(call, 2)) g.bias[0] = (const float *)call->in[2];
    g.type = x->dtype;
    g.relu = call->op->attr.i[0] != 0, g.early = call_steady(call, 1, 2);
    front_read(call, linear_front, (char *)call->scratch + bias_room(call, 1), &g);
    return g;
}

static Group group_operands(const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    Group g;
    memset(&g, 0, sizeof g);
    g.members = (int)call->op->attr.i[0];
    g.rows = tensor_rows(x), g.inner = tensor_last(x);
    g.x = call->in[0];
    g.type = x->dtype, g.early = call_steady(call, 1, 2 * g.members);
    for (int k = 0; k < g.members; k++) {
        g.w[k] = call->in[1 + 2 * k];
        g.out[k] = call->in_tensor[1 + 2 * k]->dim[0];
        if (call_in(call, 2 + 2 * k)) g.bias[k] = (const float *)call->in[2 + 2 * k];
        g.y[k] = call->out[k];
    }
    front_read(call, group_front, (char *)call->scratch + bias_room(call, g.members), &g);
    return g;
}

static Status run_group(CudaContext *ctx, const OpCall *call, Group *g)
{
    PeerSend send;
    TRY(peer_send_of(ctx, call, &send));
    if (send.ranks) g->send = &send, g->sent = call->op->send.output;
    return dense_group_run(ctx, call, g);
}

static Status linear(CudaContext *ctx, const OpCall *call)
{
    Group g = linear_operands(call);
    if (call->in_tensor[1]->dtype != g.type) return cuda_bad_type(call, call->in_tensor[1]->dtype);
    return run_group(ctx, call, &g);
}

static Status linear_group(CudaContext *ctx, const OpCall *call)
{
    int64_t members = call->op->attr.i[0];
    if (members > GROUP_MAX) return status_fail(ERR_UNSUPPORTED, "a group of %d linear layers", (int)members);
    Group g = group_operands(call);
    return run_group(ctx, call, &g);
}

/* Narrow members alone, and one of several that stream. */
static bool group_sends(const OpCall *call, Group g)
{
    PeerSend send = {};
    FlowOperands o;
    NarrowProblem narrow;
    StreamProblem p;
    send.ranks = 1;
    g.send = &send, g.sent = call->op->send.output;
    return g.sent < g.members && peer_send_rows(call, &send.rows) &&
           (group_flows(&g, &o) || group_is_narrow(&g, &narrow) || (g.members > 1 && group_streams(&g, &p)));
}
static bool linear_sends(const OpCall *call)
{
    return group_sends(call, linear_operands(call));
}
static bool linear_group_sends(const OpCall *call)
{
    return call->op->attr.i[0] <= GROUP_MAX && group_sends(call, group_operands(call));
}

const CudaEntry cuda_dense[] = {
    {OP_LINEAR, linear, linear_scratch, linear_sends},
    {OP_LINEAR_GROUP, linear_group, linear_group_scratch, linear_group_sends},
    {OP_COUNT, NULL, NULL},
};
