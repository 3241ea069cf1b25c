#include "experiments/config_emit.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "experiments/config_schema.h"

static void emit_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(out, "\\%c", *c);
        else if (*c < 0x20)
            fprintf(out, "\\u%04x", *c);
        else
            fputc(*c, out);
    }
    fputc('"', out);
}

/* A path of the experiment file is relative to that file's folder; one from the command line to the current one. What
 * comes out is absolute, so that run.json can be used from anywhere. */
static void emit_path(FILE *out, const Node *node)
{
    char joined[2 * CONFIG_TEXT + 2], full[PATH_MAX], here[PATH_MAX];
    const char *slash = strrchr(node->source, '/');
    bool beside = node->line > 0 && node->text[0] != '/' && slash;
    snprintf(joined, sizeof joined, "%.*s%s", beside ? (int)(slash - node->source + 1) : 0, node->source, node->text);
    if (node->text[0] == '\0')
        emit_text(out, "");
    else if (realpath(joined, full))
        emit_text(out, full);
    else if (joined[0] != '/' && getcwd(here, sizeof here) && strlen(here) + strlen(joined) + 2 < sizeof full)
        emit_text(out, strcat(strcat(strcpy(full, here), "/"), joined));
    else
        emit_text(out, joined);
}

static void emit_node_scalar(FILE *out, const cyaml_schema_value_t *schema, const FieldLimit *limit, const Node *node)
{
    bool on =
        strcasecmp(node->text, "true") == 0 || strcasecmp(node->text, "yes") == 0 || strcasecmp(node->text, "on") == 0;
    switch (schema->type) {
    case CYAML_BOOL:
        fputs(on ? "true" : "false", out);
        break;
    case CYAML_INT:
        fprintf(out, "%lld", strtoll(node->text, NULL, 10));
        break;
    case CYAML_FLOAT:
        fprintf(out, "%.17g", strtod(node->text, NULL));
        break;
    default:
        if (limit && limit->text == TEXT_PATH)
            emit_path(out, node);
        else
            emit_text(out, node->text);
    }
}

static int64_t integer_at(const void *data, uint32_t size)
{
    switch (size) {
    case 1:
        return *(const int8_t *)data;
    case 2:
        return *(const int16_t *)data;
    case 4:
        return *(const int32_t *)data;
    default:
        return *(const int64_t *)data;
    }
}

static void emit_data_scalar(FILE *out, const cyaml_schema_value_t *schema, const void *data)
{
    switch (schema->type) {
    case CYAML_BOOL:
        fputs(*(const bool *)data ? "true" : "false", out);
        break;
    case CYAML_INT:
        fprintf(out, "%lld", (long long)integer_at(data, schema->data_size));
        break;
    case CYAML_FLOAT:
        fprintf(out, "%.17g", *(const double *)data);
        break;
    case CYAML_ENUM:
        for (uint32_t i = 0; i < schema->enumeration.count; i++)
            if (schema->enumeration.strings[i].val == integer_at(data, schema->data_size))
                emit_text(out, schema->enumeration.strings[i].str);
        break;
    default:
        emit_text(out, data);
    }
}

static void emit_list(FILE *out, const cyaml_schema_field_t *field, const char *base, const Node *node)
{
    const cyaml_schema_value_t *entry = field->value.sequence.entry;
    fputc('[', out);
    if (node) {
        for (const Node *item = node->first; item; item = item->next) {
            emit_node_scalar(out, entry, NULL, item);
            if (item->next) fputs(", ", out);
        }
    } else {
        int64_t count = integer_at(base + field->count_offset, field->count_size);
        for (int64_t i = 0; i < count; i++) {
            if (i) fputs(", ", out);
            emit_data_scalar(out, entry, base + field->data_offset + (size_t)i * entry->data_size);
        }
    }
    fputc(']', out);
}

static void emit_map(FILE *out, const cyaml_schema_field_t *fields, const FieldLimit *limits, const char *base,
                     const Node *map, int indent)
{
    fputs("{\n", out);
    for (int i = 0; fields[i].key; i++) {
        const cyaml_schema_value_t *value = &fields[i].value;
        const Node *node = map ? tree_child(map, fields[i].key) : NULL;
        fprintf(out, "%s%*s\"%s\": ", i ? ",\n" : "", indent + 2, "", fields[i].key);
        if (value->type == CYAML_MAPPING)
            emit_map(out, value->mapping.fields, limits[i].fields, base + fields[i].data_offset, node, indent + 2);
        else if (value->type == CYAML_SEQUENCE)
            emit_list(out, &fields[i], base, node);
        else if (node)
            emit_node_scalar(out, value, &limits[i], node);
        else
            emit_data_scalar(out, value, base + fields[i].data_offset);
    }
    fprintf(out, "\n%*s}", indent, "");
}

static Status leaf_text(const cyaml_schema_field_t *field, const char *base, Arena *arena, const char **text_out)
{
    size_t size = 0;
    char *text = NULL;
    FILE *out = open_memstream(&text, &size);
    if (!out) return status_fail(ERR_MEMORY, "the experiment: out of memory");
    if (field->value.type == CYAML_SEQUENCE)
        emit_list(out, field, base, NULL);
    else
        emit_data_scalar(out, &field->value, base + field->data_offset);
    bool whole = fclose(out) == 0;
    *text_out = whole ? arena_strdup(arena, text) : NULL;
    free(text);
    return *text_out ? OK : status_fail(ERR_MEMORY, "the experiment: out of memory");
}

static bool listed(const char *key, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(key, *list) == 0) return true;
    return false;
}

static Status compare(const cyaml_schema_field_t *fields, const FieldLimit *limits, const char *section, const char *a,
                      const char *b, const char *const *but, Arena *arena, ConfigDifference *out)
{
    for (int i = 0; fields[i].key && !out->key; i++) {
        const cyaml_schema_value_t *value = &fields[i].value;
        char *key = arena_printf(arena, "%s%s%s", section, *section ? "." : "", fields[i].key);
        if (!key) return status_fail(ERR_MEMORY, "the experiment: out of memory");
        if (listed(key, but)) continue;
        if (value->type == CYAML_MAPPING) {
            TRY(compare(value->mapping.fields, limits[i].fields, key, a + fields[i].data_offset,
                        b + fields[i].data_offset, but, arena, out));
            continue;
        }
        const char *path = limits[i].text == TEXT_PATH ? b + fields[i].data_offset : "";
        if (*path && access(path, F_OK) != 0) continue;
        TRY(leaf_text(&fields[i], a, arena, &out->a));
        TRY(leaf_text(&fields[i], b, arena, &out->b));
        if (strcmp(out->a, out->b) != 0) out->key = key;
    }
    return OK;
}

Status config_compare(const Config *a, const Config *b, const char *const *but, Arena *arena,
                      ConfigDifference *difference_out)
{
    *difference_out = (ConfigDifference){0};
    return compare(config_schema.mapping.fields, config_limits, "", (const char *)a, (const char *)b, but, arena,
                   difference_out);
}

Status config_emit(const Config *config, const Node *root, char **text_out)
{
    size_t size = 0;
    char *text = NULL;
    FILE *out = open_memstream(&text, &size);
    if (!out) return status_fail(ERR_MEMORY, "the experiment: out of memory");
    emit_map(out, config_schema.mapping.fields, config_limits, (const char *)config, root, 0);
    fputc('\n', out);
    if (fclose(out) != 0) {
        free(text);
        return status_fail(ERR_MEMORY, "the experiment: out of memory");
    }
    *text_out = text;
    return OK;
}
