/* Coordinates of synthetic chains: a backbone of ideal bonds along drawn torsions, side chains from the rigid-group
 * tables (AlphaFold2 supplement, algorithm 24). */
#include <math.h>
#include <string.h>

#include "data/residue.h"
#include "data/mmcif_write.h"
#include "data/synth_internal.h"

enum { ATOM_N, ATOM_CA, ATOM_C };

typedef struct Frame {
    double r[3][3], t[3];
} Frame;

static Frame compose(const Frame *a, const Frame *b)
{
    Frame out;
    for (int i = 0; i < 3; ++i) {
        out.t[i] = a->t[i];
        for (int k = 0; k < 3; ++k) out.t[i] += a->r[i][k] * b->t[k];
        for (int j = 0; j < 3; ++j) {
            out.r[i][j] = 0.0;
            for (int k = 0; k < 3; ++k) out.r[i][j] += a->r[i][k] * b->r[k][j];
        }
    }
    return out;
}

static Frame of_table(const float m[4][4])
{
    Frame out;
    for (int i = 0; i < 3; ++i) {
        out.t[i] = m[i][3];
        for (int j = 0; j < 3; ++j) out.r[i][j] = m[i][j];
    }
    return out;
}

static Frame turn_about_x(double angle)
{
    double c = cos(angle), s = sin(angle);
    return (Frame){{{1, 0, 0}, {0, c, -s}, {0, s, c}}, {0, 0, 0}};
}

static void cross(const double *a, const double *b, double *out)
{
    for (int k = 0; k < 3; ++k) out[k] = a[(k + 1) % 3] * b[(k + 2) % 3] - a[(k + 2) % 3] * b[(k + 1) % 3];
}

static void normalise(double *v)
{
    double length = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
    for (int k = 0; k < 3; ++k) v[k] /= length;
}

/* The atom at `bond` from c, with angle b-c-x and torsion a-b-c-x (Parsons et al. 2005, "natural extension"). */
static void extend(const double *a, const double *b, const double *c, double bond, double angle, double torsion,
                   double *out)
{
    double ab[3], bc[3], n[3], m[3];
    for (int k = 0; k < 3; ++k) {
        ab[k] = b[k] - a[k];
        bc[k] = c[k] - b[k];
    }
    normalise(bc);
    cross(ab, bc, n);
    normalise(n);
    cross(n, bc, m);
    for (int k = 0; k < 3; ++k)
        out[k] = c[k] - bond * cos(angle) * bc[k] + bond * sin(angle) * (cos(torsion) * m[k] + sin(torsion) * n[k]);
}

/* Frame with CA as origin, C on the x axis and N in the upper xy half plane. */
static Frame backbone_frame(const double *n, const double *ca, const double *c)
{
    double x[3], y[3], z[3], dot = 0.0;
    Frame out;
    for (int k = 0; k < 3; ++k) {
        x[k] = c[k] - ca[k];
        y[k] = n[k] - ca[k];
    }
    normalise(x);
    for (int k = 0; k < 3; ++k) dot += x[k] * y[k];
    for (int k = 0; k < 3; ++k) y[k] -= dot * x[k];
    normalise(y);
    cross(x, y, z);
    for (int k = 0; k < 3; ++k) {
        out.r[k][0] = x[k];
        out.r[k][1] = y[k];
        out.r[k][2] = z[k];
        out.t[k] = ca[k];
    }
    return out;
}

/* All atoms of one residue from its backbone frame, psi and random rotamers. */
static void place_residue(const Frame *backbone, int type, double psi, SynthStream *stream, float (*positions)[3])
{
    enum { PSI_GROUP = 3, FIRST_CHI = 4 };
    const ResidueTables *tables = residue_tables();
    Frame group[RIGID_GROUPS];
    for (int g = 0; g < RIGID_GROUPS; ++g) {
        group[g] = *backbone;
        if (g < PSI_GROUP || tables->group_exists[type][g] == 0.0f) continue;
        double rotamer = (60.0 + 120.0 * floor(3.0 * synth_uniform(stream)) + 10.0 * synth_normal(stream)) * M_PI / 180;
        Frame ideal = of_table(tables->default_frames[type][g]), turn = turn_about_x(g == PSI_GROUP ? psi : rotamer);
        Frame parent = compose(g > FIRST_CHI ? &group[g - 1] : backbone, &ideal);
        group[g] = compose(&parent, &turn);
    }
    for (int a = 0; a < ATOM37_COUNT; ++a) {
        if (tables->atom37_mask[type][a] == 0.0f) continue;
        const Frame *frame = &group[tables->atom37_group[type][a]];
        for (int i = 0; i < 3; ++i) {
            double x = frame->t[i];
            for (int k = 0; k < 3; ++k) x += frame->r[i][k] * tables->atom37_group_position[type][a][k];
            positions[a][i] = (float)x;
        }
    }
}

