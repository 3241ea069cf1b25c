#include "engine/send.h"

#include <string.h>

#include "engine/scratch.h"

Status send_supports(const Backend *backend, const Program *p, const Op *op)
{
    if (!op->send.active) return backend->supports(backend, p, op);
    Op computation = prog_op_computation(op), collective = prog_op_collective(op);
    TRY(backend->supports(backend, p, &computation));
    return backend->supports(backend, p, &collective);
}

static size_t area_bytes(const Program *p, const Op *op)
{
    return scratch_padded(tensor_bytes(prog_tensor(p, op->send.from)));
}

size_t send_scratch_bytes(const Backend *backend, const Program *p, const Op *op)
{
    if (!op->send.active) return backend->scratch_bytes(backend, p, op);
    Op computation = prog_op_computation(op), collective = prog_op_collective(op);
    size_t computing = backend->scratch_bytes(backend, p, &computation),
           sending = backend->scratch_bytes(backend, p, &collective);
    return area_bytes(p, op) + (computing > sending ? computing : sending);
}

void send_make_call(const Program *p, unsigned char *area, OpCall *call)
{
    const Send *send = &call->op->send;
    call->send_tensor = call->out_tensor[send->output];
    call->out_tensor[send->output] = prog_tensor(p, send->from);
    call->send_area = area;
    call->scratch = area + area_bytes(p, call->op);
}

Status send_run_apart(Backend *backend, const OpCall *call)
{
    int output = call->op->send.output;
    Op op = prog_op_computation(call->op);
    OpCall part = *call;
    part.op = &op;
    part.out[output] = call->send_area;
    TRY(backend->run(backend, &part));

    op = prog_op_collective(call->op);
    part.steady = 0;
    memset(part.in, 0, sizeof part.in);
    memset(part.in_tensor, 0, sizeof part.in_tensor);
    memset(part.out, 0, sizeof part.out);
    memset(part.out_tensor, 0, sizeof part.out_tensor);
    part.in[0] = call->send_area;
    part.in_tensor[0] = call->out_tensor[output];
    part.out[0] = call->out[output];
    part.out_tensor[0] = call->send_tensor;
    return backend->run(backend, &part);
}
