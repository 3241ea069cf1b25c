/* Recorded programs for the tests of passes, and counts of what is in them. */
#ifndef FOLDSCALE_TESTS_PASS_PROGRAM_H
#define FOLDSCALE_TESTS_PASS_PROGRAM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/passes.h"
#include "model/model.h"

typedef struct Recording {
    Registry *registry;
    Program *p;
} Recording;

static inline Recording recording_empty(void)
{
    Recording r = {0};
    assert_int_equal(registry_create(&r.registry), OK);
    assert_int_equal(prog_create(r.registry, &r.p), OK);
    return r;
}

static inline Recording recording_model(const char *preset, bool loss)
{
    Recording r = recording_empty();
    ModelConfig config;
    assert_int_equal(model_config_preset(preset, &config), OK);
    if (model_record_forward(&config, loss, r.p) != OK) fail_msg("%s", status_text());
    return r;
}

static inline void recording_free(Recording *r)
{
    prog_destroy(&r->p);
    registry_destroy(&r->registry);
}

static inline Program *passed(const Program *p, const Switches *switches, PassStage last)
{
    Program *out = NULL;
    if (passes_run(p, switches, last, &out) != OK) fail_msg("%s", status_text());
    return out;
}

static inline int count_kind(const Program *p, OpKind kind)
{
    int count = 0;
    for (int32_t i = 0; i < p->n_ops; i++) count += p->op[i].kind == kind;
    return count;
}

/* n-th op of a kind, counted from 0 */
static inline const Op *nth_kind(const Program *p, OpKind kind, int n)
{
    for (int32_t i = 0; i < p->n_ops; i++)
        if (p->op[i].kind == kind && n-- == 0) return &p->op[i];
    fail_msg("the program has no such %s", op_def(kind)->name);
    return NULL;
}

static inline const Tensor *in_tensor(const Program *p, const Op *op, int k)
{
    return prog_tensor(p, op->in[k]);
}

static inline const Tensor *out_tensor(const Program *p, const Op *op, int k)
{
    return prog_tensor(p, op->out[k]);
}

#endif
