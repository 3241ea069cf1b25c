/* Host memory that is freed as a whole. Blocks grow by doubling; nothing is freed one by one. Not thread-safe:
 * one arena per thread or per object. */
#ifndef FOLDSCALE_ENGINE_ARENA_H
#define FOLDSCALE_ENGINE_ARENA_H

#include <stddef.h>

typedef struct Arena {
    struct ArenaBlock *head;
    size_t total_bytes; /* sum of all blocks, for reports */
} Arena;

/* Zeroed memory aligned to 16 bytes, or NULL when the system is out of memory (bytes 0 gives a valid pointer). */
void *arena_alloc(Arena *arena, size_t bytes);

/* count * size with overflow check; NULL on overflow or out of memory. */
void *arena_array(Arena *arena, size_t count, size_t size);

/* Copies a string of `length` bytes and terminates it. */
char *arena_strndup(Arena *arena, const char *text, size_t length);
char *arena_strdup(Arena *arena, const char *text);

/* printf into the arena; NULL when out of memory. */
char *arena_printf(Arena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Empties the arena but keeps its memory, as one block, if that is at most `most_bytes`: for many short lives of like
 * size without asking the system for pages each time. What was allocated before is gone. */
void arena_reset(Arena *arena, size_t most_bytes);

/* Frees everything; the arena may be used again. A zeroed Arena is a valid empty one. */
void arena_free(Arena *arena);

#endif
