/* Out of memory, foreseen: what would make the session fit. */
#include <stdio.h>
#include <string.h>

#include "experiments/session.h"

static const double GIB = 1073741824.0;

/* Bytes of one rank of `planned` under these settings, as session_create would find them. */
static Status plan_bytes(Session *planned, const Config *config, bool training)
{
    SessionPlan plan;
    TRY(session_plan(config, training, PASS_PLAN, &plan));
    planned->workspace_bytes = exec_workspace_shared(planned->backend, plan.program, SESSION_PROGRAMS);
    planned->store_bytes =
        store_bytes(plan.registry, config_pass_switches(config).precision, training ? STORE_TRAINING : STORE_FORWARD);
    session_plan_free(&plan);
    return OK;
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
    snprintf(text, size, "no switch makes it fit; %s needs less",
             training ? "a larger parallel.dap or a smaller model.n_res" : "a smaller eval.max_length");
    for (size_t i = 0; i < sizeof remedies / sizeof *remedies; i++) {
        Config config = *s->config;
        if (!apply(&remedies[i], &config)) continue;
        Session planned = {.backend = s->backend};
        if (plan_bytes(&planned, &config, training) != OK) continue;
        double bytes = (double)planned.store_bytes + (double)planned.workspace_bytes;
        if (bytes > there) continue;
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
    double there = (double)backend_memory_free(backend);
    if (needed <= there) return OK;
    find_remedy(s, training, there, remedy, sizeof remedy);
    return status_fail(ERR_MEMORY,
                       "%s: a rank needs %.2f GiB (parameters, moments and inputs %.2f, temporaries %.2f), of %.2f GiB "
                       "of %s %.2f are free: %.2f GiB are missing; %s",
                       s->config->name, needed / GIB, (double)s->store_bytes / GIB, (double)s->workspace_bytes / GIB,
                       all / GIB, backend->device, there / GIB, (needed - there) / GIB, remedy);
}

Status session_foresee(Backend *backend, const Config *config, bool training)
{
    Session planned = {.backend = backend, .config = config};
    if (backend->memory_bytes == 0) return OK;
    TRY(plan_bytes(&planned, config, training));
    return session_check_memory(&planned, training);
}
