/* Settings of the switches that a benchmark runs: one from the command line, or the rows of an ablation. */
#ifndef FOLDSCALE_TESTS_BENCH_SETTINGS_H
#define FOLDSCALE_TESTS_BENCH_SETTINGS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/passes.h"
#include "experiments/cli.h"

enum { MAX_SETTINGS = 40 };

typedef struct SettingArguments {
    const char *switches, *precision, *checkpoint, *study; /* texts of the options, NULL when not given */
    TextList leave_out, only, keep;
} SettingArguments;

typedef struct Setting {
    char name[64];
    Switches switches;
} Setting;

/* In the order of the waterfall. */
static const char *const switch_names[] = {"gemm_batching",
                                           "fused_attention",
                                           "fused_layernorm",
                                           "fused_pointwise",
                                           "fused_optimizer",
                                           "overlap_clip",
                                           "comm_overlap",
                                           "cuda_graph",
                                           "bf16",
                                           NULL};
enum { SWITCHES = 9 };

static inline bool *switch_flag(Switches *s, int i)
{
    bool *const flag[] = {&s->gemm_batching,   &s->fused_attention, &s->fused_layernorm, &s->fused_pointwise,
                          &s->fused_optimizer, &s->overlap_clip,    &s->comm_overlap,    &s->cuda_graph};
    return i < SWITCHES - 1 ? flag[i] : NULL;
}

static inline bool switch_get(const Switches *s, int i)
{
    const bool *flag = switch_flag((Switches *)s, i);
    return flag ? *flag : s->precision == PRECISION_BF16;
}

static inline void switch_set(Switches *s, int i, bool on)
{
    bool *flag = switch_flag(s, i);
    if (flag)
        *flag = on;
    else
        s->precision = on ? PRECISION_BF16 : PRECISION_F32;
}

static inline Status switch_find(const char *name, size_t length, int *index_out)
{
    for (int i = 0; i < SWITCHES; i++)
        if (strlen(switch_names[i]) == length && !strncmp(switch_names[i], name, length)) {
            *index_out = i;
            return OK;
        }
    const char *near = cli_nearest(name, switch_names);
    return status_fail(ERR_USAGE, "unknown switch \"%.*s\"%s%s", (int)length, name, near ? "; did you mean " : "",
                       near ? near : "");
}

static inline Status settings_parse(const SettingArguments *a, int dap, Switches *out)
{
    Switches s = {.dap = dap, .dp = 1};
    bool all = !strcmp(a->switches, "all");
    int k = 0;
    for (int i = 0; i < SWITCHES; i++) switch_set(&s, i, all);
    for (const char *at = a->switches; !all && strcmp(a->switches, "none") && *at;) {
        size_t n = strcspn(at, ",");
        TRY(switch_find(at, n, &k));
        switch_set(&s, k, true);
        at += n + (at[n] == ',');
    }
    for (int i = 0; i < a->leave_out.count; i++) {
        TRY(switch_find(a->leave_out.item[i], strlen(a->leave_out.item[i]), &k));
        switch_set(&s, k, false);
    }
    for (int i = 0; i < SWITCHES && a->only.count; i++) switch_set(&s, i, false);
    for (int i = 0; i < a->only.count; i++) {
        TRY(switch_find(a->only.item[i], strlen(a->only.item[i]), &k));
        switch_set(&s, k, true);
    }
    if (a->precision) {
        if (strcmp(a->precision, "f32") && strcmp(a->precision, "bf16") && strcmp(a->precision, "f64"))
            return status_fail(ERR_USAGE, "--precision must be f32, bf16 or f64 (found \"%s\")", a->precision);
        s.precision = !strcmp(a->precision, "bf16") ? PRECISION_BF16
                      : a->precision[1] == '6'      ? PRECISION_F64
                                                    : PRECISION_F32;
    }
    if (!strcmp(a->checkpoint, "block"))
        s.checkpoint = CHECKPOINT_BLOCK;
    else if (!strcmp(a->checkpoint, "selective"))
        s.checkpoint = CHECKPOINT_SELECTIVE;
    else if (strcmp(a->checkpoint, "none"))
        return status_fail(ERR_USAGE, "--checkpoint must be none, block or selective (found \"%s\")", a->checkpoint);
    *out = s;
    return OK;
}

/* --- settings of a study: communication has nothing to overlap with on one rank
 * ---------------------------------------------------------------------------------------------------------- */

static inline bool same_switches(const Switches *a, const Switches *b)
{
    for (int i = 0; i < SWITCHES; i++)
        if (switch_get(a, i) != switch_get(b, i)) return false;
    return true;
}

