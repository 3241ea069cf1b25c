/* Reverse-mode differentiation as a table of rules: walks the forward ops backwards and lets each kind's vjp append the
 * ops that turn output gradients into input gradients. Parameter gradients end in PLACE_GRAD; gradient_sync.c then adds
 * the all-reduces. */
#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"
#include "engine/passes/fuse.h"
#include "engine/passes/gradient.h"

typedef struct Tape {
    Program *p;
    bool *needs;      /* per forward value: a parameter's influence reaches it */
    Val *value_grad;  /* per forward value */
    Val *param_grad;  /* per parameter of the registry */
    int32_t n_values; /* forward values */
} Tape;

bool value_is_param(const Value *v)
{
    return (v->place == PLACE_PARAM || v->place == PLACE_PARAM_LOW) && v->slot != WHOLE_BLOCK;
}

void gradient_needs(const Program *p, bool *needs)
{
    for (int32_t v = 0; v < p->n_values; v++) needs[v] = value_is_param(&p->value[v]);
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->stage != STAGE_FORWARD || (op_def(op->kind)->flags & OPF_NODIFF)) continue;
        bool any = false;
        for (int k = 0; k < op->n_in; k++) any |= op->in[k] != VAL_NONE && needs[op->in[k]];
        for (int k = 0; any && k < op->n_out; k++)
            if (op->out[k] != VAL_NONE && p->value[op->out[k]].place == PLACE_ARENA) needs[op->out[k]] = true;
    }
}

static void accumulate(Tape *t, Val *sum, Val term)
{
    if (*sum == VAL_NONE)
        *sum = term;
    else
        *sum = prog_add(t->p, OP_ADD, 2, (Val[]){*sum, term}, NULL);
}

static void backward_op(Tape *t, int32_t index)
{
    Program *p = t->p;
    const Op op = p->op[index]; /* a copy: appending moves the array */
    const OpDef *def = op_def(op.kind);
    if (def->flags & OPF_NODIFF) return;
    Val dout[OP_MAX_OUT], din[OP_MAX_IN];
    bool any = false, wanted = false;
    for (int k = 0; k < OP_MAX_OUT; k++) {
        dout[k] = k < op.n_out && op.out[k] != VAL_NONE ? t->value_grad[op.out[k]] : VAL_NONE;
        any |= dout[k] != VAL_NONE;
    }
    for (int k = 0; k < OP_MAX_IN; k++) {
        din[k] = VAL_NONE;
        wanted |= k < op.n_in && op.in[k] != VAL_NONE && t->needs[op.in[k]];
    }
    if (!any || !wanted) return;
    p->scope_now = op.scope;
    p->block_now = op.block;
    p->origin_now = op.origin;
    p->full_precision_now = op.full_precision;
    if (def->vjp(p, &op, dout, din) != OK) {
        prog_fail(p, ERR_INTERNAL, "%s", status_text());
        return;
    }
    for (int k = 0; k < op.n_in; k++) {
        if (din[k] == VAL_NONE || !t->needs[op.in[k]]) continue;
        const Value *target = &p->value[op.in[k]];
        accumulate(t, value_is_param(target) ? &t->param_grad[target->slot] : &t->value_grad[op.in[k]], din[k]);
    }
}

/* Puts every parameter's gradient into its persistent place: the op that computes it last writes there directly when
 * nobody else reads its result, else a copy does. Parameters that no gradient reaches get zeros, range by range. */
