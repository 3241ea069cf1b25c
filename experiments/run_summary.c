#include "experiments/run_summary.h"

#include <cJSON.h>
#include <gsl/gsl_sort.h>
#include <gsl/gsl_statistics.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "experiments/files.h"
#include "experiments/provenance.h"

/* One value per step: the mean over the ranks. */
typedef struct Steps {
    int64_t first, count;
    double *seconds, *phase[SCHEMA_PHASE_COUNT], *recycling;
    int *ranks;
} Steps;

static Status fold_ranks(const StepTable *table, const char *path, int warmup, Arena *arena, Steps *out)
{
    Steps s = {.first = warmup + 1};
    int64_t last = 0;
    for (int64_t i = 0; i < table->count; i++)
        if (table->rows[i].step > last) last = table->rows[i].step;
    s.count = last - s.first + 1;
    if (s.count < 1)
        return status_fail(ERR_INPUT, "%s: no step after the warm-up (found %lld steps, warm-up %d)", path,
                           (long long)last, warmup);
    s.seconds = arena_array(arena, (size_t)s.count, sizeof(double));
    s.recycling = arena_array(arena, (size_t)s.count, sizeof(double));
    s.ranks = arena_array(arena, (size_t)s.count, sizeof(int));
    bool room = s.seconds && s.recycling && s.ranks;
    for (int p = 0; p < SCHEMA_PHASE_COUNT; p++)
        room = (s.phase[p] = arena_array(arena, (size_t)s.count, sizeof(double))) && room;
    if (!room) return status_fail(ERR_MEMORY, "%s: out of memory", path);
    for (int64_t i = 0; i < table->count; i++) {
        const StepRow *row = &table->rows[i];
        int64_t k = row->step - s.first;
        if (k < 0) continue;
        s.ranks[k]++;
        s.seconds[k] += row->step_s;
        s.recycling[k] = (double)row->recycling;
        for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) s.phase[p][k] += row->phase_s[p];
    }
    for (int64_t k = 0; k < s.count; k++) {
        if (s.ranks[k] == 0) return status_fail(ERR_INPUT, "%s: step %lld is missing", path, (long long)(k + s.first));
        s.seconds[k] /= s.ranks[k];
        for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) s.phase[p][k] /= s.ranks[k];
    }
    *out = s;
    return OK;
}

static double number(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

/* Of one step with `recycling` iterations without gradient. */
static double step_cost(const cJSON *programs, const char *what, double recycling)
{
    const cJSON *nograd = cJSON_GetObjectItemCaseSensitive(programs, "nograd");
    return number(cJSON_GetObjectItemCaseSensitive(programs, "grad"), what) +
           number(cJSON_GetObjectItemCaseSensitive(programs, "optimizer"), what) + recycling * number(nograd, what);
}

static Status read_costs(const char *path, const Steps *steps, Arena *arena, RunRow *row)
{
    enum { LIMIT = 1 << 24 };
    char *text = NULL;
    TRY(file_read_whole(path, LIMIT, &text));
    cJSON *root = cJSON_Parse(text);
    free(text);
    if (!root) return status_fail(ERR_INPUT, "%s: not JSON", path);
    const cJSON *programs = cJSON_GetObjectItemCaseSensitive(root, "programs");
    const cJSON *machine = cJSON_GetObjectItemCaseSensitive(root, "machine");
    const cJSON *device = cJSON_GetObjectItemCaseSensitive(machine, "device");
    double recycling = gsl_stats_mean(steps->recycling, 1, (size_t)steps->count);
    row->model_flops = step_cost(programs, "flops", recycling) * (double)row->ranks;
    row->wire_bytes = step_cost(programs, "wire_bytes", recycling);
    row->peak_bytes = number(root, "store_bytes") + number(root, "workspace_bytes");
    row->device = arena_strdup(arena, cJSON_IsString(device) ? device->valuestring : "unknown");
    cJSON_Delete(root);
    return row->device ? OK : status_fail(ERR_MEMORY, "%s: out of memory", path);
}

static void fill_times(const Steps *steps, RunRow *row)
{
    size_t n = (size_t)steps->count;
    row->samples = steps->count * row->dp;
    for (int p = 0; p < SCHEMA_PHASE_COUNT; p++) row->phase_s[p] = gsl_stats_mean(steps->phase[p], 1, n);
    row->step_s_mean = gsl_stats_mean(steps->seconds, 1, n);
    gsl_sort(steps->seconds, 1, n);
    row->step_s_median = gsl_stats_median_from_sorted_data(steps->seconds, 1, n);
    row->step_s_p05 = gsl_stats_quantile_from_sorted_data(steps->seconds, 1, n, 0.05);
    row->step_s_p95 = gsl_stats_quantile_from_sorted_data(steps->seconds, 1, n, 0.95);
    row->samples_per_s = (double)row->dp / row->step_s_mean;
    row->data_wait_fraction = row->phase_s[PHASE_DATA_WAIT] / row->step_s_mean;
    row->mfu = NAN; /* no peak of this machine is known here */
}

Status run_summarize(const char *folder, const char *run_id, const Config *config, int warmup, Arena *arena,
                     RunRow *row_out)
{
    StepTable table = {0};
    Steps steps = {0};
    RunRow row = {.experiment = config->name,
                  .backend = config_backend_name(config->backend),
                  .ranks = config->parallel.ranks,
                  .dap = config->parallel.dap,
                  .dp = config->parallel.ranks / config->parallel.dap};
    char *path = arena_printf(arena, "%s/steps.csv", folder), *run = arena_printf(arena, "%s/run.json", folder);
    char *hash = arena_alloc(arena, 17);
    row.run_id = arena_strdup(arena, run_id);
    if (!path || !run || !hash || !row.run_id) return status_fail(ERR_MEMORY, "%s: out of memory", folder);
    for (int i = 0; i < SCHEMA_SWITCH_COUNT; i++) {
        bool on = config_switch_get(&config->switches, SCHEMA_SWITCH_NAMES[i]);
        row.switches[i] = i == SWITCH_CHECKPOINT ? config_checkpoint_name(config->switches.checkpoint)
                          : on                   ? "on"
                                                 : "off";
    }
    TRY(schema_read_steps(path, &table));
    Status status = fold_ranks(&table, path, warmup, arena, &steps);
    if (status == OK && steps.first + steps.count - 1 != config->train.steps)
        status = status_fail(ERR_INPUT, "%s: the run is not complete (found %lld steps, expected %d)", path,
                             (long long)(steps.first + steps.count - 1), config->train.steps);
    schema_free_steps(&table);
    if (status == OK) status = read_costs(run, &steps, arena, &row);
    if (status == OK) status = provenance_hash(run, hash);
    if (status != OK) return status;
    fill_times(&steps, &row);
    row.provenance = hash;
    *row_out = row;
    return OK;
}
