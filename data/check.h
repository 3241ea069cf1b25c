/* Behind `foldscale data check` and `foldscale data show`: reads everything a user names and says what is wrong. */
#ifndef FOLDSCALE_DATA_CHECK_H
#define FOLDSCALE_DATA_CHECK_H

#include <stdbool.h>
#include <stdio.h>

#include "data/archive.h"

/* Kinds of file, known by their names. */
typedef enum DataKind {
    DATA_OTHER,            /* not read */
    DATA_MMCIF,            /* .cif .cif.gz */
    DATA_A3M,              /* .a3m .a3m.gz */
    DATA_STOCKHOLM,        /* .sto .sto.gz */
    DATA_HHR,              /* .hhr .hhr.gz */
    DATA_INDEX,            /* .index, with everything in its databases */
    DATA_DUPLICATES,       /* .txt with "duplicate" in the name */
    DATA_CLUSTERS,         /* .txt with "cluster" in the name */
    DATA_OBSOLETE,         /* .dat with "obsolete" in the name */
    DATA_CHAIN_DATA_CACHE, /* .json with "chain" in the name */
    DATA_MMCIF_CACHE,      /* .json with "mmcif" in the name */
    DATA_SAFETENSORS,      /* .safetensors */
    DATA_PACK,             /* .pack */
    DATA_KINDS
} DataKind;

DataKind data_kind_of(const char *path);
const char *data_kind_name(DataKind kind);

typedef struct DataCheckOptions {
    const char *mmcif;        /* folder of structures: the first rows of alignments are compared with their chains */
    const char *chain;        /* ENTRY_CHAIN: alignments whose folder is not named like a chain belong to it */
    const char *alignment_db; /* folder of the .db files when they are not beside the index */
    /* One call per problem: "FILE:LINE: what". Remarks (error = false) are odd but usable. */
    void (*report)(void *context, bool error, const char *text);
    void *context;
} DataCheckOptions;

typedef struct DataCheckCounts {
    int64_t files[DATA_KINDS];
    int64_t errors, remarks;
    int64_t bytes, protein_chains, residues, alignment_rows, hits;
} DataCheckCounts;

/* Checks a file, or all files below a folder (each folder once, whatever links lead to it), adding to *counts. A
 * problem of a file is reported and counted, not returned; the Status is not OK only where `path` itself cannot be
 * opened or, being a file, has a name that tells no kind. */
Status data_check(const char *path, const DataCheckOptions *options, DataCheckCounts *counts);
/* One file of a given kind (for names that do not tell); returns the file's error, which is also reported. `sequence`
 * (may be NULL): what the first row of an alignment must be. */
Status data_check_file(const char *path, DataKind kind, const char *sequence, const DataCheckOptions *options,
                       DataCheckCounts *counts);
void data_check_summary(const DataCheckCounts *counts, FILE *stream);

/* What there is about a chain (ENTRY_CHAIN): structure, unresolved stretches, alignments, hits, cluster. */
Status data_show(const Archive *archive, const char *chain, FILE *stream);

#endif
