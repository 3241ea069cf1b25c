/* Liveness -> one offset per temporary in one arena.
 *
 * A value lives from the op that writes it to the last op that touches it or an alias of it; outputs live to the end. A
 * collective that was split into start and COMM_WAIT reads and writes its operands until the wait, and so does a group
 * of ops aside. Offsets are handed out in program order, best fit among the holes, as ggml's allocator and tinygrad's
 * memory planner do. */
#include "engine/passes.h"

#include <stdlib.h>
#include <string.h>

#include "engine/array.h"
#include "engine/passes/aside.h"

enum { PLAN_ALIGN = 256 };

typedef struct Hole {
    size_t offset, bytes;
} Hole;

/* Holes below `top`, ascending and never adjacent to one another. */
typedef struct Heap {
    Hole *hole;
    int n, cap;
    size_t top;
} Heap;

static Status heap_insert(Heap *heap, int at, Hole hole)
{
    TRY(array_reserve((void **)&heap->hole, &heap->cap, heap->n + 1, sizeof *heap->hole, "holes of the plan"));
    memmove(heap->hole + at + 1, heap->hole + at, (size_t)(heap->n - at) * sizeof *heap->hole);
    heap->hole[at] = hole;
    heap->n++;
    return OK;
}

static void heap_remove(Heap *heap, int at)
{
    heap->n--;
    memmove(heap->hole + at, heap->hole + at + 1, (size_t)(heap->n - at) * sizeof *heap->hole);
}

static size_t heap_take(Heap *heap, size_t bytes)
{
    int best = -1;
    for (int i = 0; i < heap->n; i++)
        if (heap->hole[i].bytes >= bytes && (best < 0 || heap->hole[i].bytes < heap->hole[best].bytes)) best = i;
    if (best >= 0) {
        Hole *hole = &heap->hole[best];
        size_t offset = hole->offset;
        hole->offset += bytes;
        hole->bytes -= bytes;
        if (!hole->bytes) heap_remove(heap, best);
        return offset;
    }
    size_t offset = heap->top;
    heap->top += bytes;
    return offset;
}

