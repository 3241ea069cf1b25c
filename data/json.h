/* JSON files of users, through cJSON (which limits nesting to 1000). */
#ifndef FOLDSCALE_DATA_JSON_H
#define FOLDSCALE_DATA_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "data/text.h"

/* The whole text must be one JSON object; ERR_INPUT with the line otherwise. Freed with cJSON_Delete. */
Status json_parse_object(const Text *text, cJSON **object_out);

/* True for a whole number in [lowest, 2^53). */
bool json_whole_number(const cJSON *item, int64_t lowest, int64_t *number_out);

#endif
