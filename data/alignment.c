#include "data/alignment.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment_rows.h"
#include "data/residue.h"

uint8_t alignment_letter_id(char letter)
{
    return letter == '.' ? RESTYPE_GAP : residue_tables()->letter_to_hhblits[(unsigned char)letter];
}

static bool ends_with(const char *name, const char *ending)
{
    size_t length = strlen(name), part = strlen(ending);
    return length >= part && strcmp(name + length - part, ending) == 0;
}

static bool is_stockholm(const char *name)
{
    return ends_with(name, ".sto") || ends_with(name, ".sto.gz");
}

static Status parse_rows(const Text *text, bool stockholm, const DataLog *log, Arena *arena, RowBuilder *builder)
{
    TRY(text_check_no_nul(text));
    TRY(rows_begin(builder, text, arena));
    Status status = stockholm ? rows_parse_stockholm(builder, log) : rows_parse_a3m(builder);
    if (status != OK)
        rows_free(builder);
    else if (builder->rows == 0)
        data_warn(log, text->name, 0, "no rows: taken as no alignment");
    return status;
}

static Status parse_msa(const Text *text, bool stockholm, const DataLog *log, Arena *arena, Msa *msa_out)
{
    RowBuilder builder;
    TRY(parse_rows(text, stockholm, log, arena, &builder));
    Status status = rows_finish(&builder, arena, msa_out);
    rows_free(&builder);
    return status;
}

Status alignment_parse_a3m(const Text *text, const DataLog *log, Arena *arena, Msa *msa_out)
{
    return parse_msa(text, false, log, arena, msa_out);
}

Status alignment_parse_stockholm(const Text *text, const DataLog *log, Arena *arena, Msa *msa_out)
{
    return parse_msa(text, true, log, arena, msa_out);
}

static Status check_name(const Text *text, const char *name)
{
    if (is_stockholm(name) || ends_with(name, ".a3m") || ends_with(name, ".a3m.gz")) return OK;
    return status_fail_at(ERR_INPUT, text->name, 0, "\"%.100s\" is neither .a3m nor .sto", name);
}

Status rows_parse(const Text *text, const char *name, const DataLog *log, Arena *arena, RowBuilder *builder)
{
    TRY(check_name(text, name));
    return parse_rows(text, is_stockholm(name), log, arena, builder);
}

Status alignment_parse(const Text *text, const char *name, const DataLog *log, Arena *arena, Msa *msa_out)
{
    TRY(check_name(text, name));
    return parse_msa(text, is_stockholm(name), log, arena, msa_out);
}

Status alignment_check_query(const Msa *msa, const char *name, const char *chain_id, const char *sequence)
{
    if (msa->rows == 0) return OK;
    int64_t length = (int64_t)strlen(sequence);
    if (msa->columns != length)
        return status_fail_at(ERR_INPUT, name, msa->query_line,
                              "the first row has %lld residues, expected the %lld of chain %.60s",
                              (long long)msa->columns, (long long)length, chain_id);
    for (int64_t i = 0; i < length; i++)
        if (msa->hhblits_id[i] != alignment_letter_id(sequence[i]))
            return status_fail_at(ERR_INPUT, name, msa->query_line,
                                  "residue %lld of the first row is not the %c of chain %.60s: another protein?",
                                  (long long)i + 1, sequence[i], chain_id);
    return OK;
}

/* --- joining --------------------------------------------------------------------------------------------------- */

/* Hash of a row; equal rows are compared in full afterwards. Eight ids at a time, mixed by multiplication. */
static uint64_t hash_row(const uint8_t *id, size_t length)
{
    uint64_t hash = 0x9e3779b97f4a7c15u;
    for (; length >= 8; id += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, id, sizeof word);
        hash = (hash ^ word) * 0xbf58476d1ce4e5b9u;
        hash ^= hash >> 29;
    }
    for (; length; id++, length--) hash = (hash ^ *id) * 0x100000001b3u;
    return hash ^ hash >> 32;
}

/* Rows seen so far: open addressing, one place in `kept` plus one per slot. */
typedef struct SeenRows {
    int64_t *slot;
    size_t slots;
} SeenRows;

/* One alignment to join: its insertions as a matrix or as a list in order of the rows. */
typedef struct Part {
    int64_t rows, columns;
    const uint8_t *id;
    const uint64_t *odd;      /* NULL: all 0 */
    const int32_t *deletions; /* NULL: see insertion */
    const Insertion *insertion, *insertion_end;
} Part;

/* The place of the row in `joined`, -1 if an equal one is there. */
static int64_t add_unless_seen(SeenRows *seen, const Part *part, int64_t row, Msa *joined)
{
    size_t columns = (size_t)part->columns;
    const uint8_t *id = part->id + (size_t)row * columns;
    uint64_t odd = part->odd ? part->odd[row] : 0;
    size_t at = hash_row(id, columns) & (seen->slots - 1);
    for (; seen->slot[at]; at = (at + 1) & (seen->slots - 1)) {
        int64_t other = seen->slot[at] - 1;
        if (joined->odd_letters[other] == odd && memcmp(joined->hhblits_id + (size_t)other * columns, id, columns) == 0)
            return -1;
    }
    memcpy(joined->hhblits_id + (size_t)joined->rows * columns, id, columns);
    joined->odd_letters[joined->rows] = odd;
    seen->slot[at] = joined->rows + 1;
    return joined->rows++;
}

