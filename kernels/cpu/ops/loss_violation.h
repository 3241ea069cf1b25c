/* Parts of the violation loss shared by its two files. */
#ifndef FOLDSCALE_KERNELS_CPU_OPS_LOSS_VIOLATION_H
#define FOLDSCALE_KERNELS_CPU_OPS_LOSS_VIOLATION_H

#include "kernels/cpu/ops/loss.h"

enum { ATOMS = 14, ATOM_N = 0, ATOM_CA = 1, ATOM_C = 2, SLOT_EXEMPT = 5 };

/* Inputs of the op; `eps` divides the clash sum. */
typedef struct Violation {
    int64_t n;
    const real *x, *exists, *radius, *lower, *upper, *peptide;
    const int32_t *residue_index, *aatype, *atom37;
    double tolerance, eps;
    real overlap;
} Violation;

Status FN(violation_open)(const OpCall *call, int first, Violation *v_out);

/* Terms of the peptide bond between residues i and i+1: C-N length, cosine of CA-C-N, cosine of C-N-CA. */
enum { BOND_LENGTH, ANGLE_CA_C_N, ANGLE_C_N_CA, BOND_TERMS };
typedef struct BondTerms {
    real mask[BOND_TERMS], loss[BOND_TERMS];
    bool bad[BOND_TERMS];
} BondTerms;
BondTerms FN(violation_bond)(const Violation *v, int64_t i);
/* 1 / (1e-6 + sum of the masks) of each term */
void FN(violation_bond_scales)(const Violation *v, double *scale_out);
/* dx += weight[k] d loss_k / d x for the bond between i and i+1 */
void FN(violation_bond_bwd)(const Violation *v, int64_t i, const real *weight, real *dx);

#endif
