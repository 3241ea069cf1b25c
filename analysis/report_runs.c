/* Runs of a sweep, grouped for the report. */
#include "analysis/report_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_on(const RunRow *row, int s)
{
    const char *v = row->switches[s];
    if (s == SWITCH_CHECKPOINT) return v && (!strcmp(v, "none") || !strcmp(v, "off")); /* "none" is the faster way */
    return v && *v && strcmp(v, "off") && strcmp(v, "none");
}

bool report_same_switches(const RunRow *a, const RunRow *b)
{
    for (int s = 0; s < SCHEMA_SWITCH_COUNT; s++) {
        const char *x = a->switches[s] ? a->switches[s] : "", *y = b->switches[s] ? b->switches[s] : "";
        if (strcmp(x, y)) return false;
    }
    return true;
}

static void add_run(RunGroup *g, const RunRow *row)
{
    g->runs++;
    g->step_s += row->step_s_mean;
    g->sample_s += row->samples_per_s > 0 ? 1 / row->samples_per_s : row->step_s_mean / (double)row->dp;
    g->low_s = fmin(g->low_s, row->step_s_mean);
    g->high_s = fmax(g->high_s, row->step_s_mean);
    for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) g->phase_s[p] += isfinite(row->phase_s[p]) ? row->phase_s[p] : 0;
}

Status report_group_runs(const ReportInput *input, Arena *arena, RunGroup **groups_out, int *count_out)
{
    if (input->run_count < 1) return status_fail(ERR_INPUT, "no runs");
    RunGroup *groups = arena_array(arena, (size_t)input->run_count, sizeof *groups);
    if (!groups) return status_fail(ERR_MEMORY, "report: out of memory");
    int count = 0;
    for (int64_t r = 0; r < input->run_count; r++) {
        const RunRow *row = &input->runs[r];
        RunGroup *g = NULL;
        for (int k = 0; k < count && !g; k++)
            if (groups[k].first->ranks == row->ranks && groups[k].first->dap == row->dap &&
                report_same_switches(groups[k].first, row))
                g = &groups[k];
        if (!g) {
            g = &groups[count++];
            *g = (RunGroup){.first = row, .low_s = INFINITY, .high_s = 0};
            for (int s = 0; s < SCHEMA_SWITCH_COUNT; s++) g->on += is_on(row, s);
        }
        add_run(g, row);
    }
    for (int k = 0; k < count; k++) {
        groups[k].step_s /= groups[k].runs;
        groups[k].sample_s /= groups[k].runs;
        for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) groups[k].phase_s[p] /= groups[k].runs;
    }
    *groups_out = groups;
    *count_out = count;
    return OK;
}

static int by_switches(const void *a, const void *b)
{
    const RunGroup *x = *(const RunGroup *const *)a, *y = *(const RunGroup *const *)b;
    if (x->on != y->on) return x->on - y->on;
    return (x->step_s < y->step_s) - (x->step_s > y->step_s);
}

static int by_ranks(const void *a, const void *b)
{
    const RunGroup *x = *(const RunGroup *const *)a, *y = *(const RunGroup *const *)b;
    if (x->first->ranks != y->first->ranks) return x->first->ranks < y->first->ranks ? -1 : 1;
    return (x->first->dap > y->first->dap) - (x->first->dap < y->first->dap);
}

/* What `now` has that `before` has not: "+ bf16", "- fused_attention", or both joined. */
static char *difference(Arena *arena, const RunRow *before, const RunRow *now)
{
    char text[160] = "";
    size_t used = 0;
    for (int s = 0; s < SCHEMA_SWITCH_COUNT && used < sizeof text - 40; s++) {
        const char *x = before->switches[s] ? before->switches[s] : "", *y = now->switches[s] ? now->switches[s] : "";
        if (!strcmp(x, y)) continue;
        const char *join = used ? " " : "";
        if (s == SWITCH_CHECKPOINT)
            used += (size_t)snprintf(text + used, sizeof text - used, "%scheckpoint %.12s", join, y);
        else
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s %s", join, is_on(now, s) ? "+" : "-",
                                     SCHEMA_SWITCH_NAMES[s]);
    }
    return arena_strdup(arena, used ? text : "same");
}

Status report_ablation(const RunGroup *groups, int count, Arena *arena, const RunGroup ***out, const char ***label_out,
                       int *count_out)
{
    int best = -1, most = 0;
    for (int k = 0; k < count; k++) {
        int settings = 0;
        for (int j = 0; j < count; j++)
            settings +=
                groups[j].first->ranks == groups[k].first->ranks && groups[j].first->dap == groups[k].first->dap;
        if (settings > most) most = settings, best = k;
    }
    if (most < 2) return status_fail(ERR_INPUT, "no ranks were measured with more than one switch setting");
    const RunGroup **list = arena_array(arena, (size_t)most, sizeof *list);
    const char **label = arena_array(arena, (size_t)most, sizeof *label);
    if (!list || !label) return status_fail(ERR_MEMORY, "report: out of memory");
    int used = 0;
    for (int j = 0; j < count; j++)
        if (groups[j].first->ranks == groups[best].first->ranks && groups[j].first->dap == groups[best].first->dap)
            list[used++] = &groups[j];
    qsort(list, (size_t)used, sizeof *list, by_switches);
    /* a cumulative study turns one on after the other; in the other kinds each setting is named against the first */
    bool cumulative = true;
    for (int i = 1; i < used; i++) cumulative = cumulative && list[i]->on != list[i - 1]->on;
    for (int i = 0; i < used; i++) {
        const RunRow *before = list[cumulative && i ? i - 1 : 0]->first;
        label[i] = i ? difference(arena, before, list[i]->first) : "baseline";
        if (!label[i]) return status_fail(ERR_MEMORY, "report: out of memory");
    }
    *out = list;
    *label_out = label;
    *count_out = used;
    return OK;
}

Status report_scaling(const RunGroup *groups, int count, Arena *arena, const RunGroup ***out, int *count_out)
{
    int best = -1, most = 0;
    for (int k = 0; k < count; k++) {
        int settings = 0;
        for (int j = 0; j < count; j++) settings += report_same_switches(groups[j].first, groups[k].first);
        /* between equals the one with more switches on: that is what a user would scale */
        if (settings > most || (settings == most && best >= 0 && groups[k].on > groups[best].on))
            most = settings, best = k;
    }
    if (best < 0) return status_fail(ERR_INPUT, "no runs");
    const RunGroup **list = arena_array(arena, (size_t)most, sizeof *list);
    if (!list) return status_fail(ERR_MEMORY, "report: out of memory");
    int used = 0;
    for (int j = 0; j < count; j++)
        if (report_same_switches(groups[j].first, groups[best].first)) list[used++] = &groups[j];
    qsort(list, (size_t)used, sizeof *list, by_ranks);
    *out = list;
    *count_out = used;
    return OK;
}
