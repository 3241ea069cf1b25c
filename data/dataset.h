/* A list of chains that can be turned into batches, from files (any layout of data/archive.h) or from a pack.
 *
 * Use: dataset_open_archive (or dataset_open_pack), one DatasetReader per thread, then dataset_sample(reader, chain,
 * ...) fills a Batch. Everything a sample depends on is (chain, seed, epoch, index, copies) and the configuration, so
 * that any batch can be rebuilt. The loader (data/loader.h) does this in worker threads. */
#ifndef FOLDSCALE_DATA_DATASET_H
#define FOLDSCALE_DATA_DATASET_H

#include "data/archive.h"
#include "data/features.h"
#include "data/template.h"

/* What one chain's files hold. */
typedef struct RawSample {
    Chain chain;
    PreparedMsa msa;
    TemplateHits hits;
    bool hits_selected; /* those of template_select, in its order (pack); else all of the file */
} RawSample;

/* Where the chains come from; functions may be called by several threads at once. */
typedef struct DatasetSource {
    void *context;
    void (*close)(void *context);
    int64_t (*count)(void *context);
    const char *(*name)(void *context, int64_t chain); /* ENTRY_CHAIN */
    /* Everything about a chain, into the arena; hits only if `with_hits`. */
    Status (*load)(void *context, int64_t chain, bool with_hits, Arena *arena, RawSample *raw_out);
    /* A stamp (data/stamp.h) of what stands behind a chain ENTRY_CHAIN with its alignments, behind the structure of an
     * ENTRY, or (NULL) of the lists and of which structures there are. */
    Status (*stamp)(void *context, const char *name, uint64_t *stamp_out);
    TemplateSource templates;
} DatasetSource;

typedef struct Dataset Dataset;

/* `chains`: names to use, in this order (each must have a structure; checked when it is read). NULL: all chains of
 * mmcif_cache.json if named, else all protein chains of all files of the mmCIF folder (their headers are read). `log`
 * may be NULL and must stay valid; it is called by several threads. */
Status dataset_open_archive(const ArchivePaths *paths, const char *const *chains, int64_t chain_count,
                            const DataLog *log, Dataset **dataset_out);
/* A file of pack_write (data/pack.h): all chains that have alignments in it. */
Status dataset_open_pack(const char *path, const DataLog *log, Dataset **dataset_out);
/* Takes over `source` (also on failure). */
Status dataset_open_source(const DatasetSource *source, const DataLog *log, Dataset **dataset_out);
void dataset_close(Dataset **dataset);

int64_t dataset_count(const Dataset *dataset);
const char *dataset_name(const Dataset *dataset, int64_t chain);
/* -1 when it is not in the list. */
int64_t dataset_find(const Dataset *dataset, const char *name);
const DatasetSource *dataset_source(const Dataset *dataset);
const DataLog *dataset_log(const Dataset *dataset);

/* Scratch of one thread: workspace, arena. */
typedef struct DatasetReader DatasetReader;
Status dataset_reader_create(const Dataset *dataset, DatasetReader **reader_out);
void dataset_reader_destroy(DatasetReader **reader);

typedef struct SampleRequest {
    int64_t chain;  /* in the dataset's list */
    int64_t copies; /* recycling iterations + 1 */
    Draws draws;    /* seed, epoch, index (position in the epoch) */
    bool templates; /* false: none are looked for */
} SampleRequest;

/* Seconds of the last sample's parts. */
typedef struct SampleTimes {
    double load_s, template_s, feature_s;
} SampleTimes;

Status dataset_sample(DatasetReader *reader, const SampleRequest *request, const FeatureConfig *config, Batch *batch,
                      SampleTimes *times_out);

#endif
