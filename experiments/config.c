#include "experiments/config.h"

#include <stdlib.h>
#include <string.h>

#include "experiments/config_emit.h"
#include "experiments/config_schema.h"

static const size_t switch_offsets[] = {
#define SWITCH(name) offsetof(SwitchSection, name),
#include "experiments/switch_list.def"
#undef SWITCH
};

const char *const config_switch_names[] = {
#define SWITCH(name) #name,
#include "experiments/switch_list.def"
#undef SWITCH
    "checkpoint", NULL};

bool config_switch_get(const SwitchSection *switches, const char *name)
{
    for (size_t i = 0; i < sizeof switch_offsets / sizeof *switch_offsets; i++)
        if (strcmp(config_switch_names[i], name) == 0)
            return *((const bool *)((const char *)switches + switch_offsets[i]));
    return strcmp(name, "checkpoint") == 0 && switches->checkpoint != CHECKPOINT_NONE;
}

void config_switch_set(SwitchSection *switches, const char *name, bool on)
{
    for (size_t i = 0; i < sizeof switch_offsets / sizeof *switch_offsets; i++)
        if (strcmp(config_switch_names[i], name) == 0) *((bool *)((char *)switches + switch_offsets[i])) = on;
}

const char *config_checkpoint_name(Checkpointing checkpoint)
{
    static const char *const names[] = {
        [CHECKPOINT_NONE] = "none", [CHECKPOINT_BLOCK] = "block", [CHECKPOINT_SELECTIVE] = "selective"};
    return names[checkpoint];
}

const char *config_backend_name(BackendName backend)
{
    return backend == BACKEND_CUDA ? "cuda" : "cpu";
}

int config_processes(const Config *config)
{
    return config->parallel.comm == COMM_NULL ? 1 : config->parallel.ranks;
}

Switches config_pass_switches(const Config *config)
{
    const SwitchSection *s = &config->switches;
    Precision real = config->train.real == REAL_F64 ? PRECISION_F64 : PRECISION_F32;
    Switches switches = {.precision = s->bf16 ? PRECISION_BF16 : real,
                         .checkpoint = s->checkpoint,
                         .dap = config->parallel.dap,
                         .dp = config->parallel.ranks / config->parallel.dap};
#define SWITCH(name) switches.name = s->name;
#include "engine/switch_list.def"
#undef SWITCH
    return switches;
}

/* Defaults of workload.md (MLPerf HPC v3.0 OpenFold); all switches off. */
static Config config_defaults(void)
{
    return (Config){
        .model.preset = "initial_training",
        .data = {.workers = 2, .queue = 4, .templates = true, .max_release_date = "2021-09-16", .max_resolution = 9},
        .train = {.steps = 100,
                  .seed = 1,
                  .learning_rate = 1e-3,
                  .beta1 = 0.9,
                  .beta2 = 0.999,
                  .eps = 1e-6,
                  .clip_norm = 0.1,
                  .swa_decay = 0.9,
                  .recycling = 3,
                  .checkpoint_last = true,
                  .keep = 2},
        .parallel = {.ranks = 1, .dap = 1},
        .eval = {.swa = true, .recycling = 3, .max_length = 1400},
        .study = {.ablations = {ABLATION_CUMULATIVE},
                  .ablations_count = 1,
                  .ranks = {1},
                  .ranks_count = 1,
                  .dap = {1},
                  .dap_count = 1,
                  .repeats = 3,
                  .steps = 4,
                  .warmup = 1},
        .predict = {
            .gpus = {1, 8, 64, 512, 2048}, .gpus_count = 5, .dap = {1}, .dap_count = 1, .samples_to_target = 88832}};
}

/* libcyaml reports through this; the tree was checked before, so what comes here is a contradiction of our own. */
static void cyaml_log_line(cyaml_log_t level, void *context, const char *format, va_list arguments)
{
    char *text = context;
    size_t used = strlen(text);
    if (level >= CYAML_LOG_ERROR && used < 200) vsnprintf(text + used, 256 - used, format, arguments);
}

static Status load_text(const char *path, const char *text, Config **config_out)
{
    char complaint[256] = "";
    Config *loaded = NULL;
    cyaml_config_t settings = {
        .log_fn = cyaml_log_line, .log_ctx = complaint, .log_level = CYAML_LOG_ERROR, .mem_fn = cyaml_mem};
    cyaml_err_t error =
        cyaml_load_data((const uint8_t *)text, strlen(text), &settings, &config_schema, (cyaml_data_t **)&loaded, NULL);
    if (error != CYAML_OK) return status_fail(ERR_INPUT, "%s: %s (%s)", path, cyaml_strerror(error), complaint);
    Config *config = malloc(sizeof *config);
    if (config) *config = *loaded;
    cyaml_free(&settings, &config_schema, loaded, 0);
    if (!config) return status_fail(ERR_MEMORY, "%s: out of memory", path);
    *config_out = config;
    return OK;
}

