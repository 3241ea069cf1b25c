#include "model/layers.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

Val layer_weight(Program *p, const char *name, int64_t in, int64_t out, LinearInit init)
{
    static const struct {
        InitRule rule;
        double gain; /* std^2 times the fan */
    } rules[] = {
        [LINEAR_LECUN] = {INIT_NORMAL, 1}, [LINEAR_HE] = {INIT_NORMAL, 2},  [LINEAR_GLOROT] = {INIT_UNIFORM, 2},
        [LINEAR_GATING] = {INIT_ZERO, 0},  [LINEAR_FINAL] = {INIT_ZERO, 0}, [LINEAR_NORMAL] = {INIT_GAUSSIAN, 1}};
    char full[256];
    snprintf(full, sizeof full, "%s.weight", name);
    double fan = (double)(init == LINEAR_GLOROT ? in + out : in);
    return prog_param(p, full, 2, (int64_t[]){out, in}, rules[init].rule, sqrt(rules[init].gain / fan));
}

Val layer_bias(Program *p, const char *name, int64_t out, LinearInit init)
{
    char full[256];
    snprintf(full, sizeof full, "%s.bias", name);
    return prog_param(p, full, 1, &out, init == LINEAR_GATING ? INIT_ONE : INIT_ZERO, 0);
}

Val layer_linear(Program *p, const char *name, Val x, int out, LinearInit init, bool bias)
{
    if (p->status != OK) return VAL_NONE;
    int64_t in = tensor_last(prog_tensor(p, x));
    Val w = layer_weight(p, name, in, out, init), b = bias ? layer_bias(p, name, out, init) : VAL_NONE;
    return prog_add(p, OP_LINEAR, 3, (Val[]){x, w, b}, NULL);
}

void layer_declare(Program *p, int64_t in, int n, const LayerSpec *spec)
{
    for (int i = 0; i < n; i++) layer_weight(p, spec[i].name, in, spec[i].out, spec[i].init);
    for (int i = 0; i < n; i++)
        if (spec[i].bias) layer_bias(p, spec[i].name, spec[i].out, spec[i].init);
}

void layer_linear_group(Program *p, Val x, int n, const LayerSpec *spec, Val *out)
{
    for (int i = 0; i < n; i++) out[i] = VAL_NONE;
    if (p->status != OK) return;
    layer_declare(p, tensor_last(prog_tensor(p, x)), n, spec);
    for (int i = 0; i < n; i++) out[i] = layer_linear(p, spec[i].name, x, spec[i].out, spec[i].init, spec[i].bias);
}

Val layer_norm(Program *p, const char *name, Val x)
{
    if (p->status != OK) return VAL_NONE;
    char full[256];
    int64_t c = tensor_last(prog_tensor(p, x));
    snprintf(full, sizeof full, "%s.weight", name);
    Val gamma = prog_param(p, full, 1, &c, INIT_ONE, 0);
    snprintf(full, sizeof full, "%s.bias", name);
    Val beta = prog_param(p, full, 1, &c, INIT_ZERO, 0);
    return prog_add(p, OP_LAYER_NORM, 3, (Val[]){x, gamma, beta}, &(OpAttr){.f = {1e-5}});
}

Val layer_dropout(Program *p, Val x, double rate, int shared_axis)
{
    if (rate == 0 || p->status != OK) return x;
    Val rng = prog_input(p, "rng", DT_I32, 1, (int64_t[]){4});
    return prog_add(p, OP_DROPOUT, 2, (Val[]){x, rng}, &(OpAttr){.i = {p->next_dropout++, shared_axis}, .f = {rate}});
}

/* x m with m of extent 1 on the shared axis: m is spread to the shape of x by concatenation (checks alone record it).
 */
