/* Chakra execution traces: length-prefixed protobuf messages, written by hand (a GlobalMetadata, then the nodes). Field
 * numbers: MLCommons Chakra, schema/protobuf/et_def.proto. */
#include "analysis/trace.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* NodeType and CollectiveCommType of the schema */
enum { COMP_NODE = 4, COMM_COLL_NODE = 7 };
static const int COMM_TYPE[COLLECTIVE_COUNT] = {[COLLECTIVE_ALL_REDUCE] = 0,
                                                [COLLECTIVE_ALL_GATHER] = 2,
                                                [COLLECTIVE_BROADCAST] = 5,
                                                [COLLECTIVE_ALL_TO_ALL] = 6,
                                                [COLLECTIVE_REDUCE_SCATTER] = 7};
/* Node */
enum { NODE_ID = 1, NODE_NAME = 2, NODE_TYPE = 3, NODE_DATA_DEPS = 5, NODE_DURATION = 7, NODE_ATTR = 10 };
/* AttributeProto */
enum { ATTR_NAME = 1, ATTR_INT64 = 9, ATTR_UINT64 = 13, ATTR_BOOL = 27, ATTR_STRING = 29 };
enum { WIRE_VARINT = 0, WIRE_BYTES = 2 };

typedef struct Message {
    unsigned char *data;
    size_t used, capacity;
    bool failed;
} Message;

static void put_byte(Message *m, unsigned char byte)
{
    if (m->used == m->capacity) {
        size_t capacity = m->capacity ? m->capacity * 2 : 256;
        unsigned char *data = realloc(m->data, capacity);
        if (!data) {
            m->failed = true;
            return;
        }
        m->data = data;
        m->capacity = capacity;
    }
    m->data[m->used++] = byte;
}

static void put_varint(Message *m, uint64_t value)
{
    for (; value > 127; value >>= 7) put_byte(m, (unsigned char)(value | 128));
    put_byte(m, (unsigned char)value);
}

static void put_uint(Message *m, int field, uint64_t value)
{
    put_varint(m, (uint64_t)field << 3 | WIRE_VARINT);
    put_varint(m, value);
}

static void put_bytes(Message *m, int field, const void *data, size_t length)
{
    put_varint(m, (uint64_t)field << 3 | WIRE_BYTES);
    put_varint(m, length);
    for (size_t i = 0; i < length; i++) put_byte(m, ((const unsigned char *)data)[i]);
}

static void put_text(Message *m, int field, const char *text)
{
    put_bytes(m, field, text, strlen(text));
}

/* A nested message is built in `scratch` and copied: its length comes before it. */
static void put_attr(Message *node, Message *scratch, const char *name, int kind, uint64_t value)
{
    scratch->used = 0;
    put_text(scratch, ATTR_NAME, name);
    put_uint(scratch, kind, value);
    put_bytes(node, NODE_ATTR, scratch->data, scratch->used);
}

static void put_attr_text(Message *node, Message *scratch, const char *name, const char *value)
{
    scratch->used = 0;
    put_text(scratch, ATTR_NAME, name);
    put_text(scratch, ATTR_STRING, value);
    put_bytes(node, NODE_ATTR, scratch->data, scratch->used);
}

static void encode_node(const Trace *t, int index, int64_t rank, Message *node, Message *scratch)
{
    const TraceOp *op = &t->op[index];
    node->used = scratch->used = 0;
    put_uint(node, NODE_ID, (uint64_t)index);
    put_text(node, NODE_NAME, op->name);
    put_uint(node, NODE_TYPE, op->comm ? COMM_COLL_NODE : COMP_NODE);
    /* packed repeated field */
    for (int d = 0; d < op->deps; d++) put_varint(scratch, (uint64_t)t->dep[op->first_dep + d]);
    if (op->deps) put_bytes(node, NODE_DATA_DEPS, scratch->data, scratch->used);
    uint64_t micros = (uint64_t)llround(op->duration_s * 1e6);
    put_uint(node, NODE_DURATION, micros > 0 ? micros : 1);
    put_attr(node, scratch, "is_cpu_op", ATTR_BOOL, 0);
    if (!op->comm) {
        put_attr(node, scratch, "num_ops", ATTR_INT64, (uint64_t)op->flops);
        put_attr(node, scratch, "tensor_size", ATTR_UINT64, (uint64_t)op->bytes);
        return;
    }
    int64_t first, stride;
    char group[80];
    int64_t members = trace_group(t, op->group, rank, &first, &stride);
    snprintf(group, sizeof group, "%lld+%lldx%lld", (long long)first, (long long)stride, (long long)members);
    put_attr(node, scratch, "comm_type", ATTR_INT64, (uint64_t)COMM_TYPE[op->collective]);
    put_attr(node, scratch, "comm_size", ATTR_INT64, (uint64_t)op->tensor_bytes);
    put_attr_text(node, scratch, "pg_name", group);
}

static void write_message(FILE *f, const Message *body, Message *prefix)
{
    prefix->used = 0;
    put_varint(prefix, body->used);
    fwrite(prefix->data, 1, prefix->used, f);
    fwrite(body->data, 1, body->used, f);
}

static Status write_rank(const Trace *t, const char *path, int64_t rank)
{
    FILE *f = fopen(path, "wb");
    if (!f) return status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    Message node = {0}, scratch = {0}, prefix = {0};
    put_text(&node, 1, "0.0.4"); /* GlobalMetadata.version */
    write_message(f, &node, &prefix);
    for (int i = 0; i < t->count; i++) {
        encode_node(t, i, rank, &node, &scratch);
        write_message(f, &node, &prefix);
    }
    bool memory = node.failed || scratch.failed || prefix.failed;
    bool bad = ferror(f) != 0;
    if (fclose(f)) bad = true;
    free(node.data);
    free(scratch.data);
    free(prefix.data);
    if (memory) return status_fail_at(ERR_MEMORY, path, 0, "out of memory");
    if (bad) {
        Status status = status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
        unlink(path);
        return status;
    }
    return OK;
}

Status export_chakra(const Trace *trace, const char *folder, const char *name, int64_t ranks)
{
    char path[4096];
    if (ranks < 1 || ranks > trace->dp * trace->dap)
        return status_fail(ERR_USAGE, "export: %lld ranks (expected 1 to %lld)", (long long)ranks,
                           (long long)(trace->dp * trace->dap));
    for (int64_t rank = 0; rank < ranks; rank++) {
        int length = snprintf(path, sizeof path, "%s/%s.%lld.et", folder, name, (long long)rank);
        if (length >= (int)sizeof path) return status_fail(ERR_USAGE, "export: folder name too long");
        TRY(write_rank(trace, path, rank));
    }
    return OK;
}
