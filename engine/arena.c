#include "engine/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct ArenaBlock {
    struct ArenaBlock *next;
    size_t used, capacity;
    _Alignas(16) unsigned char data[];
} ArenaBlock;

enum { FIRST_BLOCK_BYTES = 1 << 14, LARGEST_STEP_BYTES = 1 << 24 };

/* Zeroed by calloc; arena_reset clears what was used, so that a block is zero wherever it has not been given out. */
static ArenaBlock *add_block(Arena *arena, size_t capacity)
{
    ArenaBlock *block = calloc(1, sizeof *block + capacity);
    if (!block) return NULL;
    block->capacity = capacity;
    block->next = arena->head;
    arena->head = block;
    arena->total_bytes += capacity;
    return block;
}

void *arena_alloc(Arena *arena, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    size_t need = bytes ? (bytes + 15) & ~(size_t)15 : 16;
    ArenaBlock *block = arena->head;
    if (!block || block->capacity - block->used < need) {
        size_t capacity = block ? block->capacity * 2 : FIRST_BLOCK_BYTES;
        if (capacity > LARGEST_STEP_BYTES) capacity = LARGEST_STEP_BYTES;
        if (capacity < need) capacity = need;
        block = add_block(arena, capacity);
        if (!block) return NULL;
    }
    void *memory = block->data + block->used;
    block->used += need;
    return memory;
}

void *arena_array(Arena *arena, size_t count, size_t size)
{
    if (size && count > SIZE_MAX / size) return NULL;
    return arena_alloc(arena, count * size);
}

char *arena_strndup(Arena *arena, const char *text, size_t length)
{
    char *copy = arena_alloc(arena, length + 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

char *arena_strdup(Arena *arena, const char *text)
{
    return arena_strndup(arena, text, strlen(text));
}

char *arena_printf(Arena *arena, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = length < 0 ? NULL : arena_alloc(arena, (size_t)length + 1);
    if (text) vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

void arena_reset(Arena *arena, size_t most_bytes)
{
    size_t total = arena->total_bytes;
    if (arena->head && !arena->head->next && total <= most_bytes) {
        memset(arena->head->data, 0, arena->head->used);
        arena->head->used = 0;
        return;
    }
    arena_free(arena);
    if (total && total <= most_bytes) add_block(arena, total); /* without memory the arena is simply empty */
}

void arena_free(Arena *arena)
{
    while (arena->head) {
        ArenaBlock *next = arena->head->next;
        free(arena->head);
        arena->head = next;
    }
    arena->total_bytes = 0;
}
