/* Elementwise ops and their sums. */
#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/map.cuh"
#include "kernels/cuda/peer_send.cuh"
#include "kernels/cuda/pointwise.h"
#include "kernels/cuda/reduce.cuh"

struct Relu {
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = fmaxf(x[0][j], 0.0f);
    }
};

/* dy where y > 0 */
struct ReluBwd {
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[1][j] > 0 ? x[0][j] : 0.0f;
    }
};

struct AddSame {
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] + x[1][j];
    }
};

template <typename T> struct AddLeading {
    const T *b;
    uint32_t period;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float other[V];
        load_floats<V>(b + first % period, other);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = x[0][j] + other[j];
    }
};

struct Scale {
    float factor;
    template <int V> __device__ void apply(uint32_t, float (*x)[V], float (*y)[V]) const
    {
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = factor * x[0][j];
    }
};

/* y = sigmoid(g) x m */
struct GateOp {
    AnyReal mask;
    uint32_t inner;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float m = mask.p ? mask[first / inner] : 1.0f;
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = sigmoidf(x[0][j]) * x[1][j] * m;
    }
};

/* dy, g, x -> dg = dy m x s (1 - s), dx = dy m s */
struct GateBwd {
    AnyReal mask;
    uint32_t inner;
    template <int V> __device__ void apply(uint32_t first, float (*x)[V], float (*y)[V]) const
    {
        float m = mask.p ? mask[first / inner] : 1.0f;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float s = sigmoidf(x[1][j]), dy = x[0][j] * m;
            y[0][j] = dy * x[2][j] * s * (1.0f - s);
            y[1][j] = dy * s;
        }
    }
};

/* y[s, r, c] = sigmoid(g[s, r, c]) x[r, c] */
template <typename T> struct GateRows {
    const T *x;
    uint32_t period;
    template <int V> __device__ void apply(uint32_t first, float (*g)[V], float (*y)[V]) const
    {
        float v[V];
        load_floats<V>(x + first % period, v);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = sigmoidf(g[0][j]) * v[j];
    }
};

template <typename T> struct OuterAdd {
    const T *a, *b;
    uint32_t m, c;
    template <int V> __device__ void apply(uint32_t first, float (*)[V], float (*y)[V]) const
    {
        uint32_t channel = first % c, row = first / c;
        float u[V], v[V];
        load_floats<V>(a + (row / m * c + channel), u);
        load_floats<V>(b + (row % m * c + channel), v);
#pragma unroll
        for (int j = 0; j < V; j++) y[0][j] = u[j] + v[j];
    }
};

#define IN(i)  ((const T *)call->in[i])
#define OUT(i) ((T *)call->out[i])

static Status relu(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 1, 1> a = {{IN(0)}, {OUT(0)}, n};
        return map_launch(a, n, Relu(), ctx->stream);
    });
}

static Status relu_bwd(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 2, 1> a = {{IN(0), IN(1)}, {OUT(0)}, n};
        return map_launch(a, n, ReluBwd(), ctx->stream);
    });
}

template <typename T> struct Terms {
    int count;
    const T *p[OP_MAX_IN];
};
/* V elements a thread */
template <typename T, int V> __global__ void add_terms_kernel(const __grid_constant__ Terms<T> terms, T *y, int64_t n)
{
    stage_wait();
    int64_t e = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (e >= n) return;
    float sum[V], x[V];
    load_floats<V>(terms.p[0] + e, sum);
    for (int k = 1; k < terms.count; k++) {
        load_floats<V>(terms.p[k] + e, x);
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] += x[j];
    }
    store_floats<V>(y + e, sum);
}

template <typename T> static Status add_terms(CudaContext *ctx, const OpCall *call, int64_t n)
{
    constexpr int V = Pack<T>::N;
    Terms<T> terms = {};
    bool packs = n % V == 0 && aligned16(call->out[0]);
    for (terms.count = 0; terms.count < call->op->n_in; terms.count++) {
        terms.p[terms.count] = (const T *)call->in[terms.count];
        packs = packs && aligned16(call->in[terms.count]);
    }
    auto *kernel = packs ? add_terms_kernel<T, V> : add_terms_kernel<T, 1>;
    launch(kernel, blocks_for(packs ? n / V : n, 256), 256, 0, ctx->stream, terms, (T *)call->out[0], n);
    return cuda_launched("add_terms_kernel");
}

