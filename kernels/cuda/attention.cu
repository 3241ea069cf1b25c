/* Attention: the fused ops for any shape and type (a warp per query or key); they take the kernels of
 * attention_mma_*.cu (bf16) and attention_f32.cu where the shape allows. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/peer_send.cuh"

Att att_make(const Tensor *q, const Tensor *k, const Tensor *mask, const void *mask_at, const OpAttr *attr, bool column)
{
    int off = q->rank - 3, row_axis = off + (column ? 1 : 0), seq_axis = off + (column ? 0 : 1);
    int64_t hd = tensor_last(q);
    Att a = {};
    a.g = off ? (int)q->dim[0] : 1;
    a.b = (int)q->dim[row_axis];
    a.h = (int)attr->i[0];
    a.n = (int)q->dim[seq_axis];
    a.m = (int)k->dim[seq_axis];
    a.d = (int)(hd / a.h);
    a.pitch = column ? a.b * hd : hd;
    a.q_row = column ? hd : a.n * hd;
    a.k_row = column ? hd : a.m * hd;
    a.q_group = a.b * a.n * hd;
    a.k_group = a.b * a.m * hd;
    a.mask_rank = mask ? mask->rank : 0;
    a.mask = mask ? (const float *)mask_at : NULL;
    a.scale = (float)attr->f[0];
    a.inf = (float)attr->f[1];
    return a;
}

#define IN(i)  ((const T *)call->in[i])
#define OUT(i) ((T *)call->out[i])

/* --- fused, any shape: a warp per query, then a warp per key; scores of a query in shared memory
 * ------------------------ */

enum { ATT_WARPS = 4, ATT_DOUBLES = 227 * 1024 / (ATT_WARPS * 8) /* that a warp has room for in shared memory */ };

template <typename T> __device__ __forceinline__ typename Wide<T>::Sum att_dot(const Att &a, const T *x, const T *y)
{
    typename Wide<T>::Sum sum = 0;
    for (int d = 0; d < a.d; d++) sum += (typename Wide<T>::Sum)to_float(x[d]) * to_float(y[d]);
    return sum;
}

/* What scores and weights are kept in: Real is double where products are few (att_is_few()). A mask other than one is
 * added in f32 whatever Real is: of keys that are masked 1e9 swallows the scores. */
template <typename Real, typename T>
__device__ __forceinline__ Real att_score(const Att &a, const T *q, const T *k, const float *mask, const T *bias,
                                          int group, int i, int j, int head)
{
    Real score = (Real)(a.scale * att_dot(a, q, k)), add = 0;
    if (bias) add = to_float(bias[a.bias_index(group, i, j, head)]);
    if (mask && mask[j] != 1.0f) return (float)score + a.inf * (mask[j] - 1.0f) + (float)add;
    return score + add;
}
__device__ __forceinline__ float att_exp(float x)
{
    return expf(x);
}
__device__ __forceinline__ double att_exp(double x)
{
    return exp(x);
}

struct AttWarp {
    int group, row, head, at; /* at: query or key */
};
__device__ __forceinline__ bool att_warp(const Att &a, int extent, AttWarp *w)
{
    int64_t id = (int64_t)blockIdx.x * ATT_WARPS + threadIdx.x / WARP;
    w->at = (int)(id % extent);
    int64_t block = id / extent;
    w->head = (int)(block % a.h);
    w->row = (int)(block / a.h % a.b);
    w->group = (int)(block / a.h / a.b);
    return w->group < a.g;
}

/* Maximum (to f32: it may be anything near) and sum of a row. */
template <typename T> struct AttStat {
    float peak;
    typename Wide<T>::Sum sum;
};

