/* The optimizer step, tensor by tensor as a plain implementation does it: clip the gradient to a global norm, Adam
 * (Kingma and Ba 2015), exponential average of the weights. The fuse pass makes one sweep over the blocks of it. */
#include "model/model.h"

#include <stdlib.h>

/* One tensor [total] of many scalars [1], by concatenations of at most OP_MAX_IN inputs. Overwrites list. */
static Val gather_scalars(Program *p, Val *list, int n)
{
    while (n > 1) {
        int groups = 0;
        for (int first = 0; first < n; first += OP_MAX_IN) {
            int count = n - first < OP_MAX_IN ? n - first : OP_MAX_IN;
            list[groups++] = count == 1 ? list[first] : prog_add(p, OP_CONCAT, count, list + first, NULL);
        }
        n = groups;
    }
    return list[0];
}

static Val record_clip(Program *p, double max_norm)
{
    const Registry *r = p->registry;
    Val *squares = malloc(((size_t)r->n_params + 1) * sizeof *squares);
    if (!squares) return prog_fail(p, ERR_MEMORY, "out of memory for %d parameters", r->n_params);
    for (int k = 0; k < r->n_params; k++) {
        Val g = prog_persistent(p, PLACE_GRAD, k, r->param[k].rank, r->param[k].dim);
        squares[k] = prog_add(p, OP_SUM_SQUARES, 1, &g, NULL);
    }
    Val total = gather_scalars(p, squares, r->n_params), out[OP_MAX_OUT];
    free(squares);
    prog_add_multi(p, OP_CLIP_FACTOR, 1, &total, &(OpAttr){.f = {max_norm}}, out);
    prog_output(p, "grad_norm", out[0]);
    prog_output(p, "clip_factor", out[1]);
    return out[1];
}

static void record_update(const OptimizerConfig *config, Program *p, int k, Val factor, Val hyper)
{
    const ParamInfo *param = &p->registry->param[k];
    Val value[4]; /* p m v swa */
    static const Place place[4] = {PLACE_PARAM, PLACE_ADAM_M, PLACE_ADAM_V, PLACE_SWA};
    for (int b = 0; b < 4; b++) value[b] = prog_persistent(p, place[b], k, param->rank, param->dim);
    Val g = prog_persistent(p, PLACE_GRAD, k, param->rank, param->dim);
    prog_add_into(p, OP_ADAM, 6, (Val[]){value[0], g, value[1], value[2], factor, hyper},
                  &(OpAttr){.f = {config->beta1, config->beta2, config->eps}}, 3, value);
    prog_add_into(p, OP_SWA_UPDATE, 4, (Val[]){value[3], value[0], factor, hyper}, &(OpAttr){.f = {config->swa_decay}},
                  1, &value[3]);
}

Status model_record_optimizer(const OptimizerConfig *config, Program *p)
{
    if (!p->registry->n_params)
        return status_fail(ERR_INTERNAL, "an optimizer needs parameters: record the model first");
    p->stage_now = STAGE_OPTIMIZER;
    Val hyper = prog_input(p, "hyper", DT_F32, 1, (int64_t[]){4});
    prog_scope_push(p, "optimizer");
    Val factor = record_clip(p, config->max_norm);
    for (int k = 0; k < p->registry->n_params && p->status == OK; k++) record_update(config, p, k, factor, hyper);
    prog_scope_pop(p);
    return prog_status(p);
}
