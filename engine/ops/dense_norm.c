/* The gradient of a layer norm behind that of the products that read it, or of a transition: one op, so that what is
 * between them need not go to memory, or only there. */
#include "engine/ops/shape_rules.h"
#include "engine/rules.h"

enum { X, GAMMA, MEAN, RSTD, OTHER, RNG, DY };
enum { MEMBERS_MAX = LINEAR_GROUP_MAX };
_Static_assert(6 + 2 * LINEAR_GROUP_MAX <= OP_MAX_IN, "a layer norm gradient behind a group of products");

/* The products dy_k[*,O_k] W_k[O_k,I] give rows like those of x. */
static bool products_fit(const Program *p, const Op *op, int n)
{
    const Tensor *x = rule_in(p, op, X);
    for (int k = 0; k < n; k++) {
        const Tensor *dy = rule_in(p, op, DY + k), *w = rule_in(p, op, DY + n + k);
        if (!dy || !w || dy->rank < 1 || dy->shard == dy->rank - 1 || !rule_same_rows(dy, x)) return false;
        bool matrix = w->rank == 2 && w->shard == SHARD_NONE;
        if (!matrix || w->dim[0] != tensor_last(dy) || w->dim[1] != tensor_last(x)) return false;
    }
    return true;
}

/* What a layer norm's gradient has beside the products, and the first three outputs. */
static Status norm_part_infer(const Program *p, const Op *op, Tensor *out)
{
    const Tensor *x = rule_in(p, op, X), *other = rule_in(p, op, OTHER), *rng = rule_in(p, op, RNG);
    if (x->rank < 1 || x->shard == x->rank - 1) return rule_bad_shape(p, op, "x[*,I] whole along its last axis");
    int64_t c = tensor_last(x);
    Tensor statistic = rule_row_statistic(x);
    if (!rule_is_vector(rule_in(p, op, GAMMA), c) || !rule_same(rule_in(p, op, MEAN), &statistic) ||
        !rule_same(rule_in(p, op, RSTD), &statistic))
        return rule_bad_shape(p, op, "x[*,I] gamma[I] mean[*] rstd[*]");
    if ((other && !rule_same(other, x)) || (rng && !dropout_fits(x, rng, &op->attr)))
        return rule_bad_shape(p, op, "other? like x and rng? of a dropout of x");
    out[0] = *x;
    out[1] = out[2] = rule_tensor(rule_grad_dtype(x->dtype), 1, &c);
    return OK;
}

static Status linear_norm_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, OTHER));
    TRY(norm_part_infer(p, op, out));
    int64_t n = op->attr.i[2];
    if (n < 1 || n > MEMBERS_MAX || !products_fit(p, op, (int)n))
        return rule_bad_shape(p, op, "x gamma mean rstd other? rng?, then 1 to 6 dy[*,O] and as many W[O,I]");
    *n_out = 3;
    if (rule_in(p, op, RNG)) out[(*n_out)++] = *rule_in(p, op, X);
    return OK;
}

/* The products, and 16 per element as LAYER_NORM_FUSED_BWD. */
static void linear_norm_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    const Tensor *x = rule_in(p, op, X);
    cost->flops = 16.0 * (double)tensor_count(x);
    for (int k = 0; k < op->attr.i[2]; k++)
        cost->flops += 2.0 * (double)tensor_count(x) * (double)tensor_last(rule_in(p, op, DY + k));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_linear_norm_dx = {.name = "linear_norm_dx",
                                 .infer = linear_norm_dx_infer,
                                 .cost = linear_norm_dx_cost,
                                 .flags = OPF_NODIFF,
                                 .exact_in = 1 << GAMMA | 1 << MEAN | 1 << RSTD,
                                 .exact_out = 1 << 1 | 1 << 2,
                                 .int_name = {"key", "shared", "n"},
                                 .real_name = {"rate"}};

/* --- a transition's, down to its layer norm's input */

enum { W2 = DY + 1, HIDDEN, W1 };

static Status transition_dx_infer(const Program *p, const Op *op, Tensor *out, int *n_out)
{
    TRY(rule_require(p, op, OTHER));
    TRY(norm_part_infer(p, op, out));
    const Tensor *x = rule_in(p, op, X), *dy = rule_in(p, op, DY), *w2 = rule_in(p, op, W2);
    const Tensor *h = rule_in(p, op, HIDDEN), *w1 = rule_in(p, op, W1);
    bool there = dy && w2 && h && w1 && w1->rank == 2 && w2->rank == 2 && rule_same(dy, x) && rule_same_rows(h, x);
    there = there && w1->shard == SHARD_NONE && w2->shard == SHARD_NONE && h->shard != h->rank - 1;
    if (!there || w2->dim[0] != tensor_last(x) || w2->dim[1] != tensor_last(h) || w1->dim[0] != tensor_last(h) ||
        w1->dim[1] != tensor_last(x))
        return rule_bad_shape(p, op, "x gamma mean rstd other? rng? dy[*,I] W2[I,H] h[*,H] W1[H,I]");
    out[3] = *h;
    *n_out = 4;
    if (rule_in(p, op, RNG)) out[(*n_out)++] = *x;
    return OK;
}

static void transition_dx_cost(const Program *p, const Op *op, Cost *cost)
{
    double count = (double)tensor_count(rule_in(p, op, X)), hidden = (double)tensor_count(rule_in(p, op, HIDDEN));
    cost->flops = 16.0 * count + hidden * (1.0 + 4.0 * (double)tensor_last(rule_in(p, op, X)));
    cost->bytes = rule_bytes(p, op);
}

const OpDef op_transition_dx = {.name = "transition_dx",
                                .infer = transition_dx_infer,
                                .cost = transition_dx_cost,
                                .flags = OPF_NODIFF,
                                .exact_in = 1 << GAMMA | 1 << MEAN | 1 << RSTD,
                                .exact_out = 1 << 1 | 1 << 2,
                                .int_name = {"key", "shared"},
                                .real_name = {"rate"}};