static Status fail_key(const Node *root, const char *path, const char *key, const char *message)
{
    const Node *node = tree_find(root, key);
    if (node) return tree_fail(node, "%s", message);
    return status_fail(ERR_INPUT, "%s: %s", path, message);
}

/* What concerns more than one key. */
static Status check_whole(const Config *config, const Node *root, const char *path)
{
    char text[512];
    const ParallelSection *p = &config->parallel;
    if (p->dap != 1 && p->dap != 2 && p->dap != 4 && p->dap != 8) {
        snprintf(text, sizeof text, "parallel.dap is out of range (found %d, expected 1, 2, 4 or 8)", p->dap);
        return fail_key(root, path, "parallel.dap", text);
    }
    if (p->ranks % p->dap != 0) {
        snprintf(text, sizeof text, "parallel.dap does not divide the ranks (found dap %d, ranks %d)", p->dap,
                 p->ranks);
        return fail_key(root, path, tree_find(root, "parallel.dap") ? "parallel.dap" : "parallel.ranks", text);
    }
    if (config->study.warmup >= config->study.steps) {
        snprintf(text, sizeof text, "study.warmup leaves no step to measure (found warmup %d of %d steps)",
                 config->study.warmup, config->study.steps);
        return fail_key(root, path, "study.warmup", text);
    }
    for (unsigned i = 0; i < config->study.switches_count; i++) {
        const char *name = config->study.switches[i];
        int k = 0;
        while (config_switch_names[k] && strcmp(config_switch_names[k], name) != 0) k++;
        if (config_switch_names[k]) continue;
        const char *near = cli_nearest(name, config_switch_names);
        snprintf(text, sizeof text, "study.switches names an unknown switch (found \"%s\"%s%s%s)", name,
                 near ? ", did you mean \"" : "", near ? near : "", near ? "\"?" : "");
        return fail_key(root, path, "study.switches", text);
    }
    const ModelConfig *m = &config->model.size;
#define PLUS(config, name) +config->name
    if (MODEL_LOSS_WEIGHTS(PLUS, m) == 0)
        return fail_key(root, path, "model.w_fape",
                        "model.w_fape and the weights of all other losses are 0 (expected at least one above 0)");
#undef PLUS
    if (model_config_check(m) != OK) {
        snprintf(text, sizeof text, "%s", status_text());
        return fail_key(root, path, "model", text);
    }
    return OK;
}

static Status base_config(const Node *root, const char *path, Config *base_out)
{
    Config base = config_defaults();
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    snprintf(base.name, sizeof base.name, "%.*s", dot ? (int)(dot - name) : (int)strlen(name), name);
    const Node *preset = tree_find(root, "model.preset");
    if (preset) snprintf(base.model.preset, sizeof base.model.preset, "%s", preset->text);
    if (model_config_preset(base.model.preset, &base.model.size) != OK) {
        char text[512];
        snprintf(text, sizeof text, "%s", status_text());
        return fail_key(root, path, "model.preset", text);
    }
    *base_out = base;
    return OK;
}

/* The experiment that a file is, or that a run.json holds among other things (JSON is YAML: its lines are kept). */
static Status read_tree(const char *path, bool run, Arena *arena, Node **root_out)
{
    TRY(tree_read(path, arena, root_out));
    if (!run) return OK;
    *root_out = tree_child(*root_out, "experiment");
    if (*root_out && (*root_out)->kind == NODE_MAP) return OK;
    return status_fail(ERR_INPUT, "%s: no experiment in it (expected a run.json of foldscale)", path);
}

static Status load(const char *path, bool run, const TextList *overrides, Config **config_out)
{
    Arena arena = {0};
    Node *root = NULL;
    Config *base = calloc(1, sizeof *base), *config = NULL;
    char *text = NULL;
    Status status = base ? read_tree(path, run, &arena, &root) : status_fail(ERR_MEMORY, "%s: out of memory", path);
    for (int i = 0; status == OK && overrides && i < overrides->count; i++)
        status = tree_override(root, overrides->item[i], &arena);
    if (status == OK) status = config_check_tree(root);
    if (status == OK) status = base_config(root, path, base);
    if (status == OK) status = config_emit(base, root, &text);
    if (status == OK) status = load_text(path, text, &config);
    if (status == OK) status = check_whole(config, root, path);
    if (status == OK)
        *config_out = config;
    else
        free(config);
    free(text);
    free(base);
    arena_free(&arena);
    return status;
}

Status config_load(const char *path, const TextList *overrides, Config **config_out)
{
    return load(path, false, overrides, config_out);
}

Status config_load_run(const char *path, const TextList *overrides, Config **config_out)
{
    return load(path, true, overrides, config_out);
}

void config_destroy(Config **config)
{
    free(*config);
    *config = NULL;
}

Status config_to_json(const Config *config, char **text_out)
{
    return config_emit(config, NULL, text_out);
}
