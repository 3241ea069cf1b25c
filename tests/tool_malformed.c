/* malformed FOLDER REAL: every file of FOLDER/malformed.csv must be accepted or refused as the table says, through the
 * code behind `foldscale data check`. Index files go with REAL/alignment_db. Refusals must name the file; accepted
 * structures and alignments must say the same as 00_base_good.cif and as REAL's alignment of 2q2k_A, from which they
 * were made. One line per file; exit status 1 on any FAIL, 77 when FOLDER is not there. */
#include <csv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment.h"
#include "data/check.h"
#include "data/mmcif.h"

enum { FILE_COLUMN, KIND_COLUMN, WHAT_COLUMN, EXPECTED_COLUMN, COLUMNS = 5 };

typedef struct Run {
    const char *folder, *real;
    Arena arena;
    Structure *base;
    Msa original;
    char *field[COLUMNS];
    size_t fields;
    long rows, failed;
    char remark[256];
} Run;

static const struct {
    const char *name;
    DataKind kind;
} kinds[] = {{"mmcif", DATA_MMCIF},
             {"a3m", DATA_A3M},
             {"sto", DATA_STOCKHOLM},
             {"hhr", DATA_HHR},
             {"index", DATA_INDEX},
             {"duplicates", DATA_DUPLICATES},
             {"chain_data_cache", DATA_CHAIN_DATA_CACHE},
             {"mmcif_cache", DATA_MMCIF_CACHE},
             {"clusters", DATA_CLUSTERS}};

static DataKind kind_of(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0) return kinds[i].kind;
    return DATA_OTHER;
}

static void note(void *context, bool error, const char *text)
{
    Run *run = context;
    if (!error) snprintf(run->remark, sizeof run->remark, "%s", text);
}

/* Residues that are X in the broken copy may have any letter in the base. */
static const char *differs_from_base(const Run *run, const char *path, Arena *arena)
{
    Structure *structure;
    if (mmcif_read(path, NULL, arena, &structure) != OK) return status_text();
    const Chain *base = structure_find_chain(run->base, "A"), *chain = structure_find_chain(structure, "A");
    if (!chain || chain->length != base->length) return "chain A differs in length from the base";
    size_t atoms = (size_t)base->length * ATOM37_COUNT;
    if (memcmp(chain->mask, base->mask, atoms) != 0) return "the mask differs from the base";
    if (memcmp(chain->positions, base->positions, atoms * 3 * sizeof(float)) != 0) return "coordinates differ";
    for (int64_t i = 0; i < base->length; i++)
        if (chain->sequence[i] != 'X' && chain->sequence[i] != base->sequence[i]) return "the sequence differs";
    bool same = isnan(chain->resolution) || chain->resolution == base->resolution;
    return same && strcmp(chain->release_date, base->release_date) == 0 ? NULL : "the header differs";
}

static bool same_msa(const Msa *ours, const Msa *theirs)
{
    size_t cells = (size_t)ours->rows * (size_t)ours->columns;
    return ours->rows == theirs->rows && ours->columns == theirs->columns &&
           memcmp(ours->hhblits_id, theirs->hhblits_id, cells) == 0 &&
           memcmp(ours->deletions, theirs->deletions, cells * sizeof *ours->deletions) == 0;
}

/* An accepted alignment is empty, the original, or (where the table says "deletion count N at column C") has it. */
static const char *differs_from_original(const Run *run, const char *path, const char *note_text, Arena *arena)
{
    Text text = {0};
    Msa msa;
    if (text_read(path, &text) != OK || alignment_parse(&text, path, NULL, arena, &msa) != OK) {
        text_close(&text);
        return status_text();
    }
    text_close(&text);
    const char *found = strstr(note_text, "deletion count ");
    int count, column;
    if (found && sscanf(found, "deletion count %d at column %d", &count, &column) == 2) {
        bool any = false;
        for (int64_t row = 0; row < msa.rows; row++) any = any || msa.deletions[row * msa.columns + column] == count;
        return any ? NULL : "that deletion count is not there";
    }
    if (strstr(note_text, "same as the original") && !same_msa(&msa, &run->original))
        return "differs from the original";
    if (strstr(note_text, "no alignment") && msa.rows != 0) return "rows, expected none";
    return NULL;
}

