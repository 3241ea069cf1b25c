#include "engine/program.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "engine/array.h"

Status prog_create(Registry *registry, Program **program_out)
{
    Program *p = calloc(1, sizeof *p);
    if (!p) return status_fail(ERR_MEMORY, "out of memory for a program");
    p->registry = registry;
    p->block_now = p->origin_now = -1;
    p->dap = 1;
    p->loss = VAL_NONE;
    p->n_scopes = 1;
    p->cap_scopes = 64;
    p->scope = calloc((size_t)p->cap_scopes, sizeof *p->scope);
    if (!p->scope) {
        free(p);
        return status_fail(ERR_MEMORY, "out of memory for a program");
    }
    p->scope[0] = "";
    *program_out = p;
    return OK;
}

void prog_destroy(Program **program)
{
    Program *p = *program;
    if (!p) return;
    arena_free(&p->arena);
    free(p->op);
    free(p->value);
    free(p->scope);
    free(p->param_partial);
    free(p);
    *program = NULL;
}

static Status copy_names(Program *clone)
{
    for (int s = 1; s < clone->n_scopes; s++)
        if (!(clone->scope[s] = arena_strdup(&clone->arena, clone->scope[s])))
            return status_fail(ERR_MEMORY, "out of memory for scope names");
    for (int v = 0; v < clone->n_values; v++)
        if (clone->value[v].name && !(clone->value[v].name = arena_strdup(&clone->arena, clone->value[v].name)))
            return status_fail(ERR_MEMORY, "out of memory for value names");
    return OK;
}

static void *copy_array(const void *array, size_t count, size_t size)
{
    void *copy = malloc(count ? count * size : 1);
    if (copy && count) memcpy(copy, array, count * size);
    return copy;
}

static Status clone_program(const Program *p, bool with_ops, Program **clone_out)
{
    Program *c = copy_array(p, 1, sizeof *p);
    if (!c) return status_fail(ERR_MEMORY, "out of memory for a program");
    c->arena = (Arena){0};
    if (!with_ops) c->n_ops = c->n_values = 0;
    c->cap_ops = c->n_ops;
    c->cap_values = c->n_values;
    c->cap_scopes = c->n_scopes;
    c->op = copy_array(p->op, (size_t)c->n_ops, sizeof *c->op);
    c->value = copy_array(p->value, (size_t)c->n_values, sizeof *c->value);
    c->scope = copy_array(p->scope, (size_t)c->n_scopes, sizeof *c->scope);
    c->param_partial =
        p->param_partial ? copy_array(p->param_partial, (size_t)p->registry->n_params, sizeof *c->param_partial) : NULL;
    Status status = OK;
    if (!c->op || !c->value || !c->scope || (p->param_partial && !c->param_partial))
        status = status_fail(ERR_MEMORY, "out of memory for a program");
    if (status == OK) status = copy_names(c);
    if (status != OK) {
        c->n_scopes = 0;
        prog_destroy(&c);
        return status;
    }
    if (!with_ops) {
        c->loss = VAL_NONE;
        c->arena_bytes = 0;
    }
    *clone_out = c;
    return OK;
}

Status prog_clone(const Program *program, Program **clone_out)
{
    return clone_program(program, true, clone_out);
}

Status prog_clone_empty(const Program *program, Program **clone_out)
{
    return clone_program(program, false, clone_out);
}

Status prog_status(const Program *program)
{
    return program->status == OK ? OK : status_fail(program->status, "%s", program->status_message);
}

Val prog_fail(Program *p, Status code, const char *format, ...)
{
    if (p->status != OK) return VAL_NONE;
    p->status = code;
    va_list args;
    va_start(args, format);
    vsnprintf(p->status_message, sizeof p->status_message, format, args);
    va_end(args);
    return VAL_NONE;
}

Status prog_reserve(Program *p, int32_t more_ops, int32_t more_values)
{
    Status status = array_reserve((void **)&p->op, &p->cap_ops, (int64_t)p->n_ops + more_ops, sizeof *p->op, "ops");
    if (status == OK)
        status = array_reserve((void **)&p->value, &p->cap_values, (int64_t)p->n_values + more_values, sizeof *p->value,
                               "values");
    if (status != OK) prog_fail(p, status, "%s", status_text());
    return status;
}

static Val new_value(Program *p, const Value *value)
{
    if (prog_reserve(p, 0, 1) != OK) return VAL_NONE;
    p->value[p->n_values] = *value;
    return p->n_values++;
}

