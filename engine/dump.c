#include "engine/program.h"

static const char *const place_names[PLACE_COUNT] = {
    [PLACE_ARENA] = "",    [PLACE_BUFFER] = "buffer", [PLACE_PARAM] = "param",   [PLACE_PARAM_LOW] = "param_low",
    [PLACE_GRAD] = "grad", [PLACE_ADAM_M] = "adam_m", [PLACE_ADAM_V] = "adam_v", [PLACE_SWA] = "swa",
};
static const char *const stage_names[STAGE_COUNT] = {
    [STAGE_FORWARD] = "forward",
    [STAGE_BACKWARD] = "backward",
    [STAGE_SYNC] = "sync",
    [STAGE_OPTIMIZER] = "optimizer",
};

static void dump_type(const Tensor *t, FILE *f)
{
    fprintf(f, "%s[", dtype_name(t->dtype));
    for (int axis = 0; axis < t->rank; axis++)
        fprintf(f, "%s%ld%s", axis ? "," : "", (long)t->dim[axis], axis == t->shard ? "/dap" : "");
    fputc(']', f);
}

static void dump_place(const Program *p, const Value *v, FILE *f)
{
    if (v->place == PLACE_ARENA) {
        if (v->offset >= 0) fprintf(f, "@%ld", (long)v->offset);
        return;
    }
    const char *name = "*";
    if (v->place == PLACE_BUFFER)
        name = p->registry->buffer[v->slot].name;
    else if (v->slot != WHOLE_BLOCK)
        name = p->registry->param[v->slot].name;
    fprintf(f, "{%s %s}", place_names[v->place], name);
}

static void dump_attr(OpKind kind, const OpAttr *attr, FILE *f)
{
    const OpDef *def = op_def(kind);
    const char *between = "(";
    for (int i = 0; i < ATTR_INTS; i++) {
        if (!def->int_name[i]) continue;
        fprintf(f, "%s%s=%ld", between, def->int_name[i], (long)attr->i[i]);
        between = " ";
    }
    for (int i = 0; i < ATTR_REALS; i++) {
        if (!def->real_name[i]) continue;
        fprintf(f, "%s%s=%.17g", between, def->real_name[i], attr->f[i]);
        between = " ";
    }
    if (*between == ' ') fputc(')', f);
}

/* Behind the output: the collective that takes there what is computed, and whether ops aside run meanwhile. */
static void dump_send(const Program *p, const Send *send, FILE *f)
{
    fputs(" by ", f);
    fputs(op_def(send->kind)->name, f);
    dump_attr(send->kind, &send->attr, f);
    fputs(" of ", f);
    dump_type(&p->value[send->from].t, f);
    if (send->shares) fputs(" shares", f);
}

static void dump_op(const Program *p, int32_t index, FILE *f)
{
    const Op *op = &p->op[index];
    fprintf(f, "%6d %s", index, op_def(op->kind)->name);
    dump_attr(op->kind, &op->attr, f);
    for (int i = 0; i < op->n_in; i++) {
        if (op->in[i] == VAL_NONE) {
            fputs(" -", f);
            continue;
        }
        fprintf(f, " %%%d", op->in[i]);
        if (p->value[op->in[i]].place != PLACE_ARENA) dump_place(p, &p->value[op->in[i]], f);
    }
    fputs(" ->", f);
    for (int i = 0; i < op->n_out; i++) {
        if (op->out[i] == VAL_NONE) {
            fputs(" -", f);
            continue;
        }
        const Value *v = &p->value[op->out[i]];
        fprintf(f, " %%%d:", op->out[i]);
        dump_type(&v->t, f);
        dump_place(p, v, f);
        if (v->name) fprintf(f, "'%s'", v->name);
        if (op->send.active && op->send.output == i) dump_send(p, &op->send, f);
    }
    fprintf(f, " ; %s %s #%d", stage_names[op->stage], *p->scope[op->scope] ? p->scope[op->scope] : "-", op->origin);
    if (op->block >= 0) fprintf(f, " block=%d", op->block);
    if (op->recomputed) fputs(" recomputed", f);
    if (op->stream) fputs(op->stream == STREAM_COMM ? " stream=comm" : " stream=aside", f);
    if (op->joins) fprintf(f, " joins=%d", op->joins);
    if (op->segment) fprintf(f, " segment=%d", op->segment);
    fputc('\n', f);
}

Status prog_dump(const Program *p, FILE *stream)
{
    fprintf(stream, "# %d ops, %d values, dap %d", p->n_ops, p->n_values, p->dap);
    if (p->arena_bytes) fprintf(stream, ", arena %zu bytes", p->arena_bytes);
    fputc('\n', stream);
    for (int32_t i = 0; i < p->n_ops; i++) dump_op(p, i, stream);
    return ferror(stream) ? status_fail(ERR_IO, "cannot write the program's text") : OK;
}
