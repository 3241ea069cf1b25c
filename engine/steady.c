#include "engine/steady.h"

static bool is_parameter(const Program *p, Val v)
{
    while (v != VAL_NONE && p->value[v].alias != VAL_NONE) v = p->value[v].alias;
    return v != VAL_NONE && (p->value[v].place == PLACE_PARAM || p->value[v].place == PLACE_PARAM_LOW);
}

static bool writes_parameters(const Program *p)
{
    for (int32_t i = 0; i < p->n_ops; i++)
        for (int k = 0; k < p->op[i].n_out; k++)
            if (!(op_def(p->op[i].kind)->flags & OPF_ALIAS) && is_parameter(p, p->op[i].out[k])) return true;
    return false;
}

/* The backend enqueues something for it behind what ran before: collectives may have nothing to do. */
static bool is_boundary(const OpCall *call)
{
    bool computes = call->op->stream == STREAM_COMPUTE && !(op_def(call->op->kind)->flags & OPF_COMM);
    return computes && call->out_tensor[0] && tensor_count(call->out_tensor[0]) > 0;
}

void steady_mark(const Program *p, int n_calls, OpCall *call)
{
    _Static_assert(OP_MAX_IN <= 32, "a bit of OpCall.steady for each input");
    bool behind = false;
    if (writes_parameters(p)) return;
    for (int n = 0; n < n_calls; n++) {
        const Op *op = call[n].op;
        for (int k = 0; behind && k < op->n_in; k++) call[n].steady |= (uint32_t)is_parameter(p, op->in[k]) << k;
        behind = behind || is_boundary(&call[n]);
    }
}
