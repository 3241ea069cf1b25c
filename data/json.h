/* JSON files of users, through cJSON (which limits nesting to 1000). */
#ifndef FOLDSCALE_DATA_JSON_H
#define FOLDSCALE_DATA_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "data/text.h"

/* The whole text must be one JSON object; ERR_INPUT with the line otherwise. Freed with cJSON_Delete. */
Status json_parse_object(const Text *text, cJSON **object_out);

/* Line of the first "key": of the text, 0 when it is not there as it is (cJSON keeps no places); for messages. */
long json_line(const Text *text, const char *key);
/* What was found, shortened, for messages: a number, a string, "a list", "nothing"... */
const char *json_found(const cJSON *item, char shown[64]);

/* True for a whole number in [lowest, 2^53). */
bool json_whole_number(const cJSON *item, int64_t lowest, int64_t *number_out);

#endif
