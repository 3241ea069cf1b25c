/* Whole-model goldens (tiny, full): pieces shared by both. */
#ifndef FOLDSCALE_TESTS_PARITY_MODEL_H
#define FOLDSCALE_TESTS_PARITY_MODEL_H

#include "tests/parity.h"

enum { RECYCLING_COPIES = 4 };

typedef struct ModelCase {
    Parity *parity;
    const char *dir;
    ModelConfig config;
    StFile *batch;
    Registry *registry;
    Program *nograd, *grad, *optimizer; /* planned */
    Store *store;
    Workspace *workspace;
    Exec *run_nograd, *run_grad, *run_optimizer;
    Arena arena;
    uint8_t *valid[5]; /* owned by arena: residue, msa row, cluster row, extra row, template */
    ParityMask mask;
    bool no_templates;
    double clamped; /* overrides use_clamped_fape when >= 0 */
} ModelCase;

/* Opens batch.safetensors, records and plans the programs, allocates. with_optimizer: train3 follows. */
Status model_case_open(ModelCase *c, Parity *parity, const char *dir, const ModelConfig *config, bool with_optimizer);
void model_case_close(ModelCase *c);

/* k no-gradient iterations on slices 0..k-1, then the gradient program on slice k; recycled state starts at zero. */
Status model_case_step(ModelCase *c, int iterations);

/* Compares every tensor of a forward_r*.safetensors file with the value of the same name. */
Status model_compare_forward(ModelCase *c, const char *file_name, const char *label);

/* Losses by the paths of the golden JSON; a term that the program does not output fails. */
Status model_compare_losses(ModelCase *c, const char *file_name, const char *variant, const char *label);

Status model_read_scalar(ModelCase *c, const char *name, double *value_out);

#endif
