#include "experiments/step_trace.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "experiments/session.h"

Status step_trace(const Config *config, int recycling, const Pricing *pricing, Trace **trace_out)
{
    SessionPlan plan;
    TracePart parts[SESSION_PROGRAMS];
    int count = 0;
    TRY(session_plan(config, true, PASS_SCHEDULE, &plan));
    for (int i = 0; i < SESSION_PROGRAMS; i++) {
        int times = i == SESSION_NOGRAD ? recycling : 1;
        if (plan.program[i] && times) parts[count++] = (TracePart){plan.program[i], times, i == SESSION_NOGRAD};
    }
    Status status = trace_create(parts, count, pricing_ops(pricing), pricing_machine(pricing),
                                 config->parallel.ranks / config->parallel.dap, config->parallel.dap,
                                 config->switches.cuda_graph, trace_out);
    session_plan_free(&plan);
    return status;
}

/* --- SimGrid
 * ----------------------------------------------------------------------------------------------------------- */

static void remove_folder(const char *folder)
{
    char path[4096];
    DIR *open = opendir(folder);
    for (const struct dirent *entry; open && (entry = readdir(open));) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.') unlink(path);
    }
    if (open) closedir(open);
    rmdir(folder);
}

static Status replay_case(const char *experiment, const char *folder, StepReplay *r)
{
    const TextList none = {0};
    Config *config = NULL;
    Pricing *pricing = NULL;
    Trace *trace = NULL;
    Status status = config_load(experiment, &none, &config);
    if (status == OK) config->parallel.ranks = r->dp * r->dap, config->parallel.dap = r->dap;
    if (status == OK) status = pricing_open(config, "h100_sxm", NULL, &pricing);
    if (status == OK) status = step_trace(config, 1, pricing, &trace);
    if (status == OK) status = export_simgrid(trace, pricing_machine(pricing), folder);
    if (status == OK) status = simgrid_replay(folder, &r->simgrid_s);
    if (status == OK) r->ours_s = trace->total_s;
    if (trace) trace_destroy(&trace);
    pricing_close(&pricing);
    config_destroy(&config);
    return status;
}

Status step_trace_replay(const char *experiment, StepReplay replays_out[STEP_REPLAYS])
{
    static const int cases[STEP_REPLAYS][2] = {{1, 8}, {2, 8}, {4, 8}, {8, 2}, {16, 1}};
    char folder[] = "/tmp/foldscale_simgrid_XXXXXX";
    if (!mkdtemp(folder)) return status_fail(ERR_IO, "%s: cannot create (%s)", folder, strerror(errno));
    Status status = OK;
    for (int i = 0; i < STEP_REPLAYS && status == OK; i++) {
        replays_out[i] = (StepReplay){.dp = cases[i][0], .dap = cases[i][1]};
        status = replay_case(experiment, folder, &replays_out[i]);
    }
    remove_folder(folder);
    return status;
}
