/* a3m and hhr files of synthetic chains. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/synth_internal.h"

static const double GAP_OPEN = 0.01, INSERT_OPEN = 0.007, END_FRACTION = 0.06, EXTENSION_STOP = 1.0 / 3.0;

static Status open_file(const SynthOptions *options, int64_t chain, const char *name, Arena *arena, FILE **file_out,
                        char **path_out)
{
    char id[8];
    synth_name(chain, id);
    *path_out = arena_printf(arena, "%s/alignments/%s/%s", options->folder, id, name);
    if (!*path_out) return status_fail(ERR_MEMORY, "synth: no memory for a path");
    *file_out = fopen(*path_out, "w");
    return *file_out ? OK : status_fail_at(ERR_IO, *path_out, 0, "cannot create: %s", strerror(errno));
}

static Status close_file(FILE *file, const char *path)
{
    bool bad = ferror(file);
    bad = fclose(file) || bad;
    return bad ? status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno)) : OK;
}

/* Residues missing at one end of a row: exponential. */
static int64_t missing_end(SynthStream *stream, int64_t length)
{
    return (int64_t)(-END_FRACTION * (double)length * log(1.0 - synth_uniform(stream)));
}

/* One homologous row; `row` has room for six letters per residue. */
static void make_row(SynthStream *stream, const char *sequence, int64_t length, char *row)
{
    enum { LONGEST_INSERTION = 5 };
    const double low = 0.25, range = 0.70;
    double identity = low + range * synth_uniform(stream);
    int64_t begin = missing_end(stream, length), end = length - missing_end(stream, length), gap = 0;
    if (begin >= end) begin = 0, end = length;
    for (int64_t i = 0; i < length; ++i) {
        double u = synth_uniform(stream);
        if (i > begin && i < end && u < INSERT_OPEN) {
            int64_t letters = synth_geometric(stream, EXTENSION_STOP);
            for (int64_t k = 0; k < letters && k < LONGEST_INSERTION; ++k)
                *row++ = (char)(synth_letter(stream) - 'A' + 'a');
        } else if (u > 1.0 - GAP_OPEN) {
            gap = synth_geometric(stream, EXTENSION_STOP);
        }
        bool missing = i < begin || i >= end || gap > 0;
        if (gap > 0) --gap;
        *row++ = missing ? '-' : synth_uniform(stream) < identity ? sequence[i] : synth_letter(stream);
    }
    *row = '\0';
}

static Status write_a3m(const SynthOptions *options, int64_t chain, const char *sequence, const char *database,
                        int64_t rows, SynthStream *stream, Arena *arena)
{
    int64_t length = (int64_t)strlen(sequence);
    char id[8], *path, *row = arena_alloc(arena, (size_t)length * 6 + 1);
    FILE *file;
    if (!row) return status_fail(ERR_MEMORY, "synth: no memory for a row");
    synth_name(chain, id);
    char *name = arena_printf(arena, "%s_hits.a3m", database);
    if (!name) return status_fail(ERR_MEMORY, "synth: no memory for a path");
    TRY(open_file(options, chain, name, arena, &file, &path));
    fprintf(file, ">%s\n%s\n", id, sequence);
    for (int64_t r = 1; r < rows; ++r) {
        make_row(stream, sequence, length, row);
        fprintf(file, ">%s_%s_%lld/1-%lld\n%s\n", database, id, (long long)r, (long long)length, row);
    }
    return close_file(file, path);
}

Status synth_write_alignments(const SynthOptions *options, int64_t chain, const char *sequence, Arena *arena)
{
    SynthStream stream = synth_stream(options, chain, SYNTH_ROWS);
    int64_t depth = synth_depth(options, chain);
    int64_t bfd = depth * 3 / 10, mgnify = depth / 10, uniref = depth - bfd - mgnify;
    TRY(write_a3m(options, chain, sequence, "uniref90", uniref, &stream, arena));
    /* the query, first row of each file, is one row of the joined alignment */
    if (bfd) TRY(write_a3m(options, chain, sequence, "bfd_uniclust", bfd + 1, &stream, arena));
    if (mgnify) TRY(write_a3m(options, chain, sequence, "mgnify", mgnify + 1, &stream, arena));
    return OK;
}

/* --- hits --------------------------------------------------------------------------------------------------------- */

typedef struct SynthHit {
    int64_t chain, length; /* of the template */
    char name[8];
    const char *sequence;
    int64_t query_start, template_start, columns;
    double sum_probs;
} SynthHit;

