/* Violation loss (AlphaFold2 supplement 1.9.11, equations 44 to 47); what each term means is written beside the CPU
 * kernels (kernels/cpu/ops/loss_violation.c). Arithmetic in double. */
#include "kernels/cuda/loss.cuh"

enum { ATOMS = 14, ATOM_N = 0, ATOM_CA = 1, ATOM_C = 2, SLOT_EXEMPT = 5, PROLINE = 14 };
enum { BOND_LENGTH, ANGLE_CA_C_N, ANGLE_C_N_CA, BOND_TERMS };
#define BOND_EPS       1e-6 /* in every root and mean of the bonds */
#define DISTANCE_EPS   1e-10
#define CLASH_MEAN_EPS 1e-6

struct Violation {
    int64_t n;
    const float *x, *exists;
    const int32_t *residue_index, *aatype, *atom37;
    const float *radius, *lower, *upper, *peptide;
    double tolerance, overlap, eps;
};

static Violation violation_set(const OpCall *call, int first)
{
    const double *f = call->op->attr.f;
    return {call->in_tensor[first]->dim[0],
            F32_IN(first),
            F32_IN(first + 1),
            I32_IN(first + 2),
            I32_IN(first + 3),
            I32_IN(first + 4),
            F32_IN(first + 5),
            F32_IN(first + 6),
            F32_IN(first + 7),
            F32_IN(first + 8),
            f[0],
            f[1],
            f[2]};
}

__device__ double atom_distance(const float *a, const float *b, double *difference)
{
    double sum = DISTANCE_EPS;
    for (int k = 0; k < 3; k++) {
        difference[k] = (double)a[k] - (double)b[k];
        sum += difference[k] * difference[k];
    }
    return sqrt(sum);
}

/* ---- pairs of atoms: a warp per atom
 * ------------------------------------------------------------------------------------- */

__device__ double clash_mask(const Violation &v, int64_t i, int a, int64_t j, int b)
{
    int64_t gap = (int64_t)v.residue_index[j] - v.residue_index[i];
    if (gap == 0 || (a == SLOT_EXEMPT && b == SLOT_EXEMPT)) return 0;
    if (gap == 1 && a == ATOM_C && b == ATOM_N) return 0;
    if (gap == -1 && a == ATOM_N && b == ATOM_C) return 0;
    return (double)v.exists[ATOMS * i + a] * (double)v.exists[ATOMS * j + b];
}

__device__ double atom_radius(const Violation &v, int64_t atom)
{
    int type = v.atom37[atom] < 0 || v.atom37[atom] > 36 ? 0 : v.atom37[atom];
    return (double)v.exists[atom] * (double)v.radius[type];
}

struct AtomTerms {
    double clash, pairs, within, dx[3];
    int clash_bad, within_bad;
};

/* Terms of atom a of residue i; the gradient is that of weight (2 clash + within), as both atoms of a pair count it. */
__device__ AtomTerms atom_terms(const Violation &v, int64_t i, int a, double weight)
{
    AtomTerms t = {};
    int lane = threadIdx.x % WARP, type = v.aatype[i] < 0 || v.aatype[i] > 20 ? 20 : v.aatype[i];
    int64_t atom = ATOMS * i + a;
    double own = atom_radius(v, atom), difference[3];
    bool here = v.exists[atom] != 0;
    for (int64_t other = lane; here && other < ATOMS * v.n; other += WARP) {
        double m = clash_mask(v, i, a, other / ATOMS, (int)(other % ATOMS));
        if (m == 0) continue;
        t.pairs += m;
        double d = atom_distance(v.x + 3 * atom, v.x + 3 * other, difference);
        double error = m * (own + atom_radius(v, other)) - v.overlap - d;
        if (error <= 0) continue;
        t.clash += m * error;
        t.clash_bad = 1;
        for (int k = 0; k < 3; k++) t.dx[k] -= 2 * weight * m * difference[k] / d;
    }
    int b = lane;
    double m = here && b < ATOMS && b != a ? (double)v.exists[atom] * (double)v.exists[ATOMS * i + b] : 0;
    if (m != 0) {
        double d = atom_distance(v.x + 3 * atom, v.x + 3 * (ATOMS * i + b), difference), slope = 0;
        for (int side = 0; side < 2; side++) {
            int64_t at = (int64_t)ATOMS * ATOMS * type + (side ? ATOMS * b + a : ATOMS * a + b);
            double low = (double)v.lower[at] - d, high = d - (double)v.upper[at];
            t.within += m * ((low > 0 ? low : 0) + (high > 0 ? high : 0));
            slope += m * ((high > 0) - (low > 0));
            t.within_bad |= low > 0 || high > 0;
        }
        for (int k = 0; k < 3; k++) t.dx[k] += 2 * weight * slope * difference[k] / d;
    }
    t.clash = lanes_sum<WARP>(t.clash);
    t.pairs = lanes_sum<WARP>(t.pairs);
    t.within = lanes_sum<WARP>(t.within);
    for (int k = 0; k < 3; k++) t.dx[k] = lanes_sum<WARP>(t.dx[k]);
    t.clash_bad = __any_sync(0xffffffffu, t.clash_bad);
    t.within_bad = __any_sync(0xffffffffu, t.within_bad);
    return t;
}

