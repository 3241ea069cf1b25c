/* Features computed from the inputs of the model. */
#include "kernels/cpu/math.h"

enum { RESIDUE_TYPES = 22, MSA_TYPES = 23, ATOMS37 = 37, ATOM_N = 0, ATOM_CA = 1, ATOM_C = 2, TORSIONS = 7 };

/* --- relative position
 * --------------------------------------------------------------------------------------------------- */

static int64_t position_bin(const int32_t *index, int64_t i, int64_t j, int64_t k)
{
    int64_t difference = (int64_t)index[i] - index[j];
    if (difference < -k) difference = -k;
    if (difference > k) difference = k;
    return difference + k;
}

static Status relpos_embed(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = call->in_tensor[0]->dim[0], c = call->in_tensor[1]->dim[0], k = call->op->attr.i[0], bins = 2 * k + 1;
    const int32_t *index = call->in[0];
    const real *w = IN(1), *b = IN(2);
    real *y = OUT(0);
    PARALLEL_IF(n * n * c)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            int64_t bin = position_bin(index, i, j, k);
            for (int64_t e = 0; e < c; e++) y[(i * n + j) * c + e] = w[e * bins + bin] + b[e];
        }
    return OK;
}

static size_t relpos_scratch(const Program *program, const Op *op, size_t real_size)
{
    (void)real_size;
    return (size_t)((2 * op->attr.i[0] + 1) * tensor_last(prog_tensor(program, op->in[0]))) * sizeof(double);
}

static Status relpos_embed_bwd(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = call->in_tensor[0]->dim[0], c = call->in_tensor[0]->dim[2], k = call->op->attr.i[0], bins = 2 * k + 1;
    const int32_t *index = call->in[1];
    const real *dy = IN(0);
    real *dw = OUT(0), *db = OUT(1);
    double *sum = call->scratch; /* [bins, C] */
    memset(sum, 0, (size_t)(bins * c) * sizeof *sum);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double *row = sum + position_bin(index, i, j, k) * c;
            for (int64_t e = 0; e < c; e++) row[e] += dy[(i * n + j) * c + e];
        }
    for (int64_t e = 0; e < c; e++) {
        double total = 0;
        for (int64_t bin = 0; bin < bins; bin++) {
            dw[e * bins + bin] = (real)sum[bin * c + e];
            total += sum[bin * c + e];
        }
        db[e] = (real)total;
    }
    return OK;
}

/* --- distances in bins
 * ---------------------------------------------------------------------------------------------------- */

/* Square of the lower edge of bin `bin`; the bin after the last is `last` (not a square). */
static real edge(const OpAttr *attr, int64_t bin)
{
    double bins = (double)attr->i[0], low = attr->f[0], high = attr->f[1];
    if (bin >= attr->i[0]) return (real)attr->f[2];
    real d = (real)(low + (high - low) * (double)bin / (bins - 1));
    return d * d;
}

/* y[bins] times factor: 1 where edge[b] < |p - q|^2 < edge[b+1], strict on both sides */
static void distance_bins(const OpAttr *attr, const real *p, const real *q, real factor, real *y)
{
    real d0 = p[0] - q[0], d1 = p[1] - q[1], d2 = p[2] - q[2];
    real square = d0 * d0 + d1 * d1 + d2 * d2;
    for (int64_t bin = 0; bin < attr->i[0]; bin++)
        y[bin] = square > edge(attr, bin) && square < edge(attr, bin + 1) ? factor : 0;
}

static Status dist_bins(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = call->in_tensor[0]->dim[0], bins = call->op->attr.i[0];
    const OpAttr *attr = &call->op->attr;
    const real *x = IN(0);
    real *y = OUT(0);
    PARALLEL_IF(n * n * bins)
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) distance_bins(attr, x + 3 * i, x + 3 * j, 1, y + (i * n + j) * bins);
    return OK;
}

/* --- templates
 * ------------------------------------------------------------------------------------------------------------ */

static bool backbone_known(const real *atom_mask)
{
    return atom_mask[ATOM_N] * atom_mask[ATOM_CA] * atom_mask[ATOM_C] != 0;
}

static void one_hot(int32_t type, int types, real factor, real *y)
{
    for (int k = 0; k < types; k++) y[k] = k == type ? factor : 0;
}