static Status add(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]), period = tensor_count(call->in_tensor[1]);
    if (call->in_tensor[0]->dtype != call->in_tensor[1]->dtype) return cuda_bad_type(call, call->in_tensor[1]->dtype);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        if (call->op->n_in > 2) return n ? add_terms<T>(ctx, call, n) : OK;
        if (period == n) {
            MapArgs<T, 2, 1> a = {{IN(0), IN(1)}, {OUT(0)}, n};
            return map_launch(a, n, AddSame(), ctx->stream);
        }
        MapArgs<T, 1, 1> a = {{IN(0)}, {OUT(0)}, n};
        AddLeading<T> f = {IN(1), (uint32_t)period};
        return map_launch(a, aligned16(IN(1)) ? period : 1, f, ctx->stream);
    });
}

static Status scale(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    Scale f = {(float)call->op->attr.f[0]};
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 1, 1> a = {{IN(0)}, {OUT(0)}, n};
        return map_launch(a, n, f, ctx->stream);
    });
}

/* Rows of `columns` elements to where the op's collective takes them. */
static __global__ void __launch_bounds__(256)
    mask_mul_send_kernel(const bf16 *x, MaskMul f, uint32_t packs, uint32_t columns,
                         const __grid_constant__ PeerSend send)
{
    constexpr int V = Pack<bf16>::N;
    stage_wait();
    peer_send_begin(send);
    PeerSender sender(send);
    uint32_t pack = blockIdx.x * 256 + threadIdx.x, first = pack * V;
    if (pack < packs) {
        float in[1][V], out[1][V];
        Pack<bf16> y;
        load_floats<V>(x + first, in[0]);
        f.apply<V>(first, in, out);
#pragma unroll
        for (int j = 0; j < V; j++) y.v[j] = from_float<bf16>(out[0][j]);
        peer_put<bf16>(&sender, first / columns, columns, first % columns, y);
    }
    peer_finish_all(send);
}

static bool mask_mul_sends(const OpCall *call)
{
    const Tensor *y = call->out_tensor[0];
    PeerRows rows;
    if (!peer_send_rows(call, &rows) || tensor_count(y) > UINT32_MAX) return false;
    int64_t inner = tensor_count(y) / tensor_count(call->in_tensor[1]);
    bool packs = y->dtype == DT_BF16 && tensor_last(y) % 8 == 0 && inner % 8 == 0 && aligned16(call->in[0]);
    return packs && call->op->send.kind != OP_REDUCE_SCATTER;
}

static Status mask_mul(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]), inner = n / tensor_count(call->in_tensor[1]);
    MaskMul f = {any_in(call, 1), (uint32_t)inner};
    PeerSend send;
    TRY(peer_send_of(ctx, call, &send));
    if (send.ranks > 0) {
        launch(mask_mul_send_kernel, blocks_for(n / 8, 256), 256, 0, ctx->stream, (const bf16 *)call->in[0], f,
               (uint32_t)(n / 8), (uint32_t)tensor_last(call->out_tensor[0]), send);
        return cuda_launched("mask_mul_send_kernel");
    }
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 1, 1> a = {{IN(0)}, {OUT(0)}, n};
        return map_launch(a, inner, f, ctx->stream);
    });
}

static Status gate(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    const Tensor *mask = call_in(call, 2);
    int64_t inner = mask ? n / tensor_count(mask) : n;
    GateOp f = {any_in(call, 2), (uint32_t)inner};
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 2, 1> a = {{IN(0), IN(1)}, {OUT(0)}, n};
        return map_launch(a, inner, f, ctx->stream);
    });
}

Status gate_bwd_run(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    const Tensor *mask = call_in(call, 3);
    int64_t inner = mask ? n / tensor_count(mask) : n;
    GateBwd f = {any_in(call, 3), (uint32_t)inner};
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 3, 2> a = {{IN(0), IN(1), IN(2)}, {OUT(0), OUT(1)}, n};
        return map_launch(a, inner, f, ctx->stream);
    });
}

