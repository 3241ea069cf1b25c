/* How CPU kernels are found: a table per op family, listed in tables.def. */
#ifndef FOLDSCALE_KERNELS_CPU_ENTRY_H
#define FOLDSCALE_KERNELS_CPU_ENTRY_H

#include "engine/backend.h"

/* A kernel of one op kind. Operands are contiguous arrays of `real` or int32_t as their tensors say. */
typedef Status (*CpuKernel)(const RankLayout *layout, const OpCall *call);

/* Row of a family's table; {.run = NULL} ends it:
 *   const CpuEntry FN(cpu_dense)[] = {{OP_LINEAR, linear, NULL}, ..., {0}};
 * `scratch` (may be NULL) tells the bytes of OpCall.scratch the kernel wants. */
typedef struct CpuEntry {
    OpKind kind;
    CpuKernel run;
    size_t (*scratch)(const Program *program, const Op *op, size_t real_size);
} CpuEntry;

#endif
