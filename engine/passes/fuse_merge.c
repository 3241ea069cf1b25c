/* Sequences of ops become one op. A rule looks at the last op of its sequence; what the new op no longer reads is
 * pruned afterwards. Values between the ops of a sequence must have no other reader, or they would be computed twice.
 */
#include <stdlib.h>
#include <string.h>

#include "engine/passes/edit.h"
#include "engine/passes/fuse.h"
#include "engine/passes/replay.h"
#include "engine/rules.h"

typedef struct Merge {
    Replay replay;
    int32_t *uses;        /* per old value: readers, outputs count as one */
    int32_t *next_linear; /* per op: next LINEAR of the same group, -1 = last or none */
    int32_t *head;        /* per op: LINEAR of the first matrix of its group, -1 = in no group */
    bool *grouped;        /* per op: computed together with a group: a LINEAR of it, or what gates two of them */
    int32_t *gated;       /* per op: for a LINEAR that the next one of its group gates, the masked product; else -1 */
} Merge;

enum { GROUP_MAX = LINEAR_GROUP_MAX };

/* The op that computes v if it is of `kind` and only one op reads v; else NULL. */
static const Op *only_for(const Merge *m, Val v, OpKind kind)
{
    const Program *p = m->replay.in;
    if (v == VAL_NONE || m->uses[v] != 1 || p->value[v].def_op < 0) return NULL;
    const Op *op = &p->op[p->value[v].def_op];
    bool free_to_merge = m->head[op - p->op] < 0; /* a product in a group is computed there */
    return op->kind == kind && op->out[0] == v && free_to_merge ? op : NULL;
}

/* Appends `kind` in place of `last`, reading old values in[0..n). */
static bool emit(Merge *m, const Op *last, OpKind kind, int n, const Val *in, const OpAttr *attr)
{
    Op op = *last;
    op.kind = kind;
    op.n_in = (int16_t)n;
    op.attr = *attr;
    Val inputs[OP_MAX_IN], out[OP_MAX_OUT];
    for (int k = 0; k < n; k++) inputs[k] = replay_value(&m->replay, in[k]);
    prog_replay(m->replay.out, &op, inputs, out);
    replay_bind(&m->replay, last->out[0], out[0]);
    return true;
}

/* --- gemm_batching: products of one x whose matrices are neighbours in memory --- */

static bool groups_with(const Merge *m, const Op *a, const Op *b)
{
    const Program *p = m->replay.in;
    const Value *wa = &p->value[a->in[1]], *wb = &p->value[b->in[1]];
    const ParamInfo *pa = &p->registry->param[wa->slot], *pb = &p->registry->param[wb->slot];
    return a->in[0] == b->in[0] && a->block == b->block && a->full_precision == b->full_precision &&
           pb->offset == pa->offset + pa->count;
}

static bool is_plain_linear(const Program *p, const Op *op)
{
    if (op->kind != OP_LINEAR || op->attr.i[0]) return false;
    const Value *w = &p->value[op->in[1]];
    return w->place == PLACE_PARAM && w->alias == VAL_NONE && w->slot != WHOLE_BLOCK;
}

/* The plain LINEARs of each matrix, a list: first[param] the last one recorded, before[op] the one before; -1 ends it.
 */
static void list_readers(const Program *p, int32_t *first, int32_t *before)
{
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (!is_plain_linear(p, &p->op[i])) continue;
        int32_t *last = &first[p->value[p->op[i].in[1]].slot];
        before[i] = *last;
        *last = i;
    }
}

/* Matrices that are neighbours form a group wherever one x meets them: a shared weight once for each x. */
static Status find_groups(Merge *m)
{
    const Program *p = m->replay.in;
    int32_t params = p->registry->n_params, ops = p->n_ops;
    int32_t *first = malloc(((size_t)params + 2 * (size_t)ops + 3) * sizeof *first);
    if (!first) return status_fail(ERR_MEMORY, "out of memory for %d parameters", params);
    int32_t *before = first + params + 1, *length = before + ops + 1;
    memset(first, 0xff, ((size_t)params + 1) * sizeof *first);
    list_readers(p, first, before);
    for (int32_t i = 0; i < ops; i++) length[i] = 1;
    for (int32_t k = 0; k + 1 < params; k++)
        for (int32_t i = first[k]; i >= 0; i = before[i]) {
            int32_t next = first[k + 1];
            while (next >= 0 && !groups_with(m, &p->op[i], &p->op[next])) next = before[next];
            if (next < 0 || length[i] == GROUP_MAX || length[next] > 1) continue;
            m->next_linear[i] = next;
            length[next] = length[i] + 1;
        }
    free(first);
    return OK;
}

