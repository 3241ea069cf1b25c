/* The single steps of the feature pipeline, each a pure function of arrays; data/features.c puts them together.
 * "ids" are model ids (restypes.csv): 0..19, 20 = X, 21 = gap, 22 = masked. Structure steps take the atom37 arrays of a
 * chain or of a template on the query's residues. */
#ifndef FOLDSCALE_DATA_TRANSFORM_H
#define FOLDSCALE_DATA_TRANSFORM_H

#include "data/draws.h"
#include "data/features.h"
#include "data/prepared_msa.h"

/* --- alignment (transform_msa.c, transform_cluster.c) --------------------------------------------------------------
 */

enum { MSA_FEATURES = 49, MSA_COUNTS = 24 /* classes and absent */ };

/* HHblits ids [rows, columns] -> model ids [rows, stride]. ERR_INPUT for an id above 21. */
Status transform_msa_ids(const uint8_t *hhblits_id, int64_t rows, int64_t columns, uint8_t *ids_out);

/* Mean one-hot over all rows: [columns, 22]. */
void transform_msa_profile(const uint8_t *ids, int64_t rows, int64_t columns, float *profile_out);

/* Rows of one copy: order_out[0..rows-1] = [0, permutation + 1]; the first min(rows, max_clusters) are clusters. */
Status transform_msa_order(const Draws *draws, int copy, int64_t rows, int32_t *order_out);

/* Probabilities of the 23 replacements of one position. */
void transform_mask_probabilities(const FeatureConfig *config, const float *profile_column, uint8_t id,
                                  double probabilities_out[MSA_CLASSES]);

/* Masks the cluster rows [clusters, stride] in place; mask_out [clusters, columns] is 1 where drawn. `uniform` is
 * scratch of `columns` floats. */
Status transform_mask_msa(const FeatureConfig *config, const Draws *draws, int copy, const float *profile,
                          int64_t clusters, int64_t columns, float *uniform, uint8_t *ids, uint8_t *mask_out);

/* Cluster of each extra row: most equal ids, gap, masked and absent not counted, ties to the lowest. `extra` holds
 * pointers to rows of ids; `key` and `counts` are scratch of transform_key_bytes and transform_key_clusters. */
int64_t transform_key_clusters(int64_t cluster_count); /* rounded up to whole vectors */
int64_t transform_key_bytes(int64_t cluster_count, int64_t columns);
void transform_cluster_assign(const uint8_t *clusters, int64_t cluster_count, const uint8_t *const *extra,
                              int64_t extra_count, int64_t columns, uint8_t *key, uint32_t *counts,
                              int32_t *assignment_out);

/* Adds one row of ids to the counts of its cluster, [width, 24]. */
void transform_cluster_add(const uint8_t *ids, int64_t width, uint32_t *counts);

/* Adds the deletions in columns first .. first + width - 1 to sum [width]. */
void transform_deletions_add(DeletionRow deletions, int64_t first, int64_t width, float *sum);

/* Sums over `rows` rows (cluster row and members) -> profile [width, 23] and mean deletions [width]; each divided by
 * 1e-6 + the rows that are not absent there. `mean_out` may be `deletion_sum`. */
void transform_cluster_profile(const uint32_t *counts, const float *deletion_sum, int64_t rows, int64_t width,
                               float *profile_out, float *mean_out);

/* 2/pi atan(deletions / 3), tabulated for small counts. */
enum { DELETION_TABLE = 512 };
typedef struct DeletionTable {
    float value[DELETION_TABLE];
} DeletionTable;
void transform_deletion_table(DeletionTable *table_out);

/* msa_feat of one cluster row, [width, 49]: one-hot 23, has_deletion, deletion_value, profile 23, value of the mean.
 * `ids` points at column `first` of the row. */
void transform_msa_feat(const DeletionTable *table, const uint8_t *ids, DeletionRow deletions, int64_t first,
                        const float *profile, const float *mean, int64_t width, float *feat_out);

/* extra_msa, extra_has_deletion, extra_deletion_value of one extra row. */
void transform_extra_feat(const DeletionTable *table, const uint8_t *ids, DeletionRow deletions, int64_t first,
                          int64_t width, int32_t *ids_out, float *has_deletion_out, float *deletion_value_out);

/* [length, 22]: domain break (never set for single chains), one-hot of the residue type. */
enum { TARGET_FEATURES = 22 };
void transform_target_feat(const int32_t *aatype, int64_t length, float *feat_out);

/* --- structure (transform_structure.c, transform_torsion.c) ------------------------------------------------------- */

/* Atoms of `length` residues in a row. */
typedef struct AtomView {
    const int8_t *aatype;   /* [length]; values above 20 count as UNK */
    const float *positions; /* [length, 37, 3] */
    const uint8_t *mask;    /* [length, 37] */
    int64_t length;
    bool has_previous; /* positions and mask may be read at residue -1 (a crop inside a chain) */
} AtomView;

/* Frames of the eight rigid groups, [length, 8, 4, 4], and which exist, [length, 8] (AlphaFold2 algorithm 21 on the
 * base atoms, eps 1e-8). alt_out has the last chi group of ASP, GLU, PHE, TYR turned by pi. */
void transform_frames(const AtomView *view, float *frames_out, float *alt_frames_out, float *exists_out);

/* Whether a half turn of this group changes nothing but names (last chi of ASP, GLU, PHE, TYR). */
bool transform_group_ambiguous(int type, int group);

/* sin and cos of omega, phi, psi, chi1-4, [length, 7, 2], with symmetric chi flipped in alt_out; mask [length, 7].
 * Values whose mask is 0 are 0. omega and phi use the residue before in the array; without has_previous the first
 * residue has none. */
void transform_torsions(const AtomView *view, float *sin_cos_out, float *alt_sin_cos_out, float *mask_out);

/* CB, CA for glycine: [length, 3] and [length]. */
void transform_pseudo_beta(const AtomView *view, float *positions_out, float *mask_out);

#endif
