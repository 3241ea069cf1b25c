#include "experiments/config_tree.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "engine/input.h"

enum { MAX_BYTES = 1 << 20, MAX_DEPTH = 12 };

typedef struct Reader {
    yaml_parser_t parser;
    Arena *arena;
    const char *source;
    Status code; /* of complaints: ERR_INPUT for a file, ERR_USAGE for an override */
    bool lines;
} Reader;

Status tree_fail(const Node *node, const char *format, ...)
{
    char text[768];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return status_fail_at(node->line ? ERR_INPUT : ERR_USAGE, node->source, node->line, "%s", text);
}

static long line_of(const Reader *r, yaml_mark_t mark)
{
    return r->lines ? (long)mark.line + 1 : 0;
}

static Status next_event(Reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event)) return OK;
    return status_fail_at(r->code, r->source, line_of(r, r->parser.problem_mark), "not valid YAML (found: %s%s%s)",
                          r->parser.problem ? r->parser.problem : "unreadable text", r->parser.context ? ", " : "",
                          r->parser.context ? r->parser.context : "");
}

static Status new_node(Reader *r, NodeKind kind, long line, Node **node_out)
{
    Node *node = arena_alloc(r->arena, sizeof *node);
    if (!node) return status_fail(ERR_MEMORY, "%s: out of memory", r->source);
    *node = (Node){.kind = kind, .source = r->source, .line = line};
    *node_out = node;
    return OK;
}

static Status scalar_text(Reader *r, const yaml_event_t *event, const char **text_out)
{
    const char *bytes = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;
    if (memchr(bytes, '\0', length))
        return status_fail_at(r->code, r->source, line_of(r, event->start_mark), "a text holds a NUL byte");
    *text_out = arena_strndup(r->arena, bytes, length);
    return *text_out ? OK : status_fail(ERR_MEMORY, "%s: out of memory", r->source);
}

static Status read_node(Reader *r, const yaml_event_t *event, int depth, Node **node_out);

static Status read_children(Reader *r, Node *parent, int depth)
{
    yaml_event_type_t end = parent->kind == NODE_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    Node **tail = &parent->first;
    for (;;) {
        yaml_event_t event;
        const char *key = NULL;
        Status status = next_event(r, &event);
        if (status != OK) return status;
        bool done = event.type == end;
        long line = line_of(r, event.start_mark);
        if (!done && parent->kind == NODE_MAP) {
            status = event.type == YAML_SCALAR_EVENT
                         ? scalar_text(r, &event, &key)
                         : status_fail_at(r->code, r->source, line, "a key must be a plain word");
            yaml_event_delete(&event);
            if (status != OK) return status;
            if (tree_child(parent, key))
                return status_fail_at(r->code, r->source, line, "key \"%s\" is given twice (first on line %ld)", key,
                                      tree_child(parent, key)->line);
            TRY(next_event(r, &event));
        }
        Node *child = NULL;
        if (!done) status = read_node(r, &event, depth + 1, &child);
        yaml_event_delete(&event);
        if (done || status != OK) return status;
        child->key = key;
        if (key) child->line = line;
        *tail = child;
        tail = &child->next;
    }
}

static Status read_node(Reader *r, const yaml_event_t *event, int depth, Node **node_out)
{
    long line = line_of(r, event->start_mark);
    if (depth > MAX_DEPTH)
        return status_fail_at(r->code, r->source, line, "nested too deeply (expected at most %d levels)", MAX_DEPTH);
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        TRY(new_node(r, NODE_SCALAR, line, node_out));
        return scalar_text(r, event, &(*node_out)->text);
    case YAML_MAPPING_START_EVENT:
    case YAML_SEQUENCE_START_EVENT:
        TRY(new_node(r, event->type == YAML_MAPPING_START_EVENT ? NODE_MAP : NODE_LIST, line, node_out));
        return read_children(r, *node_out, depth);
    case YAML_ALIAS_EVENT:
        return status_fail_at(r->code, r->source, line, "aliases (*name) are not supported");
    default:
        return status_fail_at(r->code, r->source, line, "not valid YAML (expected a value)");
    }
}