/* MASK_MUL(GATE(y', y), m) of two neighbours y, y' of a group that nothing else reads. */
static void find_gates(Merge *m)
{
    const Program *p = m->replay.in;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i], *gate = op->kind == OP_MASK_MUL ? only_for(m, op->in[0], OP_GATE) : NULL;
        if (!gate || op->stage != STAGE_FORWARD || (gate->n_in > 2 && gate->in[2] != VAL_NONE)) continue;
        int32_t g = p->value[gate->in[0]].def_op, x = p->value[gate->in[1]].def_op;
        bool pair = g >= 0 && x >= 0 && m->head[x] >= 0 && m->next_linear[x] == g;
        if (pair && m->uses[gate->in[0]] == 1 && m->uses[gate->in[1]] == 1 && p->value[op->in[1]].def_op < m->head[x] &&
            p->value[op->in[1]].t.rank == p->value[op->in[0]].t.rank - 1)
            m->gated[x] = i;
    }
}

/* Pairs at the start of a group that one mask gates. */
static int count_gates(const Merge *m, int32_t head)
{
    const Program *p = m->replay.in;
    int pairs = 0;
    Val mask = VAL_NONE;
    for (int32_t i = head; i >= 0 && m->gated[i] >= 0; i = m->next_linear[m->next_linear[i]], pairs++) {
        if (pairs > 0 && p->op[m->gated[i]].in[1] != mask) break;
        mask = p->op[m->gated[i]].in[1];
    }
    return pairs;
}

/* Values that op and its outputs stand for. */
static void bind_group(Merge *m, int32_t head, int pairs, const Val *out)
{
    const Program *p = m->replay.in;
    int k = 0, at = 0;
    for (int32_t i = head; i >= 0; i = m->next_linear[i], k++) {
        m->grouped[i] = true;
        if (k < 2 * pairs && k % 2) continue;
        int32_t last = k < 2 * pairs ? m->gated[i] : i;
        m->grouped[last] = true;
        if (last != i) m->grouped[p->value[p->op[last].in[0]].def_op] = true;
        replay_bind(&m->replay, p->op[last].out[0], out[at++]);
    }
}

/* Computes a whole group, `head` being the LINEAR of its first matrix. */
static void emit_group(Merge *m, int32_t head)
{
    const Program *p = m->replay.in;
    Val in[OP_MAX_IN], out[OP_MAX_OUT];
    int n = 0, pairs = count_gates(m, head), first = pairs ? 2 : 1;
    in[0] = replay_value(&m->replay, p->op[head].in[0]);
    if (pairs) in[1] = replay_value(&m->replay, p->op[m->gated[head]].in[1]);
    for (int32_t i = head; i >= 0; i = m->next_linear[i], n++) {
        const Op *linear = &p->op[i];
        in[first + 2 * n] = replay_value(&m->replay, linear->in[1]);
        in[first + 1 + 2 * n] = linear->n_in > 2 ? replay_value(&m->replay, linear->in[2]) : VAL_NONE;
    }
    Op op = p->op[head];
    op.kind = pairs ? OP_LINEAR_GATES : OP_LINEAR_GROUP;
    op.n_in = (int16_t)(first + 2 * n);
    /* a program with a loss will be differentiated */
    op.attr = pairs ? (OpAttr){.i = {n, pairs, p->loss != VAL_NONE}} : (OpAttr){.i = {n}};
    prog_replay(m->replay.out, &op, in, out);
    bind_group(m, head, pairs, out);
}

/* --- the rules --- */

/* q k v mask? bias? of SOFTMAX(ATT_SCORES(q, k, mask, bias)) v */
static bool attention_inputs(const Merge *m, const Op *context, Val *in, OpAttr *attr)
{
    const Op *softmax = only_for(m, context->in[0], OP_SOFTMAX);
    const Op *scores = softmax ? only_for(m, softmax->in[0], OP_ATT_SCORES) : NULL;
    if (!scores) return false;
    in[0] = scores->in[0], in[1] = scores->in[1], in[2] = context->in[1];
    for (int k = 2; k < 4; k++) in[k + 1] = scores->n_in > k ? scores->in[k] : VAL_NONE;
    *attr = (OpAttr){.i = {scores->attr.i[0]}, .f = {scores->attr.f[0], scores->attr.f[1]}};
    return true;
}

