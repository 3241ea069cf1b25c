/* Table of the loss kernels; total of the terms. */
#include <math.h>

#include "kernels/cpu/ops/loss.h"

static double length_scale(const OpCall *call, int input)
{
    int64_t length = *(const int32_t *)call->in[input], crop = call->op->attr.i[0];
    if (length > crop) length = crop;
    return sqrt(length > 0 ? (double)length : 0.0);
}

LOSS_KERNEL(total)
{
    (void)layout;
    double sum = 0;
    for (int k = 1; k < call->op->n_in; k++) {
        double term = (double)*(const real *)call->in[k];
        if (isfinite(term)) sum += call->op->attr.f[k - 1] * term;
    }
    *(real *)call->out[0] = (real)(sum * length_scale(call, 0));
    *(real *)call->out[1] = (real)sum;
    return OK;
}

LOSS_KERNEL(total_bwd)
{
    (void)layout;
    double d = (double)*(const real *)call->in[0] * length_scale(call, 1);
    const double *weight = call->op->attr.f;
    for (int k = 0; k < call->op->n_out; k++)
        if (weight[k] != 0 && !isfinite((double)*(const real *)call->in[2 + k])) d = NAN;
    for (int k = 0; k < call->op->n_out; k++)
        if (call->out[k]) *(real *)call->out[k] = (real)(d * weight[k]);
    return OK;
}

const CpuEntry FN(cpu_loss)[] = {{OP_LOSS_FAPE_BACKBONE, FN(loss_backbone), FN(loss_backbone_scratch)},
                                 {OP_LOSS_FAPE_BACKBONE_BWD, FN(loss_backbone_bwd), FN(loss_backbone_scratch)},
                                 {OP_LOSS_FAPE_SIDECHAIN, FN(loss_sidechain), FN(loss_sidechain_scratch)},
                                 {OP_LOSS_FAPE_SIDECHAIN_BWD, FN(loss_sidechain_bwd), FN(loss_sidechain_scratch)},
                                 {OP_LOSS_TORSION, FN(loss_torsion), NULL},
                                 {OP_LOSS_TORSION_BWD, FN(loss_torsion_bwd), NULL},
                                 {OP_LOSS_DISTOGRAM, FN(loss_distogram), FN(loss_rows_scratch)},
                                 {OP_LOSS_DISTOGRAM_BWD, FN(loss_distogram_bwd), NULL},
                                 {OP_LOSS_MASKED_MSA, FN(loss_masked_msa), FN(loss_rows_scratch)},
                                 {OP_LOSS_MASKED_MSA_BWD, FN(loss_masked_msa_bwd), NULL},
                                 {OP_LOSS_PLDDT, FN(loss_plddt), NULL},
                                 {OP_LOSS_PLDDT_BWD, FN(loss_plddt_bwd), NULL},
                                 {OP_PLDDT_SCORE, FN(loss_plddt_score), NULL},
                                 {OP_LOSS_RESOLVED, FN(loss_resolved), NULL},
                                 {OP_LOSS_RESOLVED_BWD, FN(loss_resolved_bwd), NULL},
                                 {OP_LOSS_VIOLATION, FN(loss_violation), FN(loss_violation_scratch)},
                                 {OP_LOSS_VIOLATION_BWD, FN(loss_violation_bwd), NULL},
                                 {OP_LOSS_TOTAL, FN(loss_total), NULL},
                                 {OP_LOSS_TOTAL_BWD, FN(loss_total_bwd), NULL},
                                 {0}};