/* Channels of pair (i, j): distogram, pseudo-beta mask, type of j, type of i, three zeros (unit vector, not used in
 * training), backbone mask; all times the backbone mask. Supplement 1.2.9 as in the MLPerf reference. */
static Status template_pair_feat(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t t = call->in_tensor[0]->dim[0], n = call->in_tensor[0]->dim[1], bins = call->op->attr.i[0];
    int64_t channels = tensor_last(call->out_tensor[0]);
    const OpAttr *attr = &call->op->attr;
    const real *x = IN(0), *mask = IN(1), *atom = IN(3);
    const int32_t *type = call->in[2];
    real *out = OUT(0);
    PARALLEL_IF(t * n * n * channels)
    for (int64_t row = 0; row < t * n; row++) {
        int64_t first = row / n * n; /* residue 0 of this template */
        for (int64_t col = first; col < first + n; col++) {
            real known = backbone_known(atom + row * ATOMS37) && backbone_known(atom + col * ATOMS37) ? 1 : 0;
            real *y = out + (row * n + col - first) * channels;
            distance_bins(attr, x + 3 * row, x + 3 * col, known, y);
            y[bins] = mask[row] * mask[col] * known;
            one_hot(type[col], RESIDUE_TYPES, known, y + bins + 1);
            one_hot(type[row], RESIDUE_TYPES, known, y + bins + 1 + RESIDUE_TYPES);
            for (int64_t k = channels - 4; k < channels - 1; k++) y[k] = 0;
            y[channels - 1] = known;
        }
    }
    return OK;
}

/* Residue type, 7 x (sin, cos), 7 x alternative, 7 masks. */
static Status template_angle_feat(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_count(call->in_tensor[0]), channels = tensor_last(call->out_tensor[0]);
    const int32_t *type = call->in[0];
    for (int64_t r = 0; r < rows; r++) {
        real *y = OUT(0) + r * channels;
        one_hot(type[r], RESIDUE_TYPES, 1, y);
        memcpy(y + RESIDUE_TYPES, IN(1) + r * 2 * TORSIONS, 2 * TORSIONS * sizeof *y);
        memcpy(y + RESIDUE_TYPES + 2 * TORSIONS, IN(2) + r * 2 * TORSIONS, 2 * TORSIONS * sizeof *y);
        memcpy(y + RESIDUE_TYPES + 4 * TORSIONS, IN(3) + r * TORSIONS, TORSIONS * sizeof *y);
    }
    return OK;
}

/* --- extra MSA
 * -------------------------------------------------------------------------------------------------------------- */

static Status extra_msa_feat(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t rows = tensor_count(call->in_tensor[0]), channels = tensor_last(call->out_tensor[0]);
    const int32_t *msa = call->in[0];
    const real *has = IN(1), *value = IN(2);
    real *out = OUT(0);
    PARALLEL_IF(rows * channels)
    for (int64_t r = 0; r < rows; r++) {
        real *y = out + r * channels;
        one_hot(msa[r], MSA_TYPES, 1, y);
        y[MSA_TYPES] = has[r];
        y[MSA_TYPES + 1] = value[r];
    }
    return OK;
}

static Status mask_any(const RankLayout *layout, const OpCall *call)
{
    (void)layout;
    int64_t n = tensor_count(call->in_tensor[0]);
    bool any = false;
    for (int64_t e = 0; e < n; e++) any |= IN(0)[e] != 0;
    OUT(0)[0] = any ? 1 : 0;
    return OK;
}

const CpuEntry FN(cpu_embed)[] = {{OP_RELPOS_EMBED, relpos_embed, NULL},
                                  {OP_RELPOS_EMBED_BWD, relpos_embed_bwd, relpos_scratch},
                                  {OP_DIST_BINS, dist_bins, NULL},
                                  {OP_TEMPLATE_PAIR_FEAT, template_pair_feat, NULL},
                                  {OP_TEMPLATE_ANGLE_FEAT, template_angle_feat, NULL},
                                  {OP_EXTRA_MSA_FEAT, extra_msa_feat, NULL},
                                  {OP_MASK_ANY, mask_any, NULL},
                                  {0}};