/* SOFTMAX(ATT_SCORES(q, k, mask, bias)) v -> ATTENTION */
static bool merge_attention(Merge *m, const Op *op)
{
    Val in[5];
    OpAttr attr;
    return attention_inputs(m, op, in, &attr) && emit(m, op, OP_ATTENTION, 5, in, &attr);
}

/* GATE(g, ATTENTION(...)) -> ATTENTION with a gate */
static bool merge_attention_gate(Merge *m, const Op *op)
{
    const Op *context = op->n_in == 2 || op->in[2] == VAL_NONE ? only_for(m, op->in[1], OP_ATT_CONTEXT) : NULL;
    Val in[6];
    OpAttr attr;
    if (!context || !attention_inputs(m, context, in, &attr)) return false;
    in[5] = op->in[0];
    return emit(m, op, OP_ATTENTION, 6, in, &attr);
}

static bool merge_layer_norm(Merge *m, const Op *op)
{
    return emit(m, op, OP_LAYER_NORM_FUSED, op->n_in, op->in, &op->attr);
}

/* RELU(LINEAR) -> LINEAR relu */
static bool merge_relu(Merge *m, const Op *op)
{
    const Op *linear = only_for(m, op->in[0], OP_LINEAR);
    if (!linear || linear->attr.i[0] || linear->full_precision != op->full_precision) return false;
    return emit(m, op, OP_LINEAR, linear->n_in, linear->in, &(OpAttr){.i = {1}});
}

/* MASK_MUL(GATE(g, x), m) -> GATE(g, x, m) where m has all axes but the last */
static bool merge_gate_mask(Merge *m, const Op *op)
{
    const Program *p = m->replay.in;
    const Op *gate = only_for(m, op->in[0], OP_GATE);
    if (!gate || (gate->n_in > 2 && gate->in[2] != VAL_NONE)) return false;
    if (p->value[op->in[1]].t.rank != p->value[op->in[0]].t.rank - 1) return false;
    return emit(m, op, OP_GATE, 3, (Val[]){gate->in[0], gate->in[1], op->in[1]}, &(OpAttr){0});
}

/* r + DROPOUT(x) -> RESIDUAL_DROPOUT */
static bool merge_residual(Merge *m, const Op *op)
{
    const Program *p = m->replay.in;
    if (p->value[op->in[0]].t.rank != p->value[op->in[1]].t.rank) return false;
    for (int side = 1; side >= 0; side--) {
        const Op *dropout = only_for(m, op->in[side], OP_DROPOUT);
        if (dropout && dropout->full_precision == op->full_precision)
            return emit(m, op, OP_RESIDUAL_DROPOUT, 3, (Val[]){op->in[1 - side], dropout->in[0], dropout->in[1]},
                        &dropout->attr);
    }
    return false;
}

/* What is masked by two axes for this op alone; sets the mask. */
static Val unmasked(const Merge *m, Val x, Val *mask_out)
{
    const Op *masked = only_for(m, x, OP_MASK_MUL);
    if (!masked || m->replay.in->value[masked->in[1]].t.rank != 2) return VAL_NONE;
    *mask_out = masked->in[1];
    return masked->in[0];
}

/* DIV_COUNT(LINEAR(OUTER_PRODUCT(a, b)), n) -> OPM, with the masks of a and b where both have one */
static bool merge_outer_product_mean(Merge *m, const Op *op)
{
    const Op *linear = only_for(m, op->in[0], OP_LINEAR);
    const Op *outer = linear && !linear->attr.i[0] ? only_for(m, linear->in[0], OP_OUTER_PRODUCT) : NULL;
    if (!outer || linear->n_in < 3 || linear->in[2] == VAL_NONE) return false;
    Val in[] = {outer->in[0], outer->in[1], linear->in[1], linear->in[2], op->in[1], VAL_NONE, VAL_NONE, VAL_NONE};
    Val a = unmasked(m, outer->in[0], &in[6]), b = unmasked(m, outer->in[1], &in[7]);
    bool masked = a != VAL_NONE && b != VAL_NONE;
    if (masked) in[0] = a, in[1] = b;
    return emit(m, op, OP_OPM, masked ? 8 : 5, in, &op->attr);
}