static Status gate_rows(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]), period = tensor_count(call->in_tensor[1]);
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        MapArgs<T, 1, 1> a = {{IN(0)}, {OUT(0)}, n};
        GateRows<T> f = {IN(1), (uint32_t)period};
        return map_launch(a, aligned16(IN(1)) ? period : 1, f, ctx->stream);
    });
}

enum { GATE_ROWS_RUNS = 32 };

/* dg = dy x s (1 - s); dx = sum over rows of dy s: runs of rows first (grid y), joined in order. */
template <typename T>
__global__ void __launch_bounds__(128)
    gate_rows_bwd_kernel(const T *dy, const T *g, const T *x, T *dg, float *partial, int64_t rows, int64_t period)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * 128 + threadIdx.x;
    if (e >= period) return;
    int64_t run = (rows + gridDim.y - 1) / gridDim.y, from = run * blockIdx.y,
            to = from + run < rows ? from + run : rows;
    float v = to_float(x[e]), sum = 0;
#pragma unroll 4
    for (int64_t s = from; s < to; s++) {
        float gate = sigmoidf(to_float(g[s * period + e])), d = to_float(dy[s * period + e]);
        dg[s * period + e] = from_float<T>(d * v * gate * (1.0f - gate));
        sum += d * gate;
    }
    partial[blockIdx.y * period + e] = sum;
}

static Status gate_rows_bwd(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->in_tensor[0]), period = tensor_count(call->in_tensor[2]), rows = n / period;
    int64_t most = GATE_ROWS_RUNS, runs = rows < most ? rows : most;
    float *partial = (float *)call->scratch;
    if (n == 0) return OK;
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        dim3 grid(blocks_for(period, 128), (unsigned)runs);
        launch(gate_rows_bwd_kernel<T>, grid, 128, 0, ctx->stream, IN(0), IN(1), IN(2), OUT(0), partial, rows, period);
        TRY(cuda_launched("gate_rows_bwd_kernel"));
        return sum_middle_launch(partial, OUT(1), 1, runs, period, ctx->stream);
    });
}

static size_t gate_rows_bwd_scratch(const OpCall *call)
{
    return (size_t)GATE_ROWS_RUNS * (size_t)tensor_count(call->in_tensor[2]) * sizeof(float);
}

static Status outer_add(CudaContext *ctx, const OpCall *call)
{
    const Tensor *y = call->out_tensor[0];
    int64_t n = tensor_count(y), c = tensor_last(y);
    DISPATCH_REAL(call, y->dtype, {
        MapArgs<T, 0, 1> a = {{NULL}, {OUT(0)}, n};
        OuterAdd<T> f = {IN(0), IN(1), (uint32_t)y->dim[1], (uint32_t)c};
        return map_launch(a, aligned16(IN(0)) && aligned16(IN(1)) ? c : 1, f, ctx->stream);
    });
}

/* dy[N, M, C] -> da[N, C] (sum over M), db[M, C] (sum over N). */
static Status outer_add_bwd(CudaContext *ctx, const OpCall *call)
{
    const Tensor *dy = call->in_tensor[0];
    int64_t n = dy->dim[0], m = dy->dim[1], c = dy->dim[2];
    DISPATCH_REAL(call, dy->dtype, {
        TRY(sum_middle_launch(IN(0), OUT(0), n, m, c, ctx->stream));
        TRY(sum_middle_launch(IN(0), OUT(1), 1, n, m * c, ctx->stream));
    });
    return OK;
}

static Status sum_leading(CudaContext *ctx, const OpCall *call)
{
    int64_t inner = tensor_count(call->out_tensor[0]), rows = tensor_count(call->in_tensor[0]) / inner;
    DISPATCH_REAL(call, call->in_tensor[0]->dtype, {
        if (call->out_tensor[0]->dtype == DT_F32 && rows < 64)
            return sum_middle_launch(IN(0), (float *)call->out[0], 1, rows, inner, ctx->stream);
        if (call->out_tensor[0]->dtype == DT_F32)
            return sum_rows_launch(IN(0), (float *)call->out[0], rows, inner, call->scratch, ctx->stream);
        return sum_middle_launch(IN(0), OUT(0), 1, rows, inner, ctx->stream);
    });
}

