/* What autodiff leaves behind an op of the backward pass moves into it: the sum with the gradient that arrived on
 * another way, the mask of a relu, the mask of a dropout. A rule looks at the op that disappears and names the op that
 * takes it in, which stays where it is. Then products whose result the gradient of a gate or a layer norm alone reads
 * move into that, and the result of the latter into the first product of a transition; where its input is
 * channel-first, with the product into the gradient of the gate in front. The sums that the gradient of attention needs
 * of its output come from the gradient of the gate behind it, which a dropout in front of its product moves into. */
#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"
#include "engine/passes/fuse.h"
#include "engine/rules.h"

enum { NORM_INPUTS = 6 /* of LAYER_NORM_FUSED_BWD behind dy, those of the products follow in LINEAR_NORM_DX */ };
/* A row that a block of threads of a GPU holds beside the operands of its product; a backend that is faster with
 * product and layer norm apart may run them so (kernels/cuda/dense_backward.cu). */
enum { NORM_CHANNELS = 256 };

typedef struct Absorb {
    Program *p;
    int32_t *uses; /* per value: readers, outputs count as one */
    bool *gone;    /* per op */
} Absorb;

/* The backward op that computes v first of all, if it is of `kind`; a sole reader may change what it computes. */
static Op *computed_by(const Absorb *a, Val v, OpKind kind, bool sole_reader)
{
    const Value *value = &a->p->value[v];
    if (value->def_op < 0 || value->place != PLACE_ARENA || value->alias != VAL_NONE) return NULL;
    Op *op = &a->p->op[value->def_op];
    bool fits = op->kind == kind && op->stage == STAGE_BACKWARD && op->out[0] == v;
    return fits && (!sole_reader || a->uses[v] == 1) ? op : NULL;
}

static bool written_before(const Absorb *a, Val v, const Op *op)
{
    return a->p->value[v].def_op < op - a->p->op;
}

static void set_input(Op *op, int at, Val v)
{
    while (op->n_in <= at) op->in[op->n_in++] = VAL_NONE;
    op->in[at] = v;
}

static bool has_input(const Op *op, int at)
{
    return op->n_in > at && op->in[at] != VAL_NONE;
}

/* Kinds that add another gradient to their first output, and the input that takes it; -1: the one behind the group's.
 */
typedef struct AddTaker {
    OpKind kind;
    int in;
} AddTaker;
static const AddTaker takers[] = {{OP_LAYER_NORM_FUSED_BWD, 5}, {OP_LINEAR_DX, 2}, {OP_LINEAR_GROUP_DX, -1}};

/* ADD(DZ(..), DZ(..)) -> DZ(.., ..), at the place of the second: one pass over all pairs. */
static Op *absorb_pairs(const Absorb *a, const Op *add)
{
    Op *first = computed_by(a, add->in[0], OP_PAIR_CONTEXT_DZ, true);
    Op *second = computed_by(a, add->in[1], OP_PAIR_CONTEXT_DZ, true);
    if (!first || !second || first >= second || first->n_in + second->n_in > OP_MAX_IN) return NULL;
    if (!rule_same(&a->p->value[first->in[1]].t, &a->p->value[second->in[1]].t)) return NULL;
    if (first->full_precision != second->full_precision || first->full_precision != add->full_precision) return NULL;
    memmove(second->in + first->n_in, second->in, (size_t)second->n_in * sizeof second->in[0]);
    memcpy(second->in, first->in, (size_t)first->n_in * sizeof first->in[0]);
    second->n_in += first->n_in;
    a->p->value[first->out[0]].def_op = -1;
    a->gone[first - a->p->op] = true;
    return second;
}

/* ADD(r, DX(..)) -> DX(.., r) for the kinds that take another gradient, r computed before */
static Op *absorb_add(const Absorb *a, const Op *add)
{
    const Program *p = a->p;
    const Tensor *first = &p->value[add->in[0]].t, *second = &p->value[add->in[1]].t;
    if (!rule_same(first, second) || first->dtype != second->dtype) return NULL;
    Op *pairs = absorb_pairs(a, add);
    if (pairs) return pairs;
    for (int side = 1; side >= 0; side--)
        for (size_t k = 0; k < sizeof takers / sizeof takers[0]; k++) {
            const AddTaker *taker = &takers[k];
            Op *op = computed_by(a, add->in[side], taker->kind, true);
            if (!op || op->full_precision != add->full_precision || !written_before(a, add->in[1 - side], op)) continue;
            int at = taker->in >= 0 ? taker->in : 2 * (int)op->attr.i[0];
            /* a mask comes after the sum */
            if (has_input(op, at) || (taker->kind == OP_LINEAR_DX && has_input(op, 3))) continue;
            set_input(op, at, add->in[1 - side]);
            return op;
        }
    return NULL;
}

