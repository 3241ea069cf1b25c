/* Ops that send (Op.send): what every backend has in common. */
#ifndef FOLDSCALE_ENGINE_SEND_H
#define FOLDSCALE_ENGINE_SEND_H

#include "engine/backend.h"

/* As Backend.supports and Backend.scratch_bytes, of any op; the scratch memory of an op that sends begins with
 * OpCall.send_area. */
Status send_supports(const Backend *backend, const Program *program, const Op *op);
size_t send_scratch_bytes(const Backend *backend, const Program *program, const Op *op);
/* Fills in what a call of an op that sends has beside that of its computation, whose scratch memory begins at `area`.
 */
void send_make_call(const Program *program, unsigned char *area, OpCall *call);

/* The computation into OpCall.send_area, then the collective from there: for kernels that do not send themselves. */
Status send_run_apart(Backend *backend, const OpCall *call);

#endif
