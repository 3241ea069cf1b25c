/* Layers with parameters, and the small building blocks that all modules share. */
#ifndef FOLDSCALE_MODEL_LAYERS_H
#define FOLDSCALE_MODEL_LAYERS_H

#include "model/model.h"

typedef enum LinearInit {
    LINEAR_LECUN,  /* truncated normal, std 1/sqrt(fan_in): the default */
    LINEAR_HE,     /* truncated normal, std sqrt(2/fan_in): before ReLU */
    LINEAR_GLOROT, /* uniform, std sqrt(2/(fan_in+fan_out)): q, k, v */
    LINEAR_GATING, /* weight 0, bias 1 */
    LINEAR_FINAL,  /* weight 0: the last layer of a residual branch */
    LINEAR_NORMAL  /* untruncated normal, std 1/sqrt(fan_in): pair bias of attention */
} LinearInit;

typedef struct LayerSpec {
    const char *name;
    int out;
    LinearInit init;
    bool bias;
} LayerSpec;

Val layer_weight(Program *p, const char *name, int64_t in, int64_t out, LinearInit init); /* NAME.weight [out, in] */
Val layer_bias(Program *p, const char *name, int64_t out, LinearInit init);               /* NAME.bias [out] */

/* y = x W^T (+ b): parameters NAME.weight [out, in], NAME.bias [out]. */
Val layer_linear(Program *p, const char *name, Val x, int out, LinearInit init, bool bias);

/* Registers the parameters of linears that read `in` channels: all weights, then all biases. */
void layer_declare(Program *p, int64_t in, int n, const LayerSpec *spec);

/* Several linears of the same x: all weights are registered before all biases, so that gemm_batching can read the
 * weights as one matrix. */
void layer_linear_group(Program *p, Val x, int n, const LayerSpec *spec, Val *out);

/* Parameters NAME.weight, NAME.bias; eps 1e-5. */
Val layer_norm(Program *p, const char *name, Val x);

/* The mask is shared along `shared_axis` of x (-1: not shared). Rate 0 records nothing. */
Val layer_dropout(Program *p, Val x, double rate, int shared_axis);

/* r + dropout(x). With config->explicit_dropout the mask is the input "dropout_mask.NAME" (extent 1 on the shared
 * axis). */
Val layer_residual_dropout(Program *p, const ModelConfig *config, const char *name, Val r, Val x, double rate,
                           int shared_axis);

/* The mark: from here on sharded on `axis`, SHARD_NONE for whole. */
Val layer_reshard(Program *p, Val x, int axis);

Val layer_add(Program *p, Val a, Val b);

/* Swaps axes rank-3 and rank-2: rows and columns of a pair representation, MSA rows and residues. */
Val layer_transpose(Program *p, Val x);

/* What modules derive from a mask: recorded once, in the real type and outside all blocks, however many blocks ask. */
Val layer_mask(Program *p, OpKind kind, int n_in, const Val *in, const OpAttr *attr);
Val layer_mask_reshard(Program *p, Val mask, int axis);
Val layer_mask_transpose(Program *p, Val mask); /* swaps the last two axes */

Val layer_repeat(Program *p, Val x, int copies); /* x[...] -> [copies, ...] */

#endif
