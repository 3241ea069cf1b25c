/* Ops that move elements without changing them. */
#include "kernels/cuda/transpose.cuh"

/* Side by side in each row of the target, as a concatenation has them; all in units of U. */
struct Beside {
    int count;
    const void *source[OP_MAX_IN];
    int64_t start[OP_MAX_IN + 1];
};

/* Blocks along y: the sources. */
template <typename U> __global__ void copy_beside_kernel(const __grid_constant__ Beside b, U *target, uint32_t rows)
{
    stage_wait();
    const U *source = (const U *)b.source[blockIdx.y];
    int64_t start = b.start[blockIdx.y];
    uint32_t width = (uint32_t)(b.start[blockIdx.y + 1] - start), e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= rows * width) return;
    uint32_t row = e / width, column = e - row * width;
    target[row * b.start[b.count] + start + column] = source[e];
}

template <typename U> static Status copy_beside(Beside b, void *target, int64_t rows, cudaStream_t stream)
{
    int64_t widest = 0;
    for (int k = 0; k < b.count; k++) {
        b.start[k + 1] /= (int64_t)sizeof(U);
        if (b.start[k + 1] - b.start[k] > widest) widest = b.start[k + 1] - b.start[k];
    }
    dim3 grid(blocks_for(rows * widest, 256), (unsigned)b.count);
    launch(copy_beside_kernel<U>, grid, 256, 0, stream, b, (U *)target, (uint32_t)rows);
    return cuda_launched("copy_beside_kernel");
}

/* Copies rows: source row r of `width` units at source + r * source_pitch, and so on for the target (units of U). */
template <typename U>
__global__ void copy_rows_kernel(const U *source, U *target, uint32_t rows, uint32_t width, int64_t source_pitch,
                                 int64_t target_pitch)
{
    stage_wait();
    uint32_t e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= rows * width) return;
    uint32_t row = e / width, column = e - row * width;
    target[row * target_pitch + column] = source[row * source_pitch + column];
}

template <typename U>
static Status copy_units(const void *source, void *target, int64_t rows, int64_t width, int64_t source_pitch,
                         int64_t target_pitch, cudaStream_t stream)
{
    int64_t z = (int64_t)sizeof(U), units = width / z;
    launch(copy_rows_kernel<U>, blocks_for(rows * units, 256), 256, 0, stream, (const U *)source, (U *)target,
           (uint32_t)rows, (uint32_t)units, source_pitch / z, target_pitch / z);
    return cuda_launched("copy_rows_kernel");
}

/* All in bytes. */
static Status copy_rows_launch(const void *source, void *target, int64_t rows, int64_t width, int64_t source_pitch,
                               int64_t target_pitch, cudaStream_t stream)
{
    if (rows == 0 || width == 0) return OK;
    int64_t all = width | source_pitch | target_pitch | (int64_t)(uintptr_t)source | (int64_t)(uintptr_t)target;
    if (all % 16 == 0) return copy_units<uint4>(source, target, rows, width, source_pitch, target_pitch, stream);
    if (all % 4 == 0) return copy_units<uint32_t>(source, target, rows, width, source_pitch, target_pitch, stream);
    return copy_units<uint16_t>(source, target, rows, width, source_pitch, target_pitch, stream);
}

/* Elements before (outer) and from (inner, bytes of one index) an axis. */
static void around_axis(const Tensor *t, int axis, int64_t *outer_out, int64_t *inner_bytes_out)
{
    int64_t outer = 1, inner = (int64_t)dtype_size(t->dtype);
    for (int k = 0; k < axis; k++) outer *= t->dim[k];
    for (int k = axis + 1; k < t->rank; k++) inner *= t->dim[k];
    *outer_out = outer;
    *inner_bytes_out = inner;
}

static Status concat(CudaContext *ctx, const OpCall *call)
{
    int axis = (int)call->op->attr.i[0];
    int64_t outer, unit, at = 0, all = (int64_t)(uintptr_t)call->out[0];
    const Tensor *y = call->out_tensor[0];
    Beside b = {};
    around_axis(y, axis, &outer, &unit);
    for (; b.count < call->op->n_in; b.count++) {
        int64_t width = call->in_tensor[b.count]->dim[axis] * unit;
        at += width, all |= width | (int64_t)(uintptr_t)call->in[b.count];
        b.source[b.count] = call->in[b.count], b.start[b.count + 1] = at;
    }
    if (outer == 0 || at == 0) return OK;
    if (all % 16 == 0) return copy_beside<uint4>(b, call->out[0], outer, ctx->stream);
    if (all % 4 == 0) return copy_beside<uint32_t>(b, call->out[0], outer, ctx->stream);
    return copy_beside<uint16_t>(b, call->out[0], outer, ctx->stream);
}

static Status slice(CudaContext *ctx, const OpCall *call)
{
    int axis = (int)call->op->attr.i[0];
    int64_t outer, unit, start = call->op->attr.i[1], length = call->op->attr.i[2];
    const Tensor *x = call->in_tensor[0];
    around_axis(x, axis, &outer, &unit);
    return copy_rows_launch((const char *)call->in[0] + start * unit, call->out[0], outer, length * unit,
                            x->dim[axis] * unit, length * unit, ctx->stream);
}

