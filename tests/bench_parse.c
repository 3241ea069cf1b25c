/* bench_parse [FILE...]: MB/s of the readers on one core, on whole files in memory and including the read from disk.
 * Without files: the largest mmCIF and a3m of data/examples, and an a3m of 5,000 rows of 300 residues made here.
 * Best and median of several repeats; a sum over the results keeps the work from being optimised away. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment.h"
#include "data/check.h"
#include "data/hhr.h"
#include "data/mmcif.h"
#include "data/text.h"
#include "engine/clock.h"
#include "tests/source_dir.h"

enum { REPEATS = 15 };

static Status parse(const Text *text, DataKind kind, double *sum)
{
    Arena arena = {0};
    Structure *structure = NULL;
    TemplateHits hits;
    Msa msa;
    Status status = OK;
    switch (kind) {
    case DATA_MMCIF:
        status = mmcif_parse(text, NULL, &arena, &structure);
        for (int64_t i = 0; status == OK && i < structure->chain_count; i++)
            *sum += (double)structure->chain[i].positions[3];
        break;
    case DATA_HHR:
        status = hhr_parse(text, NULL, &arena, &hits);
        if (status == OK) *sum += (double)hits.count;
        break;
    case DATA_A3M:
    case DATA_STOCKHOLM:
        status = (kind == DATA_A3M ? alignment_parse_a3m : alignment_parse_stockholm)(text, NULL, &arena, &msa);
        if (status == OK) *sum += (double)msa.hhblits_id[msa.rows * msa.columns - 1];
        break;
    default:
        status = status_fail_at(ERR_USAGE, text->name, 0, "not an mmCIF, a3m, Stockholm or hhr file");
    }
    arena_free(&arena);
    return status;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Status bench(const Text *text, const char *path, DataKind kind)
{
    double in_memory[REPEATS], with_read[REPEATS], sum = 0;
    for (int i = 0; i < REPEATS; i++) {
        double start = clock_now_s();
        TRY(parse(text, kind, &sum));
        in_memory[i] = clock_now_s() - start;
        with_read[i] = in_memory[i];
        if (!path) continue;
        Text again = {0};
        start = clock_now_s();
        TRY(text_read(path, &again));
        Status status = parse(&again, kind, &sum);
        with_read[i] = clock_now_s() - start;
        text_close(&again);
        TRY(status);
    }
    qsort(in_memory, REPEATS, sizeof *in_memory, compare);
    qsort(with_read, REPEATS, sizeof *with_read, compare);
    const double mb = 1e-6 * (double)text->size;
    printf("%-44s %8.2f MB  parse best %7.0f median %7.0f MB/s  with read median %7.0f MB/s  (%.3f ms) %s\n",
           path ? path : text->name, mb, mb / in_memory[0], mb / in_memory[REPEATS / 2], mb / with_read[REPEATS / 2],
           1e3 * in_memory[REPEATS / 2], sum > -1e30 ? "" : "?");
    return OK;
}

static Status bench_file(const char *path)
{
    Text text = {0};
    TRY(text_read(path, &text));
    Status status = bench(&text, path, data_kind_of(path));
    text_close(&text);
    return status;
}

/* Rows as JackHMMER writes them: a third gaps in runs, one insertion in four rows. */
static Status bench_made_a3m(void)
{
    enum { ROWS = 5000, COLUMNS = 300, ROOM = 400 };
    char *bytes = malloc((size_t)ROWS * ROOM), *at = bytes;
    uint64_t state = 1;
    if (!bytes) return status_fail(ERR_MEMORY, "out of memory");
    for (int row = 0; row < ROWS; row++) {
        at += sprintf(at, ">UniRef90_%08d/1-%d\n", row, COLUMNS);
        int gap_from = row ? (int)(state >> 33) % COLUMNS : COLUMNS;
        for (int c = 0; c < COLUMNS; c++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            if (row % 4 == 1 && c == COLUMNS / 2) at += sprintf(at, "acdef");
            *at++ = c >= gap_from && c < gap_from + COLUMNS / 3 ? '-' : "ACDEFGHIKLMNPQRSTVWY"[(state >> 33) % 20];
        }
        *at++ = '\n';
    }
    Text text = {0};
    Status status = text_from_bytes("made: 5000 rows of 300, a3m", bytes, (size_t)(at - bytes), &text);
    free(bytes);
    if (status == OK) status = bench(&text, NULL, DATA_A3M);
    text_close(&text);
    return status;
}

int main(int argc, char **argv)
{
    static const char *const examples[] = {"data/examples/mmcif/1y57.cif", "data/examples/mmcif/2q2k.cif",
                                           "data/examples/alignments/1y57_A/homologs.a3m",
                                           "data/examples/alignments/2q2k_A/uniprot_hits.sto"};
    Status status = OK;
    for (int i = 1; i < argc && status == OK; i++) status = bench_file(argv[i]);
    for (size_t i = 0; argc == 1 && i < sizeof examples / sizeof *examples && status == OK; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", source_dir(), examples[i]);
        status = bench_file(path);
    }
    if (argc == 1 && status == OK) status = bench_made_a3m();
    if (status != OK) fprintf(stderr, "bench_parse: %s\n", status_text());
    return status_exit_code(status);
}
