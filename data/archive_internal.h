/* Inside of the archive: its parts, one file each. */
#ifndef FOLDSCALE_DATA_ARCHIVE_INTERNAL_H
#define FOLDSCALE_DATA_ARCHIVE_INTERNAL_H

#include <stdbool.h>

#include "data/archive.h"
#include "data/names.h"

/* Alignment databases: chains -> ranges of .db files (archive_index.c). */
typedef struct IndexedChain {
    const char *name;
    const char *db; /* path */
    int64_t first, count;
} IndexedChain;

typedef struct AlignmentIndex {
    IndexedChain *chain;
    int64_t chains;
    ArchiveFile *file; /* all files of all chains */
    int64_t files;
    NameMap by_name;
} AlignmentIndex;

/* Groups of chains with one sequence (archive_lists.c). */
typedef struct DuplicateGroups {
    char **member; /* members of a group are neighbours */
    int64_t *group_of, members;
    int64_t *first, groups; /* [groups + 1] */
    NameMap by_name;        /* chain -> member */
} DuplicateGroups;

typedef struct ObsoleteEntries {
    char **successor;
    int64_t count;
    NameMap by_name;
} ObsoleteEntries;

struct ClusterTable {
    int64_t clusters, *size;
    NameMap by_name;
};

struct Archive {
    Arena arena;
    const DataLog *log;
    ArchivePaths paths; /* copies */
    AlignmentIndex index;
    DuplicateGroups duplicates;
    ObsoleteEntries obsolete;
    ClusterTable *clusters;
    ChainTable chain_cache, mmcif_cache;
};

/* Readers of texts; outputs start as zero. */
Status archive_index_parse(const Text *text, const char *db_folder, const DataLog *log, Arena *arena,
                           AlignmentIndex *index_out);
Status archive_duplicates_parse(const Text *text, Arena *arena, DuplicateGroups *groups_out);
Status archive_obsolete_parse(const Text *text, Arena *arena, ObsoleteEntries *obsolete_out);
Status archive_clusters_parse(const Text *text, Arena *arena, ClusterTable *table);
/* by_entry: mmcif_cache.json, else chain_data_cache.json */
Status archive_cache_parse(const Text *text, bool by_entry, Arena *arena, ChainTable *table_out);

/* Letters, digits, '_', '-', '.' not in front: safe as part of a path. */
bool archive_is_name(const char *name);

#endif