/* Scores of a query -> p in shared memory. */
template <typename T, typename Real>
__device__ __forceinline__ AttStat<T> att_row(const Att &a, const AttOperands<T> &x, const AttWarp &w, Real *p)
{
    int lane = threadIdx.x % WARP;
    const T *q = x.q + a.q_block(w.group, w.row, w.head) + w.at * a.pitch;
    const T *k = x.k + a.k_block(w.group, w.row, w.head);
    const float *mask = a.mask ? a.mask_row(w.group, w.row) : NULL;
    AttStat<T> stat = {-INFINITY, 0};
    for (int j = lane; j < a.m; j += WARP) {
        p[j] = att_score<Real>(a, q, k + j * a.pitch, mask, x.bias, w.group, w.at, j, w.head);
        stat.peak = fmaxf(stat.peak, (float)p[j]);
    }
    stat.peak = lanes_max<WARP>(stat.peak);
    for (int j = lane; j < a.m; j += WARP) stat.sum += p[j] = att_exp(p[j] - stat.peak);
    stat.sum = lanes_sum<WARP>(stat.sum);
    return stat;
}

template <typename T, typename Real>
__global__ void __launch_bounds__(ATT_WARPS *WARP) att_forward_kernel(Att a, AttOperands<T> x)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    extern __shared__ double rows[];
    AttWarp w;
    int lane = threadIdx.x % WARP;
    Real *p = (Real *)rows + threadIdx.x / WARP * a.m;
    if (!att_warp(a, a.n, &w)) return;
    AttStat<T> stat = att_row(a, x, w, p);
    __syncwarp();
    const T *v = x.v + a.k_block(w.group, w.row, w.head);
    int64_t at = a.q_block(w.group, w.row, w.head) + w.at * a.pitch;
    for (int d = lane; d < a.d; d += WARP) {
        Sum sum = 0;
        for (int j = 0; j < a.m; j++) sum += (Sum)p[j] * to_float(v[j * a.pitch + d]);
        T o = from_float<T>((float)(sum / stat.sum));
        if (x.o) x.o[at + d] = o;
        if (x.gate) x.y[at + d] = from_float<T>(sigmoidf(to_float(x.gate[at + d])) * to_float(o));
    }
    if (x.lse && lane == 0)
        x.lse[(((int64_t)w.group * a.b + w.row) * a.h + w.head) * a.n + w.at] = stat.peak + logf((float)stat.sum);
}

/* dq, and for each query its maximum, 1 / sum and delta = sum_j p dp for the next two kernels. p comes from the row's
 * own maximum and sum: where all keys are masked, -1e9 leaves no digits in the log-sum-exp. */
template <typename T, typename Real>
__global__ void __launch_bounds__(ATT_WARPS *WARP) att_dq_kernel(Att a, AttOperands<T> x, Real *stats)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    extern __shared__ double rows[];
    AttWarp w;
    int lane = threadIdx.x % WARP;
    Real *p = (Real *)rows + threadIdx.x / WARP * a.m;
    if (!att_warp(a, a.n, &w)) return;
    AttStat<T> stat = att_row(a, x, w, p);
    Real inverse = (Real)(1 / stat.sum);
    Sum delta = 0;
    int64_t iq = a.q_block(w.group, w.row, w.head) + w.at * a.pitch, ik = a.k_block(w.group, w.row, w.head);
    for (int j = lane; j < a.m; j += WARP) {
        delta += (Sum)p[j] * inverse * att_dot(a, x.go + iq, x.v + ik + j * a.pitch);
    }
    delta = lanes_sum<WARP>(delta);
    for (int j = lane; j < a.m; j += WARP) {
        p[j] = (Real)(p[j] * inverse * (att_dot(a, x.go + iq, x.v + ik + j * a.pitch) - delta));
    }
    __syncwarp();
    for (int d = lane; d < a.d; d += WARP) {
        Sum sum = 0;
        for (int j = 0; j < a.m; j++) sum += (Sum)p[j] * to_float(x.k[ik + j * a.pitch + d]);
        x.dq[iq + d] = from_float<T>((float)(a.scale * sum));
    }
    if (lane == 0) {
        Real *out = stats + ((((int64_t)w.group * a.b + w.row) * a.h + w.head) * a.n + w.at) * 3;
        out[0] = stat.peak, out[1] = inverse, out[2] = (Real)delta;
    }
}

