/* Violation loss (AlphaFold2 supplement 1.9.11, equations 44 to 47): peptide bonds, clashes between residues, distances
 * within residues.
 *   loss = mean bond terms + (sum over atoms of clash_a + within_a) / (eps + atoms)
 * clash_a sums the errors of all pairs that atom a is in, so a pair between residues counts twice in the total;
 * within_a sums ordered pairs from both sides, so a pair within a residue counts four times. */
#include <tgmath.h>

#include "kernels/cpu/ops/loss_violation.h"

static const double DISTANCE_EPS = 1e-10, CLASH_MEAN_EPS = 1e-6;

static real distance(const real *a, const real *b)
{
    real x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
    return sqrt((real)DISTANCE_EPS + (x * x + y * y + z * z));
}

/* --- between residues
 * --------------------------------------------------------------------------------------------------- */

/* Mask of a pair of atoms of different residues. Exempt: the peptide bond, and every pair in slot 5 (meant for the
 * disulfide bridge of two CYS; the residue type is not looked at). */
static real clash_mask(const Violation *v, int64_t i, int a, int64_t j, int b)
{
    int64_t gap = (int64_t)v->residue_index[j] - v->residue_index[i];
    if (gap == 0 || (a == SLOT_EXEMPT && b == SLOT_EXEMPT)) return 0;
    if (gap == 1 && a == ATOM_C && b == ATOM_N) return 0;
    if (gap == -1 && a == ATOM_N && b == ATOM_C) return 0;
    return v->exists[ATOMS * i + a] * v->exists[ATOMS * j + b];
}

static real atom_radius(const Violation *v, int64_t atom)
{
    return v->exists[atom] * v->radius[v->atom37[atom]];
}

typedef struct ClashAtom {
    double error, pairs;
    bool bad;
} ClashAtom;

/* Sums over all partners of atom a of residue i. With dx, adds weight * d error / d x_a. */
static ClashAtom clash_atom(const Violation *v, int64_t i, int a, real weight, real *dx)
{
    ClashAtom c = {0};
    const real *x = v->x + 3 * (ATOMS * i + a);
    if (v->exists[ATOMS * i + a] == 0) return c;
    for (int64_t j = 0; j < v->n; j++)
        for (int b = 0; b < ATOMS; b++) {
            real m = clash_mask(v, i, a, j, b);
            if (m == 0) continue;
            const real *y = v->x + 3 * (ATOMS * j + b);
            real bound = m * (atom_radius(v, ATOMS * i + a) + atom_radius(v, ATOMS * j + b)) - v->overlap;
            real d = distance(x, y), error = bound - d;
            c.pairs += (double)m;
            if (error <= 0) continue;
            c.error += (double)(m * error);
            c.bad = true;
            for (int k = 0; dx && k < 3; k++) dx[k] -= weight * m * (x[k] - y[k]) / d;
        }
    return c;
}

/* --- within a residue
 * --------------------------------------------------------------------------------------------------- */

/* sum over b of loss(a, b) + loss(b, a), loss(a, b) = relu(lower - d) + relu(d - upper). With dx, adds weight times the
 * gradient of twice that: both atoms of a pair count it. */
static real within_atom(const Violation *v, int64_t i, int a, real weight, real *dx, bool *bad_out)
{
    real sum = 0;
    const real *x = v->x + 3 * (ATOMS * i + a);
    *bad_out = false;
    for (int b = 0; b < ATOMS; b++) {
        real m = v->exists[ATOMS * i + a] * v->exists[ATOMS * i + b];
        if (a == b || m == 0) continue;
        const real *y = v->x + 3 * (ATOMS * i + b);
        real d = distance(x, y), slope = 0;
        for (int side = 0; side < 2; side++) {
            int64_t at = ATOMS * ATOMS * v->aatype[i] + (side ? ATOMS * b + a : ATOMS * a + b);
            real low = v->lower[at] - d, high = d - v->upper[at];
            sum += m * ((low > 0 ? low : 0) + (high > 0 ? high : 0));
            slope += m * (real)((high > 0) - (low > 0));
            *bad_out |= low > 0 || high > 0;
        }
        for (int k = 0; dx && k < 3; k++) dx[k] += 2 * weight * slope * (x[k] - y[k]) / d;
    }
    return sum;
}

/* --- the op
 * --------------------------------------------------------------------------------------------------------------- */

