/* Evaluation beside training (switch async_eval): rank 0 writes the weights to a file and starts `foldscale eval` on
 * it; the loop goes on and takes in the scores when they are there. One evaluation runs at a time; further ones queue.
 */
#ifndef FOLDSCALE_EXPERIMENTS_ASYNC_EVAL_H
#define FOLDSCALE_EXPERIMENTS_ASYNC_EVAL_H

#include "experiments/checkpoint.h"
#include "experiments/evaluate.h"

typedef struct AsyncEval AsyncEval;

Status async_eval_create(const Config *config, const char *folder, AsyncEval **async_out);
/* Ends what still runs. */
void async_eval_destroy(AsyncEval **async);

/* Hands over the weights of this step. */
Status async_eval_start(AsyncEval *async, Store *store, const RunState *state);
/* Scores of the oldest finished evaluation (caller frees), or *count_out = 0 when none is ready; `wait` waits as long
 * as there is one. */
Status async_eval_poll(AsyncEval *async, bool wait, int64_t *step_out, ChainScore **scores_out, int *count_out);

#endif