/* p and ds of one (query, key) from the stored statistics */
template <typename Real> struct AttPair {
    Real p, ds;
};
template <typename T, typename Real>
__device__ __forceinline__ AttPair<Real> att_pair(const Att &a, const AttOperands<T> &x, const Real *stats,
                                                  const float *mask, int group, int row, int head, int i, int j)
{
    int64_t iq = a.q_block(group, row, head) + i * a.pitch, ik = a.k_block(group, row, head) + j * a.pitch;
    const Real *stat = stats + ((((int64_t)group * a.b + row) * a.h + head) * a.n + i) * 3;
    Real score = att_score<Real>(a, x.q + iq, x.k + ik, mask, x.bias, group, i, j, head);
    Real p = att_exp(score - stat[0]) * stat[1];
    return {p, (Real)(p * (att_dot(a, x.go + iq, x.v + ik) - stat[2]))};
}

template <typename T, typename Real>
__global__ void __launch_bounds__(ATT_WARPS *WARP) att_dkv_kernel(Att a, AttOperands<T> x, const Real *stats)
{
    stage_wait();
    typedef typename Wide<T>::Sum Sum;
    extern __shared__ double rows[];
    AttWarp w;
    int lane = threadIdx.x % WARP;
    Real *p = (Real *)rows + threadIdx.x / WARP * 2 * a.n, *ds = p + a.n;
    if (!att_warp(a, a.m, &w)) return;
    const float *mask = a.mask ? a.mask_row(w.group, w.row) : NULL;
    int64_t iq = a.q_block(w.group, w.row, w.head), ik = a.k_block(w.group, w.row, w.head) + w.at * a.pitch;
    for (int i = lane; i < a.n; i += WARP) {
        AttPair<Real> pair = att_pair(a, x, stats, mask, w.group, w.row, w.head, i, w.at);
        p[i] = pair.p, ds[i] = pair.ds;
    }
    __syncwarp();
    for (int d = lane; d < a.d; d += WARP) {
        Sum dv = 0, dk = 0;
        for (int i = 0; i < a.n; i++) {
            dv += (Sum)p[i] * to_float(x.go[iq + i * a.pitch + d]);
            dk += (Sum)ds[i] * to_float(x.q[iq + i * a.pitch + d]);
        }
        x.dv[ik + d] = from_float<T>((float)dv);
        x.dk[ik + d] = from_float<T>((float)(a.scale * dk));
    }
}

template <typename T, typename Real>
__global__ void att_dbias_kernel(Att a, AttOperands<T> x, const Real *stats, uint32_t count)
{
    stage_wait();
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= count) return;
    uint32_t j = e % a.m, rest = e / a.m, i = rest % a.n, head = rest / a.n % a.h, group = rest / a.n / a.h;
    typename Wide<T>::Sum sum = 0;
    for (int row = 0; row < a.b; row++) {
        const float *mask = a.mask ? a.mask_row(group, row) : NULL;
        sum += att_pair(a, x, stats, mask, group, row, head, i, j).ds;
    }
    x.dbias[a.bias_index(group, i, j, head)] = from_float<T>((float)sum);
}

static unsigned att_blocks(const Att &a, int extent)
{
    return blocks_for((int64_t)a.g * a.b * a.h * extent, ATT_WARPS);
}

template <typename Real, typename T>
static Status att_forward_in(const Att &a, const AttOperands<T> &x, cudaStream_t stream)
{
    auto *kernel = att_forward_kernel<T, Real>;
    size_t shared = (size_t)ATT_WARPS * a.m * sizeof(Real);
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    launch(kernel, att_blocks(a, a.n), ATT_WARPS * WARP, shared, stream, a, x);
    return cuda_launched("att_forward_kernel");
}

template <typename T> static Status att_any_forward(const Att &a, const AttOperands<T> &x, cudaStream_t stream)
{
    if (att_few_fits(a, x.bias != NULL)) return att_few_forward_launch(a, x, stream);
    if (att_is_few(a) && a.m <= ATT_DOUBLES) return att_forward_in<typename Wide<T>::Sum>(a, x, stream);
    return att_forward_in<float>(a, x, stream);
}

