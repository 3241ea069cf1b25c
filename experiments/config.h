/* Experiment files: YAML through a libcyaml schema (config_schema.c), with the preset of the model and the defaults
 * filled in. Every key may be overridden as "section.key=value". An unknown key, a value of the wrong type or out of
 * range fails with ERR_INPUT and FILE:LINE (ERR_USAGE when it came from an override). */
#ifndef FOLDSCALE_EXPERIMENTS_CONFIG_H
#define FOLDSCALE_EXPERIMENTS_CONFIG_H

#include <stdio.h>

#include "engine/passes.h"
#include "experiments/cli.h"
#include "model/model.h"

enum { CONFIG_TEXT = 512, CONFIG_NAME = 48, CONFIG_LIST = 32 };

typedef struct ModelSection {
    char preset[CONFIG_NAME];
    ModelConfig size;
} ModelSection;

/* What a sample that cannot be prepared does to the run: ends it, or is left out with a counted warning. */
typedef enum OnError { ON_ERROR_STOP, ON_ERROR_SKIP } OnError;

/* Paths are relative to the experiment file; "" means none. */
typedef struct DataSection {
    char mmcif[CONFIG_TEXT], alignments[CONFIG_TEXT], alignment_index[CONFIG_TEXT], duplicates[CONFIG_TEXT],
        obsolete[CONFIG_TEXT], mmcif_cache[CONFIG_TEXT], chain_data_cache[CONFIG_TEXT], clusters[CONFIG_TEXT],
        pack[CONFIG_TEXT];
    char chains[CONFIG_LIST][CONFIG_NAME]; /* none: all that the archive lists */
    unsigned chains_count;
    int workers; /* threads that prepare samples */
    int queue;   /* samples kept ready */
    bool templates;
    OnError on_error;
    char max_release_date[CONFIG_NAME];
    double max_resolution;
} DataSection;

typedef enum RealType { REAL_F32, REAL_F64 } RealType;

typedef struct TrainSection {
    int steps;
    int64_t seed;
    double learning_rate, beta1, beta2, eps, clip_norm, swa_decay;
    int warmup_steps;     /* the learning rate grows linearly over them */
    int recycling;        /* most extra iterations: drawn from shuffled [0..recycling]; */
    int checkpoint_every; /* steps; 0: only at the end */
    bool checkpoint_last; /* one at the end as well */
    int keep;             /* newest checkpoints kept */
    double max_seconds;   /* stop (with a checkpoint) after this time; 0: no limit */
    RealType real;
} TrainSection;

/* COMM_NULL: one process computes one rank's share of a step on `ranks` ranks, its collectives left out: the local
 * compute of DAP 2, 4 and 8 timed on one device. Its numbers mean nothing, only its times do. */
typedef enum CommMode { COMM_ALL, COMM_NULL } CommMode;

typedef struct ParallelSection {
    int ranks, dap, threads; /* threads 0: cores / ranks of the host */
    CommMode comm;
    char tune_cache[CONFIG_TEXT]; /* file of measured choices of products (cuda), shared by all ranks; "": none */
} ParallelSection;

typedef struct SwitchSection {
#define SWITCH(name) bool name;
#include "experiments/switch_list.def"
#undef SWITCH
    Checkpointing checkpoint;
} SwitchSection;

typedef struct EvalSection {
    int every;                             /* steps; 0: never */
    char chains[CONFIG_LIST][CONFIG_NAME]; /* none: the training chains */
    unsigned chains_count;
    bool swa; /* evaluate the average instead of the current parameters */
    int recycling;
    int max_length; /* longer chains are left out */
    double target;  /* stop at this mean lDDT-Ca; 0: never */
} EvalSection;

typedef enum Ablation { ABLATION_CUMULATIVE, ABLATION_ONE_AT_A_TIME, ABLATION_LEAVE_ONE_OUT } Ablation;

typedef struct StudySection {
    Ablation ablations[3];
    unsigned ablations_count;
    char switches[CONFIG_LIST][CONFIG_NAME]; /* in the order of the waterfall */
    unsigned switches_count;
    int64_t ranks[CONFIG_LIST];
    unsigned ranks_count;
    int64_t dap[CONFIG_LIST];
    unsigned dap_count;
    int repeats, steps, warmup;
    bool full_matrix; /* every switch setting at every (ranks, dap); else the ablation at the first pair alone and the
                         last setting (all of study.switches on) at the others */
} StudySection;

typedef struct PredictSection {
    char machines[CONFIG_LIST][CONFIG_NAME];
    unsigned machines_count;
    int64_t gpus[CONFIG_LIST];
    unsigned gpus_count;
    int64_t dap[CONFIG_LIST];
    unsigned dap_count;
    double deadline_s;
    double samples_to_target;
} PredictSection;

typedef enum BackendName { BACKEND_CPU, BACKEND_CUDA } BackendName;

typedef struct Config {
    char name[CONFIG_NAME]; /* of the experiment: the file without folder and ending */
    BackendName backend;
    ModelSection model;
    DataSection data;
    TrainSection train;
    ParallelSection parallel;
    SwitchSection switches;
    EvalSection eval;
    StudySection study;
    PredictSection predict;
} Config;

/* `overrides` may be NULL. */
Status config_load(const char *path, const TextList *overrides, Config **config_out);
/* The experiment that a run.json holds. */
Status config_load_run(const char *path, const TextList *overrides, Config **config_out);
void config_destroy(Config **config);

/* Everything, defaults included, as JSON (which is YAML: config_load reads it back). Caller frees with free(). */
Status config_to_json(const Config *config, char **text_out);

/* Names of the on/off switches, NULL-terminated, in the order of SwitchSection; "checkpoint" is last. */
extern const char *const config_switch_names[];
bool config_switch_get(const SwitchSection *switches, const char *name);
void config_switch_set(SwitchSection *switches, const char *name, bool on); /* not "checkpoint" */
const char *config_checkpoint_name(Checkpointing checkpoint);
const char *config_backend_name(BackendName backend);

/* Processes that run it: one under COMM_NULL. */
int config_processes(const Config *config);

/* The switches of the passes for this experiment. */
Switches config_pass_switches(const Config *config);

#endif