__global__ void violation_atoms_kernel(Violation v, float *clash, float *within, float *clash_bad, float *within_bad,
                                       double *pairs, double *terms)
{
    stage_wait();
    int64_t atom = global_warp();
    if (atom >= ATOMS * v.n) return;
    AtomTerms t = atom_terms(v, atom / ATOMS, (int)(atom % ATOMS), 0);
    if (threadIdx.x % WARP) return;
    clash[atom] = (float)t.clash;
    within[atom] = (float)t.within;
    clash_bad[atom] = t.clash_bad;
    within_bad[atom] = t.within_bad;
    pairs[atom] = t.pairs;
    terms[2 * atom] = t.clash;
    terms[2 * atom + 1] = t.within;
}

/* ---- peptide bonds: a thread per bond or residue
 * ------------------------------------------------------------------------- */

struct Bond {
    double length[3], unit[3][3]; /* C -> CA, C -> N', N' -> CA' */
    double mask[BOND_TERMS], off[BOND_TERMS], error[BOND_TERMS], slack[BOND_TERMS];
};

__device__ Bond bond_at(const Violation &v, int64_t i)
{
    const float *here = v.x + 3 * ATOMS * i, *next = here + 3 * ATOMS, *e = v.exists + ATOMS * i, *f = e + ATOMS;
    const float *from[3] = {here + 3 * ATOM_C, here + 3 * ATOM_C, next + 3 * ATOM_N};
    const float *to[3] = {here + 3 * ATOM_CA, next + 3 * ATOM_N, next + 3 * ATOM_CA};
    const float *peptide = v.peptide;
    int proline = v.aatype[i + 1] == PROLINE;
    Bond b;
    for (int k = 0; k < 3; k++) {
        double sum = BOND_EPS;
        for (int a = 0; a < 3; a++) {
            b.unit[k][a] = (double)to[k][a] - (double)from[k][a];
            sum += b.unit[k][a] * b.unit[k][a];
        }
        b.length[k] = sqrt(sum);
        for (int a = 0; a < 3; a++) b.unit[k][a] /= b.length[k];
    }
    double joined = (int64_t)v.residue_index[i + 1] - v.residue_index[i] == 1;
    b.mask[BOND_LENGTH] = (double)e[ATOM_C] * (double)f[ATOM_N] * joined;
    b.mask[ANGLE_CA_C_N] = b.mask[BOND_LENGTH] * (double)e[ATOM_CA];
    b.mask[ANGLE_C_N_CA] = b.mask[BOND_LENGTH] * (double)f[ATOM_CA];
    double value[BOND_TERMS] = {b.length[1], 0, 0};
    for (int a = 0; a < 3; a++) {
        value[ANGLE_CA_C_N] += b.unit[0][a] * b.unit[1][a];
        value[ANGLE_C_N_CA] -= b.unit[1][a] * b.unit[2][a];
    }
    const double mean[BOND_TERMS] = {peptide[proline], peptide[6], peptide[4]};
    const double deviation[BOND_TERMS] = {peptide[2 + proline], peptide[2], peptide[5]};
    for (int k = 0; k < BOND_TERMS; k++) {
        b.off[k] = value[k] - mean[k];
        b.error[k] = sqrt(BOND_EPS + b.off[k] * b.off[k]);
        b.slack[k] = v.tolerance * deviation[k];
    }
    return b;
}

