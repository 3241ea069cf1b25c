/* Alignments one by one: parsers/files.csv and its goldens. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment.h"
#include "tests/data_golden.h"

/* row_checksum_* = sum over columns of (column + 1) x value */
static bool checksums_match(const StTensor *tensor, const Msa *msa, bool deletions, char why[256])
{
    for (int64_t row = 0; row < msa->rows; row++) {
        int64_t sum = 0, expected = -1;
        for (int64_t c = 0; c < msa->columns; c++) {
            int64_t at = row * msa->columns + c;
            sum += (c + 1) * (deletions ? msa->deletions[at] : msa->hhblits_id[at]);
        }
        if (!tensor || st_read_i64(tensor, row, 1, &expected) != OK || sum != expected) {
            snprintf(why, 256, "%s checksum of row %lld is %lld, expected %lld", deletions ? "deletion" : "id",
                     (long long)row, (long long)sum, (long long)expected);
            return false;
        }
    }
    return true;
}

bool golden_msa_matches(const StFile *file, const Msa *msa, char why[256])
{
    const StTensor *stored = st_find(file, "msa");
    int64_t rows = stored && stored->rank == 2 ? stored->shape[0] : -1;
    if (rows < 0 || rows > msa->rows || stored->shape[1] != msa->columns) {
        snprintf(why, 256, "%lld x %lld, expected %lld x %lld", (long long)msa->rows, (long long)msa->columns,
                 (long long)rows, (long long)(stored ? stored->shape[1] : -1));
        return false;
    }
    return golden_equal_u8(stored, msa->hhblits_id, rows * msa->columns, why) &&
           golden_equal_i32(st_find(file, "deletion_matrix"), msa->deletions, rows * msa->columns, why) &&
           checksums_match(st_find(file, "row_checksum_msa"), msa, false, why) &&
           checksums_match(st_find(file, "row_checksum_deletion"), msa, true, why);
}

static void sum_deletions(const Msa *msa, int64_t *largest_out, int64_t *sum_out)
{
    *largest_out = *sum_out = 0;
    for (int64_t i = 0; i < msa->rows * msa->columns; i++) {
        *sum_out += msa->deletions[i];
        if (msa->deletions[i] > *largest_out) *largest_out = msa->deletions[i];
    }
}

static bool counts_match(const GoldenTable *table, int64_t row, const Msa *msa, const Msa *unique, char why[256])
{
    static const char *const columns[] = {"rows", "columns", "unique_rows", "max_deletion", "sum_deletion"};
    int64_t ours[5] = {msa->rows, msa->columns, unique->rows};
    sum_deletions(msa, &ours[3], &ours[4]);
    for (size_t i = 0; i < 5; i++) {
        long long expected = atoll(golden_cell(table, row, columns[i]));
        if (ours[i] == expected) continue;
        snprintf(why, 256, "%s is %lld, expected %lld", columns[i], (long long)ours[i], expected);
        return false;
    }
    return true;
}

static void check_file(Golden *golden, const GoldenTable *table, int64_t row)
{
    const char *name = golden_cell(table, row, "file"), *query = golden_cell(table, row, "query");
    Arena arena = {0};
    Text text = {0};
    StFile *file = NULL;
    Msa msa, unique;
    char why[256];
    if (text_read(golden_path(&arena, golden->real, "%s", name), &text) != OK ||
        alignment_parse(&text, name, NULL, &arena, &msa) != OK ||
        alignment_check_query(&msa, name, "of the golden", query) != OK ||
        alignment_join(&msa, 1, query, &arena, &unique) != OK ||
        st_open(golden_path(&arena, golden->golden, "%s", golden_cell(table, row, "golden")), &file) != OK)
        golden_fail(golden, name, "%s", status_text());
    else if (!counts_match(table, row, &msa, &unique, why) || !golden_msa_matches(file, &msa, why))
        golden_fail(golden, name, "%s", why);
    else
        golden_pass(golden, "%s: %lld rows, deletions, duplicates", name, (long long)msa.rows);
    st_close(&file);
    text_close(&text);
    arena_free(&arena);
}

void golden_parsers(Golden *golden)
{
    Arena arena = {0};
    GoldenTable table;
    if (golden_table_read(golden, golden_path(&arena, golden->golden, "parsers/files.csv"), &arena, &table))
        for (int64_t row = 0; row < table.rows; row++) check_file(golden, &table, row);
    arena_free(&arena);
}