Val prog_persistent(Program *p, Place place, int slot, int rank, const int64_t *dim)
{
    if (p->status != OK) return VAL_NONE;
    Value value = {.place = place, .slot = slot, .def_op = -1, .alias = VAL_NONE, .offset = -1};
    value.t = (Tensor){.dtype = place == PLACE_PARAM_LOW ? DT_BF16 : DT_F32, .rank = (int8_t)rank, .shard = SHARD_NONE};
    for (int axis = 0; axis < rank; axis++) value.t.dim[axis] = dim[axis];
    return new_value(p, &value);
}

static Val add_buffer(Program *p, const char *name, BufferKind kind, DType dtype, int rank, const int64_t *dim)
{
    if (p->status != OK) return VAL_NONE;
    if (rank < 0 || rank > TENSOR_MAX_RANK) return prog_fail(p, ERR_INTERNAL, "buffer %s: rank %d", name, rank);
    int slot;
    Tensor t = {.dtype = dtype, .rank = (int8_t)rank, .shard = SHARD_NONE};
    for (int axis = 0; axis < rank; axis++) t.dim[axis] = dim[axis];
    if (registry_buffer(p->registry, name, kind, &t, &slot) != OK)
        return prog_fail(p, ERR_INTERNAL, "%s", status_text());
    Val v = prog_persistent(p, PLACE_BUFFER, slot, rank, dim);
    if (v != VAL_NONE) p->value[v].t.dtype = dtype;
    return v;
}

Val prog_input(Program *p, const char *name, DType dtype, int rank, const int64_t *dim)
{
    return add_buffer(p, name, BUFFER_INPUT, dtype, rank, dim);
}

Val prog_state(Program *p, const char *name, DType dtype, int rank, const int64_t *dim)
{
    return add_buffer(p, name, BUFFER_STATE, dtype, rank, dim);
}

Val prog_param(Program *p, const char *name, int rank, const int64_t *dim, InitRule init, double init_value)
{
    if (p->status != OK) return VAL_NONE;
    char full[512];
    const char *scope = p->scope[p->scope_now];
    size_t scope_length = strlen(scope), length = strlen(name);
    if (scope_length + length + 2 > sizeof full) return prog_fail(p, ERR_INTERNAL, "parameter name too long: %s", name);
    char *end = full;
    if (scope_length) {
        memcpy(end, scope, scope_length);
        end += scope_length;
        *end++ = '.';
    }
    memcpy(end, name, length + 1);
    int slot;
    if (registry_param(p->registry, full, rank, dim, init, init_value, &slot) != OK)
        return prog_fail(p, ERR_INTERNAL, "%s", status_text());
    return prog_persistent(p, PLACE_PARAM, slot, rank, dim);
}

static Op *new_op(Program *p)
{
    if (prog_reserve(p, 1, 0) != OK) return NULL;
    Op *op = &p->op[p->n_ops];
    memset(op, 0, sizeof *op);
    return op;
}

/* Checks inputs, infers outputs into tensors[]; the op is not yet part of the program. */
static Status infer_op(Program *p, Op *op, Tensor *tensors, int *n_out)
{
    for (int i = 0; i < op->n_in; i++)
        if (op->in[i] < VAL_NONE || op->in[i] >= p->n_values)
            return status_fail(ERR_INTERNAL, "%s: input %d is no value of this program", op_def(op->kind)->name, i);
    memset(tensors, 0, OP_MAX_OUT * sizeof *tensors);
    for (int i = 0; i < OP_MAX_OUT; i++) tensors[i].shard = SHARD_NONE;
    return op_def(op->kind)->infer(p, op, tensors, n_out);
}

/* Appends `op` (kind, in, attr and flags filled). `into` gives existing values for the outputs, or NULL for new ones.
 */
