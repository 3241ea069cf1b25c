#include "data/prepared_msa.h"

#include <string.h>

#include "data/transform.h"

int64_t msa_count_deletions(const Msa *msa)
{
    int64_t count = 0;
    for (int64_t i = 0; i < msa->rows * msa->columns; ++i) count += msa->deletions[i] != 0;
    return count;
}

void msa_list_deletions(const Msa *msa, int64_t *start_out, int32_t *column_out, int32_t *count_out)
{
    enum { PIECE = 16 }; /* most pieces are empty and are skipped whole */
    int64_t at = 0;
    for (int64_t row = 0; row < msa->rows; ++row) {
        const int32_t *deletions = msa->deletions + row * msa->columns;
        start_out[row] = at;
        for (int64_t first = 0; first < msa->columns; first += PIECE) {
            int64_t end = first + PIECE < msa->columns ? first + PIECE : msa->columns;
            int32_t any = 0;
            for (int64_t c = first; c < end; ++c) any |= deletions[c];
            for (int64_t c = first; any && c < end; ++c) {
                if (!deletions[c]) continue;
                column_out[at] = (int32_t)c;
                count_out[at++] = deletions[c];
            }
        }
    }
    start_out[msa->rows] = at;
}

Status msa_prepare(const Msa *msa, Arena *arena, PreparedMsa *prepared_out)
{
    size_t entries = (size_t)msa_count_deletions(msa), rows = (size_t)msa->rows;
    uint8_t *ids = arena_array(arena, rows, (size_t)msa_stride(msa->columns));
    float *profile = arena_array(arena, (size_t)msa->columns, PROFILE_CLASSES * sizeof *profile);
    int64_t *start = arena_array(arena, rows + 1, sizeof *start);
    int32_t *column = arena_array(arena, entries, sizeof *column), *count = arena_array(arena, entries, sizeof *count);
    if (!ids || !profile || !start || !column || !count)
        return status_fail(ERR_MEMORY, "no memory for an alignment of %lld rows", (long long)msa->rows);
    TRY(transform_msa_ids(msa->hhblits_id, msa->rows, msa->columns, ids));
    transform_msa_profile(ids, msa->rows, msa->columns, profile);
    msa_list_deletions(msa, start, column, count);
    *prepared_out = (PreparedMsa){.rows = msa->rows,
                                  .columns = msa->columns,
                                  .ids = ids,
                                  .profile = profile,
                                  .start = start,
                                  .deletion_column = column,
                                  .deletion_count = count};
    return OK;
}