/* phi and psi of the residues: helices, strands and coils of geometric length in turn. */
static void draw_torsions(SynthStream *stream, int64_t length, double *phi, double *psi)
{
    static const struct {
        double phi, psi, spread, stop;
    } STATE[3] = {{-57, -47, 5, 1.0 / 12}, {-119, 113, 10, 1.0 / 6}, {-80, 60, 45, 1.0 / 5}};
    int64_t left = 0;
    int state = 0;
    for (int64_t i = 0; i < length; ++i) {
        if (left-- <= 0) {
            state = (int)(3.0 * synth_uniform(stream)) % 3;
            left = synth_geometric(stream, STATE[state].stop);
        }
        phi[i] = (STATE[state].phi + STATE[state].spread * synth_normal(stream)) * M_PI / 180;
        psi[i] = (STATE[state].psi + STATE[state].spread * synth_normal(stream)) * M_PI / 180;
    }
}

static void build_chain(SynthStream *stream, const int32_t *aatype, int64_t length, const double *phi,
                        const double *psi, float *positions)
{
    /* Engh and Huber: lengths in Angstrom, angles in degrees */
    const double n_ca = 1.459, ca_c = 1.525, c_n = 1.329, at_ca = 111.0, at_c = 117.2, at_n = 121.7, d = M_PI / 180;
    double n[3] = {1.459, 0, 0}, ca[3] = {0, 0, 0}, c[3] = {ca_c * cos(at_ca * d), ca_c * sin(at_ca * d), 0};
    for (int64_t i = 0; i < length; ++i) {
        Frame backbone = backbone_frame(n, ca, c);
        place_residue(&backbone, aatype[i], psi[i], stream, (float(*)[3])(positions + i * ATOM37_COUNT * 3));
        if (i + 1 == length) break;
        double next_n[3], next_ca[3], next_c[3];
        extend(n, ca, c, c_n, at_c * d, psi[i], next_n);
        extend(ca, c, next_n, n_ca, at_n * d, M_PI, next_ca);
        extend(c, next_n, next_ca, ca_c, at_ca * d, phi[i + 1], next_c);
        memcpy(n, next_n, sizeof n);
        memcpy(ca, next_ca, sizeof ca);
        memcpy(c, next_c, sizeof c);
    }
}

Status synth_write_structure(const SynthOptions *options, int64_t chain, const char *sequence, Arena *arena)
{
    const double unresolved = 0.04;
    const ResidueTables *tables = residue_tables();
    SynthStream stream = synth_stream(options, chain, SYNTH_STRUCTURE);
    int64_t length = (int64_t)strlen(sequence), atoms = length * ATOM37_COUNT;
    int32_t *aatype = arena_array(arena, (size_t)length, sizeof *aatype);
    float *positions = arena_array(arena, (size_t)atoms, 3 * sizeof *positions);
    float *exists = arena_array(arena, (size_t)atoms, sizeof *exists);
    double *phi = arena_array(arena, (size_t)length, sizeof *phi),
           *psi = arena_array(arena, (size_t)length, sizeof *psi);
    char name[8], date[11];
    synth_name(chain, name);
    synth_date(chain, date);
    char *path = arena_printf(arena, "%s/mmcif/%.4s.cif", options->folder, name);
    if (!aatype || !positions || !exists || !phi || !psi || !path)
        return status_fail(ERR_MEMORY, "synth: no memory for %lld residues", (long long)length);
    for (int64_t i = 0; i < length; ++i) aatype[i] = residue_letter_index(sequence[i]);
    draw_torsions(&stream, length, phi, psi);
    build_chain(&stream, aatype, length, phi, psi, positions);
    for (int64_t i = 0; i < length; ++i) {
        bool resolved = synth_uniform(&stream) >= unresolved || i == length / 2; /* one at least */
        for (int a = 0; a < ATOM37_COUNT; ++a)
            exists[i * ATOM37_COUNT + a] = resolved ? tables->atom37_mask[aatype[i]][a] : 0.0f;
    }
    name[4] = '\0';
    MmcifChain structure = {.name = name,
                            .chain_id = "A",
                            .length = length,
                            .aatype = aatype,
                            .positions = positions,
                            .atom_exists = exists,
                            .release_date = date,
                            .resolution = 1.0 + 2.0 * synth_uniform(&stream)};
    return mmcif_write_chain(path, &structure);
}
