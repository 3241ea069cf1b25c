/* Kernels of the family cpu_loss: several files, one table (loss.c). Sums over many terms are taken in double, row by
 * row and then over rows in order, so that the number of threads does not change a bit of the result. */
#ifndef FOLDSCALE_KERNELS_CPU_OPS_LOSS_H
#define FOLDSCALE_KERNELS_CPU_OPS_LOSS_H

#include <string.h>

#include "kernels/cpu/real.h"
#include "kernels/rigid_math.h"

#define LOSS_KERNEL(name) Status FN(loss_##name)(const RankLayout *layout, const OpCall *call)
LOSS_KERNEL(backbone);
LOSS_KERNEL(backbone_bwd);
LOSS_KERNEL(sidechain);
LOSS_KERNEL(sidechain_bwd);
LOSS_KERNEL(torsion);
LOSS_KERNEL(torsion_bwd);
LOSS_KERNEL(distogram);
LOSS_KERNEL(distogram_bwd);
LOSS_KERNEL(masked_msa);
LOSS_KERNEL(masked_msa_bwd);
LOSS_KERNEL(plddt);
LOSS_KERNEL(plddt_bwd);
LOSS_KERNEL(plddt_score);
LOSS_KERNEL(resolved);
LOSS_KERNEL(resolved_bwd);
LOSS_KERNEL(violation);
LOSS_KERNEL(violation_bwd);
LOSS_KERNEL(total);
LOSS_KERNEL(total_bwd);

size_t FN(loss_backbone_scratch)(const Program *program, const Op *op, size_t real_size);
size_t FN(loss_sidechain_scratch)(const Program *program, const Op *op, size_t real_size);
size_t FN(loss_rows_scratch)(const Program *program, const Op *op, size_t real_size);
size_t FN(loss_violation_scratch)(const Program *program, const Op *op, size_t real_size);

/* The incoming gradient of a loss; when it is zero the outputs are zeroed and true is returned: a term that does not
 * count must not pass on what may not be finite. */
static inline bool loss_is_off(const OpCall *call, real *dl_out)
{
    *dl_out = *(const real *)call->in[0];
    if (*dl_out != 0) return false;
    for (int k = 0; k < call->op->n_out; k++)
        if (call->out[k]) memset(call->out[k], 0, sizeof(real) * (size_t)tensor_count(call->out_tensor[k]));
    return true;
}

static inline double loss_sum(const real *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i];
    return sum;
}

#endif
