/* YAML files through a libcyaml schema, with errors that name the line. (The prefix yaml_ belongs to libyaml.) */
#ifndef FOLDSCALE_ANALYSIS_YAMLFILE_H
#define FOLDSCALE_ANALYSIS_YAMLFILE_H

#include <cyaml/cyaml.h>

#include "engine/status.h"

/* Loads a file into the structure that `schema` describes (a CYAML_VALUE_MAPPING with CYAML_FLAG_POINTER). Unknown
 * keys, wrong types and missing keys are refused as FILE:LINE: what. Free with yamlfile_free. */
Status yamlfile_load(const char *path, const cyaml_schema_value_t *schema, void **data_out);
void yamlfile_free(const cyaml_schema_value_t *schema, void **data);

/* Line (from 1) of a key given by its dotted path ("node.link_bytes_per_s") in a block-style file; 0 when it cannot be
 * found. For values that parse but make no sense. */
long yamlfile_line_of(const char *path, const char *key);

#endif
