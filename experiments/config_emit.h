/* Walks libcyaml's schema over a YAML tree (checking it) and a Config (supplying what the tree leaves out). */
#ifndef FOLDSCALE_EXPERIMENTS_CONFIG_EMIT_H
#define FOLDSCALE_EXPERIMENTS_CONFIG_EMIT_H

#include "experiments/config.h"
#include "experiments/config_tree.h"

/* Fails at the first key that the schema lacks, value of the wrong type or out of range. */
Status config_check_tree(const Node *root);
/* Everything as JSON text, values of `root` (may be NULL; checked before) over those of `config`. Caller frees. */
Status config_emit(const Config *config, const Node *root, char **text_out);

/* Where two experiments differ; key NULL: nowhere. */
typedef struct ConfigDifference {
    const char *key;   /* "model.c_m" */
    const char *a, *b; /* its values, as JSON */
} ConfigDifference;
/* The first key whose values differ; `but`: NULL-terminated keys and sections that may. A path of `b` that is not there
 * differs from none: b comes from another machine, or its files were moved. Texts lie in `arena`. */
Status config_compare(const Config *a, const Config *b, const char *const *but, Arena *arena,
                      ConfigDifference *difference_out);

#endif