/* RELU_BWD(LINEAR_DX(..), y) -> LINEAR_DX(.., y) */
static Op *absorb_relu(const Absorb *a, const Op *relu)
{
    Op *op = computed_by(a, relu->in[0], OP_LINEAR_DX, true);
    if (!op || op->full_precision != relu->full_precision || has_input(op, 3)) return NULL;
    set_input(op, 3, relu->in[1]);
    return op;
}

/* ADD(ADD(a, b), c) -> ADD(a, b, c) in the type of parameter gradients: one pass over what all users of a shared weight
 * give. */
static bool collect_terms(const Absorb *a, Op *add)
{
    const Program *p = a->p;
    if (add->kind != OP_ADD || add->n_in != 2) return false;
    const Op *former = computed_by(a, add->in[0], OP_ADD, true);
    const Tensor *t = &p->value[add->in[0]].t;
    if (!former || former->n_in == OP_MAX_IN || t->dtype == DT_BF16 || former->full_precision != add->full_precision)
        return false;
    for (int k = 0; k <= former->n_in; k++) {
        const Tensor *term = &p->value[k < former->n_in ? former->in[k] : add->in[1]].t;
        if (!rule_same(term, t) || term->dtype != t->dtype) return false;
    }
    Val last = add->in[1];
    memcpy(add->in, former->in, sizeof former->in);
    add->n_in = former->n_in;
    add->in[add->n_in++] = last;
    a->gone[former - p->op] = true;
    return true;
}

typedef Op *(*Rule)(const Absorb *a, const Op *op);

static Rule rule_of(OpKind kind)
{
    switch (kind) {
    case OP_ADD:
        return absorb_add;
    case OP_RELU_BWD:
        return absorb_relu;
    default:
        return NULL;
    }
}

/* Of a dropout whose input stays: an output more of the layer norm's gradient. */
static bool absorb_dropout(const Absorb *a, const Op *dropout)
{
    if (dropout->kind != OP_DROPOUT) return false;
    Op *op = computed_by(a, dropout->in[0], OP_LAYER_NORM_FUSED_BWD, false);
    if (!op || op->n_out != 3 || op->full_precision != dropout->full_precision) return false;
    set_input(op, 6, dropout->in[1]);
    op->attr = dropout->attr;
    op->out[op->n_out++] = dropout->out[0];
    return true;
}

/* The output of taker that `gone` reads becomes what `gone` computed. */
static void move_output(Program *p, const Op *gone, Op *taker)
{
    for (int k = 0; k < taker->n_out; k++) {
        bool read = false;
        for (int i = 0; i < gone->n_in; i++) read = read || (gone->in[i] == taker->out[k] && gone->in[i] != VAL_NONE);
        if (!read) continue;
        p->value[taker->out[k]].def_op = -1;
        taker->out[k] = gone->out[0];
        p->value[gone->out[0]].def_op = (int32_t)(taker - p->op);
    }
}

static void absorb(Absorb *a)
{
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *op = &p->op[i];
        if (op->stage != STAGE_BACKWARD || op->n_out != 1) continue;
        Rule rule = rule_of(op->kind);
        Op *taker = rule ? rule(a, op) : NULL;
        if (taker) {
            move_output(p, op, taker);
        } else if (absorb_dropout(a, op)) {
            p->value[op->out[0]].def_op = p->value[op->in[0]].def_op;
        } else {
            Val sum = op->in[0];
            if (collect_terms(a, op)) p->value[sum].def_op = -1;
            continue;
        }
        a->gone[i] = true;
    }
}

/* GATE_BWD(DX(dy, W), g, x) -> LINEAR_GATE_DX(dy, W, g, x) */
static void join_gates(Absorb *a)
{
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *gate = &p->op[i];
        if (a->gone[i] || gate->kind != OP_GATE_BWD || has_input(gate, 3)) continue;
        const Op *product = computed_by(a, gate->in[0], OP_LINEAR_DX, true);
        if (!product || product->full_precision != gate->full_precision || has_input(product, 2) ||
            has_input(product, 3))
            continue;
        p->value[gate->in[0]].def_op = -1;
        a->gone[product - p->op] = true;
        gate->kind = OP_LINEAR_GATE_DX;
        gate->n_in = 4;
        gate->in[3] = gate->in[2], gate->in[2] = gate->in[1];
        gate->in[0] = product->in[0], gate->in[1] = product->in[1];
    }
}