/* r + OPM -> OPM with a residual */
static bool merge_mean_residual(Merge *m, const Op *op)
{
    const Program *p = m->replay.in;
    for (int side = 1; side >= 0; side--) {
        const Op *mean = only_for(m, op->in[side], OP_OPM);
        if (!mean || (mean->n_in > 5 && mean->in[5] != VAL_NONE) || mean->full_precision != op->full_precision ||
            !rule_same(&p->value[op->in[0]].t, &p->value[op->in[1]].t))
            continue;
        Val in[8];
        memcpy(in, mean->in, (size_t)mean->n_in * sizeof *in);
        in[5] = op->in[1 - side];
        return emit(m, op, OP_OPM, mean->n_in > 5 ? mean->n_in : 6, in, &mean->attr);
    }
    return false;
}

/* The product behind x, perhaps through a gate; NULL when x is something else. */
static const Op *branch_product(const Merge *m, const Op *last, Val x, Val *gate_out)
{
    const Op *linear = only_for(m, x, OP_LINEAR), *gate = linear ? NULL : only_for(m, x, OP_GATE);
    *gate_out = VAL_NONE;
    if (gate && (gate->n_in < 3 || gate->in[2] == VAL_NONE) && gate->full_precision == last->full_precision) {
        linear = only_for(m, gate->in[1], OP_LINEAR);
        *gate_out = gate->in[0];
    }
    return linear && !linear->attr.i[0] && linear->full_precision == last->full_precision ? linear : NULL;
}

/* r + dropout(GATE(g, LINEAR(x))), gate and dropout or not -> LINEAR_RESIDUAL. The gradient of the gate reads the
 * product, which is kept in a program that will be differentiated. */
static bool merge_branch(Merge *m, const Op *op)
{
    const Program *p = m->replay.in;
    bool drops = op->kind == OP_RESIDUAL_DROPOUT;
    OpAttr attr = {.i = {drops ? op->attr.i[0] : 0, drops ? op->attr.i[1] : 0}, .f = {drops ? op->attr.f[0] : 0}};
    if (p->value[op->in[0]].t.rank != p->value[op->in[1]].t.rank) return false;
    for (int side = 1; side >= (drops ? 1 : 0); side--) {
        Val gate;
        const Op *linear = branch_product(m, op, op->in[side], &gate);
        if (!linear) continue;
        attr.i[2] = gate != VAL_NONE && p->loss != VAL_NONE;
        Val in[] = {op->in[1 - side],
                    linear->in[0],
                    linear->in[1],
                    linear->n_in > 2 ? linear->in[2] : VAL_NONE,
                    gate,
                    drops ? op->in[2] : VAL_NONE};
        return emit(m, op, OP_LINEAR_RESIDUAL, 6, in, &attr);
    }
    return false;
}

/* LINEAR_RESIDUAL(r, relu(LINEAR(LAYER_NORM_FUSED(r)))) -> TRANSITION, whose gradient reads what is between. */
static bool merge_transition(Merge *m, const Op *op)
{
    const Program *p = m->replay.in;
    const Op *up = only_for(m, op->in[1], OP_LINEAR);
    const Op *norm = up && up->attr.i[0] ? only_for(m, up->in[0], OP_LAYER_NORM_FUSED) : NULL;
    bool plain = op->in[3] != VAL_NONE && op->in[4] == VAL_NONE && op->in[5] == VAL_NONE;
    if (!norm || !plain || norm->in[0] != op->in[0] || up->n_in < 3 || up->in[2] == VAL_NONE) return false;
    if (norm->full_precision != op->full_precision || up->full_precision != op->full_precision) return false;
    Val in[] = {op->in[0], norm->in[1], norm->in[2], up->in[1], up->in[2], op->in[2], op->in[3]};
    OpAttr attr = {.i = {p->loss != VAL_NONE}, .f = {norm->attr.f[0]}};
    return emit(m, op, OP_TRANSITION, 7, in, &attr);
}

typedef enum MergeSwitch {
    BY_ATTENTION,
    BY_LAYER_NORM,
    BY_POINTWISE,
    OF_GATED_ATTENTION,
    OF_BRANCHES,
    OF_TRANSITIONS,
    MERGE_SWITCHES
} MergeSwitch;