static size_t sum_leading_scratch(const OpCall *call)
{
    return sum_rows_scratch(tensor_count(call->out_tensor[0]));
}

/* Dropout whose mask is shared along an axis: a thread draws the factors of eight elements once for a few places on
 * that axis. x is [outer, shared, vectors of 8]. */
enum { DROPOUT_PLACES = 8 };

template <typename T>
__global__ void __launch_bounds__(256)
    dropout_shared_kernel(const T *x, T *y, Dropout d, uint32_t vectors, uint32_t shared, uint32_t threads)
{
    stage_wait();
    uint32_t id = blockIdx.x * blockDim.x + threadIdx.x, chunks = (shared + DROPOUT_PLACES - 1) / DROPOUT_PLACES;
    if (id >= threads) return;
    uint32_t vector = id % vectors, chunk = id / vectors % chunks, outer = id / vectors / chunks;
    uint32_t place = chunk * DROPOUT_PLACES, first = ((outer * shared + place) * vectors + vector) * 8;
    float f[8];
    d.factors<8>(first, f);
#pragma unroll
    for (int k = 0; k < DROPOUT_PLACES; k++) {
        if (place + k >= shared) break;
        float v[8];
        load_floats<8>(x + first + k * vectors * 8, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= f[j];
        store_floats<8>(y + first + k * vectors * 8, v);
    }
}

template <typename T>
static Status dropout_launch(const T *x, T *y, const Dropout &d, int shared, int64_t count, cudaStream_t stream)
{
    if (shared < 0 || d.inner % 8 != 0 || !aligned16(x) || !aligned16(y) || count >= INT64_C(0xffff0000)) {
        MapArgs<T, 1, 1> a = {{x}, {y}, count};
        return map_launch(a, d.inner, PlainDropout{d}, stream);
    }
    int64_t vectors = 1, chunks = (d.local[shared] + DROPOUT_PLACES - 1) / DROPOUT_PLACES;
    for (int k = shared + 1; k < d.rank; k++) vectors *= d.local[k];
    vectors /= 8;
    int64_t threads = count / (d.local[shared] * 8) * chunks;
    if (threads == 0) return OK;
    launch(dropout_shared_kernel<T>, blocks_for(threads, 256), 256, 0, stream, x, y, d, (uint32_t)vectors,
           d.local[shared], (uint32_t)threads);
    return cuda_launched("dropout_shared_kernel");
}

Status dropout_run(CudaContext *ctx, const OpCall *call)
{
    bool residual = call->op->kind == OP_RESIDUAL_DROPOUT;
    const Tensor *x = call->in_tensor[0];
    int64_t n = tensor_count(x);
    Dropout f;
    dropout_make(ctx->layout, x, call->op->attr.i[0], (int)call->op->attr.i[1], call->op->attr.f[0],
                 (const int32_t *)call->in[residual ? 2 : 1], &f);
    DISPATCH_REAL(call, x->dtype, {
        if (residual) {
            MapArgs<T, 2, 1> a = {{IN(0), IN(1)}, {OUT(0)}, n};
            return map_launch(a, f.inner, ResidualDropout{f}, ctx->stream);
        }
        return dropout_launch(IN(0), OUT(0), f, (int)call->op->attr.i[1], n, ctx->stream);
    });
}

const CudaEntry cuda_pointwise[] = {
    {OP_RELU, relu, NULL},
    {OP_RELU_BWD, relu_bwd, NULL},
    {OP_ADD, add, NULL},
    {OP_SUM_LEADING, sum_leading, sum_leading_scratch},
    {OP_OUTER_ADD, outer_add, NULL},
    {OP_OUTER_ADD_BWD, outer_add_bwd, NULL},
    {OP_SCALE, scale, NULL},
    {OP_MASK_MUL, mask_mul, NULL, mask_mul_sends},
    {OP_GATE, gate, NULL},
    {OP_GATE_BWD, gate_bwd_run, NULL},
    {OP_GATE_ROWS, gate_rows, NULL},
    {OP_GATE_ROWS_BWD, gate_rows_bwd, gate_rows_bwd_scratch},
    {OP_DROPOUT, dropout_run, NULL},
    {OP_RESIDUAL_DROPOUT, dropout_run, NULL},
    {OP_COUNT, NULL, NULL},
};
