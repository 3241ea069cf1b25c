/* The tree against the schema: keys, types, ranges, each complaint with its line. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "data/date.h"
#include "engine/words.h"
#include "experiments/config_emit.h"
#include "experiments/config_schema.h"

static Status unknown_key(const Node *node, const cyaml_schema_field_t *fields, const char *path)
{
    const char *names[128] = {NULL};
    for (int i = 0; i < 127 && fields[i].key; i++) names[i] = fields[i].key;
    const char *near = cli_nearest(node->key, names);
    if (near)
        return tree_fail(node, "unknown key \"%s\" in %s (did you mean \"%s\"?)", node->key,
                         *path ? path : "the experiment", near);
    WordList expected = {0};
    for (int i = 0; names[i]; i++) words_add(&expected, names[i]);
    return tree_fail(node, "unknown key \"%.60s\" in %s (expected one of %s)", node->key,
                     *path ? path : "the experiment", expected.text);
}

static Status check_number(const Node *node, bool whole, const FieldLimit *limit, const char *path)
{
    char *end = NULL;
    errno = 0;
    double value = whole ? (double)strtoll(node->text, &end, 10) : strtod(node->text, &end);
    if (end == node->text || *end != '\0' || !isfinite(value) || (errno == ERANGE && fabs(value) > 1))
        return tree_fail(node, "%s is not a %snumber (found \"%s\", expected %.10g to %.10g)", path,
                         whole ? "whole " : "", node->text, limit->low, limit->high);
    if (value < limit->low || value > limit->high)
        return tree_fail(node, "%s is out of range (found %s, expected %.10g to %.10g)", path, node->text, limit->low,
                         limit->high);
    return OK;
}

static Status check_bool(const Node *node, const char *path)
{
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(node->text, words[i]) == 0) return OK;
    return tree_fail(node, "%s is a switch (found \"%s\", expected on or off)", path, node->text);
}

static Status check_enum(const Node *node, const cyaml_schema_value_t *schema, const char *path)
{
    WordList expected = {0};
    for (uint32_t i = 0; i < schema->enumeration.count; i++) {
        const char *name = schema->enumeration.strings[i].str;
        if (strcmp(node->text, name) == 0) return OK;
        words_add(&expected, name);
    }
    return tree_fail(node, "%s has an unknown value (found \"%s\", expected one of %s)", path, node->text,
                     expected.text);
}

static Status check_text(const Node *node, const cyaml_schema_value_t *schema, const FieldLimit *limit,
                         const char *path)
{
    if (strlen(node->text) > schema->string.max)
        return tree_fail(node, "%s is too long (found %zu characters, expected at most %u)", path, strlen(node->text),
                         schema->string.max);
    if (limit->text == TEXT_DATE && !date_is_day(node->text, strlen(node->text)))
        return tree_fail(node, "%s is not a date (found \"%s\", expected a day as YYYY-MM-DD)", path, node->text);
    return OK;
}

static Status check_scalar(const Node *node, const cyaml_schema_value_t *schema, const FieldLimit *limit,
                           const char *path)
{
    if (node->kind != NODE_SCALAR) return tree_fail(node, "%s takes a single value", path);
    switch (schema->type) {
    case CYAML_INT:
        return check_number(node, true, limit, path);
    case CYAML_FLOAT:
        return check_number(node, false, limit, path);
    case CYAML_BOOL:
        return check_bool(node, path);
    case CYAML_ENUM:
        return check_enum(node, schema, path);
    default:
        return check_text(node, schema, limit, path);
    }
}

static Status check_list(const Node *node, const cyaml_schema_value_t *schema, const FieldLimit *limit,
                         const char *path)
{
    uint32_t count = 0;
    if (node->kind != NODE_LIST) return tree_fail(node, "%s takes a list, as in [a, b]", path);
    for (const Node *item = node->first; item; item = item->next) {
        TRY(check_scalar(item, schema->sequence.entry, limit, path));
        if (++count > schema->sequence.max)
            return tree_fail(item, "%s has too many entries (expected at most %u)", path, schema->sequence.max);
    }
    return OK;
}

static Status check_map(const Node *map, const cyaml_schema_field_t *fields, const FieldLimit *limits, const char *path)
{
    if (map->kind == NODE_SCALAR && map->text[0] == '\0') return OK; /* "section:" with nothing below */
    if (map->kind != NODE_MAP) return tree_fail(map, "%s takes \"key: value\" lines", *path ? path : "the experiment");
    for (const Node *node = map->first; node; node = node->next) {
        int i = 0;
        char name[160];
        while (fields[i].key && strcmp(fields[i].key, node->key) != 0) i++;
        if (!fields[i].key) return unknown_key(node, fields, path);
        snprintf(name, sizeof name, "%s%s%s", path, *path ? "." : "", node->key);
        const cyaml_schema_value_t *value = &fields[i].value;
        if (value->type == CYAML_MAPPING)
            TRY(check_map(node, value->mapping.fields, limits[i].fields, name));
        else if (value->type == CYAML_SEQUENCE)
            TRY(check_list(node, value, &limits[i], name));
        else
            TRY(check_scalar(node, value, &limits[i], name));
    }
    return OK;
}

Status config_check_tree(const Node *root)
{
    return check_map(root, config_schema.mapping.fields, config_limits, "");
}
