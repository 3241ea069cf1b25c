/* Figures of one H200 among peers it reaches over NVLink, rounded: only the order of magnitude matters here. */
#include "engine/passes/schedule.h"

static const double LAUNCH_S = 3e-6, BYTES_PER_S = 3e12, FLOPS_PER_S = 4e14;
static const double LATENCY_S = 5e-6, WIRE_BYTES_PER_S = 3e11;
static const double ASIDE_S = 20e-6; /* ranks meet twice, a copy engine starts: 21 us with 256 KiB on two H200 */

double schedule_seconds(const Program *p, const Op *op)
{
    Cost cost = {0};
    const OpDef *def = op_def(op->kind);
    if (def->flags & OPF_ALIAS) return 0;
    if (def->flags & OPF_COMM) return schedule_wire_seconds(p, op);
    prog_op_cost(p, op, &cost);
    double memory = cost.bytes / BYTES_PER_S, arithmetic = cost.flops / FLOPS_PER_S;
    return LAUNCH_S + (memory > arithmetic ? memory : arithmetic);
}

double schedule_main_seconds(const Program *p, const bool *needed, const Op *op)
{
    return needed && schedule_is_late(p, needed, op) ? 0 : schedule_seconds(p, op);
}

double schedule_aside_seconds(const Program *p, const Op *collective)
{
    Cost cost = {0};
    prog_op_cost(p, collective, &cost);
    return ASIDE_S + cost.wire_bytes / WIRE_BYTES_PER_S;
}

double schedule_wire_seconds(const Program *p, const Op *op)
{
    Cost cost = {0};
    prog_op_cost(p, op, &cost);
    return LATENCY_S + cost.wire_bytes / WIRE_BYTES_PER_S;
}