static void print_row(FILE *file, const char *name, const char *letters, int64_t start, int64_t count, int64_t length)
{
    fprintf(file, "%-16.14s %4lld %.*s %4lld (%lld)\n", name, (long long)start + 1, (int)count, letters + start,
            (long long)(start + count), (long long)length);
}

static void write_hit(FILE *file, int64_t number, const char *sequence, int64_t length, const SynthHit *hit)
{
    enum { WIDTH = 80 };
    fprintf(file,
            "No %lld\n>%s synthetic chain\nProbab=50.00  E-value=0.01  Score=30.00  Aligned_cols=%lld  "
            "Identities=10%%  Similarity=0.100  Sum_probs=%.1f  Template_Neff=5.0\n\n",
            (long long)number, hit->name, (long long)hit->columns, hit->sum_probs);
    for (int64_t at = 0; at < hit->columns; at += WIDTH) {
        int64_t count = hit->columns - at < WIDTH ? hit->columns - at : WIDTH;
        char label[12];
        print_row(file, "Q query", sequence, hit->query_start + at, count, length);
        fprintf(file, "%22s%.*s\n", "", (int)count,
                "................................................................................");
        snprintf(label, sizeof label, "T %s", hit->name);
        print_row(file, label, hit->sequence, hit->template_start + at, count, hit->length);
        fprintf(file, "\n");
    }
    fprintf(file, "\n");
}

static Status make_hit(const SynthOptions *options, int64_t chain, int64_t length, SynthStream *stream, Arena *arena,
                       SynthHit *hit)
{
    enum { FEWEST = 25 };
    const double most_fraction = 0.9;
    char *sequence;
    hit->chain = (int64_t)(synth_uniform(stream) * (double)chain);
    synth_name(hit->chain, hit->name);
    for (char *c = hit->name; *c; ++c)
        if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A'); /* HHsearch's database has upper-case names */
    TRY(synth_sequence(options, hit->chain, arena, &sequence));
    hit->sequence = sequence;
    hit->length = (int64_t)strlen(sequence);
    int64_t most = (int64_t)(most_fraction * (double)(length < hit->length ? length : hit->length));
    int64_t least = most < FEWEST ? most : FEWEST;
    hit->columns = least + (int64_t)(synth_uniform(stream) * (double)(most - least));
    hit->query_start = (int64_t)(synth_uniform(stream) * (double)(length - hit->columns));
    hit->template_start = (int64_t)(synth_uniform(stream) * (double)(hit->length - hit->columns));
    hit->sum_probs = (double)hit->columns * synth_uniform(stream);
    return OK;
}

Status synth_write_hits(const SynthOptions *options, int64_t chain, const char *sequence, Arena *arena)
{
    SynthStream stream = synth_stream(options, chain, SYNTH_HITS);
    int64_t length = (int64_t)strlen(sequence), hits = chain < options->hits ? chain : options->hits;
    SynthHit *hit = arena_array(arena, (size_t)hits, sizeof *hit);
    char *path;
    FILE *file;
    if (!hit) return status_fail(ERR_MEMORY, "synth: no memory for %lld hits", (long long)hits);
    for (int64_t h = 0; h < hits; ++h) TRY(make_hit(options, chain, length, &stream, arena, &hit[h]));
    TRY(open_file(options, chain, "pdb70_hits.hhr", arena, &file, &path));
    fprintf(file,
            "Query         query\nMatch_columns %lld\nNo_of_seqs    1 out of 1\nNeff          1\n"
            "Searched_HMMs %lld\nDate          Sun Jan  1 2023\nCommand       foldscale data synth\n\n"
            " No Hit                             Prob E-value P-value  Score    SS Cols Query HMM  Template HMM\n",
            (long long)length, (long long)chain);
    for (int64_t h = 0; h < hits; ++h)
        fprintf(file, "%3lld %-30.30s  50.0    0.01   0.001   30.0   0.0 %4lld %4lld-%-4lld %4lld-%-4lld(%lld)\n",
                (long long)h + 1, hit[h].name, (long long)hit[h].columns, (long long)hit[h].query_start + 1,
                (long long)(hit[h].query_start + hit[h].columns), (long long)hit[h].template_start + 1,
                (long long)(hit[h].template_start + hit[h].columns), (long long)hit[h].length);
    fprintf(file, "\n");
    for (int64_t h = 0; h < hits; ++h) write_hit(file, h + 1, sequence, length, &hit[h]);
    fprintf(file, "Done!\n");
    return close_file(file, path);
}
