/* What callers of flow.cuh say, whether its kernels fit, and their launch. */
#ifndef FOLDSCALE_KERNELS_CUDA_FLOW_LAUNCH_CUH
#define FOLDSCALE_KERNELS_CUDA_FLOW_LAUNCH_CUH

#include "kernels/cuda/flow.cuh"

/* Members side by side in w; r, g, product and drop as the edge wants them. */
struct FlowOperands {
    const bf16 *x, *w, *r, *g;
    bf16 *y[FLOW_MEMBERS], *product;
    const float *bias[FLOW_MEMBERS];
    int64_t rows, inner;
    int members, start[FLOW_MEMBERS + 1];
    bool relu, early; /* early: w and bias are steady (OpCall) */
    Dropout drop;
    FrontNorm norm; /* as the edge wants it */
    FlowFew few;
    PeerSend send;
};

/* Rows of a tile that go to a rank together; tensor copies leave from multiples of 8. */
static inline int flow_box(const PeerRows &rows)
{
    int box = FLOW_ROWS;
    while (rows.run % (uint32_t)box) box /= 2;
    return box;
}

static inline bool flow_can_send(const PeerRows &rows)
{
    return !rows.to_all && flow_box(rows) >= 8;
}

static inline bool flow_fits(const FlowOperands &o, FlowEdge edge)
{
    int columns = o.start[o.members];
    bool fits = (o.inner == 64 || o.inner == 128 || o.inner == 256) && aligned16(o.x) && aligned16(o.w);
    fits = fits && o.rows * columns < INT64_C(0xffff0000) && columns <= 128 * FLOW_BLOCKS;
    for (int k = 0; k < o.members; k++)
        fits = fits && aligned16(o.y[k]) && (o.start[k + 1] - o.start[k]) % TENSOR_COLUMNS == 0;
    fits = fits && (!o.few.w || (o.few.columns <= FLOW_FEW && o.few.columns % 2 == 0 && !o.relu));
    if (edge == FLOW_NORMED) fits = fits && o.inner == 64 && norm_aligned(o.norm);
    if (flow_is_plain(edge)) return fits && columns >= 128;
    fits = fits && o.members == 1 && (columns % 128 == 0 || columns == 64) && aligned16(o.r);
    fits = fits && (!o.drop.rng || o.drop.inner == (uint32_t)columns);
    if (flow_norms_y(edge)) fits = fits && o.inner == columns && columns <= 128 && norm_aligned(o.norm);
    return fits && (!flow_is_gated(edge) || (aligned16(o.g) && aligned16(o.product) && o.inner <= 128));
}

static inline Status flow_maps(const FlowOperands &o, FlowEdge edge, int width, FlowProblem *p)
{
    int64_t columns = o.start[o.members];
    TRY(tensor_map(o.x, o.rows, o.inner, FLOW_ROWS, &p->x));
    TRY(tensor_map(o.w, columns, o.inner, width, &p->w));
    bool sends = !flow_is_plain(edge) && o.send.ranks > 0;
    for (int k = 0; sends && k < o.send.ranks; k++) TRY(tensor_map(o.send.out[k], o.rows, columns, p->box, &p->y[k]));
    for (int k = 0; !sends && k < o.members; k++)
        TRY(tensor_map(o.y[k], o.rows, o.start[k + 1] - o.start[k], FLOW_ROWS, &p->y[k]));
    if (flow_is_plain(edge)) return o.norm.y ? tensor_map(o.norm.y, o.rows, o.inner, FLOW_ROWS, &p->normal) : OK;
    TRY(tensor_map(o.r, o.rows, columns, FLOW_ROWS, &p->r));
    if (flow_norms_y(edge)) TRY(tensor_map(o.norm.y, o.rows, columns, FLOW_ROWS, &p->normal));
    if (!flow_is_gated(edge)) return OK;
    TRY(tensor_map(o.g, o.rows, columns, FLOW_ROWS, &p->g));
    return o.product ? tensor_map(o.product, o.rows, columns, FLOW_ROWS, &p->product) : OK;
}

/* Of a block of columns: as many blocks of threads, or a few less, among whose tiles the mask stays, if those with the
 * most tiles then have no more. */
static inline int flow_mask_share(int share, int tiles, int period)
{
    int less = period > 0 ? share - share % period : 0;
    return less > 0 && (tiles + less - 1) / less == (tiles + share - 1) / share ? less : share;
}

