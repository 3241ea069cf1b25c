/* Op kinds and the table that describes each of them. Kinds are listed in op_list.def; the rows live in engine/ops/,
 * one file per family; the arithmetic lives in kernels/. */
#ifndef FOLDSCALE_ENGINE_OPS_H
#define FOLDSCALE_ENGINE_OPS_H

#include <stdint.h>

#include "engine/status.h"
#include "engine/tensor.h"

typedef int32_t Val; /* index of Program.value */
enum { VAL_NONE = -1 };

enum { OP_MAX_IN = 20, OP_MAX_OUT = 12, ATTR_INTS = 8, ATTR_REALS = 8, ATTR_TYPE = ATTR_INTS - 1 };
enum { LINEAR_GROUP_MAX = 6 }; /* linear layers that read one input in one op */

typedef enum OpKind {
#define OP(NAME, row) OP_##NAME,
#include "engine/op_list.def"
#undef OP
    OP_COUNT
} OpKind;

/* Attributes of an op; OpDef.int_name / real_name say what each place means for a kind (and in which order the dump
 * prints them). */
typedef struct OpAttr {
    int64_t i[ATTR_INTS];
    double f[ATTR_REALS];
} OpAttr;

/* What an op costs. Bytes: every input read once and every output written once, at their dtypes. wire_bytes: bytes this
 * rank sends for a collective (field convention: all-gather and reduce-scatter of a tensor of B bytes over n ranks
 * (n-1)/n B, all-reduce 2(n-1)/n B, all-to-all (n-1)/n B of the local tensor). */
typedef struct Cost {
    double flops;
    double bytes;
    double wire_bytes;
} Cost;

typedef struct Program Program;
typedef struct Op Op;

typedef enum OpFlag {
    OPF_NODIFF = 1 << 0,   /* no gradient flows through it; vjp is NULL */
    OPF_CHEAP = 1 << 1,    /* selective rematerialisation recomputes it instead of keeping its output */
    OPF_COMM = 1 << 2,     /* collective: goes to the communication stream under comm_overlap */
    OPF_EFFECT = 1 << 3,   /* writes persistent memory or talks to other ranks: never removed as dead */
    OPF_FULL = 1 << 4,     /* always in the real type: bf16 inputs are cast up */
    OPF_ALIAS = 1 << 5,    /* output 0 shares the memory of input 0 (reshape): no kernel runs */
    OPF_POSITION = 1 << 6, /* acts on the last axis of input 0 alone: commutes with transposing the other axes */
    OPF_TYPED = 1 << 7     /* output 0 has the type in i[ATTR_TYPE] (0: that of the inputs), bf16 in bf16 regions */
} OpFlag;

typedef struct OpDef {
    const char *name;
    /* Shapes, dtypes and shard axis of all outputs from the inputs; *n_out set; DT_NONE marks an absent optional
     * output. ERR_INTERNAL with the offending shapes when the op cannot be applied. */
    Status (*infer)(const Program *, const Op *, Tensor *out, int *n_out);
    /* Appends the ops that compute din[i] (VAL_NONE where no gradient flows) from dout[] (VAL_NONE where none
     * arrives). NULL for OPF_NODIFF. */
    Status (*vjp)(Program *, const Op *, const Val *dout, Val *din);
    void (*cost)(const Program *, const Op *, Cost *);
    /* Name under which its time is kept where an attribute chooses another kernel; NULL: the op's name. */
    const char *(*priced_as)(const Op *);
    uint32_t flags;
    uint32_t exact_in;     /* bit i: input i keeps the real type under bf16 (masks, norm scales, biases) */
    uint32_t exact_out;    /* bit i: output i keeps the real type under bf16 (statistics, parameter gradients) */
    uint32_t optional_out; /* bit i: output i is VAL_NONE in a planned program where nobody reads it */
    const char *int_name[ATTR_INTS];
    const char *real_name[ATTR_REALS];
} OpDef;

extern const OpDef *const op_defs[OP_COUNT];

#endif
