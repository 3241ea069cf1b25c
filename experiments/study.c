#include "experiments/study.h"

#include <stdlib.h>
#include <string.h>

#include "experiments/config_emit.h"

enum { MAX_SETTINGS = 3 * (CONFIG_LIST + 2), MAX_POINTS = 1 << 20 };

typedef struct SettingList {
    int count;
    SwitchSection item[MAX_SETTINGS];
} SettingList;

/* Turns a switch to what the experiment file says when it is part of the study, or off. */
static void set_switch(SwitchSection *target, const char *name, bool on, const SwitchSection *wanted)
{
    if (strcmp(name, "checkpoint") == 0) {
        Checkpointing value = wanted->checkpoint == CHECKPOINT_NONE ? CHECKPOINT_BLOCK : wanted->checkpoint;
        target->checkpoint = on ? value : CHECKPOINT_NONE;
        return;
    }
    config_switch_set(target, name, on);
}

/* The first `count` switches of the study on (skip: one of them off; -1 none); switches outside the study stay as the
 * experiment has them. */
static SwitchSection setting(const Config *config, unsigned count, int skip, int only)
{
    SwitchSection s = config->switches;
    const StudySection *study = &config->study;
    for (unsigned i = 0; i < study->switches_count; i++) {
        bool on = only >= 0 ? (int)i == only : i < count && (int)i != skip;
        set_switch(&s, study->switches[i], on, &config->switches);
    }
    return s;
}

static uint32_t bits(const SwitchSection *s)
{
    uint32_t value = 0;
    int i = 0;
    for (; config_switch_names[i + 1]; i++) value |= (uint32_t)config_switch_get(s, config_switch_names[i]) << i;
    return value | (uint32_t)s->checkpoint << i;
}

static void add(SettingList *list, SwitchSection s)
{
    for (int i = 0; i < list->count; i++)
        if (bits(&list->item[i]) == bits(&s)) return;
    if (list->count < MAX_SETTINGS) list->item[list->count++] = s;
}

