/* One line per key: name, member, range. Each list is expanded twice, into libcyaml's fields and into the ranges. */
#include "experiments/config_schema.h"

#include "experiments/config.h"

#define FLAGS    CYAML_FLAG_DEFAULT
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* expansion into fields */
#define F_INT(key, S, m, low, high)   CYAML_FIELD_INT(key, FLAGS, S, m),
#define F_REAL(key, S, m, low, high)  CYAML_FIELD_FLOAT(key, FLAGS, S, m),
#define F_BOOL(key, S, m)             CYAML_FIELD_BOOL(key, FLAGS, S, m),
#define F_TEXT(key, S, m)             CYAML_FIELD_STRING(key, FLAGS, S, m, 0),
#define F_PATH(key, S, m)             CYAML_FIELD_STRING(key, FLAGS, S, m, 0),
#define F_DATE(key, S, m)             CYAML_FIELD_STRING(key, FLAGS, S, m, 0),
#define F_ENUM(key, S, m, names)      CYAML_FIELD_ENUM(key, FLAGS, S, m, names, COUNT(names)),
#define F_NAMES(key, S, m)            CYAML_FIELD_SEQUENCE(key, FLAGS, S, m, &name_entry, 0, CONFIG_LIST),
#define F_INTS(key, S, m, low, high)  CYAML_FIELD_SEQUENCE(key, FLAGS, S, m, &int_entry, 0, CONFIG_LIST),
#define F_MAP(key, S, m, fields, lim) CYAML_FIELD_MAPPING(key, FLAGS, S, m, fields),
#define F_ENUMS(key, S, m, entry, n)  CYAML_FIELD_SEQUENCE(key, FLAGS, S, m, entry, 0, n),

/* expansion into ranges */
#define L_INT(key, S, m, low, high)   {low, high, TEXT_ANY, NULL},
#define L_REAL(key, S, m, low, high)  {low, high, TEXT_ANY, NULL},
#define L_BOOL(key, S, m)             {0, 0, TEXT_ANY, NULL},
#define L_TEXT(key, S, m)             {0, 0, TEXT_ANY, NULL},
#define L_PATH(key, S, m)             {0, 0, TEXT_PATH, NULL},
#define L_DATE(key, S, m)             {0, 0, TEXT_DATE, NULL},
#define L_ENUM(key, S, m, names)      {0, 0, TEXT_ANY, NULL},
#define L_NAMES(key, S, m)            {0, 0, TEXT_ANY, NULL},
#define L_INTS(key, S, m, low, high)  {low, high, TEXT_ANY, NULL},
#define L_MAP(key, S, m, fields, lim) {0, 0, TEXT_ANY, lim},
#define L_ENUMS(key, S, m, entry, n)  {0, 0, TEXT_ANY, NULL},

#define TABLES(name, LIST)                                                                                             \
    static const cyaml_schema_field_t name##_fields[] = {LIST(F) CYAML_FIELD_END};                                     \
    static const FieldLimit name##_limits[] = {LIST(L){0, 0, TEXT_ANY, NULL}};

static const cyaml_schema_value_t name_entry = {CYAML_VALUE_STRING(FLAGS, char[CONFIG_NAME], 0, CONFIG_NAME - 1)};
static const cyaml_schema_value_t int_entry = {CYAML_VALUE_INT(FLAGS, int64_t)};

static const cyaml_strval_t backend_names[] = {{"cpu", BACKEND_CPU}, {"cuda", BACKEND_CUDA}};
static const cyaml_strval_t on_error_names[] = {{"stop", ON_ERROR_STOP}, {"skip", ON_ERROR_SKIP}};
static const cyaml_strval_t real_names[] = {{"f32", REAL_F32}, {"f64", REAL_F64}};
static const cyaml_strval_t comm_names[] = {{"all", COMM_ALL}, {"null", COMM_NULL}};
static const cyaml_strval_t checkpoint_names[] = {
    {"none", CHECKPOINT_NONE}, {"block", CHECKPOINT_BLOCK}, {"selective", CHECKPOINT_SELECTIVE}};
static const cyaml_strval_t ablation_names[] = {{"cumulative", ABLATION_CUMULATIVE},
                                                {"one_at_a_time", ABLATION_ONE_AT_A_TIME},
                                                {"leave_one_out", ABLATION_LEAVE_ONE_OUT}};
static const cyaml_schema_value_t ablation_entry = {
    CYAML_VALUE_ENUM(FLAGS, Ablation, ablation_names, COUNT(ablation_names))};