/* One block: scale[k] = 1 / (eps + sum of masks), bonds[k] = mean of the term; per residue sums and masks. */
__global__ void violation_bonds_kernel(Violation v, double *scale, double *bonds, float *loss, float *bad)
{
    stage_wait();
    __shared__ double shared[WARP];
    double masks[BOND_TERMS] = {0}, sums[BOND_TERMS] = {0};
    for (int64_t i = threadIdx.x; i < v.n; i += blockDim.x) {
        double own = 0;
        int violated = 0;
        for (int side = 0; side < 2; side++) { /* the bond to the next residue, then the one from the residue before */
            if (side ? i == 0 : i + 1 == v.n) continue;
            Bond b = bond_at(v, i - side);
            for (int k = 0; k < BOND_TERMS; k++) {
                double excess = b.error[k] - b.slack[k], term = excess > 0 ? excess : 0;
                own += term / 2;
                violated |= b.mask[k] != 0 && excess > 0;
                if (side) continue;
                masks[k] += b.mask[k];
                if (b.mask[k] != 0) sums[k] += b.mask[k] * term;
            }
        }
        if (loss) loss[i] = (float)own;
        if (bad) bad[i] = violated;
    }
    for (int k = 0; k < BOND_TERMS; k++) {
        double mask = block_sum_double(masks[k], shared), sum = block_sum_double(sums[k], shared);
        if (threadIdx.x == 0) {
            scale[k] = 1 / (BOND_EPS + mask);
            bonds[k] = sum * scale[k];
        }
    }
}

/* d += gradient of a vector through its unit vector with gradient g */
__device__ void unit_bwd(const Bond &b, int k, const double *g, double *d)
{
    double along = 0;
    for (int a = 0; a < 3; a++) along += g[a] * b.unit[k][a];
    for (int a = 0; a < 3; a++) d[a] += (g[a] - along * b.unit[k][a]) / b.length[k];
}

/* Gradient of the bond between i and i+1 on C -> CA, C -> N', N' -> CA'. */
__device__ void bond_bwd(const Violation &v, int64_t i, const double *weight, double d[3][3])
{
    Bond b = bond_at(v, i);
    double slope[BOND_TERMS], unit[3][3];
    for (int k = 0; k < BOND_TERMS; k++)
        slope[k] = b.mask[k] != 0 && b.error[k] > b.slack[k] ? weight[k] * b.mask[k] * b.off[k] / b.error[k] : 0;
    for (int a = 0; a < 3; a++) {
        unit[0][a] = slope[ANGLE_CA_C_N] * b.unit[1][a];
        unit[1][a] = slope[ANGLE_CA_C_N] * b.unit[0][a] - slope[ANGLE_C_N_CA] * b.unit[2][a];
        unit[2][a] = -slope[ANGLE_C_N_CA] * b.unit[1][a];
        d[0][a] = d[2][a] = 0;
        d[1][a] = slope[BOND_LENGTH] * b.unit[1][a];
    }
    for (int k = 0; k < 3; k++) unit_bwd(b, k, unit[k], d[k]);
}

/* ---- the op
 * ---------------------------------------------------------------------------------------------------------------- */

/* scratch: scale[3], bonds[3], pairs[14 n], terms[14 n, 2] */
static size_t violation_scratch(const OpCall *call)
{
    const Tensor *x = call->in_tensor[call->op->kind == OP_LOSS_VIOLATION_BWD];
    return (size_t)(2 * BOND_TERMS + 3 * ATOMS * x->dim[0]) * sizeof(double);
}

struct ViolationOut {
    float *loss, *bond[BOND_TERMS], *clash_mean, *bond_bad, *clash_bad, *within_bad, *bad;
};

__global__ void violation_total_kernel(Violation v, const double *bonds, const double *pairs, const double *terms,
                                       ViolationOut out)
{
    stage_wait();
    __shared__ double shared[WARP];
    int64_t atoms = ATOMS * v.n;
    double count = array_sum(pairs, atoms, shared), clashes = array_sum(terms, atoms, shared, 2);
    double inside = array_sum(terms + 1, atoms, shared, 2), existing = array_sum(v.exists, atoms, shared);
    for (int64_t i = threadIdx.x; i < v.n; i += blockDim.x) {
        bool bad = out.bond_bad[i] != 0;
        for (int a = 0; a < ATOMS; a++) bad |= out.clash_bad[ATOMS * i + a] != 0 || out.within_bad[ATOMS * i + a] != 0;
        out.bad[i] = bad;
    }
    if (threadIdx.x) return;
    double total = 0;
    for (int k = 0; k < BOND_TERMS; k++) {
        *out.bond[k] = (float)bonds[k];
        total += bonds[k];
    }
    *out.clash_mean = (float)(clashes / 2 / (CLASH_MEAN_EPS + count / 2)); /* every pair was seen from both sides */
    *out.loss = (float)(total + (clashes + inside) / (v.eps + existing));
}