static Status place_gradients(Tape *t)
{
    Program *p = t->p;
    const Registry *r = p->registry;
    int32_t *uses = edit_count_uses(p);
    if (!uses) return status_fail(ERR_MEMORY, "out of memory in autodiff");
    p->block_now = p->origin_now = -1;
    p->scope_now = 0;
    for (int k = 0; k < r->n_params && p->status == OK; k++) {
        Val g = t->param_grad[k];
        if (g != VAL_NONE) {
            Value *v = &p->value[g];
            if (!uses[g] && v->place == PLACE_ARENA && v->alias == VAL_NONE && v->def_op >= 0 &&
                p->op[v->def_op].stage == STAGE_BACKWARD && v->t.dtype != DT_BF16) {
                v->place = PLACE_GRAD;
                v->slot = k;
                uses[g] = 1; /* taken: a value can be the gradient of one parameter only */
                continue;
            }
            Val target = prog_persistent(p, PLACE_GRAD, k, r->param[k].rank, r->param[k].dim);
            if (target == VAL_NONE) break;
            p->value[target].t.dtype = rule_grad_dtype(v->t.dtype);
            prog_add_into(p, OP_COPY, 1, &g, NULL, 1, &target);
            continue;
        }
        int last = k;
        while (last + 1 < r->n_params && t->param_grad[last + 1] == VAL_NONE) last++;
        int64_t length = r->param[last].offset + r->param[last].count - r->param[k].offset;
        Val target = prog_persistent(p, PLACE_GRAD, k, 1, &length);
        if (target == VAL_NONE) break;
        DType real = p->value[p->loss].t.dtype;
        p->value[target].t.dtype = real;
        prog_add_into(p, OP_FILL, 0, NULL, &(OpAttr){.i = {1, length, [7] = real}}, 1, &target);
        k = last;
    }
    free(uses);
    return prog_status(p);
}

static Status tape_run(Tape *t)
{
    Program *p = t->p;
    int32_t forward_ops = p->n_ops;
    p->stage_now = STAGE_BACKWARD;
    const Tensor loss = *prog_tensor(p, p->loss);
    p->full_precision_now = true;
    t->value_grad[p->loss] = rule_fill_like(p, &loss, 1.0);
    for (int32_t i = forward_ops - 1; i >= 0 && p->status == OK; i--)
        if (p->op[i].stage == STAGE_FORWARD) backward_op(t, i);
    TRY(prog_status(p));
    return place_gradients(t);
}

static Status differentiate(Program *p)
{
    size_t values = (size_t)p->n_values, params = (size_t)p->registry->n_params;
    Tape t = {.p = p, .n_values = p->n_values};
    t.needs = calloc(values + 1, sizeof *t.needs);
    t.value_grad = malloc((values + 1) * sizeof *t.value_grad);
    t.param_grad = malloc((params + 1) * sizeof *t.param_grad);
    Status status = OK;
    if (!t.needs || !t.value_grad || !t.param_grad) {
        status = status_fail(ERR_MEMORY, "out of memory in autodiff");
    } else {
        memset(t.value_grad, 0xff, (values + 1) * sizeof *t.value_grad); /* VAL_NONE = -1 */
        memset(t.param_grad, 0xff, (params + 1) * sizeof *t.param_grad);
        gradient_needs(p, t.needs);
        status = tape_run(&t);
    }
    free(t.needs);
    free(t.value_grad);
    free(t.param_grad);
    return status;
}

Status pass_autodiff(const Program *in, const Switches *switches, Program **out)
{
    Program *p = NULL, *pruned = NULL;
    TRY(prog_clone(in, &p));
    Status status = OK;
    if (p->loss != VAL_NONE) {
        status = differentiate(p);
        if (status == OK && switches->fused_pointwise) status = fuse_gradient(p);
        if (status == OK) status = pass_prune(p, &pruned);
        prog_destroy(&p);
        p = pruned;
        if (status == OK) status = gradient_sync(p, switches);
    }
    /* where blocks are recomputed, what a branch takes from the block before would have to be kept in both layouts */
    bool exchanges = p && p->dap > 1 && switches->comm_overlap;
    exchanges = exchanges && (p->loss == VAL_NONE || switches->checkpoint == CHECKPOINT_NONE);
    if (status == OK && exchanges) status = fuse_exchange(p);
    /* selective recomputation repeats a layer norm of its own instead of keeping its result */
    bool moves = switches->fused_layernorm && switches->fused_pointwise && switches->checkpoint != CHECKPOINT_SELECTIVE;
    if (status == OK && moves) status = fuse_norm_behind(p);
    if (status == OK) {
        p->stage_now = STAGE_FORWARD;
        p->block_now = p->origin_now = -1;
        *out = p;
    } else {
        prog_destroy(&p);
    }
    return status;
}
