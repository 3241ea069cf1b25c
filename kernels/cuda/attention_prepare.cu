/* What the backward kernels of fused attention in bf16 read besides the operands (att_mma.cuh, AttPrepared). */
#include "kernels/cuda/att_mma.cuh"

static int64_t mask_rows(const Att &a)
{
    return a.mask_rank < 2 ? 1 : a.mask_rank == 2 ? a.b : (int64_t)a.g * a.b;
}

AttPreparedPlan att_prepared_plan(const Att &a, bool rows, bool columns)
{
    AttPreparedPlan p = {};
    size_t heads = (size_t)a.g * a.h;
    p.any_at = p.add_at + align_up((size_t)mask_rows(a) * att_padded(a.m) * 4);
    p.rows_at = p.any_at + align_up((size_t)mask_rows(a) * 4);
    p.columns_at = p.rows_at + (rows ? align_up(heads * a.n * att_padded(a.m) * 2) : 0);
    p.bytes = p.columns_at + (columns ? align_up(heads * a.m * att_padded(a.n) * 2) : 0);
    return p;
}

__device__ void prepare_mask(const Att &a, const AttPrepared &out, int64_t row, int padded)
{
    const float *mask = a.mask ? a.mask + row * a.m : NULL;
    int any = 0;
    for (int j = threadIdx.x; j < a.m; j += blockDim.x) any |= !mask || mask[j] > 0.0f;
    any = __syncthreads_or(any);
    for (int j = threadIdx.x; j < padded; j += blockDim.x)
        out.add[row * padded + j] = j >= a.m ? ATT_PAD : mask && any ? a.inf * (mask[j] - 1.0f) / a.scale : 0.0f;
    if (threadIdx.x == 0) out.any[row] = any != 0;
}

/* Row `row` of all heads: columns j < extent, zeros up to `padded`. */
__device__ void prepare_bias(const Att &a, const bf16 *bias, bf16 *out, int64_t id, int rows, int extent, int padded,
                             bool swapped)
{
    int group = (int)(id / rows), row = (int)(id % rows);
    for (int column = threadIdx.x; column < padded; column += blockDim.x) {
        bool live = column < extent;
        int i = swapped ? column : row, j = swapped ? row : column;
        const bf16 *p = bias + a.bias_index(group, live ? i : 0, live ? j : 0, 0);
        for (int head = 0; head < a.h; head++)
            out[(((int64_t)group * a.h + head) * rows + row) * padded + column] =
                live ? p[head] : from_float<bf16>(0.0f);
    }
}

/* Blocks: rows of the mask, then rows of the bias by query, then by key. */
__global__ void __launch_bounds__(128)
    att_prepare_kernel(Att a, const bf16 *bias, AttPrepared out, int64_t masks, int mp, int np)
{
    stage_wait();
    int64_t id = blockIdx.x, by_query = out.rows ? (int64_t)a.g * a.n : 0;
    if (id < masks)
        prepare_mask(a, out, id, mp);
    else if (id < masks + by_query)
        prepare_bias(a, bias, out.rows, id - masks, a.n, a.m, mp, false);
    else
        prepare_bias(a, bias, out.columns, id - masks - by_query, a.m, a.n, np, true);
}

Status att_prepare_launch(const Att &a, const bf16 *bias, const AttPreparedPlan &plan, char *scratch, bool columns,
                          AttPrepared *out, cudaStream_t stream)
{
    AttPrepared p = {};
    int64_t blocks = mask_rows(a);
    p.add = (float *)(scratch + plan.add_at);
    p.any = (int *)(scratch + plan.any_at);
    if (bias) p.rows = (bf16 *)(scratch + plan.rows_at), blocks += (int64_t)a.g * a.n;
    if (bias && columns) p.columns = (bf16 *)(scratch + plan.columns_at), blocks += (int64_t)a.g * a.m;
    launch(att_prepare_kernel, (unsigned)blocks, 128, 0, stream, a, bias, p, mask_rows(a), att_padded(a.m),
           att_padded(a.n));
    *out = p;
    return cuda_launched("att_prepare_kernel");
}
