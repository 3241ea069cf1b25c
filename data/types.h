/* What the parsers hand to the feature pipeline. All arrays belong to the Arena given to the parser. */
#ifndef FOLDSCALE_DATA_TYPES_H
#define FOLDSCALE_DATA_TYPES_H

#include <stdint.h>

#include "engine/arena.h"
#include "engine/status.h"

enum {
    RESTYPE_COUNT = 20, /* restypes.csv; 20 = X */
    RESTYPE_UNKNOWN = 20,
    RESTYPE_GAP = 21,
    RESTYPE_MASK = 22, /* MSA only */
    ATOM37_COUNT = 37,
    ATOM14_COUNT = 14,
    RIGID_GROUPS = 8
};

/* One protein chain of an mmCIF file. L = residues of _entity_poly_seq, resolved or not. */
typedef struct Chain {
    char *entry_id;         /* as in the file, lower case */
    char *chain_id;         /* author chain id */
    char *label_id;         /* label chain id */
    char *entity_id;        /* clusters files name chains by ENTRY_ENTITY */
    int64_t length;         /* L */
    char *sequence;         /* L letters, X for unknown, NUL-terminated */
    int8_t *aatype;         /* [L] restype index 0..20 */
    int32_t *residue_index; /* [L] 0..L-1 */
    float *positions;       /* [L, 37, 3] Angstrom, 0 where not resolved */
    uint8_t *mask;          /* [L, 37] 1 where resolved */
    float resolution;       /* Angstrom, NaN when unknown */
    char release_date[11];  /* YYYY-MM-DD, "" when unknown */
    char *method;           /* _exptl.method, "" when absent */
} Chain;

/* An alignment: N rows over the L columns of the query. */
typedef struct Msa {
    int64_t rows, columns;
    uint8_t *hhblits_id;   /* [N, L] ids of the HHblits alphabet as parsed (msa_alphabet.csv); gap 21 */
    int32_t *deletions;    /* [N, L] letters inserted before this column */
    uint64_t *odd_letters; /* [N] hash of the letters that share their id with another (B Z U J O), 0 without any:
                              rows count as equal only if their letters are. NULL: none has any */
    long query_line;       /* of the first row in its file, for messages; 0: not known */
} Msa;

/* One hit of an hhr file. */
typedef struct TemplateHit {
    int64_t index;     /* "No" in the file */
    char *name;        /* first word of the name line, e.g. 3u8v_A */
    char *description; /* the whole name line */
    int64_t aligned_columns;
    double sum_probs;
    char *query;            /* aligned query row, with gaps */
    char *hit_sequence;     /* aligned template row, with gaps */
    int32_t *query_indices; /* [length] index in the query sequence, -1 at a gap */
    int32_t *hit_indices;   /* [length] index in the template sequence, -1 at a gap */
    int64_t length;         /* columns of the aligned rows */
} TemplateHit;

typedef struct TemplateHits {
    int64_t count;
    TemplateHit *hit;
} TemplateHits;

#endif
