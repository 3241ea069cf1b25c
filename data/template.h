/* Templates: hits of HHsearch -> prefilter, order, features on the query's residues.
 *
 * The rules are those of the reference (golden README, "Hits"). Two differences: a hit whose sequence is found neither
 * in its chain, nor in another chain of the file, nor with X as wildcard is left out with a remark (the reference
 * aligns again with kalign); a hit whose query row is not part of the query is left out too (the reference then shifts
 * every index by one and reads index -1 as the last residue). */
#ifndef FOLDSCALE_DATA_TEMPLATE_H
#define FOLDSCALE_DATA_TEMPLATE_H

#include "data/draws.h"
#include "data/features.h"
#include "data/log.h"
#include "data/mmcif.h"

enum {
    TEMPLATE_MOST = 4,      /* built for a sample; the reference builds four, whatever the batch keeps */
    TEMPLATE_SHUFFLED = 20, /* the best accepted hits, in training */
    TEMPLATE_MAX_DAYS_BEFORE = 60,
    TEMPLATE_MIN_RESIDUES = 10,
    TEMPLATE_MIN_ATOMS = 5
};

typedef struct TemplateQuery {
    const char *name;         /* for remarks */
    const char *entry_id;     /* lower case; "" when the query is not in the PDB */
    const char *sequence;     /* the whole chain */
    const char *release_date; /* YYYY-MM-DD; "": templates of any date are allowed */
} TemplateQuery;

/* Where structures come from; functions may be called by several threads. */
typedef struct TemplateSource {
    void *context;
    /* The current id of an entry (obsolete ids replaced), borrowed. */
    const char *(*current)(void *context, const char *entry_id);
    /* Release date of an entry that has this chain, "" when there is no such chain or no date. */
    Status (*release_date)(void *context, const char *entry_id, const char *chain_id, char date_out[11]);
    /* A structure with at least the chain that is asked for, if the entry has it; ERR_INPUT or ERR_IO when there is
     * none (the hit is then left out with a remark). */
    Status (*structure)(void *context, const char *entry_id, const char *chain_id, Arena *arena,
                        const Structure **structure_out);
} TemplateSource;

typedef enum TemplateVerdict {
    TEMPLATE_ACCEPTED,
    TEMPLATE_UNKNOWN_CHAIN,
    TEMPLATE_SAME_ENTRY,
    TEMPLATE_TOO_NEW,
    TEMPLATE_TOO_FEW_COLUMNS,
    TEMPLATE_DUPLICATE,
    TEMPLATE_TOO_SHORT,
    TEMPLATE_VERDICTS
} TemplateVerdict;

const char *template_verdict_text(TemplateVerdict verdict);

/* The prefilter on one hit. */
Status template_judge(const TemplateQuery *query, const TemplateHit *hit, const TemplateSource *source,
                      TemplateVerdict *verdict_out);

/* Indices (into hits->hit) of the accepted hits by sum_probs, largest first, in file order on ties. */
Status template_select(const TemplateQuery *query, const TemplateHits *hits, const TemplateSource *source, Arena *arena,
                       int32_t **order_out, int64_t *count_out);

/* The chain of the hit's structure that holds its sequence; NULL (with the reason in *why_out) when it has none or
 * cannot be used. The structure is read into the arena. */
Status template_locate(const TemplateQuery *query, const TemplateHit *hit, const TemplateSource *source, Arena *arena,
                       const Chain **chain_out, const char **why_out);

/* Builds templates in the given order until `most` have succeeded. */
Status template_build(const TemplateQuery *query, const TemplateHits *hits, const int32_t *order, int64_t count,
                      int64_t most, const TemplateSource *source, const DataLog *log, Arena *arena,
                      TemplateFeatures *features_out);

/* All of the above; `selected`: the hits are those of template_select already, in its order. `shuffle` (training) draws
 * DRAW_TEMPLATE_HIT_SHUFFLE: position k of the first 20 gets accepted hit number draw[k]; the rest follow in order, and
 * are needed where fewer than four of the best 20 can be used. */
Status template_features(const TemplateQuery *query, const TemplateHits *hits, bool selected, bool shuffle,
                         const Draws *draws, int64_t most, const TemplateSource *source, const DataLog *log,
                         Arena *arena, TemplateFeatures *features_out);

/* Days since 1970-01-01 of a YYYY-MM-DD date; false when it is not one. */
bool template_date_days(const char *date, int64_t *days_out);

#endif
