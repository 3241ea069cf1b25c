/* Packs: the first byte chooses what the rest is: 'c' a decoded chain record, 'a' a decoded alignment record, 'r' a
 * whole file whose checksums are made right first (or nothing behind them would be seen), else a whole file. Whatever
 * decodes is used as the feature pipeline would. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "data/features.h"
#include "data/pack.h"
#include "data/pack_format.h"
#include "data/pack_record.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void use(const Chain *chain, const PreparedMsa *msa)
{
    const BatchSizes sizes = {16, 4, 4, 1, 1};
    FeatureConfig config = feature_config_default();
    FeatureWorkspace *workspace = NULL;
    Batch *batch = NULL;
    SampleInput input = {chain, msa, NULL};
    Draws draws = {.seed = 1};
    if (feature_workspace_create(&workspace) == OK && batch_create(&sizes, NULL, 0, &batch) == OK)
        (void)features_build(&input, &config, 1, &draws, workspace, batch);
    batch_destroy(&batch);
    feature_workspace_destroy(&workspace);
}

static void try_chain(ByteReader *reader, Arena *arena)
{
    Chain chain;
    if (pack_get_chain("fuzz", reader, arena, &chain) != OK || chain.length < 1) return;
    Msa one = {.rows = 1, .columns = chain.length};
    PreparedMsa msa;
    one.hhblits_id = arena_alloc(arena, (size_t)chain.length);
    one.deletions = arena_array(arena, (size_t)chain.length, sizeof *one.deletions);
    if (one.hhblits_id && one.deletions && msa_prepare(&one, arena, &msa) == OK) use(&chain, &msa);
}

static void try_alignment(ByteReader *reader, Arena *arena)
{
    PreparedMsa msa;
    TemplateHits hits;
    if (pack_get_alignment("fuzz", reader, arena, &msa, &hits) != OK || msa.columns < 1 || msa.columns > 4096) return;
    Chain chain = {.length = msa.columns};
    chain.aatype = arena_alloc(arena, (size_t)chain.length);
    chain.residue_index = arena_array(arena, (size_t)chain.length, sizeof *chain.residue_index);
    chain.positions = arena_array(arena, (size_t)chain.length * ATOM37_COUNT, 3 * sizeof *chain.positions);
    chain.mask = arena_alloc(arena, (size_t)chain.length * ATOM37_COUNT);
    if (chain.aatype && chain.residue_index && chain.positions && chain.mask) use(&chain, &msa);
}

static void store_u32(unsigned char *out, uint32_t value)
{
    for (int i = 0; i < 4; ++i) out[i] = (unsigned char)(value >> (8 * i));
}

/* The head at `at`, as data/pack_file.h describes it. */
static void repair_record(unsigned char *file, uint64_t size, uint64_t at)
{
    enum { AT_NAME = 12, AT_STORED = 16, AT_CONTENT_CRC = 48, AT_HEAD_CRC = 52 };
    if (at > size || size - at < PACK_HEAD_SIZE) return;
    unsigned char *head = file + at, *name = head + PACK_HEAD_SIZE;
    uint64_t left = size - at - PACK_HEAD_SIZE, stored = pack_load_u64(head + AT_STORED);
    uint64_t name_length = pack_load_u64(head + AT_NAME) & UINT32_MAX;
    if (name_length > left || stored > left - name_length) return;
    store_u32(head + AT_CONTENT_CRC, pack_crc(name + name_length, stored));
    uint32_t crc = (uint32_t)crc32_z(crc32_z(0, head, AT_HEAD_CRC), name, name_length);
    store_u32(head + AT_HEAD_CRC, crc);
}

static void repair(unsigned char *file, uint64_t size)
{
    enum { MOST_RECORDS = 1000 };
    if (size < PACK_MAGIC_SIZE + 8 + PACK_TAIL_SIZE) return;
    uint64_t index = pack_load_u64(file + size - 16), count = pack_load_u64(file + size - 8);
    if (count > MOST_RECORDS || index > size || size - index < count * 8 + 8) return;
    for (uint64_t i = 0; i < count; ++i) repair_record(file, size, pack_load_u64(file + index + i * 8));
    pack_store_u64(file + index + count * 8, pack_crc(file + index, count * 8));
}

static void try_file(const uint8_t *bytes, size_t size)
{
    char path[64];
    int handle = memfd_create("fuzz_pack", 0);
    PackReport report;
    int64_t damaged;
    if (handle < 0) return;
    if (write(handle, bytes, size) == (ssize_t)size) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", handle);
        (void)pack_verify(path, NULL, &report, &damaged);
    }
    close(handle);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    Arena arena = {0};
    if (size < 1) return 0;
    unsigned char *copy = arena_alloc(&arena, size - 1); /* aligned as a decompressed record is */
    if (!copy) return 0;
    if (size > 1) memcpy(copy, bytes + 1, size - 1);
    ByteReader reader = {.data = copy, .size = size - 1};
    if (bytes[0] == 'c')
        try_chain(&reader, &arena);
    else if (bytes[0] == 'a')
        try_alignment(&reader, &arena);
    else if (bytes[0] == 'r')
        repair(copy, size - 1);
    if (bytes[0] != 'c' && bytes[0] != 'a') try_file(copy, size - 1);
    arena_free(&arena);
    return 0;
}