static void append_op(Program *p, const Op *filled, const Val *into, int n_into, Val *out)
{
    for (int i = 0; i < OP_MAX_OUT; i++) out[i] = VAL_NONE;
    if (p->status != OK) return;
    Op *op = new_op(p);
    if (!op) return;
    *op = *filled;
    Tensor tensors[OP_MAX_OUT];
    int n_out = 0;
    if (infer_op(p, op, tensors, &n_out) != OK) {
        prog_fail(p, ERR_INTERNAL, "%s: %.400s", p->scope[op->scope], status_text());
        return;
    }
    if (into && n_into != n_out) {
        prog_fail(p, ERR_INTERNAL, "%s: %d outputs given, %d expected", op_def(op->kind)->name, n_into, n_out);
        return;
    }
    int32_t id = p->n_ops;
    op->n_out = (int16_t)n_out;
    for (int i = 0; i < n_out; i++) {
        if (into) {
            out[i] = into[i];
            if (into[i] == VAL_NONE) continue;
            Value *target = &p->value[into[i]];
            if (tensor_count(&target->t) != tensor_count(&tensors[i])) {
                prog_fail(p, ERR_INTERNAL, "%s: output %d has %ld elements, %ld expected", op_def(op->kind)->name, i,
                          (long)tensor_count(&target->t), (long)tensor_count(&tensors[i]));
                return;
            }
            target->def_op = id;
            continue;
        }
        if (tensors[i].dtype == DT_NONE) continue;
        Value value = {.t = tensors[i], .place = PLACE_ARENA, .def_op = id, .alias = VAL_NONE, .offset = -1};
        if (i == 0 && (op_def(op->kind)->flags & OPF_ALIAS)) {
            const Value *source = &p->value[op->in[0]];
            value.place = source->place;
            value.slot = source->slot;
            value.alias = op->in[0];
        }
        out[i] = new_value(p, &value);
        if (out[i] == VAL_NONE) return;
    }
    op = &p->op[id];
    for (int i = 0; i < OP_MAX_OUT; i++) op->out[i] = i < n_out ? out[i] : VAL_NONE;
    p->n_ops++;
}

static bool fill_op(Program *p, Op *op, OpKind kind, int n_in, const Val *in, const OpAttr *attr)
{
    if (p->status != OK) return false;
    if (n_in > OP_MAX_IN) {
        prog_fail(p, ERR_INTERNAL, "%s: %d inputs", op_def(kind)->name, n_in);
        return false;
    }
    *op = (Op){.kind = kind,
               .stage = p->stage_now,
               .full_precision = p->full_precision_now,
               .n_in = (int16_t)n_in,
               .block = p->block_now,
               .segment = 0,
               .scope = p->scope_now};
    bool recorded = p->stage_now == STAGE_FORWARD || p->stage_now == STAGE_OPTIMIZER;
    op->origin = recorded && p->origin_now < 0 ? p->next_origin++ : p->origin_now;
    for (int i = 0; i < OP_MAX_IN; i++) op->in[i] = i < n_in ? in[i] : VAL_NONE;
    if (attr) op->attr = *attr;
    return true;
}

Val prog_add(Program *p, OpKind kind, int n_in, const Val *in, const OpAttr *attr)
{
    Val out[OP_MAX_OUT];
    prog_add_multi(p, kind, n_in, in, attr, out);
    return out[0];
}

void prog_add_multi(Program *p, OpKind kind, int n_in, const Val *in, const OpAttr *attr, Val *out)
{
    Op op;
    for (int i = 0; i < OP_MAX_OUT; i++) out[i] = VAL_NONE;
    if (fill_op(p, &op, kind, n_in, in, attr)) append_op(p, &op, NULL, 0, out);
}

void prog_replay(Program *p, const Op *op, const Val *in, Val *out)
{
    Op copy = *op;
    for (int i = 0; i < OP_MAX_IN; i++) copy.in[i] = i < op->n_in ? in[i] : VAL_NONE;
    append_op(p, &copy, NULL, 0, out);
}

void prog_replay_into(Program *p, const Op *op, const Val *in, const Val *out)
{
    Op copy = *op;
    Val ignored[OP_MAX_OUT];
    for (int i = 0; i < OP_MAX_IN; i++) copy.in[i] = i < op->n_in ? in[i] : VAL_NONE;
    append_op(p, &copy, out, op->n_out, ignored);
}

void prog_add_into(Program *p, OpKind kind, int n_in, const Val *in, const OpAttr *attr, int n_out, const Val *out)
{
    Op op;
    Val ignored[OP_MAX_OUT];
    if (fill_op(p, &op, kind, n_in, in, attr)) append_op(p, &op, out, n_out, ignored);
}

void prog_scope_push(Program *p, const char *format, ...)
{
    if (p->status != OK) return;
    char name[512];
    const char *parent = p->scope[p->scope_now];
    size_t length = strlen(parent);
    if (length + 1 >= sizeof name) {
        prog_fail(p, ERR_INTERNAL, "scope name too long: %s", parent);
        return;
    }
    memcpy(name, parent, length);
    if (length) name[length++] = '.';
    va_list args;
    va_start(args, format);
    int written = vsnprintf(name + length, sizeof name - length, format, args);
    va_end(args);
    if (written < 0 || (size_t)written >= sizeof name - length) {
        prog_fail(p, ERR_INTERNAL, "scope name too long: %s", parent);
        return;
    }
    if (array_reserve((void **)&p->scope, &p->cap_scopes, p->n_scopes + 1, sizeof *p->scope, "scopes") != OK) {
        prog_fail(p, ERR_MEMORY, "%s", status_text());
        return;
    }
    const char *kept = arena_strdup(&p->arena, name);
    if (!kept) {
        prog_fail(p, ERR_MEMORY, "out of memory for scopes");
        return;
    }
    p->scope[p->n_scopes] = kept;
    p->scope_now = p->n_scopes++;
    if (p->scope_depth < PROG_SCOPE_DEPTH)
        p->scope_stack[p->scope_depth++] = p->scope_now;
    else
        prog_fail(p, ERR_INTERNAL, "scopes nested deeper than %d", PROG_SCOPE_DEPTH);
}

