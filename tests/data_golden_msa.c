/* Joined alignments: msa/combined.csv, from each layout that holds the chain. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/alignment.h"
#include "data/archive.h"
#include "tests/data_golden.h"

typedef struct Layout {
    const char *name;
    Archive *archive;
} Layout;

static void open_layout(Golden *golden, const char *name, ArchivePaths paths, Layout *layout)
{
    layout->name = name;
    const char *first = paths.alignments ? paths.alignments : paths.alignment_index;
    if (!golden_exists(first))
        golden_skip(golden, name, "%s is not there", first);
    else if (archive_open(&paths, NULL, &layout->archive) != OK)
        golden_fail(golden, name, "%s", status_text());
}

/* The sequence of a chain: from its structure, else from the query of its first alignment. */
static char *find_sequence(const Layout *layout, const char *chain, Arena *arena)
{
    char *entry = arena_strdup(arena, chain), *bar = strchr(entry, '_');
    Structure *structure;
    if (!bar) return NULL;
    *bar = '\0';
    if (archive_structure_read(layout->archive, entry, arena, &structure) == OK) {
        const Chain *found = structure_find_chain(structure, bar + 1);
        return found ? found->sequence : NULL;
    }
    ArchiveFile *files;
    int64_t count;
    Text text = {0};
    char *sequence = NULL;
    if (archive_chain_files(layout->archive, chain, arena, &files, &count) != OK || count == 0) return NULL;
    if (archive_file_read(&files[0], chain, &text) != OK) return NULL;
    const char *line = memchr(text.data, '\n', text.size);
    if (line) sequence = arena_strndup(arena, line + 1, strcspn(line + 1, "\r\n"));
    text_close(&text);
    return sequence;
}

static void check_chain(Golden *golden, const Layout *layout, const GoldenTable *table, int64_t row, bool needed)
{
    const char *chain = golden_cell(table, row, "chain");
    char name[128], why[256];
    Arena arena = {0};
    StFile *file = NULL;
    ArchiveFile *files;
    int64_t count = 0;
    Msa msa;
    snprintf(name, sizeof name, "%.60s from %.40s", chain, layout->name);
    const char *sequence = find_sequence(layout, chain, &arena);
    bool listed = archive_chain_files(layout->archive, chain, &arena, &files, &count) == OK && count > 0;
    if (!listed && atoll(golden_cell(table, row, "rows_before")) > 0) {
        if (needed)
            golden_fail(golden, name, "no alignments");
        else
            golden_skip(golden, name, "not in this layout");
    } else if (!sequence) {
        golden_fail(golden, name, "no sequence: %s", status_text());
    } else if (archive_chain_msa(layout->archive, chain, sequence, &arena, &msa) != OK ||
               st_open(golden_path(&arena, golden->golden, "msa/%s.safetensors", chain), &file) != OK) {
        golden_fail(golden, name, "%s", status_text());
    } else if (msa.rows != atoll(golden_cell(table, row, "rows_after"))) {
        golden_fail(golden, name, "%lld rows, expected %s", (long long)msa.rows, golden_cell(table, row, "rows_after"));
    } else if (!golden_msa_matches(file, &msa, why)) {
        golden_fail(golden, name, "%s", why);
    } else {
        golden_pass(golden, "%s: %lld rows", name, (long long)msa.rows);
    }
    st_close(&file);
    arena_free(&arena);
}

void golden_msa(Golden *golden)
{
    Arena arena = {0};
    GoldenTable table;
    const char *mmcif = golden_path(&arena, golden->real, "mmcif");
    const char *pdb = golden_path(&arena, golden->real, "pdb"), *flat = golden_path(&arena, golden->real, "alignments");
    const char *index = golden_path(&arena, golden->real, "alignment_db/super.index");
    const char *duplicates = golden_path(&arena, golden->real, "duplicate_pdb_chains.txt");
    if (!golden_exists(mmcif)) mmcif = NULL;
    if (!golden_exists(duplicates)) duplicates = NULL;
    Layout layouts[3] = {{0}};
    open_layout(golden, "pdb/", (ArchivePaths){.mmcif = mmcif, .alignments = pdb, .duplicates = duplicates},
                &layouts[0]);
    open_layout(golden, "alignments/", (ArchivePaths){.mmcif = mmcif, .alignments = flat, .duplicates = duplicates},
                &layouts[1]);
    open_layout(golden, "alignment_db/", (ArchivePaths){.mmcif = mmcif, .alignment_index = index}, &layouts[2]);
    if (golden_table_read(golden, golden_path(&arena, golden->golden, "msa/combined.csv"), &arena, &table))
        for (int i = 0; i < 3; i++)
            for (int64_t row = 0; layouts[i].archive && row < table.rows; row++)
                check_chain(golden, &layouts[i], &table, row, i == 0);
    for (int i = 0; i < 3; i++) archive_close(&layouts[i].archive);
    arena_free(&arena);
}
