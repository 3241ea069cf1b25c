/* mmcif_cache.json and chain_data_cache.json made from REAL's structures and clusters, written, read back, and compared
 * with the caches in REAL, which OpenFold made. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/cache.h"
#include "tests/data_golden.h"

static const ChainRecord *find(const ChainTable *table, const char *chain)
{
    for (int64_t i = 0; i < table->count; i++)
        if (strcmp(table->record[i].chain, chain) == 0) return &table->record[i];
    return NULL;
}

static void compare(Golden *golden, const char *name, const ChainTable *ours, const ChainTable *theirs)
{
    for (int64_t i = 0; i < theirs->count; i++) {
        const ChainRecord *expected = &theirs->record[i], *record = find(ours, expected->chain);
        char what[128];
        snprintf(what, sizeof what, "%.40s %.60s", name, expected->chain);
        if (!record)
            golden_fail(golden, what, "missing");
        else if (strcmp(record->sequence, expected->sequence) != 0)
            golden_fail(golden, what, "another sequence");
        else if (strcmp(record->release_date, expected->release_date) != 0)
            golden_fail(golden, what, "released %s, expected %s", record->release_date, expected->release_date);
        else if (record->resolution != expected->resolution)
            golden_fail(golden, what, "resolution %.9g, expected %.9g", (double)record->resolution,
                        (double)expected->resolution);
        else if (record->cluster_size != expected->cluster_size)
            golden_fail(golden, what, "cluster size %lld, expected %lld", (long long)record->cluster_size,
                        (long long)expected->cluster_size);
        else
            golden_pass(golden, "%s", what);
    }
    if (ours->count != theirs->count)
        golden_fail(golden, name, "%lld chains, expected %lld", (long long)ours->count, (long long)theirs->count);
}

typedef Status (*WriteCache)(const ChainTable *table, const char *path);
typedef Status (*ReadCache)(const char *path, Arena *arena, ChainTable *table_out);

static void check_cache(Golden *golden, const char *name, const ChainTable *made, WriteCache write, ReadCache read)
{
    Arena arena = {0};
    ChainTable ours, theirs;
    char path[] = "/tmp/foldscale_cache_XXXXXX";
    int handle = mkstemp(path);
    const char *expected = golden_path(&arena, golden->real, "%s", name);
    if (!golden_exists(expected))
        golden_skip(golden, name, "not there");
    else if (handle < 0 || write(made, path) != OK || read(path, &arena, &ours) != OK ||
             read(expected, &arena, &theirs) != OK)
        golden_fail(golden, name, "%s", status_text());
    else
        compare(golden, name, &ours, &theirs);
    if (handle >= 0) close(handle);
    unlink(path);
    arena_free(&arena);
}

void golden_caches(Golden *golden)
{
    Arena arena = {0};
    Archive *archive = NULL;
    ChainTable made;
    CacheCounts counts;
    ArchivePaths paths = {.mmcif = golden_path(&arena, golden->real, "mmcif"),
                          .clusters = golden_path(&arena, golden->real, "chain_clusters_40.txt")};
    if (!golden_exists(paths.clusters)) paths.clusters = NULL;
    if (!golden_exists(paths.mmcif)) {
        golden_skip(golden, "caches", "no mmcif folder");
    } else if (archive_open(&paths, NULL, &archive) != OK ||
               cache_build(archive, 3, NULL, NULL, NULL, &arena, &made, &counts) != OK) {
        golden_fail(golden, "caches", "%s", status_text());
    } else {
        check_cache(golden, "mmcif_cache.json", &made, cache_write_mmcif, archive_read_mmcif_cache);
        check_cache(golden, "chain_data_cache.json", &made, cache_write_chains, archive_read_chain_cache);
    }
    archive_close(&archive);
    arena_free(&arena);
}
