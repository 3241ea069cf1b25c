/* Frame-aligned point error (AlphaFold2 supplement, algorithm 28):
 *   e_ij = sqrt(|T_i^-1 x_j - T'_i^-1 x'_j|^2 + eps), clamped, over unit, averaged over frames and points with
 *   sum m_i m_j e_ij / (eps + sum m_i) / (eps + sum m_j). */
#include <math.h>

#include "kernels/cpu/ops/loss.h"

enum { GROUPS = 8, ATOMS = 14 };

typedef struct FapeSet {
    int64_t frames, points;
    const Rigid *frame, *target;
    const real *frame_mask, *point_mask, *x, *gt; /* x, gt NULL: the translations of frame and target */
    double eps, clamp, scale;                     /* scale: 1 / (unit (eps + sum m_i) (eps + sum m_j)) */
} FapeSet;

static void fape_scale(FapeSet *s, const OpCall *call)
{
    s->clamp = call->op->attr.f[0];
    s->eps = call->op->attr.f[2];
    s->scale = 1 / (call->op->attr.f[1] * (s->eps + loss_sum(s->frame_mask, s->frames)) *
                    (s->eps + loss_sum(s->point_mask, s->points)));
}

/* Difference of the local coordinates of point j in frame i; v: the point relative to the frame. Returns e_ij. */
static double fape_error(const FapeSet *s, int64_t i, int64_t j, double *v, double *diff)
{
    const Rigid *f = s->frame + i, *g = s->target + i;
    double u[3], local[3];
    for (int a = 0; a < 3; a++) {
        v[a] = (s->x ? (double)s->x[3 * j + a] : s->frame[j].t[a]) - f->t[a];
        u[a] = (s->gt ? (double)s->gt[3 * j + a] : s->target[j].t[a]) - g->t[a];
    }
    rot_apply_t(f->r, v, diff);
    rot_apply_t(g->r, u, local);
    for (int a = 0; a < 3; a++) diff[a] -= local[a];
    return sqrt(diff[0] * diff[0] + diff[1] * diff[1] + diff[2] * diff[2] + s->eps);
}

/* row[2i], row[2i+1]: clamped and unclamped sums of frame i */
static void fape_rows(const FapeSet *s, double *row)
{
#pragma omp parallel for if (s->frames * s->points > 10000)
    for (int64_t i = 0; i < s->frames; i++) {
        double clamped = 0, unclamped = 0;
        for (int64_t j = 0; j < s->points && s->frame_mask[i] != 0; j++) {
            if (s->point_mask[j] == 0) continue;
            double v[3], diff[3], e = fape_error(s, i, j, v, diff), m = (double)s->point_mask[j];
            clamped += m * (e > s->clamp ? s->clamp : e);
            unclamped += m * e;
        }
        row[2 * i] = clamped * (double)s->frame_mask[i];
        row[2 * i + 1] = unclamped * (double)s->frame_mask[i];
    }
}

/* d loss / d diff of one pair into d; weights of the clamped and the unclamped loss */
static bool fape_pair_bwd(const FapeSet *s, int64_t i, int64_t j, const double *weight, double *v, double *d)
{
    double m = (double)s->frame_mask[i] * (double)s->point_mask[j];
    if (m == 0) return false;
    double diff[3], e = fape_error(s, i, j, v, diff);
    double c = m * s->scale * (e <= s->clamp ? weight[0] + weight[1] : weight[1]) / e;
    for (int a = 0; a < 3; a++) d[a] = c * diff[a];
    return c != 0;
}

static Rigid fape_frame_bwd(const FapeSet *s, int64_t i, const double *weight)
{
    Rigid g = {{0}, {0}};
    double v[3], d[3], moved[3];
    for (int64_t j = 0; j < s->points; j++) {
        if (!fape_pair_bwd(s, i, j, weight, v, d)) continue;
        rot_add_outer(g.r, v, d);
        rot_apply(s->frame[i].r, d, moved);
        for (int a = 0; a < 3; a++) g.t[a] -= moved[a];
    }
    return g;
}

static void fape_point_bwd(const FapeSet *s, int64_t j, const double *weight, double *dx)
{
    double v[3], d[3], moved[3];
    for (int64_t i = 0; i < s->frames; i++) {
        if (!fape_pair_bwd(s, i, j, weight, v, d)) continue;
        rot_apply(s->frame[i].r, d, moved);
        for (int a = 0; a < 3; a++) dx[a] += moved[a];
    }
}

/* --- backbone: frames of every block against the backbone frames, points are the CA positions
 * ------------------------- */

size_t FN(loss_backbone_scratch)(const Program *program, const Op *op, size_t real_size)
{
    (void)real_size;
    const Tensor *f = prog_tensor(program, op->in[op->kind == OP_LOSS_FAPE_BACKBONE_BWD]);
    return (size_t)f->dim[1] * (2 * sizeof(double) + 2 * sizeof(Rigid));
}

/* The target frames; the frames of a block are filled in by backbone_block. */
static FapeSet backbone_set(const OpCall *call, int first, double **row_out, Rigid **frame_out)
{
    int64_t n = call->in_tensor[first]->dim[1];
    double *row = call->scratch;
    Rigid *frame = (Rigid *)(row + 2 * n), *target = frame + n;
    const real *gt = call->in[first + 1];
    for (int64_t i = 0; i < n; i++) target[i] = rigid_from_4x4(gt + 16 * i);
    FapeSet s = {.frames = n, .points = n, .frame = frame, .target = target};
    s.frame_mask = s.point_mask = call->in[first + 2];
    fape_scale(&s, call);
    *row_out = row;
    *frame_out = frame;
    return s;
}

