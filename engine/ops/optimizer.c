/* The optimizer step on ranges of the persistent blocks. Operands are flat: only element counts matter. */
#include "engine/rules.h"

static Status scalar_out(const Tensor *like, Tensor *out)
{
    *out = rule_tensor(rule_grad_dtype(like->dtype), 1, (int64_t[]){1});
    return OK;
}

static bool same_count(const Program *p, const Op *op, int n)
{
    for (int k = 0; k < n; k++)
        if (!rule_in(p, op, k) || tensor_count(rule_in(p, op, k)) != tensor_count(rule_in(p, op, 0))) return false;
    return true;
}

static bool count_is(const Program *p, const Op *op, int input, int64_t count)
{
    const Tensor *t = rule_in(p, op, input);
    return t && tensor_count(t) == count;
}

static double first_count(const Program *p, const Op *op)
{
    return (double)tensor_count(rule_in(p, op, 0));
}

/* --- SUM_SQUARES --- */

static Status sum_squares_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    const Tensor *g = rule_in(p, op, 0);
    if (!g || g->dtype == DT_I32) return rule_bad_shape(p, op, "a gradient");
    *n_out = 1;
    return scalar_out(g, &out[0]);
}

static void sum_squares_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 2 * first_count(p, op);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_sum_squares = {
    .name = "sum_squares", .infer = sum_squares_infer, .cost = sum_squares_cost, .flags = OPF_NODIFF | OPF_FULL};

/* --- CLIP_FACTOR --- */

static Status clip_factor_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, op->n_in > 0 ? op->n_in : 1));
    TRY(scalar_out(rule_in(p, op, 0), &out[0]));
    out[1] = out[0];
    *n_out = 2;
    return OK;
}

const OpDef op_clip_factor = {.name = "clip_factor",
                              .infer = clip_factor_infer,
                              .cost = sum_squares_cost,
                              .flags = OPF_NODIFF | OPF_FULL,
                              .real_name = {"max_norm"}};

/* --- ADAM: p g m v factor hyper -> p m v --- */

static Status adam_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    if (!same_count(p, op, 4) || !count_is(p, op, 4, 1) || !count_is(p, op, 5, 4))
        return rule_bad_shape(p, op, "p, g, m, v of one size, factor[1], hyper[4]");
    out[0] = *rule_in(p, op, 0);
    out[1] = *rule_in(p, op, 2);
    out[2] = *rule_in(p, op, 3);
    *n_out = 3;
    return OK;
}

static void adam_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 13 * first_count(p, op); /* operations of the update per element, divisions and the root as one */
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_adam = {.name = "adam",
                       .infer = adam_infer,
                       .cost = adam_cost,
                       .flags = OPF_NODIFF | OPF_FULL | OPF_EFFECT,
                       .real_name = {"beta1", "beta2", "eps"}};

/* --- SWA_UPDATE: swa p factor hyper -> swa --- */

static Status swa_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    if (!same_count(p, op, 2) || !count_is(p, op, 2, 1) || !count_is(p, op, 3, 4))
        return rule_bad_shape(p, op, "swa, p of one size, factor[1], hyper[4]");
    return rule_infer_like_first(p, op, out, n_out);
}

static void swa_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 3 * first_count(p, op);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_swa_update = {.name = "swa_update",
                             .infer = swa_infer,
                             .cost = swa_cost,
                             .flags = OPF_NODIFF | OPF_FULL | OPF_EFFECT,
                             .real_name = {"decay"}};

/* --- PARAM_LOWER: p -> bf16 copy --- */

static Status lower_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_infer_like_first(p, op, out, n_out));
    out[0].dtype = DT_BF16;
    return OK;
}

static void lower_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_param_lower = {.name = "param_lower",
                              .infer = lower_infer,
                              .cost = lower_cost,
                              .flags = OPF_NODIFF | OPF_FULL | OPF_EFFECT,
                              .exact_out = 1};

/* --- ADAM_FUSED: p g m v swa factor hyper low? -> p m v swa low? --- */

static Status adam_fused_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    bool low = rule_in(p, op, 7) != NULL;
    if (!same_count(p, op, 5) || !count_is(p, op, 5, 1) || !count_is(p, op, 6, 4) ||
        (low && !count_is(p, op, 7, tensor_count(rule_in(p, op, 0)))))
        return rule_bad_shape(p, op, "p, g, m, v, swa of one size, factor[1], hyper[4], low or none");
    out[0] = *rule_in(p, op, 0);
    out[1] = *rule_in(p, op, 2);
    out[2] = *rule_in(p, op, 3);
    out[3] = *rule_in(p, op, 4);
    out[4].dtype = DT_NONE;
    if (low) out[4] = *rule_in(p, op, 7);
    *n_out = 5;
    return OK;
}

static void adam_fused_cost(const Program *p, const Op *op, Cost *cost)
{
    cost->flops = 16 * first_count(p, op);
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_adam_fused = {.name = "adam_fused",
                             .infer = adam_fused_infer,
                             .cost = adam_fused_cost,
                             .flags = OPF_NODIFF | OPF_FULL | OPF_EFFECT,
                             .exact_in = 1u << 7,
                             .exact_out = 1u << 4,
                             .real_name = {"beta1", "beta2", "eps", "decay"}};
