/* A data set on disk, in any of the layouts in use: where the structure and the alignments of a chain are.
 *
 * Chain names are ENTRY_CHAIN with a lower-case entry and the author chain id, e.g. 2q2k_A.
 * An Archive never changes after archive_open: look-ups may run in any number of threads. */
#ifndef FOLDSCALE_DATA_ARCHIVE_H
#define FOLDSCALE_DATA_ARCHIVE_H

#include "data/log.h"
#include "data/mmcif.h"
#include "data/text.h"
#include "data/types.h"

/* Any member may be NULL. */
typedef struct ArchivePaths {
    const char *mmcif;           /* folder: <id>.cif[.gz], flat or in folders of the two middle letters */
    const char *alignments;      /* folder of chains: <chain>/NAME.{a3m,sto,hhr} (hmm_output and uniprot_hits are passed
                                    over) or      <chain>/a3m + <chain>/hhr */
    const char *alignment_index; /* super.index, or the .index of one database; .db files lie beside it */
    const char *alignment_db;    /* folder of the .db files when they are not beside the index */
    const char *duplicates;      /* duplicate_pdb_chains.txt */
    const char *obsolete;        /* obsolete.dat */
    const char *mmcif_cache;     /* mmcif_cache.json */
    const char *chain_data_cache; /* chain_data_cache.json */
    const char *clusters;         /* one cluster a line, PDBID_entity or pdbid_chain */
} ArchivePaths;

typedef struct Archive Archive;

/* Reads the lists and indices named in `paths`, not the data. Each named path must exist. */
Status archive_open(const ArchivePaths *paths, const DataLog *log, Archive **archive_out);
void archive_close(Archive **archive);

/* --- structures ------------------------------------------------------------------------------------------------- */

/* Path of the mmCIF file of an entry (lower case), NULL in *path_out when there is none. */
Status archive_structure_path(const Archive *archive, const char *entry_id, Arena *arena, char **path_out);
/* ERR_INPUT "no structure" when there is none. */
Status archive_structure_read(const Archive *archive, const char *entry_id, Arena *arena, Structure **structure_out);
/* Entries of the mmCIF folder, sorted. */
Status archive_list_entries(const Archive *archive, Arena *arena, char ***entries_out, int64_t *count_out);
/* The current id of an entry: follows obsolete.dat; returns entry_id itself when it is not superseded. */
const char *archive_current_entry(const Archive *archive, const char *entry_id);

/* --- alignments ------------------------------------------------------------------------------------------------- */

/* One alignment or hit file of a chain: a file, or a range of a database. */
typedef struct ArchiveFile {
    const char *name; /* e.g. "uniref90_hits.a3m" */
    const char *path; /* the file that holds the bytes */
    int64_t offset;   /* -1: the whole file */
    int64_t size;
} ArchiveFile;

/* Files of a chain in the reference's order (alignment_order), hhr files last; count 0 when there are none. Falls back
 * to the other chains of the same group of duplicate_pdb_chains.txt. Database first, then folder. */
Status archive_chain_files(const Archive *archive, const char *chain, Arena *arena, ArchiveFile **files_out,
                           int64_t *count_out);
Status archive_file_read(const ArchiveFile *file, const char *chain, Text *text_out);

/* All alignments of a chain, checked against its sequence, joined. One row when there are none. */
Status archive_chain_msa(const Archive *archive, const char *chain, const char *sequence, Arena *arena, Msa *msa_out);
/* All hits of a chain, in file order. */
Status archive_chain_hits(const Archive *archive, const char *chain, Arena *arena, TemplateHits *hits_out);
/* Chains that have alignments (their own or of their group), sorted. */
Status archive_list_chains(const Archive *archive, Arena *arena, char ***chains_out, int64_t *count_out);

/* --- changes ---------------------------------------------------------------------------------------------------- */

/* Stamp (data/stamp.h) of the files of a chain ENTRY_CHAIN, of the structure of an ENTRY, or (name NULL) of the lists
 * and of which structures there are. */
Status archive_stamp(const Archive *archive, const char *name, uint64_t *stamp_out);

/* --- caches and clusters ---------------------------------------------------------------------------------------- */

/* chain_data_cache.json and mmcif_cache.json, one record per chain, in file order. */
typedef struct ChainRecord {
    char *chain; /* ENTRY_CHAIN */
    char *entry_id, *chain_id;
    char *sequence;
    char release_date[11];
    float resolution;     /* as in the file: 0 when unknown */
    int64_t cluster_size; /* -1 when in no cluster or not given */
} ChainRecord;

typedef struct ChainTable {
    int64_t count;
    ChainRecord *record;
} ChainTable;

Status archive_read_chain_cache(const char *path, Arena *arena, ChainTable *table_out);
Status archive_read_mmcif_cache(const char *path, Arena *arena, ChainTable *table_out);

/* Clusters: name (as in the file) -> line number from 0. */
typedef struct ClusterTable ClusterTable;
Status archive_read_clusters(const char *path, Arena *arena, ClusterTable **table_out);
int64_t archive_cluster_count(const ClusterTable *table);
/* -1 when in no cluster. Names are compared with the entry in either case and the rest exactly. */
int64_t archive_cluster_find(const ClusterTable *table, const char *name);
int64_t archive_cluster_size(const ClusterTable *table, int64_t cluster);

const ChainTable *archive_chain_cache(const Archive *archive); /* NULL when not named */
const ChainTable *archive_mmcif_cache(const Archive *archive); /* NULL when not named */
const ClusterTable *archive_clusters(const Archive *archive);  /* NULL when not named */

#endif
