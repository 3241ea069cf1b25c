#include <math.h>
#include <string.h>

#include "data/residue.h"
#include "data/transform.h"

enum { ATOM_N, ATOM_CA, ATOM_C, ATOM_CB, ATOM_O, GLYCINE = 7 };

static const double EPS = 1e-8; /* under both square roots, as in the reference */

static int residue_type(const AtomView *view, int64_t i)
{
    int type = view->aatype[i];
    return type < 0 || type > RESTYPE_UNKNOWN ? RESTYPE_UNKNOWN : type;
}

/* Gram-Schmidt frame of AlphaFold2 algorithm 21: columns of `rotation` are e0 = origin - neg_x, e1 = plane - origin
 * made orthogonal to e0, e2 = e0 x e1. */
static void frame_from_points(const float *neg_x, const float *origin, const float *plane, double rotation[3][3])
{
    double e0[3], e1[3], square = EPS, dot = 0.0;
    for (int k = 0; k < 3; ++k) {
        e0[k] = (double)origin[k] - neg_x[k];
        e1[k] = (double)plane[k] - origin[k];
        square += e0[k] * e0[k];
    }
    double length = sqrt(square);
    for (int k = 0; k < 3; ++k) {
        e0[k] /= length;
        dot += e0[k] * e1[k];
    }
    square = EPS;
    for (int k = 0; k < 3; ++k) {
        e1[k] -= e0[k] * dot;
        square += e1[k] * e1[k];
    }
    length = sqrt(square);
    for (int k = 0; k < 3; ++k) e1[k] /= length;
    for (int k = 0; k < 3; ++k) {
        int a = (k + 1) % 3, b = (k + 2) % 3;
        rotation[k][0] = e0[k];
        rotation[k][1] = e1[k];
        rotation[k][2] = e0[a] * e1[b] - e0[b] * e1[a];
    }
}

/* 4x4 matrix with the columns of the rotation multiplied by sign[] */
static void store_frame(const double rotation[3][3], const double sign[3], const float *origin, float *out)
{
    for (int row = 0; row < 3; ++row) {
        for (int column = 0; column < 3; ++column)
            out[row * 4 + column] = (float)(rotation[row][column] * sign[column]);
        out[row * 4 + 3] = origin[row];
        out[12 + row] = 0.0f;
    }
    out[15] = 1.0f;
}

void transform_frames(const AtomView *view, float *frames_out, float *alt_frames_out, float *exists_out)
{
    static const double PLAIN[3] = {1, 1, 1}, BACKBONE[3] = {-1, 1, -1}, HALF_TURN[3] = {1, -1, -1};
    const ResidueTables *tables = residue_tables();
    for (int64_t i = 0; i < view->length; ++i) {
        int type = residue_type(view, i);
        const float *positions = view->positions + i * ATOM37_COUNT * 3;
        const uint8_t *mask = view->mask + i * ATOM37_COUNT;
        for (int group = 0; group < RIGID_GROUPS; ++group) {
            const int32_t *atom = tables->group_base_atom37[type][group];
            const float *origin = positions + atom[1] * 3;
            double rotation[3][3];
            frame_from_points(positions + atom[0] * 3, origin, positions + atom[2] * 3, rotation);
            int64_t at = i * RIGID_GROUPS + group;
            bool ambiguous = transform_group_ambiguous(type, group);
            store_frame(rotation, group == 0 ? BACKBONE : PLAIN, origin, frames_out + at * 16);
            store_frame(rotation, group == 0 ? BACKBONE : (ambiguous ? HALF_TURN : PLAIN), origin,
                        alt_frames_out + at * 16);
            bool resolved = mask[atom[0]] && mask[atom[1]] && mask[atom[2]];
            exists_out[at] = resolved ? tables->group_exists[type][group] : 0.0f;
        }
    }
}

bool transform_group_ambiguous(int type, int group)
{
    /* the last chi of a residue whose atoms swap under a half turn (supplement table 3) */
    const ResidueTables *tables = residue_tables();
    if (group < 4 || tables->chi_mask[type][group - 4] == 0.0f) return false;
    if (group < 7 && tables->chi_mask[type][group - 3] != 0.0f) return false;
    for (int atom = 0; atom < ATOM14_COUNT; ++atom)
        if (tables->atom14_ambiguous[type][atom] != 0.0f) return true;
    return false;
}

void transform_pseudo_beta(const AtomView *view, float *positions_out, float *mask_out)
{
    for (int64_t i = 0; i < view->length; ++i) {
        int atom = view->aatype[i] == GLYCINE ? ATOM_CA : ATOM_CB;
        memcpy(positions_out + i * 3, view->positions + (i * ATOM37_COUNT + atom) * 3, 3 * sizeof(float));
        mask_out[i] = view->mask[i * ATOM37_COUNT + atom];
    }
}

