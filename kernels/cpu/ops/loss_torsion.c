/* Torsion loss (AlphaFold2 supplement, algorithm 27). Both means run over blocks, residues and angles and divide by
 * mean_eps + the sum of the masks. */
#include <tgmath.h>

#include "kernels/cpu/ops/loss.h"

enum { ANGLES = 7, CHIS = 4, FIRST_CHI = 3 };

typedef struct Torsion {
    int64_t blocks, n;
    const real *angle, *raw, *seq_mask, *chi_mask, *chi, *pi_periodic;
    const int32_t *aatype;
    double chi_scale, norm_scale; /* weights over the denominators of the means */
} Torsion;

static Status torsion_set(const OpCall *call, int first, Torsion *t)
{
    const double *f = call->op->attr.f;
    *t = (Torsion){.blocks = call->in_tensor[first]->dim[0],
                   .n = call->in_tensor[first]->dim[1],
                   .angle = call->in[first],
                   .raw = call->in[first + 1],
                   .aatype = call->in[first + 2],
                   .seq_mask = call->in[first + 3],
                   .chi_mask = call->in[first + 4],
                   .chi = call->in[first + 5],
                   .pi_periodic = call->in[first + 6]};
    double blocks = (double)t->blocks;
    t->chi_scale = 1 / (f[3] + blocks * loss_sum(t->chi_mask, CHIS * t->n));
    t->norm_scale = 1 / (f[3] + blocks * ANGLES * loss_sum(t->seq_mask, t->n));
    for (int64_t i = 0; i < t->n; i++)
        if (t->aatype[i] < 0 || t->aatype[i] > 20)
            return status_fail(ERR_INPUT, "aatype of residue %lld is %d, outside 0..20", (long long)i,
                               (int)t->aatype[i]);
    return OK;
}

/* The closer of the two equivalent true angles; returns the squared distance, diff = predicted - true. */
static real chi_error(const Torsion *t, int64_t block, int64_t i, int k, real *diff)
{
    const real *a = t->angle + 2 * (ANGLES * (t->n * block + i) + FIRST_CHI + k), *c = t->chi + 2 * (CHIS * i + k);
    real turn = 1 - 2 * t->pi_periodic[CHIS * t->aatype[i] + k], best = 0;
    for (int side = 0; side < 2; side++) {
        real x = a[0] - (side ? turn * c[0] : c[0]), y = a[1] - (side ? turn * c[1] : c[1]), e = x * x + y * y;
        if (side && e >= best) continue;
        best = e;
        diff[0] = x;
        diff[1] = y;
    }
    return best;
}

static real raw_norm(const Torsion *t, int64_t angle, real eps)
{
    const real *r = t->raw + 2 * angle;
    return sqrt(r[0] * r[0] + r[1] * r[1] + eps);
}

LOSS_KERNEL(torsion)
{
    (void)layout;
    Torsion t;
    TRY(torsion_set(call, 0, &t));
    const double *f = call->op->attr.f;
    double chi = 0, norm = 0;
    for (int64_t row = 0; row < t.blocks * t.n; row++) {
        int64_t block = row / t.n, i = row % t.n;
        real diff[2];
        for (int k = 0; k < CHIS; k++)
            if (t.chi_mask[CHIS * i + k] != 0)
                chi += (double)(t.chi_mask[CHIS * i + k] * chi_error(&t, block, i, k, diff));
        for (int k = 0; k < ANGLES && t.seq_mask[i] != 0; k++)
            norm += (double)(t.seq_mask[i] * fabs(raw_norm(&t, ANGLES * row + k, (real)f[2]) - 1));
    }
    chi *= t.chi_scale;
    norm *= t.norm_scale;
    *(real *)call->out[0] = (real)(f[0] * chi + f[1] * norm);
    *(real *)call->out[1] = (real)chi;
    *(real *)call->out[2] = (real)norm;
    return OK;
}

LOSS_KERNEL(torsion_bwd)
{
    (void)layout;
    real dl, *dangle = call->out[0], *draw = call->out[1];
    if (loss_is_off(call, &dl)) return OK;
    Torsion t;
    TRY(torsion_set(call, 1, &t));
    const double *f = call->op->attr.f;
    real chi = (real)((double)dl * f[0] * t.chi_scale), norm = (real)((double)dl * f[1] * t.norm_scale);
    for (int64_t row = 0; row < t.blocks * t.n; row++) {
        int64_t block = row / t.n, i = row % t.n;
        real *da = dangle + 2 * ANGLES * row, *dr = draw + 2 * ANGLES * row, diff[2];
        memset(da, 0, 2 * ANGLES * sizeof(real));
        for (int k = 0; k < CHIS; k++) {
            real m = t.chi_mask[CHIS * i + k];
            if (m == 0) continue;
            chi_error(&t, block, i, k, diff);
            for (int a = 0; a < 2; a++) da[2 * (FIRST_CHI + k) + a] = 2 * chi * m * diff[a];
        }
        for (int k = 0; k < ANGLES; k++) {
            real length = raw_norm(&t, ANGLES * row + k, (real)f[2]), excess = length - 1;
            real slope = norm * t.seq_mask[i] * (real)((excess > 0) - (excess < 0)) / length;
            for (int a = 0; a < 2; a++)
                dr[2 * k + a] = t.seq_mask[i] == 0 ? 0 : slope * t.raw[2 * (ANGLES * row + k) + a];
        }
    }
    return OK;
}
