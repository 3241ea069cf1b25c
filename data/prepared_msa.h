/* An alignment as the feature pipeline wants it: model ids in padded rows, deletions as a sparse list (few positions
 * have any), the profile. Made once per sample from an Msa, or read ready-made from a pack. */
#ifndef FOLDSCALE_DATA_PREPARED_MSA_H
#define FOLDSCALE_DATA_PREPARED_MSA_H

#include "data/types.h"

enum {
    MSA_CLASSES = 23,
    PROFILE_CLASSES = 22,
    MSA_ABSENT = 23, /* id of padding, and of positions that an MSA mask switches off */
    MSA_ROW_ALIGN = 64
};

/* Rows of ids are padded to a multiple of 64 columns with MSA_ABSENT. */
static inline int64_t msa_stride(int64_t columns)
{
    return (columns + MSA_ROW_ALIGN - 1) / MSA_ROW_ALIGN * MSA_ROW_ALIGN;
}

/* Positions of one row that have deletions, by ascending column. */
typedef struct DeletionRow {
    const int32_t *column;
    const int32_t *count;
    int64_t entries;
} DeletionRow;

typedef struct PreparedMsa {
    int64_t rows, columns;
    const uint8_t *ids;                              /* [rows, stride], 0..21 */
    const float *profile;                            /* [columns, 22]: mean one-hot over all rows */
    const int64_t *start;                            /* [rows + 1]: first deletion of each row */
    const int32_t *deletion_column, *deletion_count; /* [start[rows]] */
} PreparedMsa;

static inline DeletionRow msa_deletions(const PreparedMsa *msa, int64_t row)
{
    int64_t first = msa->start[row];
    return (DeletionRow){msa->deletion_column + first, msa->deletion_count + first, msa->start[row + 1] - first};
}

/* Deletions that are not 0. */
int64_t msa_count_deletions(const Msa *msa);
/* start_out [rows + 1], column_out and count_out [msa_count_deletions]. */
void msa_list_deletions(const Msa *msa, int64_t *start_out, int32_t *column_out, int32_t *count_out);

/* Everything into the arena. ERR_INPUT for an id above 21. */
Status msa_prepare(const Msa *msa, Arena *arena, PreparedMsa *prepared_out);

#endif