template <typename Real, typename T>
static Status att_backward_in(const Att &a, const AttOperands<T> &x, void *scratch, cudaStream_t stream)
{
    auto *dq = att_dq_kernel<T, Real>;
    auto *dkv = att_dkv_kernel<T, Real>;
    Real *stats = (Real *)scratch;
    size_t of_m = (size_t)ATT_WARPS * a.m * sizeof(Real), of_n = (size_t)ATT_WARPS * 2 * a.n * sizeof(Real);
    CUDA_TRY(cudaFuncSetAttribute(dq, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)of_m));
    CUDA_TRY(cudaFuncSetAttribute(dkv, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)of_n));
    launch(dq, att_blocks(a, a.n), ATT_WARPS * WARP, of_m, stream, a, x, stats);
    TRY(cuda_launched("att_dq_kernel"));
    launch(dkv, att_blocks(a, a.m), ATT_WARPS * WARP, of_n, stream, a, x, (const Real *)stats);
    TRY(cuda_launched("att_dkv_kernel"));
    if (!x.dbias) return OK;
    uint32_t count = (uint32_t)a.g * a.h * a.n * a.m;
    launch(att_dbias_kernel<T, Real>, blocks_for(count, 256), 256, 0, stream, a, x, (const Real *)stats, count);
    return cuda_launched("att_dbias_kernel");
}

/* scratch: maximum, 1 / sum and delta of every query */
static size_t att_any_backward_scratch(const Att &a)
{
    return (size_t)a.g * a.b * a.h * a.n * 3 * (att_is_few(a) ? sizeof(double) : sizeof(float));
}

template <typename T>
static Status att_any_backward(const Att &a, const AttOperands<T> &x, void *scratch, cudaStream_t stream)
{
    bool room = a.m <= ATT_DOUBLES && 2 * a.n <= ATT_DOUBLES;
    if (att_is_few(a) && room) return att_backward_in<typename Wide<T>::Sum>(a, x, scratch, stream);
    return att_backward_in<float>(a, x, scratch, stream);
}

/* --- the fused ops
 * ------------------------------------------------------------------------------------------------------- */

static Att forward_shape(const OpCall *call)
{
    const Tensor *mask = call_in(call, 3);
    Att a = att_make(call->in_tensor[0], call->in_tensor[1], mask, mask ? call->in[3] : NULL, &call->op->attr,
                     call->op->attr.i[1] != 0);
    a.bias_t = call->op->attr.i[2] != 0;
    return a;
}
static Att backward_shape(const OpCall *call)
{
    const Tensor *mask = call_in(call, 4);
    Att a = att_make(call->in_tensor[1], call->in_tensor[2], mask, mask ? call->in[4] : NULL, &call->op->attr,
                     call->op->attr.i[1] != 0);
    a.bias_t = call->op->attr.i[2] != 0;
    return a;
}

template <typename T> static AttOperands<T> forward_operands(const OpCall *call)
{
    AttOperands<T> x = {};
    x.q = IN(0), x.k = IN(1), x.v = IN(2);
    if (call_in(call, 4)) x.bias = IN(4);
    if (call_in(call, 5)) x.gate = IN(5), x.y = OUT(0);
    x.o = x.gate ? OUT(2) : OUT(0);
    x.lse = (float *)call->out[1];
    if (call->out_tensor[3]) x.again = OUT(3);
    return x;
}
template <typename T> static AttOperands<T> backward_operands(const OpCall *call)
{
    AttOperands<T> x = {};
    x.go = IN(0), x.q = IN(1), x.k = IN(2), x.v = IN(3);
    x.o_in = IN(6);
    x.lse_in = (const float *)call->in[7];
    if (call_in(call, 8)) x.delta = (const float *)call->in[8];
    x.dq = OUT(0), x.dk = OUT(1), x.dv = OUT(2);
    if (call_in(call, 5)) x.bias = IN(5), x.dbias = OUT(3);
    return x;
}

static bool takes_mma(const Att &a, DType type, bool bias)
{
    return type == DT_BF16 && att_mma_fits(a, bias);
}

static bool takes_f32(const Att &a, DType type)
{
    return type == DT_F32 && att_f32_fits(a);
}

