/* Kernels of the family cpu_rigid: three files, one table (rigid.c). */
#ifndef FOLDSCALE_KERNELS_CPU_OPS_RIGID_H
#define FOLDSCALE_KERNELS_CPU_OPS_RIGID_H

#include "kernels/cpu/real.h"
#include "kernels/rigid_math.h"

Status FN(rigid_torsion_frames)(const RankLayout *layout, const OpCall *call);
Status FN(rigid_torsion_frames_bwd)(const RankLayout *layout, const OpCall *call);
Status FN(rigid_to_atom14)(const RankLayout *layout, const OpCall *call);
Status FN(rigid_to_atom14_bwd)(const RankLayout *layout, const OpCall *call);
Status FN(rigid_to_atom37)(const RankLayout *layout, const OpCall *call);
Status FN(rigid_pseudo_beta)(const RankLayout *layout, const OpCall *call);
Status FN(rigid_rename)(const RankLayout *layout, const OpCall *call);

Status FN(ipa_point_features)(const RankLayout *layout, const OpCall *call);
Status FN(ipa_point_features_bwd)(const RankLayout *layout, const OpCall *call);
size_t FN(ipa_attention_scratch)(const Program *program, const Op *op, size_t real_size);
Status FN(ipa_attention)(const RankLayout *layout, const OpCall *call);
Status FN(ipa_attention_bwd)(const RankLayout *layout, const OpCall *call);
Status FN(ipa_pair_context)(const RankLayout *layout, const OpCall *call);
Status FN(ipa_pair_context_dp)(const RankLayout *layout, const OpCall *call);
Status FN(ipa_pair_context_dz)(const RankLayout *layout, const OpCall *call);

#endif
