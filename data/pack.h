/* `foldscale data pack`: a whole data set, in any layout, as one compressed and checksummed file (data/pack_file.h).
 *
 * Per chain: its structure, its joined alignment ready for the feature pipeline, the best 20 hits that passed the
 * prefilter (more where fewer than four of them can be used), and the structures that these need. Samples from a pack
 * are bit for bit those from the files. */
#ifndef FOLDSCALE_DATA_PACK_H
#define FOLDSCALE_DATA_PACK_H

#include "data/dataset.h"

typedef struct PackOptions {
    const char *path;
    int threads;        /* at least 1 */
    int level;          /* of zstd; 3 is a good choice */
    bool templates;     /* false: no hits and no template structures */
    bool stop_on_error; /* false: chains that cannot be read are left out, counted, and said so through `log` */
    const DataLog *log;
    /* After each chain, by any thread, one call at a time; may be NULL. */
    void (*progress)(void *context, int64_t done, int64_t chains);
    void *progress_context;
} PackOptions;

typedef struct PackReport {
    int64_t chains;     /* with alignments */
    int64_t structures; /* chain records, those of templates included */
    int64_t left_out;   /* pack_write: chains that could not be read */
    int64_t kept;       /* pack_write: records of an interrupted run that were not made again */
    int64_t raw_bytes, stored_bytes, file_bytes;
} PackReport;

/* Writes PATH.part, then PATH. An interrupted run (also a killed one) is continued by the next call; what was made from
 * files that have changed since (size, time of modification, which structures there are) is made anew. */
Status pack_write(const Dataset *dataset, const PackOptions *options, PackReport *report_out);

/* Reads and decodes every record; damaged ones are said through `log` and counted in *damaged_out. */
Status pack_verify(const char *path, const DataLog *log, PackReport *report_out, int64_t *damaged_out);

#endif
