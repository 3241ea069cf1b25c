/* Peptide bonds in the violation loss (AlphaFold2 supplement 1.9.11, equations 44 and 45):
 *   loss = relu(sqrt(eps + (value - mean)^2) - tolerance deviation).
 * The tolerance of the CA-C-N angle is made with the deviation of the C-N length, as in the reference implementation.
 */
#include <tgmath.h>

#include "kernels/cpu/ops/loss_violation.h"

static const double BOND_EPS = 1e-6; /* in every root and mean here */
enum { PROLINE = 14 };

Status FN(violation_open)(const OpCall *call, int first, Violation *v_out)
{
    Violation v = {.n = call->in_tensor[first]->dim[0],
                   .x = call->in[first],
                   .exists = call->in[first + 1],
                   .residue_index = call->in[first + 2],
                   .aatype = call->in[first + 3],
                   .atom37 = call->in[first + 4],
                   .radius = call->in[first + 5],
                   .lower = call->in[first + 6],
                   .upper = call->in[first + 7],
                   .peptide = call->in[first + 8],
                   .tolerance = call->op->attr.f[0],
                   .overlap = (real)call->op->attr.f[1],
                   .eps = call->op->attr.f[2]};
    for (int64_t i = 0; i < v.n; i++)
        if (v.aatype[i] < 0 || v.aatype[i] > 20)
            return status_fail(ERR_INPUT, "aatype of residue %lld is %d, outside 0..20", (long long)i,
                               (int)v.aatype[i]);
    for (int64_t a = 0; a < v.n * ATOMS; a++)
        if (v.atom37[a] < 0 || v.atom37[a] > 36)
            return status_fail(ERR_INPUT, "residx_atom14_to_atom37 holds %d, outside 0..36", (int)v.atom37[a]);
    *v_out = v;
    return OK;
}

/* Vectors of a bond; [0] C -> CA, [1] C -> N', [2] N' -> CA', their lengths (with eps in the root) and unit vectors. */
typedef struct BondGeometry {
    real length[3], unit[3][3];
    real value[BOND_TERMS], mean[BOND_TERMS], slack[BOND_TERMS];
} BondGeometry;

static BondGeometry geometry(const Violation *v, int64_t i)
{
    const real *here = v->x + 3 * ATOMS * i, *next = here + 3 * ATOMS;
    const real *from[3] = {here + 3 * ATOM_C, here + 3 * ATOM_C, next + 3 * ATOM_N};
    const real *to[3] = {here + 3 * ATOM_CA, next + 3 * ATOM_N, next + 3 * ATOM_CA};
    const real *peptide = v->peptide; /* rows: length, deviation (general, before proline); cosines (mean, deviation) */
    int proline = v->aatype[i + 1] == PROLINE;
    BondGeometry g;
    for (int k = 0; k < 3; k++) {
        real sum = (real)BOND_EPS;
        for (int a = 0; a < 3; a++) sum += (to[k][a] - from[k][a]) * (to[k][a] - from[k][a]);
        g.length[k] = sqrt(sum);
        for (int a = 0; a < 3; a++) g.unit[k][a] = (to[k][a] - from[k][a]) / g.length[k];
    }
    g.value[BOND_LENGTH] = g.length[1];
    g.value[ANGLE_CA_C_N] = g.value[ANGLE_C_N_CA] = 0;
    for (int a = 0; a < 3; a++) {
        g.value[ANGLE_CA_C_N] += g.unit[0][a] * g.unit[1][a];
        g.value[ANGLE_C_N_CA] -= g.unit[1][a] * g.unit[2][a];
    }
    g.mean[BOND_LENGTH] = peptide[proline];
    g.mean[ANGLE_CA_C_N] = peptide[6];
    g.mean[ANGLE_C_N_CA] = peptide[4];
    g.slack[BOND_LENGTH] = (real)v->tolerance * peptide[2 + proline];
    g.slack[ANGLE_CA_C_N] = (real)v->tolerance * peptide[2];
    g.slack[ANGLE_C_N_CA] = (real)v->tolerance * peptide[5];
    return g;
}

static void bond_masks(const Violation *v, int64_t i, real *mask)
{
    const real *here = v->exists + ATOMS * i, *next = here + ATOMS;
    real joined = (int64_t)v->residue_index[i + 1] - v->residue_index[i] == 1;
    mask[BOND_LENGTH] = here[ATOM_C] * next[ATOM_N] * joined;
    mask[ANGLE_CA_C_N] = mask[BOND_LENGTH] * here[ATOM_CA];
    mask[ANGLE_C_N_CA] = mask[BOND_LENGTH] * next[ATOM_CA];
}

BondTerms FN(violation_bond)(const Violation *v, int64_t i)
{
    BondGeometry g = geometry(v, i);
    BondTerms t;
    bond_masks(v, i, t.mask);
    for (int k = 0; k < BOND_TERMS; k++) {
        real off = g.value[k] - g.mean[k], error = sqrt((real)BOND_EPS + off * off), excess = error - g.slack[k];
        t.loss[k] = excess > 0 ? excess : 0 * excess;
        t.bad[k] = t.mask[k] != 0 && error > g.slack[k];
    }
    return t;
}

void FN(violation_bond_scales)(const Violation *v, double *scale_out)
{
    for (int k = 0; k < BOND_TERMS; k++) scale_out[k] = BOND_EPS;
    for (int64_t i = 0; i + 1 < v->n; i++) {
        real mask[BOND_TERMS];
        bond_masks(v, i, mask);
        for (int k = 0; k < BOND_TERMS; k++) scale_out[k] += (double)mask[k];
    }
    for (int k = 0; k < BOND_TERMS; k++) scale_out[k] = 1 / scale_out[k];
}

/* d += gradient of vector / length, the unit vector's gradient being g */
static void unit_bwd(const BondGeometry *b, int k, const real *g, real *d)
{
    real along = 0;
    for (int a = 0; a < 3; a++) along += g[a] * b->unit[k][a];
    for (int a = 0; a < 3; a++) d[a] += (g[a] - along * b->unit[k][a]) / b->length[k];
}

void FN(violation_bond_bwd)(const Violation *v, int64_t i, const real *weight, real *dx)
{
    BondGeometry g = geometry(v, i);
    real mask[BOND_TERMS], slope[BOND_TERMS], unit[3][3], d[3][3] = {{0}};
    bond_masks(v, i, mask);
    for (int k = 0; k < BOND_TERMS; k++) {
        real off = g.value[k] - g.mean[k], error = sqrt((real)BOND_EPS + off * off);
        slope[k] = mask[k] != 0 && error > g.slack[k] ? weight[k] * mask[k] * off / error : 0;
    }
    for (int a = 0; a < 3; a++) {
        unit[0][a] = slope[ANGLE_CA_C_N] * g.unit[1][a];
        unit[1][a] = slope[ANGLE_CA_C_N] * g.unit[0][a] - slope[ANGLE_C_N_CA] * g.unit[2][a];
        unit[2][a] = -slope[ANGLE_C_N_CA] * g.unit[1][a];
        d[1][a] = slope[BOND_LENGTH] * g.unit[1][a];
    }
    for (int k = 0; k < 3; k++) unit_bwd(&g, k, unit[k], d[k]);
    real *here = dx + 3 * ATOMS * i, *next = here + 3 * ATOMS;
    for (int a = 0; a < 3; a++) {
        here[3 * ATOM_CA + a] += d[0][a];
        here[3 * ATOM_C + a] -= d[0][a] + d[1][a];
        next[3 * ATOM_N + a] += d[1][a] - d[2][a];
        next[3 * ATOM_CA + a] += d[2][a];
    }
}
