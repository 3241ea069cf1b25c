/* Behind `foldscale data index`: makes mmcif_cache.json and chain_data_cache.json, in the form of OpenFold's caches,
 * from the structures and the clusters of an archive. */
#ifndef FOLDSCALE_DATA_CACHE_H
#define FOLDSCALE_DATA_CACHE_H

#include "data/archive.h"

typedef struct CacheCounts {
    int64_t entries, chains; /* in the table */
    int64_t unreadable;      /* structures left out, each with a remark */
} CacheCounts;

/* Reads every structure of the archive in `threads` threads. Records are in order of entry, then of the file's chains;
 * resolution is 0 when unknown, cluster_size -1 without a cluster (looked up as ENTRY_CHAIN, then as ENTRY_ENTITY;
 * clusters of entities have the size of their chains in this table). `progress` (may be NULL) is called now and then,
 * from one thread at a time. */
Status cache_build(const Archive *archive, int threads, const DataLog *log,
                   void (*progress)(void *context, int64_t done, int64_t total), void *context, Arena *arena,
                   ChainTable *table_out, CacheCounts *counts_out);

/* What a cache begins with: nothing else is replaced by one (engine/output.h). */
#define CACHE_BEGINS "{\"*\": {\"release_date\":"

/* A target is always whole. */
Status cache_write_mmcif(const ChainTable *table, const char *path);
Status cache_write_chains(const ChainTable *table, const char *path);

#endif
