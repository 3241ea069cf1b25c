/* The program: a flat list of coarse ops over values. Recording computes nothing.
 *
 *   Registry *reg; Program *p;
 *   prog_create(reg, &p);
 *   Val x = prog_input(p, "x", DT_F32, 2, (int64_t[]){rows, 64});
 *   Val w = prog_param(p, "linear.weight", 2, (int64_t[]){128, 64}, INIT_NORMAL, 0.125);
 *   Val y = prog_add(p, OP_LINEAR, 3, (Val[]){x, w, VAL_NONE}, NULL);
 *   prog_output(p, "y", y);
 *   TRY(prog_status(p));
 *
 * Recording functions never need a check: the first failure sticks to the program (prog_status returns it), later calls
 * return VAL_NONE and do nothing. A value is written by exactly one op (single assignment) unless it lives in a
 * persistent place (anything but PLACE_ARENA), where program order is the order of effects. */
#ifndef FOLDSCALE_ENGINE_PROGRAM_H
#define FOLDSCALE_ENGINE_PROGRAM_H

#include <stdbool.h>
#include <stdio.h>

#include "engine/arena.h"
#include "engine/ops.h"
#include "engine/registry.h"
#include "engine/status.h"
#include "engine/tensor.h"

typedef enum Place {
    PLACE_ARENA,     /* temporary; offset given by the plan pass */
    PLACE_BUFFER,    /* slot = index of Registry.buffer */
    PLACE_PARAM,     /* slot = index of Registry.param, or WHOLE_BLOCK */
    PLACE_PARAM_LOW, /* bf16 copy of a parameter */
    PLACE_GRAD,      /* gradient of a parameter, real type; a flat range when `count` exceeds the parameter */
    PLACE_ADAM_M,
    PLACE_ADAM_V,
    PLACE_SWA,
    PLACE_COUNT
} Place;

enum { WHOLE_BLOCK = -1 };

typedef struct Value {
    Tensor t;
    Place place;
    int32_t slot;
    int32_t def_op;   /* op that writes it, -1 for persistent inputs */
    int32_t alias;    /* value whose memory this one shares (reshape), or VAL_NONE */
    int64_t offset;   /* bytes in the arena, after plan; -1 before */
    const char *name; /* tap or output name, or NULL */
    bool output;      /* kept to the end of the program */
} Value;

typedef enum Stage { STAGE_FORWARD, STAGE_BACKWARD, STAGE_SYNC, STAGE_OPTIMIZER, STAGE_COUNT } Stage;

/* Neighbouring ops of STREAM_ASIDE are a group that runs beside what follows them (passes/aside.h). */
typedef enum OpStream { STREAM_COMPUTE, STREAM_COMM, STREAM_ASIDE } OpStream;

/* A collective that an op performs on the way out of one of its outputs (schedule pass): what the op computes goes to
 * where it belongs on the ranks, and the output is what this rank holds afterwards. */
typedef struct Send {
    bool active;
    int8_t output; /* of the op */
    OpKind kind;   /* of the collective, which has no op of its own; never ALL_REDUCE */
    OpAttr attr;   /* of the collective */
    bool shares;   /* ops aside run beside it, which its kernel leaves room on the device */
    Val from;      /* the operand of the collective: the op computes it and has no memory for it */
} Send;

typedef struct Op {
    OpKind kind;
    uint8_t stage;       /* Stage */
    uint8_t stream;      /* OpStream (schedule pass) */
    uint8_t joins;       /* groups of STREAM_ASIDE to wait for before this op, oldest first (schedule pass) */
    bool full_precision; /* recorded in a region that bf16 leaves alone */
    bool recomputed;     /* clone made by remat */
    int16_t n_in, n_out;
    int32_t block;   /* checkpointing unit, -1 outside */
    int32_t segment; /* capture segment (schedule pass) */
    int32_t scope;   /* index of Program.scope: where in the model it was recorded */
    int32_t origin;  /* id of the recorded op it stems from: joins traces, stable under all passes */
    Val in[OP_MAX_IN], out[OP_MAX_OUT];
    OpAttr attr;
    Send send;
} Op;

enum { PROG_SCOPE_DEPTH = 32 };

typedef struct Program {
    Arena arena; /* names and tables of this program */
    Registry *registry;
    int32_t n_ops, cap_ops, n_values, cap_values, n_scopes, cap_scopes;
    Op *op;
    Value *value;
    const char **scope; /* scope[0] = "" */
    int32_t scope_now, block_now, blocks;
    int32_t scope_stack[PROG_SCOPE_DEPTH], scope_depth;
    int32_t next_origin, next_dropout;
    int32_t origin_now; /* >= 0: appended ops belong to this recorded op (passes) */
    uint8_t stage_now;
    bool full_precision_now;
    int dap;             /* ranks of a model-parallel group; 1 before the shard pass */
    Val loss;            /* differentiated by autodiff; VAL_NONE if none */
    bool *param_partial; /* [n_params] after shard: the gradient of this rank is a part of the DAP group's sum; NULL =
                            none */
    size_t arena_bytes;  /* after plan: peak of the temporaries */
    Status status;
    char status_message[512];
} Program;

