/* Random damage with a fixed seed: bytes of real and corpus files changed, removed, doubled, moved; files cut. Every
 * reader must fail or keep its promises (reader_trials.h); run it under the sanitizers to see more. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "data/folder.h"
#include "tests/reader_trials.h"
#include "tests/source_dir.h"

enum { LARGEST_FILE = 700000 };

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t bound)
{
    return bound ? (size_t)(next_random(state) % bound) : 0;
}

/* One edit in place; `bytes` has room for twice the size. */
static size_t damage(char *bytes, size_t size, uint64_t *state)
{
    static const char interesting[] = "\n\r\t ;'\"#_.?->{}[]:,0123456789-+eE\0\377Aa";
    size_t at = below(state, size), length = below(state, 40), from = below(state, size);
    if (length > size - at) length = size - at;
    if (length > size - from) length = size - from;
    switch (below(state, 7)) {
    case 0: /* another character */
    case 1:
        if (size) bytes[at] = interesting[below(state, sizeof interesting - 1)];
        return size;
    case 2: /* a flipped bit */
        if (size) bytes[at] ^= (char)(1 << below(state, 8));
        return size;
    case 3: /* a piece removed */
        memmove(bytes + at, bytes + at + length, size - at - length);
        return size - length;
    case 4: /* a piece doubled */
        memmove(bytes + at + length, bytes + at, size - at);
        return size + length;
    case 5: /* a piece over another */
        memmove(bytes + at, bytes + from, length);
        return size;
    default:
        return below(state, 20) ? size : at; /* seldom: cut */
    }
}

static void damage_file(const char *path, bool (*trial)(const Text *), int rounds)
{
    enum { MOST_EDITS = 8 };
    Text text = {0};
    char *bytes = malloc(2 * LARGEST_FILE);
    assert_non_null(bytes);
    /* the bytes as they are on disk: compressed files are damaged as such */
    FILE *stream = fopen(path, "rb");
    assert_non_null(stream);
    size_t original = fread(bytes, 1, LARGEST_FILE, stream);
    fclose(stream);
    char *copy = malloc(2 * LARGEST_FILE);
    assert_non_null(copy);
    uint64_t state = original;
    long read = 0;
    for (int round = 0; round < rounds; round++) {
        size_t size = original;
        memcpy(copy, bytes, original);
        for (size_t edits = 1 + below(&state, MOST_EDITS); edits && size + 40 < 2 * LARGEST_FILE; edits--)
            size = damage(copy, size, &state);
        assert_int_equal(text_from_bytes(path, copy, size, &text), OK);
        read += trial(&text);
        text_close(&text);
    }
    print_message("%s: %d damaged copies, %ld still readable\n", path, rounds, read);
    free(copy);
    free(bytes);
}

static void damage_folder(const char *folder, bool (*trial)(const Text *), int rounds)
{
    char path[1024];
    Arena arena = {0};
    FolderList files;
    snprintf(path, sizeof path, "%s/%s", source_dir(), folder);
    assert_int_equal(folder_list(path, &arena, &files), OK);
    assert_true(files.count > 0);
    for (int64_t i = 0; i < files.count; i++) {
        char *file = arena_printf(&arena, "%s/%s", path, files.name[i]);
        assert_non_null(file);
        damage_file(file, trial, rounds);
    }
    arena_free(&arena);
}

static void test_mmcif(void **state)
{
    (void)state;
    damage_folder("tests/corpus/mmcif", trial_mmcif, 3000);
    damage_folder("data/examples/mmcif", trial_mmcif, 100);
}

static void test_alignments(void **state)
{
    (void)state;
    damage_folder("tests/corpus/a3m", trial_a3m, 3000);
    damage_folder("tests/corpus/sto", trial_sto, 3000);
    damage_folder("data/examples/alignments/1gbt_A", trial_a3m, 300);
    damage_folder("data/examples/alignments/2q2k_A", trial_sto, 600);
}

static void test_hits_and_lists(void **state)
{
    (void)state;
    damage_folder("tests/corpus/hhr", trial_hhr, 6000);
    damage_folder("tests/corpus/index", trial_index, 3000);
    damage_folder("tests/corpus/json", trial_json, 3000);
    damage_folder("tests/corpus/lists", trial_lists, 3000);
}

static void test_containers(void **state)
{
    (void)state;
    damage_folder("tests/corpus/gzip", trial_gzip, 2000);
    damage_folder("tests/corpus/safetensors", trial_safetensors, 2000);
}

/* Files that are whole must be read: the trials above would also pass if nothing ever were. */
static void test_corpus_is_readable(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        bool (*trial)(const Text *);
    } files[] = {{"mmcif/small.cif", trial_mmcif},    {"a3m/small.a3m", trial_a3m},
                 {"sto/blocks.sto", trial_sto},       {"hhr/small.hhr", trial_hhr},
                 {"index/super.index", trial_index},  {"index/0.index", trial_index},
                 {"json/chain.json", trial_json},     {"json/mmcif.json", trial_json},
                 {"lists/obsolete.dat", trial_lists}, {"safetensors/small.safetensors", trial_safetensors}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[1024];
        Text text = {0};
        snprintf(path, sizeof path, "%s/tests/corpus/%s", source_dir(), files[i].file);
        assert_int_equal(text_read(path, &text), OK);
        if (!files[i].trial(&text)) fail_msg("%s: %s", files[i].file, status_text());
        text_close(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_corpus_is_readable), cmocka_unit_test(test_mmcif),      cmocka_unit_test(test_alignments),
        cmocka_unit_test(test_hits_and_lists),     cmocka_unit_test(test_containers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