LOSS_KERNEL(backbone)
{
    (void)layout;
    const real *frames = call->in[0];
    double *row, clamped = 0, unclamped = 0, use_clamped = (double)*(const real *)call->in[3];
    Rigid *frame;
    FapeSet s = backbone_set(call, 0, &row, &frame);
    int64_t blocks = call->in_tensor[0]->dim[0];
    for (int64_t b = 0; b < blocks; b++) {
        for (int64_t i = 0; i < s.frames; i++) frame[i] = rigid_from_frame(frames + 7 * (s.frames * b + i));
        fape_rows(&s, row);
        for (int64_t i = 0; i < s.frames; i++) {
            clamped += row[2 * i];
            unclamped += row[2 * i + 1];
        }
    }
    clamped *= s.scale / (double)blocks;
    unclamped *= s.scale / (double)blocks;
    *(real *)call->out[0] = (real)(use_clamped * clamped + (1 - use_clamped) * unclamped);
    *(real *)call->out[1] = (real)clamped;
    *(real *)call->out[2] = (real)unclamped;
    return OK;
}

LOSS_KERNEL(backbone_bwd)
{
    (void)layout;
    real dl;
    if (loss_is_off(call, &dl)) return OK;
    const real *frames = call->in[1];
    double *row, use_clamped = (double)*(const real *)call->in[4];
    Rigid *frame;
    FapeSet s = backbone_set(call, 1, &row, &frame);
    int64_t blocks = call->in_tensor[1]->dim[0];
    double weight[2] = {(double)dl * use_clamped / (double)blocks, (double)dl * (1 - use_clamped) / (double)blocks};
    for (int64_t b = 0; b < blocks; b++) {
        const real *f = frames + 7 * s.frames * b;
        real *df = (real *)call->out[0] + 7 * s.frames * b;
        for (int64_t i = 0; i < s.frames; i++) frame[i] = rigid_from_frame(f + 7 * i);
#pragma omp parallel for if (s.frames > 64)
        for (int64_t i = 0; i < s.frames; i++) {
            Rigid g = fape_frame_bwd(&s, i, weight);
            fape_point_bwd(&s, i, weight, g.t); /* the translation is also a point */
            rigid_to_frame_bwd(f + 7 * i, &g, df + 7 * i);
        }
    }
    return OK;
}

/* --- side chains: all rigid groups against all atoms
 * ------------------------------------------------------------------- */

size_t FN(loss_sidechain_scratch)(const Program *program, const Op *op, size_t real_size)
{
    (void)real_size;
    const Tensor *f = prog_tensor(program, op->in[op->kind == OP_LOSS_FAPE_SIDECHAIN_BWD]);
    return (size_t)(f->dim[0] * GROUPS) * (2 * sizeof(double) + 2 * sizeof(Rigid));
}

static FapeSet sidechain_set(const OpCall *call, int first, double **row_out)
{
    int64_t n = call->in_tensor[first]->dim[0];
    const real *frames = call->in[first], *gt = call->in[first + 2], *alt = call->in[first + 3];
    const real *better = call->in[first + 5];
    double *row = call->scratch;
    Rigid *frame = (Rigid *)(row + 2 * n * GROUPS), *target = frame + n * GROUPS;
    for (int64_t g = 0; g < n * GROUPS; g++) {
        frame[g] = rigid_from_4x4(frames + 16 * g);
        target[g] = rigid_from_4x4((better[g / GROUPS] != 0 ? alt : gt) + 16 * g);
    }
    FapeSet s = {.frames = n * GROUPS, .points = n * ATOMS, .frame = frame, .target = target};
    s.x = call->in[first + 1];
    s.frame_mask = call->in[first + 4];
    s.gt = call->in[first + 6];
    s.point_mask = call->in[first + 7];
    fape_scale(&s, call);
    *row_out = row;
    return s;
}

LOSS_KERNEL(sidechain)
{
    (void)layout;
    double *row, sum = 0;
    FapeSet s = sidechain_set(call, 0, &row);
    fape_rows(&s, row);
    for (int64_t i = 0; i < s.frames; i++) sum += row[2 * i];
    *(real *)call->out[0] = (real)(sum * s.scale);
    return OK;
}

LOSS_KERNEL(sidechain_bwd)
{
    (void)layout;
    real dl, *dframes = call->out[0], *datoms = call->out[1];
    if (loss_is_off(call, &dl)) return OK;
    double *row, weight[2] = {(double)dl, 0};
    FapeSet s = sidechain_set(call, 1, &row);
#pragma omp parallel for if (s.frames > 64)
    for (int64_t i = 0; i < s.frames; i++) {
        Rigid g = fape_frame_bwd(&s, i, weight);
        rigid_to_4x4(&g, dframes + 16 * i);
        dframes[16 * i + 15] = 0;
    }
#pragma omp parallel for if (s.points > 64)
    for (int64_t j = 0; j < s.points; j++) {
        double d[3] = {0};
        fape_point_bwd(&s, j, weight, d);
        vector_store(d, datoms + 3 * j);
    }
    return OK;
}