/* Multiprocessors shared out to blocks of columns by their width. */
static inline void flow_share(int width, FlowProblem *p)
{
    enum { PROCESSORS = 132 };
    int tiles = (p->rows + FLOW_ROWS - 1) / FLOW_ROWS, before = 0;
    p->blocks = (p->columns + width - 1) / width;
    for (int b = 0; b < p->blocks; b++) {
        int until = (b + 1) * width < p->columns ? (b + 1) * width : p->columns;
        int share = PROCESSORS * until / p->columns - before;
        before += share;
        p->first[b + 1] = p->first[b] + (share < tiles ? flow_mask_share(share, tiles, (int)p->mask.period) : tiles);
    }
}

/* width: columns of a block */
static inline Status flow_problem(const FlowOperands &o, FlowEdge edge, int width, FlowProblem *p)
{
    p->rows = (int)o.rows, p->columns = o.start[o.members], p->members = o.members;
    for (int k = 0; k < o.members; k++) p->bias[k] = o.bias[k], p->start[k + 1] = o.start[k + 1];
    p->relu = o.relu, p->keep = o.product != NULL, p->early = o.early;
    p->mask = flow_mask(o.drop);
    p->norm = o.norm, p->few = o.few;
    p->send = o.send, p->box = o.send.ranks ? flow_box(o.send.rows) : FLOW_ROWS;
    flow_share(width, p);
    return flow_maps(o, edge, width, p);
}

template <int K, int NB, FlowEdge EDGE> static Status flow_launch_shape(const FlowOperands &o, cudaStream_t stream)
{
    constexpr int BYTES = FlowShape<K, NB, EDGE>::BYTES;
    FlowProblem p = {};
    TRY(flow_problem(o, EDGE, NB, &p));
    CUDA_TRY(cudaFuncSetAttribute(flow_kernel<K, NB, EDGE>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    launch(flow_kernel<K, NB, EDGE>, p.first[p.blocks], FLOW_THREADS, BYTES, stream, p);
    return cuda_launched("flow_kernel");
}

template <FlowEdge EDGE> static Status flow_launch_edge(const FlowOperands &o, cudaStream_t stream)
{
    bool wide = o.start[o.members] % 128 == 0;
    if (o.inner == 64)
        return wide ? flow_launch_shape<64, 128, EDGE>(o, stream) : flow_launch_shape<64, 64, EDGE>(o, stream);
    return wide ? flow_launch_shape<128, 128, EDGE>(o, stream) : flow_launch_shape<128, 64, EDGE>(o, stream);
}

template <FlowEdge EDGE> static Status flow_launch_square(const FlowOperands &o, cudaStream_t stream)
{
    return o.inner == 64 ? flow_launch_shape<64, 64, EDGE>(o, stream) : flow_launch_shape<128, 128, EDGE>(o, stream);
}

static inline Status flow_launch(const FlowOperands &o, FlowEdge edge, cudaStream_t stream)
{
    if (edge == FLOW_RESIDUAL_NORM) return flow_launch_square<FLOW_RESIDUAL_NORM>(o, stream);
    if (edge == FLOW_GATED_NORM) return flow_launch_square<FLOW_GATED_NORM>(o, stream);
    if (edge == FLOW_GATED) return flow_launch_edge<FLOW_GATED>(o, stream);
    if (edge == FLOW_RESIDUAL)
        return o.inner == 256 ? flow_launch_shape<256, 128, FLOW_RESIDUAL>(o, stream)
                              : flow_launch_edge<FLOW_RESIDUAL>(o, stream);
    bool wide = o.start[o.members] > 128;
    if (edge == FLOW_NORMED)
        return wide ? flow_launch_shape<64, 256, FLOW_NORMED>(o, stream)
                    : flow_launch_shape<64, 128, FLOW_NORMED>(o, stream);
    if (o.inner == 64)
        return wide ? flow_launch_shape<64, 256, FLOW_PLAIN>(o, stream)
                    : flow_launch_shape<64, 128, FLOW_PLAIN>(o, stream);
    if (o.inner == 128)
        return wide ? flow_launch_shape<128, 256, FLOW_PLAIN>(o, stream)
                    : flow_launch_shape<128, 128, FLOW_PLAIN>(o, stream);
    return wide ? flow_launch_shape<256, 256, FLOW_PLAIN>(o, stream)
                : flow_launch_shape<256, 128, FLOW_PLAIN>(o, stream);
}

#endif
