/* A YAML document as a tree that remembers where each piece stands (libcyaml does not). Anchors, aliases, tags and
 * multiple documents are refused: an experiment file needs none, and they can grow without bound. */
#ifndef FOLDSCALE_EXPERIMENTS_CONFIG_TREE_H
#define FOLDSCALE_EXPERIMENTS_CONFIG_TREE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/arena.h"
#include "engine/status.h"

typedef enum NodeKind { NODE_SCALAR, NODE_MAP, NODE_LIST } NodeKind;

typedef struct Node Node;
struct Node {
    NodeKind kind;
    const char *source; /* file, or "--set a.b=c" */
    long line;          /* from 1; 0 for an override */
    const char *key;    /* within a map */
    const char *text;   /* of a scalar */
    Node *first, *next; /* children; sibling */
};

/* Reads at most 1 MB. ERR_IO, ERR_INPUT. An empty file is an empty map. */
Status tree_read(const char *path, Arena *arena, Node **root_out);
/* Puts the value (YAML text) at "a.b.c", replacing what was there. ERR_USAGE. */
Status tree_override(Node *root, const char *assignment, Arena *arena);

Node *tree_child(const Node *map, const char *key);        /* NULL when absent */
const Node *tree_find(const Node *root, const char *path); /* "a.b"; NULL when absent */

/* Fails at the node: ERR_USAGE for an override, ERR_INPUT for a file. */
Status tree_fail(const Node *node, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