/* The products that compute the gradient of what `norm` made and no more, NULL when there are none. */
static const Op *products_before(const Absorb *a, const Op *norm)
{
    if (norm->kind != OP_LAYER_NORM_FUSED_BWD || tensor_last(&a->p->value[norm->in[1]].t) > NORM_CHANNELS) return NULL;
    const Op *group = computed_by(a, norm->in[0], OP_LINEAR_GROUP_DX, true);
    const Op *products = group ? group : computed_by(a, norm->in[0], OP_LINEAR_DX, true);
    if (!products || products->full_precision != norm->full_precision) return NULL;
    for (int k = group ? 2 * (int)group->attr.i[0] : 2; k < products->n_in; k++)
        if (products->in[k] != VAL_NONE) return NULL;
    return products;
}

/* NORM_BWD(DX(dy.., W..), x, ..) -> LINEAR_NORM_DX(x, .., dy.., W..) */
static void join_norms(Absorb *a)
{
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *norm = &p->op[i];
        const Op *products = a->gone[i] ? NULL : products_before(a, norm);
        if (!products) continue;
        int n = products->kind == OP_LINEAR_DX ? 1 : (int)products->attr.i[0];
        Op joined = *norm;
        joined.kind = OP_LINEAR_NORM_DX;
        joined.n_in = (int16_t)(NORM_INPUTS + 2 * n);
        joined.attr.i[2] = n;
        for (int k = 0; k < NORM_INPUTS; k++) joined.in[k] = k + 1 < norm->n_in ? norm->in[k + 1] : VAL_NONE;
        memcpy(joined.in + NORM_INPUTS, products->in, 2 * (size_t)n * sizeof *joined.in);
        p->value[norm->in[0]].def_op = -1;
        a->gone[products - p->op] = true;
        *norm = joined;
    }
}

/* The op that computes the hidden layer's gradient of a transition, if `norm` is what follows it and can run there. */
static Op *hidden_before(const Absorb *a, const Op *norm)
{
    if (norm->kind != OP_LINEAR_NORM_DX || norm->attr.i[2] != 1) return NULL;
    Op *hidden = computed_by(a, norm->in[NORM_INPUTS], OP_LINEAR_DX, false);
    if (!hidden || !has_input(hidden, 3) || has_input(hidden, 2) || hidden->full_precision != norm->full_precision)
        return NULL;
    bool there = rule_same(&a->p->value[hidden->in[0]].t, &a->p->value[norm->in[0]].t);
    for (int k = 0; k < norm->n_in; k++)
        if (k != NORM_INPUTS && norm->in[k] != VAL_NONE) there = there && written_before(a, norm->in[k], hidden);
    return there ? hidden : NULL;
}

/* dh = DX(dy, W2, -, h), LINEAR_NORM_DX(x, .., dh, W1) -> TRANSITION_DX(x, .., dy, W2, h, W1) in the place of the first
 */
static void join_transitions(Absorb *a)
{
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *norm = &p->op[i];
        Op *hidden = a->gone[i] ? NULL : hidden_before(a, norm);
        if (!hidden) continue;
        Op joined = *norm;
        joined.kind = OP_TRANSITION_DX;
        joined.attr.i[2] = 0;
        joined.in[NORM_INPUTS] = hidden->in[0], joined.in[NORM_INPUTS + 1] = hidden->in[1];
        joined.in[NORM_INPUTS + 2] = hidden->in[3], joined.in[NORM_INPUTS + 3] = norm->in[NORM_INPUTS + 1];
        joined.n_in = NORM_INPUTS + 4;
        joined.out[3] = hidden->out[0];
        if (norm->n_out == 4) joined.out[4] = norm->out[3];
        joined.n_out = (int16_t)(norm->n_out + 1);
        a->gone[i] = true;
        *hidden = joined;
    }
}

/* The op that computes what `product` takes in, if that is the gradient of what a gate without a mask let through and
 * `norm`, which reads the product alone, can run there. */
static Op *gate_before(const Absorb *a, const Op *product, const Op *norm)
{
    const Value *dy = &a->p->value[product->in[0]];
    if (dy->def_op < 0 || has_input(product, 2) || has_input(product, 3)) return NULL;
    Op *gate = &a->p->op[dy->def_op];
    if (gate->kind != OP_GATE_BWD || gate->out[1] != product->in[0] || has_input(gate, 3)) return NULL;
    bool there = gate->full_precision == norm->full_precision && product->full_precision == norm->full_precision;
    for (int k = 1; k < norm->n_in; k++) there = there && written_before(a, norm->in[k], gate);
    return there && written_before(a, product->in[1], gate) ? gate : NULL;
}

/* dg, d = GATE_BWD(dy, g, y), NORM_BWD(DX(d, W), x, ..) -> GATE_NORM_CHANNELS_DX(x, .., dy, g, y, W) in the place of
 * the first */
