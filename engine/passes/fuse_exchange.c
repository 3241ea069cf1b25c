/* Under dynamic axial parallelism the sum at the end of an attention's branch, r + f(x W), goes to the other layout by
 * an all_to_all behind it, which nothing hides. Its operands can go instead, the sum is then made where it is wanted:
 * x leaves while the attention runs (schedule_send.c), and r is there in time; often it came from that layout. The
 * attention gives what else reads x, a parameter's gradient, a copy that stays. */
#include <stdlib.h>

#include "engine/passes/edit.h"
#include "engine/passes/fuse.h"

enum { SUM_GATE = 4 /* input of the sum */, GATE = 5, TWICE = 3, AGAIN = 3 /* attention: input; attribute, output */ };

/* Ops by their place before. */
typedef struct Branch {
    int32_t sum, attention;
    bool twice; /* others read x, too */
    Val x, r;   /* what the attention gives to the others; r in the other layout, VAL_NONE: it has to be exchanged */
} Branch;

static bool stays_unseen(const Program *p, Val v)
{
    const Value *value = &p->value[v];
    return value->place == PLACE_ARENA && value->alias == VAL_NONE && !value->name && !value->output;
}

/* branch[i]: the branch whose sum is all that op i, an all_to_all, takes, if there is one; those of ops before are
 * known. */
static void branch_of(const Program *p, int32_t i, const int32_t *uses, Branch *branch)
{
    const Op *op = &p->op[i];
    if (op->kind != OP_ALL_TO_ALL || op->stage != STAGE_FORWARD) return;
    if (uses[op->in[0]] != 1 || !stays_unseen(p, op->in[0])) return;
    Branch b = {.sum = p->value[op->in[0]].def_op, .r = VAL_NONE};
    const Op *sum = &p->op[b.sum];
    bool gated = sum->n_in > SUM_GATE && sum->in[SUM_GATE] != VAL_NONE;
    if (sum->kind != OP_LINEAR_RESIDUAL || sum->n_out != 1 || gated) return;
    int last = p->value[op->in[0]].t.rank - 1;
    Val r = sum->in[0], x = sum->in[1];
    if (op->attr.i[0] >= last || op->attr.i[1] >= last || !stays_unseen(p, x)) return;
    b.x = x;
    b.attention = p->value[x].def_op;
    b.twice = uses[x] > 1;
    const Op *attention = &p->op[b.attention];
    /* over columns its rows lie apart */
    if (attention->kind != OP_ATTENTION || attention->attr.i[1] || attention->out[0] != x) return;
    if (b.twice && (attention->n_in <= GATE || attention->in[GATE] == VAL_NONE)) return;
    for (int32_t k = 0; k < i; k++) /* two sums of one attention: the first one */
        if (branch[k].sum >= 0 && branch[k].attention == b.attention) return;
    int32_t before = p->value[r].def_op;
    bool back = before >= 0 && p->op[before].kind == OP_ALL_TO_ALL && branch[before].sum < 0 &&
                p->op[before].attr.i[0] == op->attr.i[1] && p->op[before].attr.i[1] == op->attr.i[0];
    if (back) b.r = p->op[before].in[0];
    branch[i] = b;
}

/* Appends an all_to_all like `op` of x; its result lies like that of `op`. */
static Val push_exchange(Program *p, const Op *op, Val x)
{
    Op exchange = *op;
    Value there = p->value[x];
    there.place = PLACE_ARENA, there.alias = VAL_NONE;
    there.name = NULL, there.output = false;
    there.t.shard = p->value[op->out[0]].t.shard;
    for (int k = 0; k + 1 < there.t.rank; k++) there.t.dim[k] = p->value[op->out[0]].t.dim[k];
    exchange.in[0] = x;
    exchange.out[0] = edit_push_value(p, &there);
    edit_push_op(p, &exchange);
    return exchange.out[0];
}

/* In place of the sum's exchange those of its operands, and the sum. */
static void push_branch(Program *p, const Op *op, const Branch *branch, Op sum)
{
    p->value[sum.out[0]].def_op = -1; /* nobody makes it */
    sum.in[0] = branch->r == VAL_NONE ? push_exchange(p, op, sum.in[0]) : branch->r;
    sum.in[1] = push_exchange(p, op, branch->x);
    sum.out[0] = op->out[0];
    edit_push_op(p, &sum);
}

/* x of a branch that others read too: the attention gives it twice. Returns what goes to the others. */
static Val give_twice(Program *p, Op *attention)
{
    Value other = p->value[attention->out[0]];
    attention->out[AGAIN] = attention->out[0];
    attention->out[0] = edit_push_value(p, &other);
    attention->attr.i[TWICE] = 1;
    for (int k = attention->n_out; k < AGAIN; k++) attention->out[k] = VAL_NONE;
    attention->n_out = AGAIN + 1;
    return attention->out[0];
}

static void rebuild(Program *p, Branch *branch, bool *gone)
{
    int32_t n = p->n_ops;
    for (int32_t i = 0; i < n; i++) {
        if (branch[i].sum < 0) continue;
        if (branch[i].twice) branch[i].x = give_twice(p, &p->op[branch[i].attention]);
        gone[branch[i].sum] = true;
    }
    Op *old = edit_restart(p, n + n / 8);
    for (int32_t i = 0; i < n; i++) {
        if (branch[i].sum >= 0)
            push_branch(p, &old[i], &branch[i], old[branch[i].sum]);
        else if (!gone[i])
            edit_push_op(p, &old[i]);
    }
    free(old);
}

Status fuse_exchange(Program *p)
{
    int32_t *uses = edit_count_uses(p);
    bool *gone = calloc((size_t)p->n_ops + 1, sizeof *gone);
    Branch *branch = calloc((size_t)p->n_ops + 1, sizeof *branch); /* per op; sum -1: none */
    Status status = OK;
    if (!uses || !gone || !branch) {
        status = status_fail(ERR_MEMORY, "out of memory for the exchanges of %d ops", p->n_ops);
    } else {
        for (int32_t i = 0; i < p->n_ops; i++) branch[i].sum = -1;
        for (int32_t i = 0; i < p->n_ops; i++) branch_of(p, i, uses, branch);
        rebuild(p, branch, gone);
        status = prog_status(p);
    }
    free(uses);
    free(gone);
    free(branch);
    return status;
}
