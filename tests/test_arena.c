/* Arenas: alignment, zeroed memory also after a reset, overflow, memory that is kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "engine/arena.h"

static void fill(Arena *arena, int count, size_t bytes)
{
    for (int i = 0; i < count; ++i) {
        unsigned char *memory = arena_alloc(arena, bytes);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 16, 0);
        for (size_t b = 0; b < bytes; ++b) assert_int_equal(memory[b], 0);
        memset(memory, 0xa5, bytes);
    }
}

static void test_reset(void **state)
{
    (void)state;
    Arena arena = {0};
    arena_reset(&arena, 1 << 20); /* of an empty one */
    fill(&arena, 100, 999);
    arena_reset(&arena, 1 << 20);
    size_t kept = arena.total_bytes;
    assert_true(kept >= 100 * 999);
    for (int round = 0; round < 5; ++round) {
        fill(&arena, 100, 999); /* the same again needs nothing new */
        assert_int_equal(arena.total_bytes, kept);
        arena_reset(&arena, 1 << 20);
    }
    fill(&arena, 1, 3 * kept);
    arena_reset(&arena, kept); /* has grown beyond what may be kept */
    assert_int_equal(arena.total_bytes, 0);
    fill(&arena, 10, 1);
    arena_free(&arena);
    assert_int_equal(arena.total_bytes, 0);
}

static void test_limits(void **state)
{
    (void)state;
    Arena arena = {0};
    assert_null(arena_array(&arena, SIZE_MAX / 2, 3));
    assert_null(arena_alloc(&arena, SIZE_MAX - 8));
    assert_non_null(arena_alloc(&arena, 0));
    assert_string_equal(arena_printf(&arena, "%d-%s", 7, "x"), "7-x");
    assert_string_equal(arena_strndup(&arena, "abcdef", 3), "abc");
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reset), cmocka_unit_test(test_limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
