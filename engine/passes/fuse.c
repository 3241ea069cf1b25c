#include "engine/passes/fuse.h"

/* Replaces *now by what a part made of it. */
static Status step(Program **now, Status status, Program **next)
{
    if (status != OK) return status;
    prog_destroy(now);
    *now = *next;
    *next = NULL;
    return OK;
}

Status pass_fuse(const Program *in, const Switches *s, Program **out)
{
    Program *now = NULL, *next = NULL;
    TRY(prog_clone(in, &now));
    Status status = OK;
    if (s->gemm_batching || s->fused_attention || s->fused_layernorm || s->fused_pointwise)
        status = step(&now, fuse_merge(now, s, &next), &next);
    if (status == OK && s->fused_attention && s->fused_pointwise)
        status = step(&now, fuse_transpose(now, &next), &next);
    if (status == OK && (s->fused_optimizer || s->overlap_clip))
        status = step(&now, fuse_optimizer(now, s, &next), &next);
    if (status == OK) status = step(&now, pass_prune(now, &next), &next);
    if (status == OK)
        *out = now;
    else
        prog_destroy(&now);
    return status;
}