Status prog_create(Registry *registry, Program **program_out);
void prog_destroy(Program **program);
/* Values, ops, scopes, names: an independent copy (same registry). */
Status prog_clone(const Program *program, Program **clone_out);
/* Same registry, scopes and counters, but no ops and values: what a pass fills. */
Status prog_clone_empty(const Program *program, Program **clone_out);
Status prog_status(const Program *program);
/* Makes the failure stick (used by recording code that detects a fault itself). Returns VAL_NONE. */
Val prog_fail(Program *program, Status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Room for that many more ops and values; ERR_MEMORY also becomes the status of the program. */
Status prog_reserve(Program *program, int32_t more_ops, int32_t more_values);

/* Leaves of a recording. The same name gives the same buffer or parameter, in every program of the registry. */
Val prog_input(Program *program, const char *name, DType dtype, int rank, const int64_t *dim);
Val prog_state(Program *program, const char *name, DType dtype, int rank, const int64_t *dim);
/* Name is relative to the current scope: "linear_q.weight" in scope "a.b" is "a.b.linear_q.weight". */
Val prog_param(Program *program, const char *name, int rank, const int64_t *dim, InitRule init, double init_value);
/* A value in a persistent place, e.g. the whole gradient block: slot WHOLE_BLOCK, rank 1. */
Val prog_persistent(Program *program, Place place, int slot, int rank, const int64_t *dim);

/* Appends an op; returns its first output (VAL_NONE on failure). Missing optional inputs are VAL_NONE. `attr` NULL =
 * all zero. Infers shapes through the op table. */
Val prog_add(Program *program, OpKind kind, int n_in, const Val *in, const OpAttr *attr);
/* As prog_add; all outputs in out[0..OP_MAX_OUT). */
void prog_add_multi(Program *program, OpKind kind, int n_in, const Val *in, const OpAttr *attr, Val *out);
/* Appends a copy of `op` (attributes, scope, block, origin, stage, flags) reading in[0..op->n_in); shapes are inferred
 * again. The workhorse of passes. Outputs in out[]. */
void prog_replay(Program *program, const Op *op, const Val *in, Val *out);
/* As prog_replay, writing to the given existing values (one per output of op; VAL_NONE where op has none). */
void prog_replay_into(Program *program, const Op *op, const Val *in, const Val *out);
/* As prog_add_multi but the op WRITES TO the given existing values (persistent places or outputs chosen by the caller);
 * shapes are checked against the inferred ones. */
void prog_add_into(Program *program, OpKind kind, int n_in, const Val *in, const OpAttr *attr, int n_out,
                   const Val *out);

/* Scopes name ops and parameters: push "evoformer_stack", push "blocks.3" -> "evoformer_stack.blocks.3". */
void prog_scope_push(Program *program, const char *format, ...) __attribute__((format(printf, 2, 3)));
void prog_scope_pop(Program *program);
/* One unit of activation checkpointing; not nested. */
void prog_block_begin(Program *program);
void prog_block_end(Program *program);
/* Region that the bf16 switch leaves in the real type; returns the former setting. */
bool prog_full_precision(Program *program, bool on);

/* Names a value so that parity tests and users can fetch it; `output` keeps it to the end of the program. A tap (output
 * false) costs nothing unless the caller later turns taps into outputs with prog_keep_taps(). */
void prog_output(Program *program, const char *name, Val value);
void prog_tap(Program *program, Val value, const char *format, ...) __attribute__((format(printf, 3, 4)));
void prog_keep_taps(Program *program);
/* Gives `value` the name and output mark of a value of another program (passes). */
void prog_adopt(Program *program, Val value, const Value *former);
Val prog_find(const Program *program, const char *name); /* named value, VAL_NONE when absent */

static inline const Tensor *prog_tensor(const Program *program, Val v)
{
    return &program->value[v].t;
}
static inline const OpDef *op_def(OpKind kind)
{
    return op_defs[kind];
}

static inline const char *op_priced_as(const Op *op)
{
    const OpDef *def = op_def(op->kind);
    return def->priced_as ? def->priced_as(op) : def->name;
}

/* Full name "scope/kind#id" into buffer (snprintf semantics). */
int prog_op_name(const Program *program, int32_t op, char *buffer, size_t size);

/* The two halves of an op that sends: the computation, writing send.from, and the collective that takes it from there.
 */
Op prog_op_computation(const Op *op);
Op prog_op_collective(const Op *op);
/* The op that shares the device with the group aside that op i belongs to (Send.shares), n_ops where none does. */
int32_t prog_sharing_op(const Program *program, int32_t i);

/* Cost of one op under the current shapes (op table). An op that sends: the flops and bytes on the wire of both halves,
 * the bytes moved of the computation. */
void prog_op_cost(const Program *program, const Op *op, Cost *cost_out);

/* Stable text, one line per op: "%id = kind(attrs) %in:shape ... -> %out:dtype[shape]{place} ; scope stage". Appends to
 * a FILE*. ERR_IO when the stream fails. */
Status prog_dump(const Program *program, FILE *stream);

#endif