/* clang-format off */
#define PAIR_FIELDS(X) \
    X##_INT("c_hidden_mul", PairStackConfig, c_hidden_mul, 1, 4096) \
    X##_INT("c_hidden_att", PairStackConfig, c_hidden_att, 1, 4096) \
    X##_INT("heads", PairStackConfig, heads, 1, 256) \
    X##_INT("transition_n", PairStackConfig, transition_n, 1, 64) \
    X##_REAL("dropout", PairStackConfig, dropout, 0, 0.95)
TABLES(pair, PAIR_FIELDS)

#define M_INT(X, name, low, high)  X##_INT(#name, ModelSection, size.name, low, high)
#define M_REAL(X, name, low, high) X##_REAL(#name, ModelSection, size.name, low, high)
#define M_WEIGHT(X, name)          M_REAL(X, name, 0, 1e6)
#define MODEL_FIELDS(X) \
    X##_TEXT("preset", ModelSection, preset) \
    M_INT(X, n_res, 2, 16384) \
    M_INT(X, n_clust, 1, 65536) \
    M_INT(X, n_extra, 1, 1 << 20) \
    M_INT(X, n_templ, 1, 64) \
    M_INT(X, c_m, 1, 8192) \
    M_INT(X, c_z, 1, 8192) \
    M_INT(X, c_s, 1, 8192) \
    M_INT(X, c_e, 1, 8192) \
    M_INT(X, c_t, 1, 8192) \
    M_INT(X, relpos_k, 1, 1024) \
    X##_MAP("template_pair", ModelSection, size.template_pair, pair_fields, pair_limits) \
    M_INT(X, template_blocks, 1, 512) \
    M_INT(X, pointwise_c_hidden, 1, 4096) \
    M_INT(X, pointwise_heads, 1, 256) \
    X##_MAP("extra_pair", ModelSection, size.extra_pair, pair_fields, pair_limits) \
    M_INT(X, extra_blocks, 1, 512) \
    M_INT(X, extra_c_hidden_att, 1, 4096) \
    M_INT(X, extra_heads, 1, 256) \
    M_INT(X, extra_c_hidden_opm, 1, 1024) \
    M_INT(X, extra_transition_n, 1, 64) \
    M_REAL(X, extra_msa_dropout, 0, 0.95) \
    X##_MAP("evo_pair", ModelSection, size.evo_pair, pair_fields, pair_limits) \
    M_INT(X, evo_blocks, 1, 512) \
    M_INT(X, evo_c_hidden_att, 1, 4096) \
    M_INT(X, evo_heads, 1, 256) \
    M_INT(X, evo_c_hidden_opm, 1, 1024) \
    M_INT(X, evo_transition_n, 1, 64) \
    M_REAL(X, evo_msa_dropout, 0, 0.95) \
    M_INT(X, sm_blocks, 1, 256) \
    M_INT(X, sm_c_hidden_ipa, 1, 4096) \
    M_INT(X, sm_heads, 1, 256) \
    M_INT(X, sm_qk_points, 1, 256) \
    M_INT(X, sm_v_points, 1, 256) \
    M_INT(X, sm_c_hidden_resnet, 1, 8192) \
    M_INT(X, sm_resnet_blocks, 1, 64) \
    M_REAL(X, sm_dropout, 0, 0.95) \
    M_INT(X, plddt_hidden, 1, 8192) \
    MODEL_LOSS_WEIGHTS(M_WEIGHT, X)
TABLES(model, MODEL_FIELDS)

#define DATA_FIELDS(X) \
    X##_PATH("mmcif", DataSection, mmcif) \
    X##_PATH("alignments", DataSection, alignments) \
    X##_PATH("alignment_index", DataSection, alignment_index) \
    X##_PATH("duplicates", DataSection, duplicates) \
    X##_PATH("obsolete", DataSection, obsolete) \
    X##_PATH("mmcif_cache", DataSection, mmcif_cache) \
    X##_PATH("chain_data_cache", DataSection, chain_data_cache) \
    X##_PATH("clusters", DataSection, clusters) \
    X##_PATH("pack", DataSection, pack) \
    X##_NAMES("chains", DataSection, chains) \
    X##_INT("workers", DataSection, workers, 1, 256) \
    X##_INT("queue", DataSection, queue, 1, 4096) \
    X##_BOOL("templates", DataSection, templates) \
    X##_ENUM("on_error", DataSection, on_error, on_error_names) \
    X##_DATE("max_release_date", DataSection, max_release_date) \
    X##_REAL("max_resolution", DataSection, max_resolution, 0.1, 1e6)
TABLES(data, DATA_FIELDS)

