/* The schema of experiment files: libcyaml's tables plus what libcyaml 1.3 lacks, the range of each number. */
#ifndef FOLDSCALE_EXPERIMENTS_CONFIG_SCHEMA_H
#define FOLDSCALE_EXPERIMENTS_CONFIG_SCHEMA_H

#include <cyaml/cyaml.h>

typedef enum TextKind {
    TEXT_ANY,
    TEXT_PATH, /* a file or folder, relative to the experiment file */
    TEXT_DATE  /* YYYY-MM-DD */
} TextKind;

/* Row i describes field i of the mapping. */
typedef struct FieldLimit {
    double low, high;                /* of a number (or of each number of a list) */
    TextKind text;                   /* what a text stands for */
    const struct FieldLimit *fields; /* of a nested mapping */
} FieldLimit;

extern const cyaml_schema_value_t config_schema;
extern const FieldLimit config_limits[];

#endif
