#include "data/metrics.h"

#include <math.h>

#define EPS           1e-8
#define LDDT_CUTOFF_A 15.0

static double distance_squared(const double *a, const double *b)
{
    double x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
    return x * x + y * y + z * z;
}

/* Sums over all pairs: lDDT of the chain and of each residue, dRMSD. */
static void compare_distances(const double *predicted, const double *target, const uint8_t *mask, int64_t n,
                              double residues, double *per_residue_out, StructureMetrics *m)
{
    double pairs = 0, kept = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        double own_pairs = 0, own_kept = 0;
        for (int64_t j = 0; j < n && mask[i]; j++) {
            if (j == i || !mask[j]) continue;
            double p = distance_squared(predicted + 3 * i, predicted + 3 * j);
            double t = distance_squared(target + 3 * i, target + 3 * j), difference = sqrt(p) - sqrt(t);
            squares += difference * difference;
            t = sqrt(t + EPS);
            if (t >= LDDT_CUTOFF_A) continue;
            double error = fabs(sqrt(p + EPS) - t);
            own_pairs += 1;
            own_kept += 0.25 * ((error < 0.5) + (error < 1) + (error < 2) + (error < 4));
        }
        if (per_residue_out) per_residue_out[i] = (EPS + own_kept) / (EPS + own_pairs);
        pairs += own_pairs;
        kept += own_kept;
    }
    m->lddt_ca = (EPS + kept) / (EPS + pairs);
    m->drmsd = sqrt(squares / (residues * (residues - 1)));
}

/* Eigenvector of the largest eigenvalue of a symmetric 4x4 matrix: cyclic Jacobi rotations (Golub and Van Loan 8.5). */
static void largest_eigenvector(double a[4][4], double vector_out[4])
{
    enum { SWEEPS = 32 };
    double v[4][4] = {{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}};
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        for (int p = 0; p < 3; p++) {
            for (int q = p + 1; q < 4; q++) {
                if (a[p][q] == 0) continue;
                double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                double t = (theta >= 0 ? 1 : -1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int k = 0; k < 4; k++) {
                    double akp = a[k][p], akq = a[k][q];
                    a[k][p] = c * akp - s * akq;
                    a[k][q] = s * akp + c * akq;
                }
                for (int k = 0; k < 4; k++) {
                    double apk = a[p][k], aqk = a[q][k], vkp = v[k][p], vkq = v[k][q];
                    a[p][k] = c * apk - s * aqk;
                    a[q][k] = s * apk + c * aqk;
                    v[k][p] = c * vkp - s * vkq;
                    v[k][q] = s * vkp + c * vkq;
                }
            }
        }
    }
    int best = 0;
    for (int k = 1; k < 4; k++)
        if (a[k][k] > a[best][best]) best = k;
    for (int k = 0; k < 4; k++) vector_out[k] = v[k][best];
}

/* Rotation that brings the centred predicted positions onto the target: unit quaternion (Horn 1987). */
static void best_rotation(double s[3][3], double rotation_out[3][3])
{
    double q[4];
    double n[4][4] = {{s[0][0] + s[1][1] + s[2][2], s[1][2] - s[2][1], s[2][0] - s[0][2], s[0][1] - s[1][0]},
                      {s[1][2] - s[2][1], s[0][0] - s[1][1] - s[2][2], s[0][1] + s[1][0], s[2][0] + s[0][2]},
                      {s[2][0] - s[0][2], s[0][1] + s[1][0], -s[0][0] + s[1][1] - s[2][2], s[1][2] + s[2][1]},
                      {s[0][1] - s[1][0], s[2][0] + s[0][2], s[1][2] + s[2][1], -s[0][0] - s[1][1] + s[2][2]}};
    largest_eigenvector(n, q);
    double w = q[0], x = q[1], y = q[2], z = q[3];
    double r[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                      {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                      {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) rotation_out[i][j] = r[i][j];
}

static void compare_superposed(const double *predicted, const double *target, const uint8_t *mask, int64_t n,
                               double residues, StructureMetrics *m)
{
    double pc[3] = {0}, tc[3] = {0}, s[3][3] = {{0}}, r[3][3], squares = 0;
    int within[5] = {0}; /* 0.5 1 2 4 8 Angstrom */
    for (int64_t i = 0; i < n; i++)
        for (int a = 0; a < 3 && mask[i]; a++) {
            pc[a] += predicted[3 * i + a] / residues;
            tc[a] += target[3 * i + a] / residues;
        }
    for (int64_t i = 0; i < n; i++)
        for (int a = 0; a < 3 && mask[i]; a++)
            for (int b = 0; b < 3; b++) s[a][b] += (predicted[3 * i + a] - pc[a]) * (target[3 * i + b] - tc[b]);
    best_rotation(s, r);
    for (int64_t i = 0; i < n; i++) {
        double moved[3];
        if (!mask[i]) continue;
        for (int a = 0; a < 3; a++) {
            moved[a] = tc[a];
            for (int b = 0; b < 3; b++) moved[a] += r[a][b] * (predicted[3 * i + b] - pc[b]);
        }
        double d2 = distance_squared(moved, target + 3 * i), limit = 0.5;
        squares += d2;
        for (int k = 0; k < 5; k++, limit *= 2) within[k] += sqrt(d2) <= limit;
    }
    m->rmsd = sqrt(squares / residues);
    m->gdt_ts = (within[1] + within[2] + within[3] + within[4]) / (4 * residues);
    m->gdt_ha = (within[0] + within[1] + within[2] + within[3]) / (4 * residues);
}

Status metrics_compare(const double *predicted, const double *target, const uint8_t *mask, int64_t n,
                       double *per_residue_out, StructureMetrics *metrics_out)
{
    StructureMetrics m;
    double residues = 0;
    for (int64_t i = 0; i < n; i++) {
        residues += mask[i] != 0;
        for (int a = 0; a < 3 && mask[i]; a++)
            if (!isfinite(predicted[3 * i + a]) || !isfinite(target[3 * i + a]))
                return status_fail(ERR_NUMERIC, "residue %lld has no finite position", (long long)i);
    }
    if (residues < 3)
        return status_fail(ERR_INPUT, "too few resolved residues to compare (found %.0f, expected at least 3)",
                           residues);
    compare_distances(predicted, target, mask, n, residues, per_residue_out, &m);
    compare_superposed(predicted, target, mask, n, residues, &m);
    *metrics_out = m;
    return OK;
}