void prog_scope_pop(Program *p)
{
    if (p->status != OK) return;
    if (!p->scope_depth) {
        prog_fail(p, ERR_INTERNAL, "scope popped more often than pushed");
        return;
    }
    p->scope_depth--;
    p->scope_now = p->scope_depth ? p->scope_stack[p->scope_depth - 1] : 0;
}

void prog_block_begin(Program *p)
{
    p->block_now = p->blocks++;
}

void prog_block_end(Program *p)
{
    p->block_now = -1;
}

bool prog_full_precision(Program *p, bool on)
{
    bool former = p->full_precision_now;
    p->full_precision_now = on;
    return former;
}

void prog_output(Program *p, const char *name, Val value)
{
    if (p->status != OK || value == VAL_NONE) return;
    char *kept = arena_strdup(&p->arena, name);
    if (!kept) {
        prog_fail(p, ERR_MEMORY, "out of memory for names");
        return;
    }
    p->value[value].name = kept;
    p->value[value].output = true;
}

void prog_tap(Program *p, Val value, const char *format, ...)
{
    if (p->status != OK || value == VAL_NONE || p->value[value].output) return;
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (!(p->value[value].name = arena_strdup(&p->arena, name))) prog_fail(p, ERR_MEMORY, "out of memory for names");
}

void prog_adopt(Program *p, Val value, const Value *former)
{
    if (p->status != OK || value == VAL_NONE || !former->name) return;
    if (!(p->value[value].name = arena_strdup(&p->arena, former->name)))
        prog_fail(p, ERR_MEMORY, "out of memory for names");
    p->value[value].output = former->output;
}

void prog_keep_taps(Program *p)
{
    for (int32_t v = 0; v < p->n_values; v++)
        if (p->value[v].name) p->value[v].output = true;
}

Val prog_find(const Program *p, const char *name)
{
    for (int32_t v = 0; v < p->n_values; v++)
        if (p->value[v].name && !strcmp(p->value[v].name, name)) return v;
    return VAL_NONE;
}

int prog_op_name(const Program *p, int32_t op, char *buffer, size_t size)
{
    const Op *o = &p->op[op];
    const char *scope = p->scope[o->scope];
    return snprintf(buffer, size, "%s%s%s#%d", scope, *scope ? "/" : "", op_def(o->kind)->name, o->origin);
}

Op prog_op_computation(const Op *op)
{
    Op computation = *op;
    computation.send = (Send){0};
    if (op->send.active) computation.out[op->send.output] = op->send.from;
    return computation;
}

Op prog_op_collective(const Op *op)
{
    Op collective = *op;
    collective.kind = op->send.kind;
    collective.attr = op->send.attr;
    collective.send = (Send){0};
    collective.n_in = collective.n_out = 1;
    for (int k = 0; k < OP_MAX_IN; k++) collective.in[k] = VAL_NONE;
    for (int k = 0; k < OP_MAX_OUT; k++) collective.out[k] = VAL_NONE;
    collective.in[0] = op->send.from;
    collective.out[0] = op->out[op->send.output];
    return collective;
}

int32_t prog_sharing_op(const Program *p, int32_t i)
{
    if (p->op[i].stream != STREAM_ASIDE) return p->n_ops;
    while (i < p->n_ops && p->op[i].stream == STREAM_ASIDE) i++;
    return i < p->n_ops && p->op[i].send.shares ? i : p->n_ops;
}

static void own_cost(const Program *program, const Op *op, Cost *cost_out)
{
    *cost_out = (Cost){0};
    op_def(op->kind)->cost(program, op, cost_out);
}

void prog_op_cost(const Program *program, const Op *op, Cost *cost_out)
{
    if (!op->send.active) {
        own_cost(program, op, cost_out);
        return;
    }
    Op computation = prog_op_computation(op), collective = prog_op_collective(op);
    Cost sent;
    own_cost(program, &computation, cost_out);
    own_cost(program, &collective, &sent);
    cost_out->flops += sent.flops;
    cost_out->wire_bytes += sent.wire_bytes;
}
