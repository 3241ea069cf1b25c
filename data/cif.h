/* The grammar of CIF 1.1 / mmCIF, as far as the archive uses it: one data block of items "_category.column value" and
 * loops. A caller names the categories and columns it wants and is called once per row; all else is only checked for
 * well-formedness. Nothing is copied: values point into the text. */
#ifndef FOLDSCALE_DATA_CIF_H
#define FOLDSCALE_DATA_CIF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/text.h"

typedef struct CifValue {
    const char *at; /* NULL: the file has no such column */
    size_t length;
    bool quoted;
} CifValue;

enum { CIF_COLUMNS = 16, CIF_CATEGORIES = 16 };

typedef struct CifCategory {
    const char *name;                 /* "_atom_site" */
    const char *columns[CIF_COLUMNS]; /* without the category; NULL after the last */
    int required;                     /* the first so many columns must be there if the category is */
    /* `at`: some place in the row, for messages. */
    Status (*row)(void *context, const CifValue *values, const char *at);
    bool skip; /* pass over the rows line by line, unchecked; row is not called */
} CifCategory;

/* ERR_INPUT with file and line for anything that is not one whole data block. *block_out: its name (may be NULL). */
Status cif_parse(const Text *text, const CifCategory *categories, int count, void *context, CifValue *block_out);

/* No column, or a bare '.' or '?'. */
bool cif_missing(CifValue value);
bool cif_equal(CifValue value, CifValue other);
bool cif_is(CifValue value, const char *text);
/* Byte order; for sorting and searching. */
int cif_compare(CifValue value, CifValue other);

/* Whole numbers that fit int32; decimal numbers with an optional exponent and "(uncertainty)". False otherwise. */
bool cif_integer(CifValue value, int32_t *number_out);
bool cif_real(CifValue value, double *number_out);

/* "FILE:LINE: WHAT "VALUE", expected EXPECTED". */
Status cif_fail(const Text *text, const char *at, const char *what, CifValue value, const char *expected);

#endif