static Status violation(CudaContext *context, const OpCall *call)
{
    Violation v = violation_set(call, 0);
    double *scale = (double *)call->scratch, *bonds = scale + BOND_TERMS, *pairs = bonds + BOND_TERMS;
    double *terms = pairs + ATOMS * v.n;
    launch(violation_bonds_kernel, 1, SUM_THREADS / 4, 0, context->stream, v, scale, bonds, F32_OUT(7), F32_OUT(8));
    launch(violation_atoms_kernel, blocks_for(ATOMS * v.n, LOSS_WARPS), LOSS_THREADS, 0, context->stream, v, F32_OUT(5),
           F32_OUT(6), F32_OUT(9), F32_OUT(10), pairs, terms);
    ViolationOut out = {
        F32_OUT(0), {F32_OUT(1), F32_OUT(2), F32_OUT(3)}, F32_OUT(4), F32_OUT(8), F32_OUT(9), F32_OUT(10), F32_OUT(11)};
    launch(violation_total_kernel, 1, SUM_THREADS, 0, context->stream, v, bonds, pairs, terms, out);
    return cuda_launched("loss_violation");
}

/* a warp per atom; the bond terms of its residue's C, CA and N are added by lane 0 */
__global__ void violation_bwd_kernel(Violation v, const float *dl, const double *scale, const double *existing,
                                     float *dx)
{
    stage_wait();
    int64_t atom = global_warp(), i = atom / ATOMS;
    int a = (int)(atom % ATOMS);
    if (atom >= ATOMS * v.n) return;
    AtomTerms t = {};
    if (*dl != 0) t = atom_terms(v, i, a, (double)*dl / (v.eps + *existing));
    if (threadIdx.x % WARP) return;
    if (*dl != 0 && a <= ATOM_C) {
        double weight[BOND_TERMS], d[3][3];
        for (int k = 0; k < BOND_TERMS; k++) weight[k] = (double)*dl * scale[k];
        if (i + 1 < v.n) { /* CA and C of this residue */
            bond_bwd(v, i, weight, d);
            for (int k = 0; k < 3; k++) t.dx[k] += a == ATOM_CA ? d[0][k] : (a == ATOM_C ? -d[0][k] - d[1][k] : 0);
        }
        if (i > 0) { /* N and CA, seen from the residue before */
            bond_bwd(v, i - 1, weight, d);
            for (int k = 0; k < 3; k++) t.dx[k] += a == ATOM_N ? d[1][k] - d[2][k] : (a == ATOM_CA ? d[2][k] : 0);
        }
    }
    for (int k = 0; k < 3; k++) dx[3 * atom + k] = (float)t.dx[k];
}

__global__ void violation_existing_kernel(Violation v, double *existing)
{
    stage_wait();
    __shared__ double shared[WARP];
    double sum = array_sum(v.exists, ATOMS * v.n, shared);
    if (threadIdx.x == 0) *existing = sum;
}

static Status violation_bwd(CudaContext *context, const OpCall *call)
{
    Violation v = violation_set(call, 1);
    double *scale = (double *)call->scratch, *bonds = scale + BOND_TERMS, *existing = bonds + BOND_TERMS;
    launch(violation_bonds_kernel, 1, SUM_THREADS / 4, 0, context->stream, v, scale, bonds, nullptr, nullptr);
    launch(violation_existing_kernel, 1, SUM_THREADS, 0, context->stream, v, existing);
    launch(violation_bwd_kernel, blocks_for(ATOMS * v.n, LOSS_WARPS), LOSS_THREADS, 0, context->stream, v, F32_IN(0),
           scale, existing, F32_OUT(0));
    return cuda_launched("loss_violation_bwd");
}

const CudaEntry cuda_loss_violation[] = {{OP_LOSS_VIOLATION, violation, violation_scratch},
                                         {OP_LOSS_VIOLATION_BWD, violation_bwd, violation_scratch},
                                         {OP_COUNT, NULL, NULL}};
