#include "data/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

Status json_parse_object(const Text *text, cJSON **object_out)
{
    const char *stop = NULL, *end = text->data + text->size;
    TRY(text_check_no_nul(text)); /* cJSON takes NUL for a blank */
    cJSON *root = cJSON_ParseWithLengthOpts(text->data, text->size, &stop, 0);
    if (!root)
        return status_fail_at(ERR_INPUT, text->name, stop ? text_line(text, stop) : 0,
                              "not JSON, truncated or nested too deeply, at byte %lld",
                              (long long)(stop ? stop - text->data : 0));
    while (stop < end && *stop && strchr(" \t\r\n", *stop)) stop++;
    Status status = OK;
    if (stop != end)
        status = status_fail_at(ERR_INPUT, text->name, text_line(text, stop), "more after the JSON, at byte %lld",
                                (long long)(stop - text->data));
    else if (!cJSON_IsObject(root))
        status = status_fail_at(ERR_INPUT, text->name, 1, "expected a JSON object {...} at the top");
    if (status != OK) {
        cJSON_Delete(root);
        return status;
    }
    *object_out = root;
    return OK;
}

long json_line(const Text *text, const char *key)
{
    const char *at = text->data, *stop = text->data + text->size;
    size_t length = strlen(key);
    while (length && at < stop && (at = memmem(at, (size_t)(stop - at), key, length))) {
        const char *after = at + length;
        bool quoted = at > text->data && at[-1] == '"' && after < stop && *after == '"';
        for (after++; quoted && after < stop && strchr(" \t\r\n", *after);) after++;
        if (quoted && after < stop && *after == ':') return text_line(text, at);
        at++;
    }
    return 0;
}

const char *json_found(const cJSON *item, char shown[64])
{
    if (cJSON_IsNumber(item))
        snprintf(shown, 64, "%.10g", item->valuedouble);
    else if (cJSON_IsString(item))
        snprintf(shown, 64, "\"%.56s\"", item->valuestring);
    else
        snprintf(shown, 64, "%s",
                 !item                  ? "missing"
                 : cJSON_IsArray(item)  ? "a list"
                 : cJSON_IsObject(item) ? "an object"
                 : cJSON_IsNull(item)   ? "null"
                                        : "true or false");
    return shown;
}

bool json_whole_number(const cJSON *item, int64_t lowest, int64_t *number_out)
{
    if (!cJSON_IsNumber(item)) return false;
    double value = item->valuedouble;
    if (!(value >= (double)lowest && value < 0x1p53) || value != floor(value)) return false;
    *number_out = (int64_t)value;
    return true;
}