static void judge(Run *run)
{
    const char *name = run->field[FILE_COLUMN], *what = run->field[WHAT_COLUMN], *why = NULL;
    bool accept = strcmp(run->field[EXPECTED_COLUMN], "accept") == 0;
    Arena arena = {0};
    char *path = arena_printf(&arena, "%s/%s", run->folder, name);
    char *db = arena_printf(&arena, "%s/alignment_db", run->real);
    DataKind kind = kind_of(run->field[KIND_COLUMN]);
    DataCheckCounts counts = {0};
    DataCheckOptions options = {.alignment_db = db, .report = note, .context = run};
    const char *sequence = structure_find_chain(run->base, "A")->sequence;
    run->remark[0] = '\0';
    Status status = data_check_file(path, kind, sequence, &options, &counts);
    bool good = status == OK && counts.errors == 0;
    if (kind == DATA_OTHER)
        why = "unknown kind";
    else if (good != accept)
        why = accept ? status_text() : "accepted, expected an error";
    else if (!good && !strstr(status_text(), name))
        why = "the message does not name the file";
    else if (good && kind == DATA_MMCIF)
        why = differs_from_base(run, path, &arena);
    else if (good && kind == DATA_A3M)
        why = differs_from_original(run, path, run->field[WHAT_COLUMN + 2], &arena);
    run->rows++;
    if (why) {
        run->failed++;
        printf("FAIL %s (%s): %s\n", name, what, why);
    } else if (good) {
        printf("PASS %s accepted%s%s\n", name, *run->remark ? ", remark: " : "", run->remark);
    } else {
        printf("PASS %s refused: %s\n", name, status_text());
    }
    arena_free(&arena);
}

static void on_field(void *data, size_t length, void *context)
{
    Run *run = context;
    if (run->fields < COLUMNS) run->field[run->fields] = arena_strndup(&run->arena, data, length);
    run->fields++;
}

static void on_row(int terminator, void *context)
{
    (void)terminator;
    Run *run = context;
    if (run->fields >= COLUMNS - 1 && strcmp(run->field[FILE_COLUMN], "file") != 0) judge(run);
    run->fields = 0;
}

static Status load_bases(Run *run)
{
    Text text = {0};
    TRY(mmcif_read(arena_printf(&run->arena, "%s/00_base_good.cif", run->folder), NULL, &run->arena, &run->base));
    if (!structure_find_chain(run->base, "A")) return status_fail(ERR_INPUT, "00_base_good.cif has no chain A");
    TRY(text_read(arena_printf(&run->arena, "%s/pdb/2q2k_A/a3m/uniref90_hits.a3m", run->real), &text));
    Status status = alignment_parse_a3m(&text, NULL, &run->arena, &run->original);
    text_close(&text);
    return status;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: malformed FOLDER REAL\n");
        return 2;
    }
    Run run = {.folder = argv[1], .real = argv[2]};
    Text table = {0};
    struct csv_parser parser;
    if (text_read(arena_printf(&run.arena, "%s/malformed.csv", run.folder), &table) != OK) {
        printf("SKIP %s\n", status_text());
        return 77;
    }
    if (load_bases(&run) != OK || csv_init(&parser, 0) != 0) {
        printf("FAIL %s\n", status_text());
        return 1;
    }
    csv_parse(&parser, table.data, table.size, on_field, on_row, &run);
    csv_fini(&parser, on_field, on_row, &run);
    csv_free(&parser);
    text_close(&table);
    arena_free(&run.arena);
    printf("malformed: %ld of %ld files as expected\n", run.rows - run.failed, run.rows);
    return run.failed || !run.rows ? 1 : 0;
}