static Val explicit_mask(Program *p, const char *name, Val x, int shared_axis)
{
    char full[128];
    snprintf(full, sizeof full, "dropout_mask.%s", name);
    Tensor t = *prog_tensor(p, x);
    int64_t small[TENSOR_MAX_RANK];
    for (int axis = 0; axis < t.rank; axis++) small[axis] = axis == shared_axis ? 1 : t.dim[axis];
    Val mask = prog_input(p, full, DT_F32, t.rank, small);
    Val copies[OP_MAX_IN];
    if (shared_axis < 0) return prog_add(p, OP_MASK_MUL, 2, (Val[]){x, mask}, NULL);
    if (t.dim[shared_axis] > OP_MAX_IN)
        return prog_fail(p, ERR_UNSUPPORTED, "explicit dropout mask '%s': more than %d copies", name, OP_MAX_IN);
    for (int64_t i = 0; i < t.dim[shared_axis]; i++) copies[i] = mask;
    Val spread = prog_add(p, OP_CONCAT, (int)t.dim[shared_axis], copies, &(OpAttr){.i = {shared_axis}});
    return prog_add(p, OP_MASK_MUL, 2, (Val[]){x, spread}, NULL);
}

Val layer_residual_dropout(Program *p, const ModelConfig *config, const char *name, Val r, Val x, double rate,
                           int shared_axis)
{
    if (p->status != OK) return VAL_NONE;
    Val dropped =
        config->explicit_dropout ? explicit_mask(p, name, x, shared_axis) : layer_dropout(p, x, rate, shared_axis);
    return layer_add(p, r, dropped);
}

Val layer_reshard(Program *p, Val x, int axis)
{
    return prog_add(p, OP_RESHARD, 1, &x, &(OpAttr){.i = {axis}});
}

Val layer_add(Program *p, Val a, Val b)
{
    return prog_add(p, OP_ADD, 2, (Val[]){a, b}, NULL);
}

Val layer_transpose(Program *p, Val x)
{
    if (p->status != OK) return VAL_NONE;
    int rank = prog_tensor(p, x)->rank;
    OpAttr attr = {.i = {0, 1, 2, 3, 4, 5}};
    attr.i[rank - 3] = rank - 2;
    attr.i[rank - 2] = rank - 3;
    return prog_add(p, OP_TRANSPOSE, 1, &x, &attr);
}

Val layer_mask(Program *p, OpKind kind, int n_in, const Val *in, const OpAttr *attr)
{
    if (p->status != OK) return VAL_NONE;
    for (int32_t i = p->n_ops - 1; i >= 0; i--) {
        const Op *op = &p->op[i];
        if (op->kind == kind && op->full_precision && op->n_in == n_in &&
            !memcmp(op->in, in, (size_t)n_in * sizeof *in) && !memcmp(&op->attr, attr, sizeof *attr))
            return op->out[0];
    }
    int32_t block = p->block_now;
    p->block_now = -1;
    bool former = prog_full_precision(p, true);
    Val v = prog_add(p, kind, n_in, in, attr);
    prog_full_precision(p, former);
    p->block_now = block;
    return v;
}

Val layer_mask_reshard(Program *p, Val mask, int axis)
{
    return layer_mask(p, OP_RESHARD, 1, &mask, &(OpAttr){.i = {axis}});
}

Val layer_mask_transpose(Program *p, Val mask)
{
    if (p->status != OK) return VAL_NONE;
    int rank = prog_tensor(p, mask)->rank;
    OpAttr attr = {.i = {0, 1, 2, 3, 4, 5}};
    attr.i[rank - 2] = rank - 1;
    attr.i[rank - 1] = rank - 2;
    return layer_mask(p, OP_TRANSPOSE, 1, &mask, &attr);
}

Val layer_repeat(Program *p, Val x, int copies)
{
    if (p->status != OK) return VAL_NONE;
    Tensor t = *prog_tensor(p, x);
    if (copies > OP_MAX_IN) return prog_fail(p, ERR_UNSUPPORTED, "%d copies (at most %d)", copies, OP_MAX_IN);
    OpAttr shape = {.i = {t.rank + 1, 1}};
    for (int axis = 0; axis < t.rank; axis++) shape.i[2 + axis] = t.dim[axis];
    Val one = prog_add(p, OP_RESHAPE, 1, &x, &shape), all[OP_MAX_IN];
    for (int i = 0; i < copies; i++) all[i] = one;
    return prog_add(p, OP_CONCAT, copies, all, &(OpAttr){.i = {0}});
}