static inline void add_setting(Setting *list, int *count, const Switches *s, const char *kind, const char *name)
{
    for (int i = 0; i < *count; i++)
        if (same_switches(&list[i].switches, s)) {
            size_t n = strlen(list[i].name);
            snprintf(list[i].name + n, sizeof list[i].name - n, "+%s%s", kind, name);
            return;
        }
    if (*count == MAX_SETTINGS) return;
    list[*count].switches = *s;
    snprintf(list[(*count)++].name, sizeof list->name, "%s%s", kind, name);
}

static inline Status settings_make(const SettingArguments *a, const Switches *base, bool one_rank, Setting *list,
                                   int *count)
{
    if (!a->study) {
        add_setting(list, count, base, a->only.count ? "only" : a->leave_out.count ? "left_out" : a->switches, "");
        return OK;
    }
    Switches none = *base, s;
    bool kept[SWITCHES] = {false};
    bool cumulative = strstr(a->study, "cumulative"), alone = strstr(a->study, "alone"),
         left = strstr(a->study, "leave-out");
    if (!cumulative && !alone && !left)
        return status_fail(ERR_USAGE, "--study needs some of cumulative,alone,leave-out (found \"%s\")", a->study);
    for (int i = 0, k; i < a->keep.count; i++) {
        TRY(switch_find(a->keep.item[i], strlen(a->keep.item[i]), &k));
        kept[k] = true;
    }
    for (int i = 0; i < SWITCHES; i++) switch_set(&none, i, kept[i]);
    Switches sum = none, full = none;
    for (int i = 0; i < SWITCHES; i++)
        if (!one_rank || strcmp(switch_names[i], "comm_overlap")) switch_set(&full, i, true);
    add_setting(list, count, &full, "all", "");
    for (int i = 0; i < SWITCHES && left; i++) {
        s = full;
        switch_set(&s, i, false);
        if (switch_get(&full, i) && !kept[i]) add_setting(list, count, &s, "without:", switch_names[i]);
    }
    if (cumulative || alone) add_setting(list, count, &none, a->keep.count ? "base" : "none", "");
    for (int i = 0; i < SWITCHES && cumulative; i++) {
        switch_set(&sum, i, switch_get(&full, i));
        if (switch_get(&full, i) && !kept[i]) add_setting(list, count, &sum, "upto:", switch_names[i]);
    }
    for (int i = 0; i < SWITCHES && alone; i++) {
        s = none;
        switch_set(&s, i, true);
        if (switch_get(&full, i) && !kept[i]) add_setting(list, count, &s, "alone:", switch_names[i]);
    }
    return OK;
}

/* --- rows that an earlier run wrote
 * ---------------------------------------------------------------------------------------------------------- */

/* Has the file of --csv a row of this very build, machine and setting? Its columns are those of write_row. */
typedef struct RowKey {
    const char *commit, *device, *preset;
    int ranks, dap, no_comm;
    int64_t repeats;
    bool fit; /* blocks may have been recomputed for want of memory */
} RowKey;

static const char *const checkpoint_names[] = {"none", "block", "selective"};

static inline bool row_matches(char *line, const RowKey *key, const Switches *switches)
{
    enum { COMMIT, DEVICE = 2, PRESET = 4, RANKS, DP, DAP, NO_COMM, SETTING, FIRST_SWITCH };
    enum { CHECKPOINT = FIRST_SWITCH + SWITCHES, REPEATS };
    char *cell[REPEATS + 1];
    for (int i = 0; i <= REPEATS; i++)
        if (!(cell[i] = strsep(&line, ","))) return false;
    bool same = !strcmp(cell[COMMIT], key->commit) && !strcmp(cell[DEVICE], key->device) &&
                !strcmp(cell[PRESET], key->preset) && atoi(cell[RANKS]) == key->ranks && atoi(cell[DAP]) == key->dap &&
                atoi(cell[NO_COMM]) == key->no_comm && atoll(cell[REPEATS]) >= key->repeats;
    same = same && (!strcmp(cell[CHECKPOINT], checkpoint_names[switches->checkpoint]) ||
                    (key->fit && !strcmp(cell[CHECKPOINT], "block")));
    for (int i = 0; i < SWITCHES; i++) same = same && !strcmp(cell[FIRST_SWITCH + i], "on") == switch_get(switches, i);
    return same;
}

static inline bool row_exists(const char *path, const RowKey *key, const Switches *switches)
{
    char line[4096];
    FILE *csv = fopen(path, "r");
    bool found = false;
    while (csv && !found && fgets(line, sizeof line, csv)) found = row_matches(line, key, switches);
    if (csv) fclose(csv);
    return found;
}

#endif