static const struct MergeRule {
    OpKind last;
    MergeSwitch by;
    bool (*apply)(Merge *m, const Op *last);
} rules[] = {
    {OP_ATT_CONTEXT, BY_ATTENTION, merge_attention},
    {OP_GATE, OF_GATED_ATTENTION, merge_attention_gate},
    {OP_LAYER_NORM, BY_LAYER_NORM, merge_layer_norm},
    {OP_RELU, BY_POINTWISE, merge_relu},
    {OP_MASK_MUL, BY_POINTWISE, merge_gate_mask},
    {OP_ADD, BY_POINTWISE, merge_residual},
    {OP_DIV_COUNT, BY_POINTWISE, merge_outer_product_mean},
    {OP_RESIDUAL_DROPOUT, OF_BRANCHES, merge_branch},
    {OP_ADD, OF_BRANCHES, merge_branch},
    {OP_ADD, OF_BRANCHES, merge_mean_residual},
    {OP_LINEAR_RESIDUAL, OF_TRANSITIONS, merge_transition},
};

static bool apply_rules(Merge *m, const bool *on, const Op *op)
{
    for (size_t k = 0; k < sizeof rules / sizeof rules[0]; k++)
        if (rules[k].last == op->kind && on[rules[k].by] && rules[k].apply(m, op)) return true;
    return false;
}

/* head[i]: for a LINEAR in a group, its first matrix's op; else -1 */
static void find_heads(Merge *m)
{
    int32_t n = m->replay.in->n_ops, *head = m->head;
    memset(head, 0xff, (size_t)n * sizeof *head);
    bool *inner = m->grouped; /* borrowed while searching: not the first of its group */
    for (int32_t i = 0; i < n; i++)
        if (m->next_linear[i] >= 0) inner[m->next_linear[i]] = true;
    for (int32_t i = 0; i < n; i++)
        if (!inner[i] && m->next_linear[i] >= 0)
            for (int32_t k = i; k >= 0; k = m->next_linear[k]) head[k] = i;
    memset(inner, 0, (size_t)n * sizeof *inner);
}

/* on: by MergeSwitch. */
static Status run(Merge *m, bool groups, const bool *on)
{
    const Program *p = m->replay.in;
    for (int32_t v = 0; v < m->replay.in->n_values; v++)
        m->uses[v] += m->replay.in->value[v].output || v == m->replay.in->loss;
    memset(m->next_linear, 0xff, (size_t)p->n_ops * sizeof *m->next_linear);
    if (groups) TRY(find_groups(m));
    find_heads(m);
    memset(m->gated, 0xff, (size_t)p->n_ops * sizeof *m->gated);
    if (on[BY_POINTWISE]) find_gates(m);
    for (int32_t i = 0; i < p->n_ops && m->replay.out->status == OK; i++) {
        const Op *op = &p->op[i];
        if (m->head[i] >= 0 && !m->grouped[i]) emit_group(m, m->head[i]);
        if (m->grouped[i]) continue;
        if (op->stage == STAGE_FORWARD && apply_rules(m, on, op)) continue;
        Val in[OP_MAX_IN];
        replay_inputs(&m->replay, op, in);
        replay_op(&m->replay, op, in);
    }
    return OK;
}

static Status merge(const Program *in, bool groups, const bool *on, Program **out)
{
    Merge m = {0};
    TRY(replay_begin(in, &m.replay));
    size_t ops = (size_t)in->n_ops + 1;
    m.head = malloc(ops * sizeof *m.head);
    m.uses = edit_count_uses(in);
    m.next_linear = malloc(ops * sizeof *m.next_linear);
    m.grouped = calloc(ops, sizeof *m.grouped);
    m.gated = malloc(ops * sizeof *m.gated);
    Status status = OK;
    if (!m.head || !m.uses || !m.next_linear || !m.grouped || !m.gated)
        status = status_fail(ERR_MEMORY, "out of memory for the fusion of %d ops", in->n_ops);
    else
        status = run(&m, groups, on);
    free(m.head);
    free(m.uses);
    free(m.next_linear);
    free(m.grouped);
    free(m.gated);
    return replay_end(&m.replay, status, out);
}

Status fuse_merge(const Program *in, const Switches *s, Program **out)
{
    const bool on[MERGE_SWITCHES] = {s->fused_attention, s->fused_layernorm, s->fused_pointwise,
                                     s->fused_attention && s->fused_pointwise};
    return merge(in, s->gemm_batching, on, out);
}

Status fuse_branches(const Program *in, Program **out)
{
    const bool on[MERGE_SWITCHES] = {[OF_BRANCHES] = true};
    return merge(in, false, on, out);
}

Status fuse_transitions(const Program *in, Program **out)
{
    const bool on[MERGE_SWITCHES] = {[OF_TRANSITIONS] = true};
    return merge(in, false, on, out);
}
