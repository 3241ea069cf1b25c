/* The parts of the fuse pass, each a whole pass of its own. */
#ifndef FOLDSCALE_ENGINE_PASSES_FUSE_H
#define FOLDSCALE_ENGINE_PASSES_FUSE_H

#include "engine/passes.h"

/* fuse_merge.c: sequences of ops -> one op, by a table of rules. */
Status fuse_merge(const Program *in, const Switches *switches, Program **out);
/* fuse_transpose.c: moves swaps of rows and columns past ops that do not mind, until they cancel or an attention or a
 * triangle product takes them in. */
Status fuse_transpose(const Program *in, Program **out);
/* The product at the end of a branch with its gate, dropout and residual sum: once no swap is between them. */
Status fuse_branches(const Program *in, Program **out);
/* Layer norm, both products and residual sum of a transition, as fuse_branches() left them. */
Status fuse_transitions(const Program *in, Program **out);
/* fuse_triangle.c: triangle multiplications with their channels first. */
Status fuse_triangle(const Program *in, Program **out);
/* fuse_norm.c: layer norms into the products that read them. */
Status fuse_norm(const Program *in, Program **out);
/* fuse_optimizer.c: one sweep over the parameter block instead of one per tensor; sums of squares from the gradient
 * program under overlap_clip. */
Status fuse_optimizer(const Program *in, const Switches *switches, Program **out);
/* fuse_gradient.c: right after differentiation, in place: sums, relu and dropout masks move into the ops before them,
 * products into the gradients of gates and layer norms behind them. */
Status fuse_gradient(Program *p);
/* fuse_exchange.c: behind fuse_gradient(), in place, of a sharded program: the sum at the end of an attention's branch
 * is made behind the all_to_all that follows it. */
Status fuse_exchange(Program *p);
/* fuse_norm_behind.c: behind fuse_gradient(), in place: layer norms into the forward ops whose results they normalize.
 */
Status fuse_norm_behind(Program *p);

#endif
