#include "analysis/yamlfile.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/input.h"

/* libcyaml reports errors as a series of log lines: the fault first, then a backtrace whose first entry has the line.
 */
typedef struct Log {
    char fault[400];
    char where[200];
    long line;
} Log;

static void take_log(cyaml_log_t level, void *context, const char *format, va_list args)
{
    Log *log = context;
    char text[600];
    if (level < CYAML_LOG_ERROR) return;
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    const char *message = strncmp(text, "Load: ", 6) ? text : text + 6;
    const char *line = strstr(message, "(line: ");
    if (line) {
        if (log->line == 0) {
            log->line = strtol(line + 7, NULL, 10);
            snprintf(log->where, sizeof log->where, "%.*s", (int)(line - message), message);
        }
    } else if (!log->fault[0]) {
        snprintf(log->fault, sizeof log->fault, "%.390s", message);
    }
}

/* libcyaml gives an unexpected key the line of the entry before it: the key itself is on that line or below. */
static long line_of_unexpected(const char *path, const Log *log)
{
    static const char prefix[] = "Unexpected key: ";
    if (strncmp(log->fault, prefix, sizeof prefix - 1)) return log->line;
    const char *key = log->fault + sizeof prefix - 1;
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t size = 0;
    long line = 0, found = 0;
    while (file && !found && getline(&text, &size, file) >= 0) {
        const char *at = strstr(text, key);
        if (++line >= log->line && at && at[strlen(key)] == ':') found = line;
    }
    free(text);
    if (file) fclose(file);
    return found ? found : log->line;
}

Status yamlfile_load(const char *path, const cyaml_schema_value_t *schema, void **data_out)
{
    FILE *probe;
    TRY(input_open(path, &probe));
    fclose(probe);
    Log log = {0};
    cyaml_config_t config = {.log_fn = take_log,
                             .log_ctx = &log,
                             .mem_fn = cyaml_mem,
                             .log_level = CYAML_LOG_ERROR,
                             .flags = CYAML_CFG_DEFAULT};
    cyaml_data_t *data = NULL;
    cyaml_err_t code = cyaml_load_file(path, &config, schema, &data, NULL);
    if (code != CYAML_OK)
        return status_fail_at(ERR_INPUT, path, line_of_unexpected(path, &log), "%s%s%s%s",
                              log.fault[0] ? log.fault : cyaml_strerror(code), log.where[0] ? " (" : "", log.where,
                              log.where[0] ? ")" : "");
    if (!data) return status_fail_at(ERR_INPUT, path, 0, "empty");
    *data_out = data;
    return OK;
}

void yamlfile_free(const cyaml_schema_value_t *schema, void **data)
{
    cyaml_config_t config = {.mem_fn = cyaml_mem, .log_level = CYAML_LOG_ERROR};
    if (data && *data) cyaml_free(&config, schema, *data, 0);
    if (data) *data = NULL;
}

long yamlfile_line_of(const char *path, const char *key)
{
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    char *text = NULL;
    size_t size = 0;
    long line = 0, found = 0;
    int indent = -1; /* of the part of the key matched last */
    while (!found && *key && getline(&text, &size, file) >= 0) {
        line++;
        int spaces = (int)strspn(text, " ");
        const char *word = text + spaces;
        size_t length = strcspn(word, ":\n");
        if (!length || *word == '#' || word[length] != ':' || spaces <= indent) continue;
        size_t part = strcspn(key, ".");
        if (length != part || strncmp(word, key, part)) continue;
        indent = spaces;
        key += part;
        if (*key == '.')
            key++;
        else
            found = line;
    }
    free(text);
    fclose(file);
    return found;
}