#define TRAIN_FIELDS(X) \
    X##_INT("steps", TrainSection, steps, 1, 1e9) \
    X##_INT("seed", TrainSection, seed, 0, 9e15) \
    X##_REAL("learning_rate", TrainSection, learning_rate, 0, 10) \
    X##_INT("warmup_steps", TrainSection, warmup_steps, 0, 1e9) \
    X##_REAL("beta1", TrainSection, beta1, 0, 0.999999) \
    X##_REAL("beta2", TrainSection, beta2, 0, 0.999999999) \
    X##_REAL("eps", TrainSection, eps, 1e-16, 1) \
    X##_REAL("clip_norm", TrainSection, clip_norm, 1e-9, 1e9) \
    X##_REAL("swa_decay", TrainSection, swa_decay, 0, 0.999999999) \
    X##_INT("recycling", TrainSection, recycling, 0, 3) \
    X##_INT("checkpoint_every", TrainSection, checkpoint_every, 0, 1e9) \
    X##_BOOL("checkpoint_last", TrainSection, checkpoint_last) \
    X##_INT("keep", TrainSection, keep, 1, 1e6) \
    X##_REAL("max_seconds", TrainSection, max_seconds, 0, 1e9) \
    X##_ENUM("real", TrainSection, real, real_names)
TABLES(train, TRAIN_FIELDS)

#define PARALLEL_FIELDS(X) \
    X##_INT("ranks", ParallelSection, ranks, 1, 65536) \
    X##_INT("dap", ParallelSection, dap, 1, 8) \
    X##_INT("threads", ParallelSection, threads, 0, 1024) \
    X##_ENUM("comm", ParallelSection, comm, comm_names) \
    X##_PATH("tune_cache", ParallelSection, tune_cache)
TABLES(parallel, PARALLEL_FIELDS)

static const cyaml_schema_field_t switch_fields[] = {
#define SWITCH(name) F_BOOL(#name, SwitchSection, name)
#include "experiments/switch_list.def"
#undef SWITCH
    F_ENUM("checkpoint", SwitchSection, checkpoint, checkpoint_names)
    CYAML_FIELD_END};
static const FieldLimit switch_limits[COUNT(switch_fields)];

#define EVAL_FIELDS(X) \
    X##_INT("every", EvalSection, every, 0, 1e9) \
    X##_NAMES("chains", EvalSection, chains) \
    X##_BOOL("swa", EvalSection, swa) \
    X##_INT("recycling", EvalSection, recycling, 0, 20) \
    X##_INT("max_length", EvalSection, max_length, 1, 16384) \
    X##_REAL("target", EvalSection, target, 0, 1)
TABLES(eval, EVAL_FIELDS)

#define STUDY_FIELDS(X) \
    X##_ENUMS("ablations", StudySection, ablations, &ablation_entry, 3) \
    X##_NAMES("switches", StudySection, switches) \
    X##_INTS("ranks", StudySection, ranks, 1, 65536) \
    X##_INTS("dap", StudySection, dap, 1, 8) \
    X##_INT("repeats", StudySection, repeats, 1, 1000) \
    X##_INT("steps", StudySection, steps, 1, 1e6) \
    X##_INT("warmup", StudySection, warmup, 0, 1e6) \
    X##_BOOL("full_matrix", StudySection, full_matrix)
TABLES(study, STUDY_FIELDS)

#define PREDICT_FIELDS(X) \
    X##_NAMES("machines", PredictSection, machines) \
    X##_INTS("gpus", PredictSection, gpus, 1, 1 << 20) \
    X##_INTS("dap", PredictSection, dap, 1, 8) \
    X##_REAL("deadline_s", PredictSection, deadline_s, 0, 1e12) \
    X##_REAL("samples_to_target", PredictSection, samples_to_target, 0, 1e15)
TABLES(predict, PREDICT_FIELDS)

#define CONFIG_FIELDS(X) \
    X##_TEXT("name", Config, name) \
    X##_ENUM("backend", Config, backend, backend_names) \
    X##_MAP("model", Config, model, model_fields, model_limits) \
    X##_MAP("data", Config, data, data_fields, data_limits) \
    X##_MAP("train", Config, train, train_fields, train_limits) \
    X##_MAP("parallel", Config, parallel, parallel_fields, parallel_limits) \
    X##_MAP("switches", Config, switches, switch_fields, switch_limits) \
    X##_MAP("eval", Config, eval, eval_fields, eval_limits) \
    X##_MAP("study", Config, study, study_fields, study_limits) \
    X##_MAP("predict", Config, predict, predict_fields, predict_limits)

/* clang-format on */

static const cyaml_schema_field_t config_fields[] = {CONFIG_FIELDS(F) CYAML_FIELD_END};
const FieldLimit config_limits[] = {CONFIG_FIELDS(L){0, 0, TEXT_ANY, NULL}};
const cyaml_schema_value_t config_schema = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, Config, config_fields)};