static Status attention_here(CudaContext *ctx, const OpCall *call)
{
    Att a = forward_shape(call);
    DType type = call->in_tensor[0]->dtype;
    if (takes_mma(a, type, call_in(call, 4)))
        return att_mma_forward_launch(a, forward_operands<bf16>(call), PeerSend{}, call->scratch, ctx->stream);
    if (takes_f32(a, type)) return att_f32_forward_launch(a, forward_operands<float>(call), call->scratch, ctx->stream);
    DISPATCH_REAL(call, type, { return att_any_forward(a, forward_operands<T>(call), ctx->stream); });
}

static Status attention(CudaContext *ctx, const OpCall *call)
{
    PeerSend send;
    TRY(peer_send_of(ctx, call, &send));
    if (send.ranks > 0) {
        AttOperands<bf16> x = forward_operands<bf16>(call);
        return att_mma_forward_launch(forward_shape(call), x, send, call->scratch, ctx->stream);
    }
    TRY(attention_here(ctx, call));
    if (!call->out_tensor[3]) return OK;
    return cuda_check(cudaMemcpyAsync(call->out[3], call->out[0], tensor_bytes(call->out_tensor[0]),
                                      cudaMemcpyDeviceToDevice, ctx->stream),
                      "result of an attention, again");
}

/* The result of rows that attend along the axis behind theirs, the queries shared out. */
static bool attention_sends(const OpCall *call)
{
    const Send *send = &call->op->send;
    Att a = forward_shape(call);
    PeerRows rows;
    bool queries = send->output == 0 && send->kind == OP_ALL_TO_ALL && call->op->attr.i[1] == 0 &&
                   send->attr.i[1] == call->out_tensor[0]->rank - 2;
    return queries && takes_mma(a, call->in_tensor[0]->dtype, call_in(call, 4)) && peer_send_rows(call, &rows) &&
           att_mma_sends(a, forward_operands<bf16>(call), rows);
}

static size_t attention_scratch(const OpCall *call)
{
    Att a = forward_shape(call);
    DType type = call->in_tensor[0]->dtype;
    bool bias = call_in(call, 4) != NULL;
    return takes_mma(a, type, bias) ? att_mma_forward_scratch(a, bias)
           : takes_f32(a, type)     ? att_f32_forward_scratch(a, bias)
                                    : 0;
}

static Status attention_bwd(CudaContext *ctx, const OpCall *call)
{
    Att a = backward_shape(call);
    DType type = call->in_tensor[1]->dtype;
    if (takes_mma(a, type, call_in(call, 5)))
        return att_mma_backward_launch(ctx, call, a, backward_operands<bf16>(call));
    if (takes_f32(a, type))
        return att_f32_backward_launch(a, backward_operands<float>(call), call->scratch, ctx->stream);
    DISPATCH_REAL(call, type, {
        AttOperands<T> x = backward_operands<T>(call);
        if (att_few_fits(a, x.bias != NULL)) return att_few_backward_launch(a, x, ctx->stream);
        return att_any_backward(a, x, call->scratch, ctx->stream);
    });
}

static bool attention_bwd_sends(const OpCall *call)
{
    Att a = backward_shape(call);
    return takes_mma(a, call->in_tensor[1]->dtype, call_in(call, 5)) && att_wgmma_sends(a, call);
}

static size_t attention_bwd_scratch(const OpCall *call)
{
    Att a = backward_shape(call);
    DType type = call->in_tensor[1]->dtype;
    bool bias = call_in(call, 5) != NULL;
    if (takes_mma(a, type, bias)) return att_mma_backward_scratch(a, bias, call_in(call, 8) != NULL);
    if (takes_f32(a, type)) return att_f32_backward_scratch(a, bias);
    return att_any_backward_scratch(a);
}

const CudaEntry cuda_attention[] = {
    {OP_ATTENTION, attention, attention_scratch, attention_sends},
    {OP_ATTENTION_BWD, attention_bwd, attention_bwd_scratch, attention_bwd_sends},
    {OP_COUNT, NULL, NULL},
};