static Status heap_give(Heap *heap, size_t offset, size_t bytes)
{
    int low = 0, high = heap->n;
    while (low < high) {
        int middle = (low + high) / 2;
        if (heap->hole[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    bool joins_left = low > 0 && heap->hole[low - 1].offset + heap->hole[low - 1].bytes == offset;
    bool joins_right = low < heap->n && offset + bytes == heap->hole[low].offset;
    if (joins_left && joins_right) {
        heap->hole[low - 1].bytes += bytes + heap->hole[low].bytes;
        heap_remove(heap, low);
    } else if (joins_left) {
        heap->hole[low - 1].bytes += bytes;
    } else if (joins_right) {
        heap->hole[low].offset = offset;
        heap->hole[low].bytes += bytes;
    } else {
        TRY(heap_insert(heap, low, (Hole){offset, bytes}));
    }
    Hole *last = &heap->hole[heap->n - 1];
    if (last->offset + last->bytes == heap->top) {
        heap->top = last->offset;
        heap->n--;
    }
    return OK;
}

/* What is known about the memory of a root (a value that is no alias). next_*: singly linked lists per op. */
typedef struct Life {
    int32_t first, last; /* op indices, -1 = not touched */
    int32_t next_born, next_dead;
} Life;

static Val root_of(const Program *p, Val v)
{
    while (p->value[v].alias != VAL_NONE) v = p->value[v].alias;
    return v;
}

static void touch(const Program *p, Life *life, Val v, int32_t at)
{
    if (v == VAL_NONE) return;
    Val root = root_of(p, v);
    if (p->value[root].place != PLACE_ARENA) return;
    if (life[root].first < 0) life[root].first = at;
    if (at > life[root].last) life[root].last = at;
}

/* starter[v]: op that started the transfer which value v waits for */
static void find_lives(const Program *p, Life *life, int32_t *starter)
{
    for (int32_t v = 0; v < p->n_values; v++) {
        life[v] = (Life){-1, -1, -1, -1};
        starter[v] = -1;
    }
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        for (int k = 0; k < op->n_in; k++) touch(p, life, op->in[k], i);
        for (int k = 0; k < op->n_out; k++) touch(p, life, op->out[k], i);
        if (op->kind == OP_COMM_WAIT) {
            int32_t start = starter[op->in[0]];
            if (start < 0) continue;
            const Op *began = &p->op[start];
            for (int k = 0; k < began->n_in; k++) touch(p, life, began->in[k], i);
        } else if (op->stream == STREAM_COMM && op->n_out > 0 && op->out[0] != VAL_NONE) {
            starter[op->out[0]] = i;
        }
    }
    for (int32_t v = 0; v < p->n_values; v++)
        if (p->value[v].output) touch(p, life, v, p->n_ops);
}

static void keep_for_groups(const Program *p, Life *life)
{
    int32_t first = 0, end;
    for (int32_t i = 0; i <= p->n_ops; i++)
        for (int left = i < p->n_ops ? p->op[i].joins : p->n_ops; left > 0 && aside_next(p, &first, &end); left--)
            for (; first < end; first++) {
                const Op *op = &p->op[first];
                for (int k = 0; k < op->n_in; k++) touch(p, life, op->in[k], i);
                for (int k = 0; k < op->n_out; k++) touch(p, life, op->out[k], i);
            }
}

/* Outputs that their op may leave out and nobody reads are not written. */
static void drop_unread(Program *p, Life *life)
{
    for (int32_t i = 0; i < p->n_ops; i++) {
        Op *op = &p->op[i];
        for (int k = 0; k < op->n_out; k++) {
            Val v = op->out[k];
            if (v == VAL_NONE || !(op_def(op->kind)->optional_out >> k & 1)) continue;
            if (op->send.active && op->send.output == k) continue; /* the other ranks wait for it */
            if (p->value[v].place != PLACE_ARENA || p->value[v].alias != VAL_NONE || life[v].last != i) continue;
            op->out[k] = VAL_NONE;
            p->value[v].def_op = -1;
            life[v] = (Life){-1, -1, -1, -1};
        }
    }
}

static size_t padded_bytes(const Tensor *t)
{
    size_t bytes = (tensor_bytes(t) + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
    return bytes ? bytes : PLAN_ALIGN;
}

static Status assign_offsets(Program *p, Life *life, int32_t *born, int32_t *dead, Heap *heap)
{
    for (int32_t i = 0; i <= p->n_ops; i++) born[i] = dead[i] = VAL_NONE;
    for (int32_t v = p->n_values - 1; v >= 0; v--) { /* backwards: the lists come out ascending */
        if (life[v].first < 0) continue;
        life[v].next_born = born[life[v].first];
        born[life[v].first] = v;
        life[v].next_dead = dead[life[v].last];
        dead[life[v].last] = v;
    }
    for (int32_t i = 0; i <= p->n_ops; i++) {
        for (int32_t v = born[i]; v != VAL_NONE; v = life[v].next_born)
            p->value[v].offset = (int64_t)heap_take(heap, padded_bytes(&p->value[v].t));
        for (int32_t v = dead[i]; v != VAL_NONE; v = life[v].next_dead)
            TRY(heap_give(heap, (size_t)p->value[v].offset, padded_bytes(&p->value[v].t)));
    }
    p->arena_bytes = 0;
    for (int32_t v = 0; v < p->n_values; v++) {
        Val root = root_of(p, v);
        if (p->value[root].place != PLACE_ARENA || life[root].first < 0) continue;
        p->value[v].offset = p->value[root].offset;
        size_t end = (size_t)p->value[v].offset + tensor_bytes(&p->value[v].t);
        if (end > p->arena_bytes) p->arena_bytes = end;
    }
    return OK;
}

Status pass_plan(const Program *in, const Switches *switches, Program **out)
{
    (void)switches;
    Program *p = NULL;
    TRY(prog_clone(in, &p));
    Heap heap = {0};
    size_t values = (size_t)p->n_values + 1, ops = (size_t)p->n_ops + 1;
    Life *life = malloc(values * sizeof *life);
    int32_t *starter = malloc(values * sizeof *starter);
    int32_t *born = malloc(ops * sizeof *born), *dead = malloc(ops * sizeof *dead);
    Status status = OK;
    if (!life || !starter || !born || !dead) {
        status = status_fail(ERR_MEMORY, "out of memory while planning %d ops", p->n_ops);
    } else {
        find_lives(p, life, starter);
        drop_unread(p, life);
        keep_for_groups(p, life);
        status = assign_offsets(p, life, born, dead, &heap);
    }
    free(life);
    free(starter);
    free(born);
    free(dead);
    free(heap.hole);
    if (status != OK)
        prog_destroy(&p);
    else
        *out = p;
    return status;
}