static void all_settings(const Config *config, SettingList *list)
{
    const StudySection *study = &config->study;
    unsigned n = study->switches_count;
    for (unsigned a = 0; a < study->ablations_count; a++) {
        Ablation kind = study->ablations[a];
        add(list, setting(config, kind == ABLATION_LEAVE_ONE_OUT ? n : 0, -1, -1));
        for (unsigned i = 0; i < n; i++) {
            if (kind == ABLATION_CUMULATIVE) add(list, setting(config, i + 1, -1, -1));
            if (kind == ABLATION_ONE_AT_A_TIME) add(list, setting(config, 0, -1, (int)i));
            if (kind == ABLATION_LEAVE_ONE_OUT) add(list, setting(config, n, (int)i, -1));
        }
    }
    add(list, setting(config, n, -1, -1));
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(StudyPoint *points, int count, uint64_t seed)
{
    for (int i = count - 1; i > 0; i--) {
        int j = (int)(next_random(&seed) % (uint64_t)(i + 1));
        StudyPoint swap = points[i];
        points[i] = points[j];
        points[j] = swap;
    }
}

static void add_repeats(const StudySection *study, const SwitchSection *switches, int ranks, int dap,
                        StudyPoint *points, int *count)
{
    for (int k = 0; k < study->repeats; k++) {
        StudyPoint *p = &points[(*count)++];
        *p = (StudyPoint){.switches = *switches, .ranks = ranks, .dap = dap, .repeat = k};
        snprintf(p->id, sizeof p->id, "n%d_dap%d_s%05x_r%d", ranks, dap, bits(switches), k);
    }
}

Status study_points(const Config *config, StudyPoint **points_out, int *count_out)
{
    const StudySection *study = &config->study;
    SettingList *settings = calloc(1, sizeof *settings);
    if (!settings) return status_fail(ERR_MEMORY, "out of memory for a study");
    all_settings(config, settings);
    size_t most = (size_t)study->ranks_count * study->dap_count * (size_t)settings->count * (size_t)study->repeats;
    StudyPoint *points = most <= MAX_POINTS ? calloc(most + 1, sizeof *points) : NULL;
    int count = 0, pairs = 0;
    for (unsigned i = 0; points && i < study->ranks_count; i++) {
        for (unsigned j = 0; j < study->dap_count; j++) {
            int ranks = (int)study->ranks[i], dap = (int)study->dap[j];
            if (ranks % dap != 0) continue;
            bool whole = study->full_matrix || pairs++ == 0;
            for (int s = whole ? 0 : settings->count - 1; s < settings->count; s++)
                add_repeats(study, &settings->item[s], ranks, dap, points, &count);
        }
    }
    free(settings);
    if (!points)
        return status_fail(ERR_INPUT, "%s: the study has %zu points (expected at most %d)", config->name, most,
                           MAX_POINTS);
    if (count == 0) {
        free(points);
        return status_fail(ERR_INPUT, "%s: no pair of study.ranks and study.dap divides", config->name);
    }
    shuffle(points, count, (uint64_t)config->train.seed);
    *points_out = points;
    *count_out = count;
    return OK;
}

static Status add_text(Arena *arena, TextList *out, const char *key, const char *value)
{
    char *text = arena_printf(arena, "%s=%s", key, value);
    if (!text || out->count == CLI_MAX_ITEMS) return status_fail(ERR_MEMORY, "out of memory for a point's settings");
    out->item[out->count++] = text;
    return OK;
}

static Status add_number(Arena *arena, TextList *out, const char *key, long long value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", value);
    return add_text(arena, out, key, text);
}

Status study_overrides(const Config *config, const StudyPoint *point, Arena *arena, TextList *out)
{
    const StudySection *study = &config->study;
    for (int i = 0; config_switch_names[i]; i++) {
        char key[64];
        const char *name = config_switch_names[i];
        snprintf(key, sizeof key, "switches.%s", name);
        const char *value = config_switch_get(&point->switches, name) ? "on" : "off";
        if (strcmp(name, "checkpoint") == 0) value = config_checkpoint_name(point->switches.checkpoint);
        TRY(add_text(arena, out, key, value));
    }
    TRY(add_number(arena, out, "parallel.ranks", point->ranks));
    TRY(add_number(arena, out, "parallel.dap", point->dap));
    TRY(add_number(arena, out, "train.steps", study->steps));
    TRY(add_text(arena, out, "train.checkpoint_last", "off"));
    TRY(add_number(arena, out, "train.checkpoint_every", 0));
    return add_number(arena, out, "eval.every", 0);
}

static const char *const may_differ[] = {
    /* what study_overrides sets, beside the switches */
    "parallel.ranks", "parallel.dap", "train.steps", "train.checkpoint_last", "train.checkpoint_every", "eval",
    /* more points */
    "study.ablations", "study.switches", "study.ranks", "study.dap", "study.repeats", "study.full_matrix",
    /* no part of a step */
    "train.keep", "train.max_seconds", "parallel.tune_cache", "predict"};
enum { MAY_DIFFER = sizeof may_differ / sizeof *may_differ };

static Status add_switches(const StudySection *study, Arena *arena, const char **keys, int *count)
{
    for (unsigned i = 0; i < study->switches_count; i++) {
        keys[*count] = arena_printf(arena, "switches.%s", study->switches[i]);
        if (!keys[*count]) return status_fail(ERR_MEMORY, "out of memory for a study");
        ++*count;
    }
    return OK;
}

Status study_check_same(const Config *asked, const char *run)
{
    const char *but[MAY_DIFFER + 2 * CONFIG_LIST + 1] = {NULL};
    int n = MAY_DIFFER;
    Arena arena = {0};
    Config *measured = NULL;
    ConfigDifference d;
    memcpy(but, may_differ, sizeof may_differ);
    TRY(config_load_run(run, NULL, &measured));
    Status status = add_switches(&asked->study, &arena, but, &n);
    if (status == OK) status = add_switches(&measured->study, &arena, but, &n);
    if (status == OK) status = config_compare(asked, measured, but, &arena, &d);
    if (status == OK && d.key)
        status = status_fail(ERR_USAGE,
                             "%s: the study here was measured with %s %.200s, asked for %.200s; take another --out",
                             run, d.key, d.b, d.a);
    config_destroy(&measured);
    arena_free(&arena);
    return status;
}