size_t FN(loss_violation_scratch)(const Program *program, const Op *op, size_t real_size)
{
    (void)real_size;
    return (size_t)prog_tensor(program, op->in[0])->dim[0] * sizeof(double);
}

/* Bond terms of all residues: means into out[1..3], per-residue sums and masks into out[7] and out[8]. */
static double bond_outputs(const Violation *v, const OpCall *call)
{
    real *loss = call->out[7], *bad = call->out[8];
    double scale[BOND_TERMS], sum[BOND_TERMS] = {0}, total = 0;
    FN(violation_bond_scales)(v, scale);
    memset(loss, 0, sizeof(real) * (size_t)v->n);
    memset(bad, 0, sizeof(real) * (size_t)v->n);
    for (int64_t i = 0; i + 1 < v->n; i++) {
        BondTerms t = FN(violation_bond)(v, i);
        for (int k = 0; k < BOND_TERMS; k++) {
            if (t.mask[k] != 0) sum[k] += (double)(t.mask[k] * t.loss[k]);
            for (int64_t side = i; side <= i + 1; side++) {
                loss[side] += t.loss[k] / 2;
                if (t.bad[k]) bad[side] = 1;
            }
        }
    }
    for (int k = 0; k < BOND_TERMS; k++) {
        *(real *)call->out[1 + k] = (real)(sum[k] * scale[k]);
        total += sum[k] * scale[k];
    }
    return total;
}

LOSS_KERNEL(violation)
{
    (void)layout;
    Violation v;
    TRY(FN(violation_open)(call, 0, &v));
    real *clash = call->out[5], *within = call->out[6], *bond_bad = call->out[8];
    real *clash_bad = call->out[9], *within_bad = call->out[10], *bad = call->out[11];
    double *pairs = call->scratch, total = bond_outputs(&v, call), clashes = 0, inside = 0, count = 0;
#pragma omp parallel for if (v.n > 32)
    for (int64_t i = 0; i < v.n; i++) {
        pairs[i] = 0;
        bad[i] = bond_bad[i];
        for (int a = 0; a < ATOMS; a++) {
            bool out_of_bounds;
            ClashAtom c = clash_atom(&v, i, a, 0, NULL);
            int64_t atom = ATOMS * i + a;
            within[atom] = within_atom(&v, i, a, 0, NULL, &out_of_bounds);
            clash[atom] = (real)c.error;
            clash_bad[atom] = c.bad;
            within_bad[atom] = out_of_bounds;
            if (c.bad || out_of_bounds) bad[i] = 1;
            pairs[i] += c.pairs;
        }
    }
    for (int64_t i = 0; i < v.n; i++) count += pairs[i];
    clashes = loss_sum(clash, ATOMS * v.n);
    inside = loss_sum(within, ATOMS * v.n);
    *(real *)call->out[4] =
        (real)(clashes / 2 / (CLASH_MEAN_EPS + count / 2)); /* every pair was seen from both sides */
    *(real *)call->out[0] = (real)(total + (clashes + inside) / (v.eps + loss_sum(v.exists, ATOMS * v.n)));
    return OK;
}

LOSS_KERNEL(violation_bwd)
{
    (void)layout;
    real dl, *dx = call->out[0];
    if (loss_is_off(call, &dl)) return OK;
    Violation v;
    TRY(FN(violation_open)(call, 1, &v));
    double scale[BOND_TERMS];
    FN(violation_bond_scales)(&v, scale);
    real weight = (real)((double)dl / (v.eps + loss_sum(v.exists, ATOMS * v.n))), bond_weight[BOND_TERMS];
    for (int k = 0; k < BOND_TERMS; k++) bond_weight[k] = (real)((double)dl * scale[k]);
    memset(dx, 0, sizeof(real) * (size_t)(3 * ATOMS * v.n));
#pragma omp parallel for if (v.n > 32)
    for (int64_t i = 0; i < v.n; i++)
        for (int a = 0; a < ATOMS; a++) {
            bool ignored;
            real *d = dx + 3 * (ATOMS * i + a);
            clash_atom(&v, i, a, 2 * weight, d); /* the error of a pair is counted by both atoms */
            within_atom(&v, i, a, weight, d, &ignored);
        }
    for (int64_t i = 0; i + 1 < v.n; i++) FN(violation_bond_bwd)(&v, i, bond_weight, dx);
    return OK;
}
