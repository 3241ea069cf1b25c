/* Out of memory, foreseen: what would make the session fit. */
#include <stdio.h>
#include <string.h>

#include "experiments/session.h"

static const double GIB = 1073741824.0;

/* Bytes of one rank under these settings; -1 when they cannot be planned. */
static double planned_bytes(const Session *s, const Config *config, bool training)
{
    SessionPlan plan;
    size_t workspace = 0;
    if (session_plan(config, training, PASS_PLAN, &plan) != OK) return -1;
    for (int i = 0; i < SESSION_PROGRAMS; i++) {
        size_t bytes = plan.program[i] ? exec_workspace_bytes(s->backend, plan.program[i]) : 0;
        if (bytes > workspace) workspace = bytes;
    }
    size_t store =
        store_bytes(plan.registry, config_pass_switches(config).precision, training ? STORE_TRAINING : STORE_FORWARD);
    session_plan_free(&plan);
    return (double)store + (double)workspace;
}

/* Cheapest first: switches that cost no time, then those that recompute, then both. */
typedef struct Remedy {
    const char *text;
    bool bf16, fused;
    Checkpointing checkpoint;
} Remedy;

static const Remedy remedies[] = {
    {"switches.fused_attention: on", false, true, CHECKPOINT_NONE},
    {"switches.bf16: on", true, false, CHECKPOINT_NONE},
    {"switches.checkpoint: selective", false, false, CHECKPOINT_SELECTIVE},
    {"switches.checkpoint: block", false, false, CHECKPOINT_BLOCK},
    {"switches.fused_attention: on with switches.checkpoint: block", false, true, CHECKPOINT_BLOCK},
    {"switches.bf16: on with switches.checkpoint: block", true, false, CHECKPOINT_BLOCK},
    {"switches.bf16, switches.fused_attention: on with switches.checkpoint: block", true, true, CHECKPOINT_BLOCK}};

/* false when the settings have one of its parts already (a shorter remedy says the same) */
static bool apply(const Remedy *remedy, Config *config)
{
    SwitchSection *s = &config->switches;
    if ((remedy->bf16 && (s->bf16 || config->train.real == REAL_F64)) || (remedy->fused && s->fused_attention) ||
        (remedy->checkpoint != CHECKPOINT_NONE && s->checkpoint == remedy->checkpoint))
        return false;
    s->bf16 |= remedy->bf16;
    s->fused_attention |= remedy->fused;
    if (remedy->checkpoint != CHECKPOINT_NONE) s->checkpoint = remedy->checkpoint;
    return true;
}

static void find_remedy(const Session *s, bool training, double there, char *text, size_t size)
{
    snprintf(text, size, "no switch makes it fit; a larger parallel.dap or a smaller model.n_res needs less");
    for (size_t i = 0; i < sizeof remedies / sizeof *remedies; i++) {
        Config config = *s->config;
        if (!apply(&remedies[i], &config)) continue;
        double bytes = planned_bytes(s, &config, training);
        if (bytes < 0 || bytes > there) continue;
        snprintf(text, size, "%s would make it fit (%.2f GiB)", remedies[i].text, bytes / GIB);
        return;
    }
}

Status session_check_memory(const Session *s, bool training)
{
    const Backend *backend = s->backend;
    double needed = (double)s->store_bytes + (double)s->workspace_bytes, all = (double)backend->memory_bytes;
    char remedy[256];
    if (all <= 0) return OK;
    double there = backend->memory_free ? (double)backend->memory_free(backend) : all;
    if (needed <= there) return OK;
    find_remedy(s, training, there, remedy, sizeof remedy);
    return status_fail(ERR_MEMORY,
                       "%s: a rank needs %.2f GiB (parameters, moments and inputs %.2f, temporaries %.2f), of %.2f GiB "
                       "of %s %.2f are free: %.2f GiB are missing; %s",
                       s->config->name, needed / GIB, (double)s->store_bytes / GIB, (double)s->workspace_bytes / GIB,
                       all / GIB, backend->device, there / GIB, (needed - there) / GIB, remedy);
}