static Status read_document(Reader *r, Node **root_out)
{
    yaml_event_t event;
    Node *root = NULL;
    for (;;) {
        TRY(next_event(r, &event));
        yaml_event_type_t type = event.type;
        Status status = OK;
        if (type == YAML_STREAM_END_EVENT) {
            yaml_event_delete(&event);
            break;
        }
        if (type == YAML_DOCUMENT_START_EVENT && root)
            status = status_fail_at(r->code, r->source, line_of(r, event.start_mark), "a second YAML document");
        else if (type != YAML_STREAM_START_EVENT && type != YAML_DOCUMENT_START_EVENT &&
                 type != YAML_DOCUMENT_END_EVENT)
            status = read_node(r, &event, 0, &root);
        yaml_event_delete(&event);
        if (status != OK) return status;
    }
    if (!root) TRY(new_node(r, NODE_MAP, r->lines ? 1 : 0, &root));
    *root_out = root;
    return OK;
}

static Status tree_parse(const char *text, size_t length, const char *source, bool lines, Arena *arena, Node **root_out)
{
    Reader r = {.arena = arena, .lines = lines, .code = lines ? ERR_INPUT : ERR_USAGE};
    r.source = arena_strdup(arena, source);
    if (!r.source || !yaml_parser_initialize(&r.parser)) return status_fail(ERR_MEMORY, "%s: out of memory", source);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    Status status = read_document(&r, root_out);
    yaml_parser_delete(&r.parser);
    return status;
}

Status tree_read(const char *path, Arena *arena, Node **root_out)
{
    FILE *file;
    TRY(input_open(path, &file));
    char *text = malloc(MAX_BYTES + 1);
    size_t length = text ? fread(text, 1, MAX_BYTES + 1, file) : 0;
    Status status = OK;
    if (!text)
        status = status_fail(ERR_MEMORY, "%s: out of memory", path);
    else if (ferror(file))
        status = status_fail(ERR_IO, "%s: cannot read (%s)", path, strerror(errno));
    else if (length > MAX_BYTES)
        status = status_fail(ERR_INPUT, "%s: not an experiment file (expected at most %d bytes)", path, MAX_BYTES);
    else
        status = tree_parse(text, length, path, true, arena, root_out);
    if (status == OK && (*root_out)->kind != NODE_MAP)
        status = tree_fail(*root_out, "not an experiment file (expected \"key: value\" lines)");
    free(text);
    fclose(file);
    return status;
}

Node *tree_child(const Node *map, const char *key)
{
    for (Node *child = map->kind == NODE_MAP ? map->first : NULL; child; child = child->next)
        if (strcmp(child->key, key) == 0) return child;
    return NULL;
}

const Node *tree_find(const Node *root, const char *path)
{
    const Node *node = root;
    while (node && *path) {
        char key[128];
        size_t length = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)length, path);
        node = tree_child(node, key);
        path += length + (path[length] == '.');
    }
    return node;
}

static Status put(Node *map, char *path, Node *value, const char *source, Arena *arena)
{
    char *dot = strchr(path, '.');
    if (dot) *dot = '\0';
    if (*path == '\0') return status_fail(ERR_USAGE, "%s: an empty key (expected section.key=value)", source);
    Node *child = tree_child(map, path);
    if (!child) {
        child = arena_alloc(arena, sizeof *child);
        if (!child) return status_fail(ERR_MEMORY, "%s: out of memory", source);
        *child = (Node){.kind = NODE_MAP, .source = source, .key = path, .next = map->first};
        map->first = child;
    }
    if (dot) {
        if (child->kind != NODE_MAP) child->first = NULL;
        child->kind = NODE_MAP;
        return put(child, dot + 1, value, source, arena);
    }
    value->key = child->key;
    value->next = child->next;
    *child = *value;
    return OK;
}

Status tree_override(Node *root, const char *assignment, Arena *arena)
{
    const char *equal = strchr(assignment, '=');
    char *source = arena_printf(arena, "--set %s", assignment);
    if (!source) return status_fail(ERR_MEMORY, "--set: out of memory");
    if (!equal) return status_fail(ERR_USAGE, "%s: no value (expected section.key=value)", source);
    char *path = arena_strndup(arena, assignment, (size_t)(equal - assignment));
    if (!path) return status_fail(ERR_MEMORY, "--set: out of memory");
    Node *value = NULL;
    TRY(tree_parse(equal + 1, strlen(equal + 1), source, false, arena, &value));
    if (equal[1] == '\0') {
        value->kind = NODE_SCALAR;
        value->text = "";
    }
    return put(root, path, value, source, arena);
}
