#include "engine/passes/fuse.h"

/* The program made so far: `in` itself until the first part has run. */
typedef struct Chain {
    const Program *now;
    Program *owned; /* now, when it is not the caller's */
} Chain;

static Status advance(Chain *chain, Status status, Program **next)
{
    if (status != OK) return status;
    prog_destroy(&chain->owned);
    chain->now = chain->owned = *next;
    return OK;
}

static bool has_stage(const Program *p, Stage stage)
{
    for (int32_t i = 0; i < p->n_ops; i++)
        if (p->op[i].stage == stage) return true;
    return false;
}

static Status run(Chain *chain, const Switches *s)
{
    Program *next = NULL;
    bool merges = s->gemm_batching || s->fused_attention || s->fused_layernorm || s->fused_pointwise;
    if (has_stage(chain->now, STAGE_FORWARD)) {
        if (merges) TRY(advance(chain, fuse_merge(chain->now, s, &next), &next));
        if (s->fused_attention && s->fused_pointwise) TRY(advance(chain, fuse_transpose(chain->now, &next), &next));
        /* each without what the merges before left behind: its readers would count */
        if (s->fused_pointwise) {
            TRY(advance(chain, pass_prune(chain->now, &next), &next));
            TRY(advance(chain, fuse_branches(chain->now, &next), &next));
        }
        if (s->fused_pointwise && s->fused_layernorm) {
            TRY(advance(chain, pass_prune(chain->now, &next), &next));
            TRY(advance(chain, fuse_transitions(chain->now, &next), &next));
        }
        if (s->gemm_batching && s->fused_layernorm && s->fused_pointwise)
            TRY(advance(chain, fuse_triangle(chain->now, &next), &next));
        /* a layer norm that selective recomputation repeats instead of keeping its result has to stay one of its own */
        if (s->fused_layernorm && s->fused_pointwise && s->checkpoint != CHECKPOINT_SELECTIVE)
            TRY(advance(chain, fuse_norm(chain->now, &next), &next));
    }
    if ((s->fused_optimizer || s->overlap_clip) && has_stage(chain->now, STAGE_OPTIMIZER))
        TRY(advance(chain, fuse_optimizer(chain->now, s, &next), &next));
    return advance(chain, pass_prune(chain->now, &next), &next);
}

Status pass_fuse(const Program *in, const Switches *switches, Program **out)
{
    Chain chain = {.now = in};
    Status status = run(&chain, switches);
    if (status == OK)
        *out = chain.owned;
    else
        prog_destroy(&chain.owned);
    return status;
}
