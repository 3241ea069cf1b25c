/* Shared by features*.c only: the scratch memory and the plan of one sample. */
#ifndef FOLDSCALE_DATA_FEATURES_INTERNAL_H
#define FOLDSCALE_DATA_FEATURES_INTERNAL_H

#include "data/transform.h"

typedef enum ScratchSlot {
    SCRATCH_ORDER,
    SCRATCH_EXTRA_ORDER,
    SCRATCH_CLUSTERS,
    SCRATCH_MASK,
    SCRATCH_UNIFORM,
    SCRATCH_KEY,
    SCRATCH_AGREEMENT,
    SCRATCH_ROW_POINTERS,
    SCRATCH_ASSIGNMENT,
    SCRATCH_MEMBERS,
    SCRATCH_MEMBER_START,
    SCRATCH_COUNTS,
    SCRATCH_PROFILE_ROW,
    SCRATCH_DELETION_SUM,
    SCRATCH_SLOTS
} ScratchSlot;

struct FeatureWorkspace {
    struct {
        void *memory;
        size_t bytes;
    } slot[SCRATCH_SLOTS];
    DeletionTable deletions;
};

/* count x size bytes of undefined content; the slot's former content is lost. ERR_MEMORY. */
Status scratch_take(FeatureWorkspace *workspace, ScratchSlot slot, int64_t count, size_t size, void **memory_out);

enum { MAX_TEMPLATES = 64 };

/* What of the sample goes where; made once by features_build. */
typedef struct SamplePlan {
    const SampleInput *input;
    const FeatureConfig *config;
    const Draws *draws;
    FeatureWorkspace *workspace;

    int64_t start, width; /* residues start .. start + width - 1 fill columns 0 .. width - 1 */
    int64_t clusters;     /* real cluster rows */
    int64_t extra;        /* real extra rows that are kept */
    int64_t copies;
    int32_t template_row[MAX_TEMPLATES]; /* templates in their final order */
    int64_t templates;
    double clamp; /* use_clamped_fape */
} SamplePlan;

/* Draws and sizes of the sample: start, width, clusters, extra, templates, clamp. Reads of the input only the length,
 * the rows and the number of templates. */
Status features_plan_sample(SamplePlan *plan, const BatchSizes *sizes);
Status features_fill_msa(const SamplePlan *plan, Batch *batch);
void features_fill_structure(const SamplePlan *plan, Batch *batch);
void features_fill_templates(const SamplePlan *plan, Batch *batch);

#endif