typedef struct TorsionAtom {
    const float *position;
    bool resolved;
} TorsionAtom;

/* Atom of residue i; absent (at the origin, as the reference pads) before the first residue. */
static TorsionAtom torsion_atom(const AtomView *view, int64_t i, int atom)
{
    static const float ORIGIN[3] = {0};
    if (i < 0 && !view->has_previous) return (TorsionAtom){ORIGIN, false};
    int64_t at = i * ATOM37_COUNT + atom;
    return (TorsionAtom){view->positions + at * 3, view->mask[at] != 0};
}

/* Float32 in the order of operations of the reference: its rounding (up to 3e-5 where three atoms are nearly in line)
 * is part of the features that the published model was trained on. */
static float dot3(const float *a, const float *b)
{
    float sum = a[0] * b[0];
    sum += a[1] * b[1];
    sum += a[2] * b[2];
    return sum;
}

static void normalise(float *v)
{
    float length = sqrtf(dot3(v, v) + (float)EPS);
    for (int k = 0; k < 3; ++k) v[k] /= length;
}

/* sin and cos of the dihedral: the fourth atom in the frame of (second, third, first) has coordinates
 * (x, r cos, r sin). */
static void torsion(const TorsionAtom atom[4], float sin_cos_out[2])
{
    const float *neg_x = atom[1].position, *origin = atom[2].position, *plane = atom[0].position;
    const float *fourth = atom[3].position;
    float e0[3], e1[3], e2[3];
    for (int k = 0; k < 3; ++k) {
        e0[k] = origin[k] - neg_x[k];
        e1[k] = plane[k] - origin[k];
    }
    normalise(e0);
    float dot = dot3(e0, e1);
    for (int k = 0; k < 3; ++k) e1[k] -= e0[k] * dot;
    normalise(e1);
    for (int k = 0; k < 3; ++k) {
        int a = (k + 1) % 3, b = (k + 2) % 3;
        e2[k] = e0[a] * e1[b] - e0[b] * e1[a];
    }
    float y = dot3(e1, fourth) - dot3(e1, origin), z = dot3(e2, fourth) - dot3(e2, origin);
    float length = sqrtf(z * z + y * y + (float)EPS);
    sin_cos_out[0] = z / length;
    sin_cos_out[1] = y / length;
}

/* Atoms of torsion t (omega, phi, psi, chi1-4) of residue i; false when the residue type has no such chi. */
static bool torsion_atoms(const AtomView *view, int64_t i, int t, TorsionAtom atom[4])
{
    static const struct {
        int residue, atom;
    } BACKBONE[3][4] = {{{-1, ATOM_CA}, {-1, ATOM_C}, {0, ATOM_N}, {0, ATOM_CA}},
                        {{-1, ATOM_C}, {0, ATOM_N}, {0, ATOM_CA}, {0, ATOM_C}},
                        {{0, ATOM_N}, {0, ATOM_CA}, {0, ATOM_C}, {0, ATOM_O}}};
    if (t < 3) {
        for (int k = 0; k < 4; ++k) atom[k] = torsion_atom(view, i + BACKBONE[t][k].residue, BACKBONE[t][k].atom);
        return true;
    }
    const ResidueTables *tables = residue_tables();
    int type = residue_type(view, i);
    if (tables->chi_mask[type][t - 3] == 0.0f) return false;
    for (int k = 0; k < 4; ++k) atom[k] = torsion_atom(view, i, tables->chi_atom37[type][t - 3][k]);
    return true;
}

void transform_torsions(const AtomView *view, float *sin_cos_out, float *alt_sin_cos_out, float *mask_out)
{
    enum { TORSIONS = 7, PSI = 2 };
    const ResidueTables *tables = residue_tables();
    for (int64_t i = 0; i < view->length; ++i) {
        int type = residue_type(view, i);
        for (int t = 0; t < TORSIONS; ++t) {
            int64_t at = i * TORSIONS + t;
            TorsionAtom atom[4];
            float sin_cos[2] = {0.0f, 0.0f};
            bool defined = torsion_atoms(view, i, t, atom) && atom[0].resolved && atom[1].resolved &&
                           atom[2].resolved && atom[3].resolved;
            if (defined) torsion(atom, sin_cos);
            float sign = t == PSI ? -1.0f : 1.0f;
            float flip = t > PSI && tables->chi_pi_periodic[type][t - 3] != 0.0f ? -1.0f : 1.0f;
            mask_out[at] = defined ? 1.0f : 0.0f;
            for (int k = 0; k < 2; ++k) {
                /* + 0.0 turns a negative zero of an absent angle into zero */
                sin_cos_out[at * 2 + k] = sign * sin_cos[k] + 0.0f;
                alt_sin_cos_out[at * 2 + k] = sign * flip * sin_cos[k] + 0.0f;
            }
        }
    }
}