static Status pad(CudaContext *ctx, const OpCall *call)
{
    int axis = (int)call->op->attr.i[0];
    int64_t outer, unit, start = call->op->attr.i[1], total = call->op->attr.i[2];
    const Tensor *x = call->in_tensor[0], *y = call->out_tensor[0];
    around_axis(x, axis, &outer, &unit);
    CUDA_TRY(cudaMemsetAsync(call->out[0], 0, (size_t)tensor_count(y) * dtype_size(y->dtype), ctx->stream));
    return copy_rows_launch(call->in[0], (char *)call->out[0] + start * unit, outer, x->dim[axis] * unit,
                            x->dim[axis] * unit, total * unit, ctx->stream);
}

static Status shard_slice(CudaContext *ctx, const OpCall *call)
{
    int axis = (int)call->op->attr.i[0];
    int64_t outer, unit;
    const Tensor *x = call->in_tensor[0];
    around_axis(x, axis, &outer, &unit);
    int64_t length = call->out_tensor[0]->dim[axis], start = length * ctx->layout->dap_rank;
    return copy_rows_launch((const char *)call->in[0] + start * unit, call->out[0], outer, length * unit,
                            x->dim[axis] * unit, length * unit, ctx->stream);
}

static Status cast(CudaContext *ctx, const OpCall *call);

/* Into a persistent place, whose type may differ. */
static Status copy(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    if (x->dtype != call->out_tensor[0]->dtype) return cast(ctx, call);
    CUDA_TRY(cudaMemcpyAsync(call->out[0], call->in[0], (size_t)tensor_count(x) * dtype_size(x->dtype),
                             cudaMemcpyDeviceToDevice, ctx->stream));
    return OK;
}

/* Four elements a thread, each type to each type. */
__global__ void cast_kernel(AnyReal x, AnyOut y, int64_t n)
{
    stage_wait();
    int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (first + j < n) v[j] = x[first + j];
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (first + j < n) y.put(first + j, v[j]);
}

/* Between the two real types, eight elements a thread. */
template <typename From, typename To> __global__ void cast_packs_kernel(const From *x, To *y, int64_t n)
{
    stage_wait();
    int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= n) return;
    float v[8];
    load_floats<8>(x + first, v);
    store_floats<8>(y + first, v);
}

template <typename From, typename To> static Status cast_packs(CudaContext *ctx, const OpCall *call, int64_t n)
{
    launch(cast_packs_kernel<From, To>, blocks_for(n / 8, 256), 256, 0, ctx->stream, (const From *)call->in[0],
           (To *)call->out[0], n);
    return cuda_launched("cast_packs_kernel");
}

static Status cast(CudaContext *ctx, const OpCall *call)
{
    int64_t n = tensor_count(call->out_tensor[0]);
    DType from = call->in_tensor[0]->dtype, to = call->out_tensor[0]->dtype;
    if (from == DT_F64 || to == DT_F64) return cuda_bad_type(call, DT_F64);
    if (n == 0) return OK;
    if (n % 8 == 0 && aligned16(call->in[0]) && aligned16(call->out[0])) {
        if (from == DT_F32 && to == DT_BF16) return cast_packs<float, bf16>(ctx, call, n);
        if (from == DT_BF16 && to == DT_F32) return cast_packs<bf16, float>(ctx, call, n);
    }
    launch(cast_kernel, blocks_for((n + 3) / 4, 256), 256, 0, ctx->stream, any_in(call, 0), any_out(call, 0), n);
    return cuda_launched("cast_kernel");
}

__global__ void fill_kernel(AnyOut y, float value, int64_t n)
{
    stage_wait();
    int64_t e = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (e < n) y.put(e, value);
}

static Status fill(CudaContext *ctx, const OpCall *call)
{
    const Tensor *y = call->out_tensor[0];
    int64_t n = tensor_count(y);
    float value = (float)call->op->attr.f[0];
    if (y->dtype == DT_F64) return cuda_bad_type(call, DT_F64);
    if (n == 0) return OK;
    if (value == 0.0f) {
        CUDA_TRY(cudaMemsetAsync(call->out[0], 0, (size_t)n * dtype_size(y->dtype), ctx->stream));
        return OK;
    }
    launch(fill_kernel, blocks_for(n, 256), 256, 0, ctx->stream, any_out(call, 0), value, n);
    return cuda_launched("fill_kernel");
}

static Status transpose(CudaContext *ctx, const OpCall *call)
{
    const Tensor *x = call->in_tensor[0];
    if (dtype_size(x->dtype) == 2)
        return transpose_launch((const uint16_t *)call->in[0], (uint16_t *)call->out[0], x, call->op->attr.i,
                                ctx->stream);
    if (dtype_size(x->dtype) == 4)
        return transpose_launch((const uint32_t *)call->in[0], (uint32_t *)call->out[0], x, call->op->attr.i,
                                ctx->stream);
    return cuda_bad_type(call, x->dtype);
}

static Status nothing(CudaContext *, const OpCall *)
{
    return OK;
}

const CudaEntry cuda_layout[] = {
    {OP_TRANSPOSE, transpose, NULL}, {OP_RESHAPE, nothing, NULL}, {OP_CONCAT, concat, NULL},
    {OP_SLICE, slice, NULL},         {OP_PAD, pad, NULL},         {OP_CAST, cast, NULL},
    {OP_COPY, copy, NULL},           {OP_FILL, fill, NULL},       {OP_SHARD_SLICE, shard_slice, NULL},
    {OP_COUNT, NULL, NULL},
};
