#include <string.h>

#include "engine/passes.h"

typedef Status (*Pass)(const Program *in, const Switches *switches, Program **out);

static const struct {
    const char *name;
    Pass run;
} passes[PASS_COUNT] = {
    [PASS_RECORD] = {"record", NULL},
    [PASS_FUSE] = {"fuse", pass_fuse},
    [PASS_SHARD] = {"shard", pass_shard},
    [PASS_PRECISION] = {"precision", pass_precision},
    [PASS_AUTODIFF] = {"autodiff", pass_autodiff},
    [PASS_REMAT] = {"remat", pass_remat},
    [PASS_SCHEDULE] = {"schedule", pass_schedule},
    [PASS_PLAN] = {"plan", pass_plan},
};

const char *pass_name(PassStage stage)
{
    return passes[stage].name;
}

Status pass_from_name(const char *name, PassStage *stage_out)
{
    for (int i = 0; i < PASS_COUNT; i++)
        if (!strcmp(name, passes[i].name)) {
            *stage_out = (PassStage)i;
            return OK;
        }
    return status_fail(
        ERR_USAGE, "unknown stage '%s' (expected record, fuse, shard, precision, autodiff, remat, schedule or plan)",
        name);
}

Status passes_run(const Program *recorded, const Switches *switches, PassStage last, Program **out)
{
    Program *now = NULL;
    TRY(prog_status(recorded));
    TRY(prog_clone(recorded, &now));
    Status status = prog_verify(now, PASS_RECORD);
    for (int stage = PASS_FUSE; stage <= (int)last && status == OK; stage++) {
        Program *next = NULL;
        status = passes[stage].run(now, switches, &next);
        if (status != OK) break;
        prog_destroy(&now);
        now = next;
        status = prog_verify(now, (PassStage)stage);
    }
    if (status == OK)
        *out = now;
    else
        prog_destroy(&now);
    return status;
}