static void add_part(SeenRows *seen, const Part *part, Msa *joined)
{
    const Insertion *next = part->insertion;
    for (int64_t row = 0; row < part->rows; row++) {
        int64_t place = add_unless_seen(seen, part, row, joined);
        int32_t *deletions = joined->deletions + (place < 0 ? 0 : place) * joined->columns;
        if (place >= 0 && part->deletions)
            memcpy(deletions, part->deletions + row * part->columns, (size_t)part->columns * sizeof *deletions);
        for (; next < part->insertion_end && next->row == row; next++)
            if (place >= 0 && next->column < part->columns) deletions[next->column] = next->count;
    }
}

static Status allocate(Arena *arena, int64_t rows, int64_t columns, Msa *msa_out)
{
    size_t cells = (size_t)rows * (size_t)columns;
    *msa_out = (Msa){.columns = columns,
                     .hhblits_id = arena_array(arena, cells, 1),
                     .deletions = arena_array(arena, cells, sizeof *msa_out->deletions),
                     .odd_letters = arena_array(arena, (size_t)rows, sizeof *msa_out->odd_letters)};
    if (msa_out->hhblits_id && msa_out->deletions && msa_out->odd_letters) return OK;
    return status_fail(ERR_MEMORY, "no memory for an alignment of %lld rows", (long long)rows);
}

static Status single_row(const char *sequence, int64_t length, Arena *arena, Msa *msa_out)
{
    Msa msa;
    TRY(allocate(arena, 1, length, &msa));
    msa.rows = 1;
    for (int64_t i = 0; i < length; i++) {
        msa.hhblits_id[i] = alignment_letter_id(sequence[i]);
        if (msa.hhblits_id[i] > RESTYPE_GAP) msa.hhblits_id[i] = RESTYPE_UNKNOWN;
    }
    *msa_out = msa;
    return OK;
}

static Status join(const Part *parts, int64_t count, const char *sequence, Arena *arena, Msa *msa_out)
{
    int64_t total = 0, length = (int64_t)strlen(sequence);
    for (int64_t p = 0; p < count; p++) {
        if (parts[p].rows && parts[p].columns != length)
            return status_fail(ERR_INPUT, "alignment %lld has %lld columns, expected %lld", (long long)p + 1,
                               (long long)parts[p].columns, (long long)length);
        total += parts[p].rows;
    }
    if (total == 0) return single_row(sequence, length, arena, msa_out);
    Msa joined;
    SeenRows seen = {.slots = 16};
    TRY(allocate(arena, total, length, &joined));
    while (seen.slots < 2 * (size_t)total) seen.slots *= 2;
    seen.slot = calloc(seen.slots, sizeof *seen.slot);
    if (!seen.slot) return status_fail(ERR_MEMORY, "no memory for an alignment of %lld rows", (long long)total);
    for (int64_t p = 0; p < count; p++) add_part(&seen, &parts[p], &joined);
    free(seen.slot);
    *msa_out = joined;
    return OK;
}

Status alignment_join(const Msa *parts, int64_t count, const char *sequence, Arena *arena, Msa *msa_out)
{
    Part *part = calloc((size_t)count + 1, sizeof *part);
    if (!part) return status_fail(ERR_MEMORY, "no memory for %lld alignments", (long long)count);
    for (int64_t p = 0; p < count; p++)
        part[p] = (Part){.rows = parts[p].rows,
                         .columns = parts[p].columns,
                         .id = parts[p].hhblits_id,
                         .odd = parts[p].odd_letters,
                         .deletions = parts[p].deletions};
    Status status = join(part, count, sequence, arena, msa_out);
    free(part);
    return status;
}

Status rows_join(const RowBuilder *parts, int64_t count, const char *sequence, Arena *arena, Msa *msa_out)
{
    Part *part = calloc((size_t)count + 1, sizeof *part);
    if (!part) return status_fail(ERR_MEMORY, "no memory for %lld alignments", (long long)count);
    for (int64_t p = 0; p < count; p++)
        part[p] = (Part){.rows = parts[p].rows,
                         .columns = parts[p].columns,
                         .id = parts[p].id,
                         .odd = parts[p].odd,
                         .insertion = parts[p].insertion,
                         .insertion_end = parts[p].insertion ? parts[p].insertion + parts[p].insertions : NULL};
    Status status = join(part, count, sequence, arena, msa_out);
    free(part);
    return status;
}

/* --- order of the databases ------------------------------------------------------------------------------------ */

static int rank_of(const char *name)
{
    static const char *const first[] = {"uniref90", "bfd", "small_bfd", "mgnify"};
    const int others = (int)(sizeof first / sizeof *first);
    for (int i = 0; i < others; i++)
        if (strncmp(name, first[i], strlen(first[i])) == 0) return i;
    return strncmp(name, "uniprot", strlen("uniprot")) == 0 ? others + 1 : others;
}

int alignment_order(const char *name, const char *other)
{
    int difference = rank_of(name) - rank_of(other);
    return difference ? difference : strcmp(name, other);
}