static void join_channels(Absorb *a)
{
    enum { NORM = 4 /* x gamma mean rstd */ };
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *norm = &p->op[i];
        if (a->gone[i] || norm->kind != OP_LAYER_NORM_CHANNELS_BWD) continue;
        const Op *product = computed_by(a, norm->in[0], OP_LINEAR_DX, true);
        Op *gate = product ? gate_before(a, product, norm) : NULL;
        if (!gate) continue;
        Op joined = *norm;
        joined.kind = OP_GATE_NORM_CHANNELS_DX;
        memcpy(joined.in, norm->in + 1, NORM * sizeof *joined.in);
        memcpy(joined.in + NORM, gate->in, 3 * sizeof *joined.in);
        joined.in[NORM + 3] = product->in[1];
        joined.n_in = NORM + 4;
        joined.out[3] = gate->out[0], joined.out[4] = gate->out[1];
        joined.n_out = 5;
        p->value[norm->in[0]].def_op = -1;
        a->gone[product - p->op] = a->gone[i] = true;
        *gate = joined;
    }
}

/* dg, do = LINEAR_GATE_DX(dy, W, g, o), ATTENTION_BWD(do, .., o, lse) -> dg, do, delta = LINEAR_GATE_DX(dy, W, g, o),
 * ATTENTION_BWD(do, .., -, lse, delta): the sums of do o over each head from where both are at hand */
static Status join_heads(Absorb *a)
{
    enum { O = 6, DELTA = 8 };
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *attention = &p->op[i];
        if (a->gone[i] || attention->kind != OP_ATTENTION_BWD || !has_input(attention, O)) continue;
        int32_t def = p->value[attention->in[0]].def_op;
        Op *gate = def < 0 ? NULL : &p->op[def];
        if (!gate || gate->kind != OP_LINEAR_GATE_DX || gate->n_out != 2 || gate->out[1] != attention->in[0] ||
            gate->in[3] != attention->in[O])
            continue;
        Tensor out[OP_MAX_OUT];
        int n = 0;
        gate->attr.i[2] = attention->attr.i[0];
        TRY(op_def(gate->kind)->infer(p, gate, out, &n));
        Value sums = p->value[gate->out[1]];
        sums.t = out[2], sums.name = NULL, sums.output = false;
        gate->out[gate->n_out++] = edit_push_value(p, &sums);
        attention->in[O] = VAL_NONE;
        set_input(attention, DELTA, gate->out[2]);
    }
    return prog_status(p);
}

/* d = DROPOUT(dy), LINEAR_GATE_DX(d, W, g, o) -> .., d = LINEAR_GATE_DX(dy, W, g, o, rng) in the place of the first: d
 * has other readers, but none before */
static void join_dropouts(Absorb *a)
{
    enum { RNG = 4, D = 3 };
    Program *p = a->p;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *gate = &p->op[i];
        if (a->gone[i] || gate->kind != OP_LINEAR_GATE_DX || has_input(gate, RNG)) continue;
        Op *dropout = computed_by(a, gate->in[0], OP_DROPOUT, false);
        bool there = dropout && dropout->full_precision == gate->full_precision;
        for (int k = 1; there && k < gate->n_in; k++) there = written_before(a, gate->in[k], dropout);
        if (!there) continue;
        Op joined = *gate;
        joined.in[0] = dropout->in[0];
        set_input(&joined, RNG, dropout->in[1]);
        joined.attr.i[0] = dropout->attr.i[0], joined.attr.i[1] = dropout->attr.i[1];
        joined.attr.f[0] = dropout->attr.f[0];
        while (joined.n_out < D) joined.out[joined.n_out++] = VAL_NONE;
        joined.out[joined.n_out++] = dropout->out[0];
        a->gone[i] = true;
        *dropout = joined;
    }
}

Status fuse_gradient(Program *p)
{
    Absorb a = {.p = p};
    a.uses = edit_count_uses(p);
    a.gone = calloc((size_t)p->n_ops + 1, sizeof *a.gone);
    bool room = a.uses && a.gone;
    Status status = room ? OK : status_fail(ERR_MEMORY, "out of memory for the fusion of %d ops", p->n_ops);
    if (room) {
        for (int32_t v = 0; v < p->n_values; v++) a.uses[v] += p->value[v].output || v == p->loss;
        absorb(&a);
        join_gates(&a);
        join_norms(&a);
        join_transitions(&a);
        join_channels(&a);
        status = join_heads(&a);
        join_dropouts(&a);
        edit_close_gaps(p, a.gone);
    }
    free(a.uses);
    free(a.gone);
    return status;
}
