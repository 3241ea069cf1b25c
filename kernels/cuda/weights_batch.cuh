/* Weight gradients of several layers in one launch: each alone has too little work for the time that it takes to fill
 * the device and to add up the runs. The rows of a problem are cut into as many runs as make all blocks of the launch
 * about equally long. */
#ifndef FOLDSCALE_KERNELS_CUDA_WEIGHTS_BATCH_CUH
#define FOLDSCALE_KERNELS_CUDA_WEIGHTS_BATCH_CUH

#include "kernels/cuda/weights_ring.cuh"

/* Problems and their scratch memory, in the order in which they came. */
struct WeightsBatch {
    WeightsProblem problem[RING_BATCH];
    void *scratch[RING_BATCH];
    int problems;
};

/* Panels that a tile reads in one go along all rows: what its time goes with. */
static inline double ring_work(const RingWeights &w)
{
    double panels_m = (double)w.first_panel[w.p.members] * w.tiles_n / w.tiles;
    double panels_n = (double)(w.p.in + PANEL - 1) / PANEL / w.tiles_n;
    return w.steps * (panels_m + panels_n);
}

static inline int ring_runs(const RingWeights &w, double longest)
{
    double runs = ceil(ring_work(w) / longest);
    int most = ring_most_runs(w);
    return runs > most ? most : runs < 1 ? 1 : (int)runs;
}

/* The length of runs at which all problems together fill the device. */
static inline double ring_longest(const RingWeights *w, int problems)
{
    double low = 0, high = 0;
    for (int k = 0; k < problems; k++) high += ring_work(w[k]) * w[k].tiles;
    for (int step = 0; step < 40; step++) {
        double middle = (low + high) / 2;
        int filled = 0;
        for (int k = 0; k < problems; k++) filled += ring_runs(w[k], middle) * w[k].tiles * w[k].lanes;
        if (filled > RING_BLOCKS)
            low = middle;
        else
            high = middle;
    }
    return high;
}

/* Long runs first, so that short ones fill the end. */
static inline void ring_sort(RingBatch *batch, void **scratch)
{
    for (int k = 1; k < batch->problems; k++)
        for (int j = k; j > 0; j--) {
            RingWeights *a = &batch->w[j - 1], *b = &batch->w[j];
            if (ring_work(*a) / a->p.runs >= ring_work(*b) / b->p.runs) break;
            RingWeights other = *a;
            void *its_scratch = scratch[j - 1];
            *a = *b, *b = other;
            scratch[j - 1] = scratch[j], scratch[j] = its_scratch;
        }
}

static Status ring_launch(RingBatch *batch, cudaStream_t stream)
{
    constexpr int BYTES =
        RingShape<2, 128>::BYTES > RingShape<1, 256>::BYTES ? RingShape<2, 128>::BYTES : RingShape<1, 256>::BYTES;
    static_assert(RingShape<1, 128>::BYTES <= BYTES && RingShape<2, 64>::BYTES <= BYTES, "the widest shapes");
    WeightsJoin join = {};
    for (int k = 0; k < batch->problems; k++) {
        RingWeights *w = &batch->w[k];
        TRY(tensor_map(w->p.x, w->p.rows, w->p.in, RING_ROWS, &w->x_map));
        for (int m = 0; m < w->p.members; m++)
            if (m != w->narrow) TRY(tensor_map(w->p.dy[m], w->p.rows, w->p.out[m], RING_ROWS, &w->dy_map[m]));
        batch->first_block[k + 1] = batch->first_block[k] + w->tiles * w->lanes * w->p.runs;
        if (w->p.runs > 1) join.p[join.problems++] = w->p;
    }
    CUDA_TRY(cudaFuncSetAttribute(ring_weights_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch_clusters(ring_weights_kernel, (unsigned)batch->first_block[batch->problems], RING_THREADS, BYTES,
                    batch->w[0].lanes, stream, *batch);
    TRY(cuda_launched("ring_weights_kernel"));
    return join.problems ? weights_join(join, stream) : OK;
}

/* scratch of a problem: ring_scratch(), enough for any number of runs. */
static Status batch_run(const WeightsBatch &list, cudaStream_t stream)
{
    RingBatch batch = {};
    void *scratch[RING_BATCH];
    batch.problems = list.problems;
    if (list.problems == 0) return OK;
    for (int k = 0; k < list.problems; k++) {
        batch.w[k] = ring_shape(list.problem[k]);
        scratch[k] = list.scratch[k];
    }
    double longest = ring_longest(batch.w, batch.problems);
    for (int k = 0; k < batch.problems; k++) batch.w[k].p.runs = ring_runs(batch.w[k], longest);
    ring_sort(&batch, scratch);
    for (int k = 0; k < batch.problems; k++) ring_split(&batch.w[k], batch.w[k].p.runs, scratch[k]);
    return ring_launch(&batch, stream);
}

#endif
