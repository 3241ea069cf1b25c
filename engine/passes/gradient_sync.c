/* Gradients of data-parallel replicas are averaged; inside a model-parallel (DAP) group the ranks hold parts of the
 * gradient of every parameter that feeds sharded ops, and these are summed. Neighbouring parameters with the same need
 * form buckets of the contiguous gradient block, so that one collective serves hundreds of parameters. */
#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "engine/passes/edit.h"
#include "engine/passes/gradient.h"

/* 25 MB of f32, the customary bucket of data-parallel training: large enough for full bandwidth, small enough that the
 * last one hides little of the backward pass (PyTorch DistributedDataParallel's default). */
enum { BUCKET_ELEMENTS = 25 * 1024 * 1024 / 4 };

typedef struct Bucket {
    int first, last; /* parameters */
    CommGroup group;
    double factor;
    int32_t after; /* op that writes its last gradient */
} Bucket;

/* false: this parameter's gradient needs no communication */
static bool bucket_kind(const Program *p, const Switches *s, int param, Bucket *bucket)
{
    bool partial = s->dap > 1 && p->param_partial && p->param_partial[param];
    if (s->dp == 1 && !partial) return false;
    bucket->group = partial ? (s->dp > 1 ? GROUP_WORLD : GROUP_DAP) : GROUP_DP;
    bucket->factor = 1.0 / s->dp;
    return true;
}

static int make_buckets(const Program *p, const Switches *s, Bucket *bucket)
{
    const Registry *r = p->registry;
    int n = 0;
    for (int k = 0; k < r->n_params; k++) {
        Bucket next = {.first = k, .last = k};
        if (!bucket_kind(p, s, k, &next)) continue;
        Bucket *open = n ? &bucket[n - 1] : NULL;
        int64_t end = r->param[k].offset + r->param[k].count;
        if (open && open->last == k - 1 && open->group == next.group &&
            end - r->param[open->first].offset <= BUCKET_ELEMENTS)
            open->last = k;
        else
            bucket[n++] = next;
    }
    return n;
}

/* bucket[].after from the ops that write PLACE_GRAD; owner[param] = bucket or -1 */
static void find_last_writers(const Program *p, Bucket *bucket, const int *owner)
{
    for (int32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_out; k++) {
            if (p->op[i].out[k] == VAL_NONE) continue;
            const Value *v = &p->value[p->op[i].out[k]];
            if (v->place != PLACE_GRAD) continue;
            const Registry *r = p->registry;
            int64_t end = r->param[v->slot].offset + tensor_count(&v->t);
            for (int q = v->slot; q < r->n_params && r->param[q].offset < end; q++)
                if (owner[q] >= 0) bucket[owner[q]].after = i;
        }
}

static void append_bucket(Program *p, const Bucket *b)
{
    const ParamInfo *first = &p->registry->param[b->first], *last = &p->registry->param[b->last];
    int64_t length = last->offset + last->count - first->offset;
    Val range = prog_persistent(p, PLACE_GRAD, b->first, 1, &length);
    if (range == VAL_NONE) return;
    p->value[range].t.dtype = p->value[p->loss].t.dtype;
    prog_add_into(p, OP_ALL_REDUCE, 1, &range, &(OpAttr){.i = {b->group}, .f = {b->factor}}, 1, &range);
}

/* Moves the ops from `appended` on to behind the op each belongs to. */
static Status interleave(Program *p, int32_t appended, const Bucket *bucket, int n)
{
    Op *ordered = malloc((size_t)p->n_ops * sizeof *ordered);
    if (!ordered) return status_fail(ERR_MEMORY, "out of memory for the gradient buckets");
    int32_t count = 0;
    for (int32_t i = 0; i < appended; i++) {
        ordered[count++] = p->op[i];
        for (int b = 0; b < n; b++)
            if (bucket[b].after == i) ordered[count++] = p->op[appended + b];
    }
    free(p->op);
    p->op = ordered;
    p->cap_ops = p->n_ops;
    edit_renumber(p);
    return OK;
}

Status gradient_sync(Program *p, const Switches *switches)
{
    size_t params = (size_t)p->registry->n_params;
    Bucket *bucket = calloc(params + 1, sizeof *bucket);
    int *owner = malloc((params + 1) * sizeof *owner);
    Status status = OK;
    if (!bucket || !owner) {
        status = status_fail(ERR_MEMORY, "out of memory for the gradient buckets");
    } else {
        int n = make_buckets(p, switches, bucket);
        memset(owner, 0xff, (params + 1) * sizeof *owner);
        for (int b = 0; b < n; b++)
            for (int k = bucket[b].first; k <= bucket[b].last; k++) owner[k] = b;
        int32_t appended = p->n_ops;
        for (int b = 0; b < n; b++) bucket[b].after = appended - 1;
        find_last_writers(p, bucket, owner);
        p->stage_now = STAGE_SYNC;
        p->block_now = p->origin_now = -1;
        p->scope_now = 0;
        for (int b = 0; b < n; b++) append_bucket(p, &bucket[b]);
        status = prog_status(p);
        if (status == OK && switches->comm_overlap && n) status = interleave(p, appended, bucket, n);
    }
    free(bucket);
    free(owner);
    return status;
}
