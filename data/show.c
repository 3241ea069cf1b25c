#include <ctype.h>
#include <math.h>
#include <string.h>

#include "data/alignment.h"
#include "data/check.h"
#include "data/hhr.h"

enum { CA = 1, LINE_LETTERS = 60, HITS_SHOWN = 5 };

static bool is_resolved(const Chain *chain, int64_t residue)
{
    return chain->mask[residue * ATOM37_COUNT + CA] != 0;
}

static void show_sequence(const Chain *chain, FILE *stream)
{
    int64_t resolved = 0;
    for (int64_t i = 0; i < chain->length; i++) resolved += is_resolved(chain, i);
    fprintf(stream, "residues      %lld, %lld with CA\n", (long long)chain->length, (long long)resolved);
    for (int64_t i = 0; i < chain->length; i += LINE_LETTERS) {
        fprintf(stream, "%12lld  ", (long long)i + 1);
        for (int64_t k = i; k < chain->length && k < i + LINE_LETTERS; k++) {
            char letter = chain->sequence[k];
            /* unresolved residues in lower case */
            fputc(is_resolved(chain, k) || letter < 'A' || letter > 'Z' ? letter : letter - 'A' + 'a', stream);
        }
        fputc('\n', stream);
    }
}

static void show_structure(const Structure *structure, const Chain *chain, FILE *stream)
{
    fprintf(stream, "entry         %s, chain %s (label %s, entity %s)\n", structure->entry_id, chain->chain_id,
            chain->label_id, chain->entity_id);
    fprintf(stream, "method        %s\n", *structure->method ? structure->method : "unknown");
    if (isnan(structure->resolution))
        fprintf(stream, "resolution    unknown\n");
    else
        fprintf(stream, "resolution    %.2f Angstrom\n", (double)structure->resolution);
    fprintf(stream, "released      %s\n", *structure->release_date ? structure->release_date : "unknown");
    fprintf(stream, "models        %lld, the first is used\n", (long long)structure->models);
    show_sequence(chain, stream);
}

static void show_hits(const TemplateHits *hits, FILE *stream)
{
    int64_t shown = hits->count < HITS_SHOWN ? hits->count : HITS_SHOWN;
    for (int64_t i = 0; i < shown; i++)
        fprintf(stream, "  hit %-8lld %-8s %4lld columns, sum of probabilities %.1f\n", (long long)hits->hit[i].index,
                hits->hit[i].name, (long long)hits->hit[i].aligned_columns, hits->hit[i].sum_probs);
    if (hits->count > shown) fprintf(stream, "  and %lld more hits\n", (long long)(hits->count - shown));
}

static Status show_file(const ArchiveFile *file, const char *chain, FILE *stream)
{
    Arena arena = {0};
    Text text = {0};
    TemplateHits hits;
    Msa msa;
    Status status = archive_file_read(file, chain, &text);
    if (status == OK && data_kind_of(file->name) == DATA_HHR) {
        status = hhr_parse(&text, NULL, &arena, &hits);
        if (status == OK) {
            fprintf(stream, "%-28s %9zu bytes, %lld hits\n", file->name, text.size, (long long)hits.count);
            show_hits(&hits, stream);
        }
    } else if (status == OK) {
        status = alignment_parse(&text, file->name, NULL, &arena, &msa);
        if (status == OK)
            fprintf(stream, "%-28s %9zu bytes, %lld rows of %lld columns\n", file->name, text.size, (long long)msa.rows,
                    (long long)msa.columns);
    }
    text_close(&text);
    arena_free(&arena);
    return status;
}

static Status show_alignments(const Archive *archive, const char *chain, const char *sequence, Arena *arena,
                              FILE *stream, int64_t *count_out)
{
    ArchiveFile *files;
    int64_t count = 0;
    Msa msa;
    TRY(archive_chain_files(archive, chain, arena, &files, &count));
    *count_out = count;
    if (count == 0) fprintf(stream, "alignments    none: the chain alone\n");
    for (int64_t i = 0; i < count; i++) TRY(show_file(&files[i], chain, stream));
    if (!sequence || count == 0) return OK;
    TRY(archive_chain_msa(archive, chain, sequence, arena, &msa));
    fprintf(stream, "joined        %lld different rows\n", (long long)msa.rows);
    return OK;
}

static void show_lists(const Archive *archive, const char *chain, const Chain *found, FILE *stream)
{
    const ClusterTable *clusters = archive_clusters(archive);
    if (clusters) {
        char by_entity[64] = "";
        const char *bar = strchr(chain, '_');
        int64_t cluster = archive_cluster_find(clusters, chain);
        if (found && bar) snprintf(by_entity, sizeof by_entity, "%.*s_%s", (int)(bar - chain), chain, found->entity_id);
        if (cluster < 0) cluster = archive_cluster_find(clusters, by_entity);
        if (cluster < 0)
            fprintf(stream, "cluster       none\n");
        else
            fprintf(stream, "cluster       %lld, of %lld members\n", (long long)cluster,
                    (long long)archive_cluster_size(clusters, cluster));
    }
    const ChainTable *cache = archive_chain_cache(archive);
    for (int64_t i = 0; cache && i < cache->count; i++)
        if (strcmp(cache->record[i].chain, chain) == 0)
            fprintf(stream, "in the cache  released %s, resolution %.2f, cluster size %lld\n",
                    cache->record[i].release_date, (double)cache->record[i].resolution,
                    (long long)cache->record[i].cluster_size);
}

static Status show(const Archive *archive, const char *asked, Arena *arena, FILE *stream)
{
    char entry[64];
    const char *bar = strchr(asked, '_');
    const Chain *found = NULL;
    int64_t files = 0;
    Structure *structure = NULL;
    char *path = NULL;
    if (!bar || (size_t)(bar - asked) >= sizeof entry || !bar[1])
        return status_fail(ERR_USAGE, "\"%.60s\": expected a chain named ENTRY_CHAIN such as 2q2k_A", asked);
    snprintf(entry, sizeof entry, "%.*s", (int)(bar - asked), asked);
    for (char *c = entry; *c; ++c) *c = (char)tolower((unsigned char)*c);
    const char *chain = arena_printf(arena, "%s%s", entry, bar);
    if (!chain) return status_fail(ERR_MEMORY, "out of memory");
    TRY(archive_structure_path(archive, entry, arena, &path));
    if (path) {
        TRY(archive_structure_read(archive, entry, arena, &structure));
        found = structure_find_chain(structure, bar + 1);
        if (!found) return status_fail_at(ERR_INPUT, path, 0, "no protein chain %.60s", bar + 1);
        fprintf(stream, "file          %s\n", path);
        show_structure(structure, found, stream);
    } else {
        fprintf(stream, "structure     none of entry %s\n", entry);
    }
    TRY(show_alignments(archive, chain, found ? found->sequence : NULL, arena, stream, &files));
    show_lists(archive, chain, found, stream);
    if (path || files) return OK;
    return status_fail(ERR_INPUT,
                       "%s: neither a structure nor an alignment, expected them in the folders of --mmcif, "
                       "--alignments or --alignment-index",
                       chain);
}

Status data_show(const Archive *archive, const char *chain, FILE *stream)
{
    Arena arena = {0};
    Status status = show(archive, chain, &arena, stream);
    arena_free(&arena);
    return status;
}
