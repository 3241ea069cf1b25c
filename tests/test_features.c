/* Draws, batches and the feature pipeline on small made-up inputs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/residue.h"
#include "data/transform.h"

/* --- draws -------------------------------------------------------------------------------------------------------- */

static void test_permutations(void **state)
{
    (void)state;
    enum { N = 1000 };
    int32_t first[N], second[N];
    char seen[N] = {0};
    int64_t fixed = 0;
    Draws draws = {.seed = 1, .epoch = 2, .index = 3};
    assert_int_equal(draws_permutation(&draws, DRAW_MSA_PERMUTATION, 1, N, first), OK);
    assert_int_equal(draws_permutation(&draws, DRAW_MSA_PERMUTATION, 1, N, second), OK);
    assert_memory_equal(first, second, sizeof first);
    for (int i = 0; i < N; ++i) ++seen[first[i]];
    for (int i = 0; i < N; ++i) assert_int_equal(seen[i], 1);
    for (int i = 0; i < N; ++i) fixed += first[i] == i;
    assert_true(fixed < 10); /* Poisson with mean 1 */
    /* every part of the key matters */
    const Draws other[4] = {{2, 2, 3, NULL}, {1, 3, 3, NULL}, {1, 2, 4, NULL}, {1, 2, 3 + ((uint64_t)1 << 40), NULL}};
    for (int i = 0; i < 4; ++i) {
        assert_int_equal(draws_permutation(&other[i], DRAW_MSA_PERMUTATION, 1, N, second), OK);
        assert_memory_not_equal(first, second, sizeof first);
    }
    assert_int_equal(draws_permutation(&draws, DRAW_MSA_PERMUTATION, 2, N, second), OK);
    assert_memory_not_equal(first, second, sizeof first);
    assert_int_equal(draws_permutation(&draws, DRAW_EXTRA_PERMUTATION, 1, N, second), OK);
    assert_memory_not_equal(first, second, sizeof first);
}

static void test_uniforms(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float all[N], part[N];
    Draws draws = {.seed = 9};
    double sum = 0.0, squares = 0.0;
    assert_int_equal(draws_uniform_f32(&draws, DRAW_MASK, 0, 0, N, all), OK);
    assert_int_equal(draws_uniform_f32(&draws, DRAW_MASK, 0, 1237, 500, part), OK);
    assert_memory_equal(all + 1237, part, 500 * sizeof *part); /* random access gives the same numbers */
    for (int64_t i = 0; i < N; ++i) {
        double value;
        assert_int_equal(draws_uniform_f64(&draws, DRAW_REPLACE, 0, i, &value), OK);
        assert_true(value >= 0.0 && value < 1.0);
        sum += value;
        squares += value * value;
    }
    assert_true(fabs(sum / N - 0.5) < 5 * sqrt(1.0 / 12 / N));
    assert_true(fabs(squares / N - 1.0 / 3) < 5 * sqrt(4.0 / 45 / N));
    int counts[4] = {0};
    for (int64_t i = 0; i < N; ++i) {
        int64_t value;
        draws.index = (uint64_t)i;
        assert_int_equal(draws_integer(&draws, DRAW_TEMPLATE_CROP, 0, 3, &value), OK);
        assert_in_range(value, 0, 3);
        ++counts[value];
    }
    for (int k = 0; k < 4; ++k) assert_true(abs(counts[k] - N / 4) < 5 * 28); /* sqrt(N 3/16) = 28 */
}

static Status read_wrong(void *context, DrawPurpose purpose, int copy, int64_t first, int64_t count, double *out)
{
    (void)purpose;
    (void)copy;
    for (int64_t i = 0; i < count; ++i) out[i] = ((const double *)context)[first + i];
    return OK;
}

static Status size_three(void *context, DrawPurpose purpose, int copy, int64_t *size_out)
{
    (void)context;
    (void)purpose;
    (void)copy;
    *size_out = 3;
    return OK;
}

static void test_recorded(void **state)
{
    (void)state;
    double good[3] = {2, 0, 1}, twice[3] = {1, 1, 0}, far[3] = {0, 1, 3}, bad[3] = {NAN, 0, 1};
    int32_t out[3];
    int64_t value;
    DrawSource source = {good, read_wrong, size_three};
    Draws draws = {.given = &source};
    assert_int_equal(draws_permutation(&draws, DRAW_MSA_PERMUTATION, 0, 3, out), OK);
    assert_true(out[0] == 2 && out[1] == 0 && out[2] == 1);
    assert_int_equal(draws_permutation(&draws, DRAW_MSA_PERMUTATION, 0, 4, out), ERR_INPUT);
    double *const wrong[3] = {twice, far, bad};
    for (int i = 0; i < 3; ++i) {
        source.context = wrong[i];
        assert_int_equal(draws_permutation(&draws, DRAW_MSA_PERMUTATION, 0, 3, out), ERR_INPUT);
    }
    source.context = good;
    assert_int_equal(draws_integer(&draws, DRAW_RESIDUE_CROP, 0, 1, &value), ERR_INPUT);
    assert_int_equal(draws_integer(&draws, DRAW_RESIDUE_CROP, 0, 2, &value), OK);
    assert_int_equal(value, 2);
}

/* --- batches ------------------------------------------------------------------------------------------------------ */

static void test_batch_memory(void **state)
{
    (void)state;
    const BatchSizes sizes = {32, 8, 16, 2, 3};
    size_t bytes;
    Batch *batch = NULL;
    assert_int_equal(batch_bytes(&sizes, &bytes), OK);
    char *memory = aligned_alloc(256, bytes);
    assert_non_null(memory);
    assert_int_equal(batch_create(&sizes, memory, bytes - 1, &batch), ERR_USAGE);
    assert_int_equal(batch_create(&sizes, memory, bytes, &batch), OK);
    size_t end = 0;
    for (int i = 0; i < FEATURE_COUNT; ++i) {
        const BatchTensor *f = &batch->feature[i];
        size_t from = (size_t)((char *)f->data - memory);
        assert_true(from % 256 == 0 && from >= end);
        end = from + (size_t)f->count * 4 * (f->per_copy ? 3 : 1);
        assert_ptr_equal(batch_find(batch, f->name), f);
        assert_ptr_equal(batch_data(f, 2), (char *)f->data + (f->per_copy ? (size_t)f->count * 8 : 0));
    }
    assert_true(end <= bytes);
    assert_null(batch_find(batch, "no_such_feature"));
    batch_destroy(&batch);
    free(memory);
    static const BatchSizes wrong[] = {{0, 8, 16, 2, 1},   {32, 0, 16, 2, 1}, {32, 8, -1, 2, 1},
                                       {32, 8, 16, -1, 1}, {32, 8, 16, 2, 0}, {32, 8, 16, 2, 65}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; ++i)
        assert_int_equal(batch_create(&wrong[i], NULL, 0, &batch), ERR_USAGE);
}

/* Names, types and default shapes are those of spec/features.csv. */
static void test_against_specification(void **state)
{
    (void)state;
    const char *shared = getenv("FOLDSCALE_SHARED");
    char path[4096], line[1024];
    snprintf(path, sizeof path, "%s/spec/features.csv", shared ? shared : "../shared");
    FILE *file = fopen(path, "r");
    if (!file) {
        print_message("%s is not there\n", path);
        skip();
    }
    const BatchSizes sizes = {256, 124, 1024, 4, 1};
    Batch *batch = NULL;
    int rows = 0;
    assert_int_equal(batch_create(&sizes, NULL, 0, &batch), OK);
    assert_non_null(fgets(line, sizeof line, file));
    while (fgets(line, sizeof line, file)) {
        char name[64], shape[64], type[16], differs[8];
        if (sscanf(line, "%63[^,],%*[^,],%63[^,],%15[^,],%7[^,]", name, shape, type, differs) != 4) continue;
        const BatchTensor *f = batch_find(batch, name);
        if (!f) fail_msg("no feature %s", name);
        ++rows;
        assert_int_equal(f->tensor.dtype, strcmp(type, "int64") == 0 ? DT_I32 : DT_F32);
        assert_int_equal(f->per_copy, strcmp(differs, "yes") == 0);
        char *at = shape;
        assert_int_equal(strtol(at, &at, 10), 1); /* batch axis */
        for (int axis = 0; axis < f->tensor.rank; ++axis) assert_int_equal(strtol(at, &at, 10), f->tensor.dim[axis]);
        assert_int_equal(strtol(at, &at, 10), 4); /* recycling axis */
        assert_true(*at == '\0');
    }
    assert_int_equal(rows, FEATURE_COUNT);
    fclose(file);
    batch_destroy(&batch);
}

/* --- pipeline ----------------------------------------------------------------------------------------------------- */

typedef struct Inputs {
    Arena arena;
    Chain chain;
    PreparedMsa msa;
    TemplateFeatures templates;
} Inputs;

static uint64_t bits(uint64_t index)
{
    Draws draws = {.seed = 123, .index = index};
    return draws_bits(&draws, DRAW_SYNTH, 0, 0);
}

static void make_atoms(float *positions, uint8_t *mask, int64_t atoms, uint64_t salt)
{
    for (int64_t a = 0; a < atoms; ++a) {
        mask[a] = bits(salt + (uint64_t)a) % 4 != 0;
        for (int k = 0; k < 3; ++k)
            positions[a * 3 + k] = mask[a] ? (float)(bits(salt + (uint64_t)(a * 3 + k)) % 10000) / 100.0f : 0.0f;
    }
}

static Inputs *make_inputs(int64_t length, int64_t rows, int64_t templates)
{
    Inputs *in = calloc(1, sizeof *in);
    assert_non_null(in);
    Chain *chain = &in->chain;
    *chain = (Chain){.entry_id = "1abc", .chain_id = "A", .length = length, .resolution = 2.0f};
    chain->aatype = arena_array(&in->arena, (size_t)length, 1);
    chain->residue_index = arena_array(&in->arena, (size_t)length, sizeof(int32_t));
    chain->positions = arena_array(&in->arena, (size_t)length * ATOM37_COUNT * 3, sizeof(float));
    chain->mask = arena_array(&in->arena, (size_t)length * ATOM37_COUNT, 1);
    Msa msa = {.rows = rows, .columns = length};
    msa.hhblits_id = arena_array(&in->arena, (size_t)(rows * length), 1);
    msa.deletions = arena_array(&in->arena, (size_t)(rows * length), sizeof(int32_t));
    for (int64_t i = 0; i < length; ++i) {
        chain->aatype[i] = (int8_t)(bits((uint64_t)i) % 21);
        chain->residue_index[i] = (int32_t)i;
    }
    make_atoms(chain->positions, chain->mask, length * ATOM37_COUNT, 1000);
    for (int64_t i = 0; i < rows * length; ++i) {
        msa.hhblits_id[i] = (uint8_t)(bits(50000 + (uint64_t)i) % 22);
        msa.deletions[i] = bits(90000 + (uint64_t)i) % 9 == 0 ? (int32_t)(bits((uint64_t)i) % 700) : 0;
    }
    assert_int_equal(msa_prepare(&msa, &in->arena, &in->msa), OK);
    TemplateFeatures *t = &in->templates;
    *t = (TemplateFeatures){.count = templates, .columns = length};
    t->aatype = arena_array(&in->arena, (size_t)(templates * length), 1);
    t->positions = arena_array(&in->arena, (size_t)(templates * length) * ATOM37_COUNT * 3, sizeof(float));
    t->mask = arena_array(&in->arena, (size_t)(templates * length) * ATOM37_COUNT, 1);
    t->sum_probs = arena_array(&in->arena, (size_t)templates, sizeof(float));
    for (int64_t i = 0; i < templates * length; ++i) t->aatype[i] = (int8_t)(bits((uint64_t)i) % 22);
    make_atoms(t->positions, t->mask, templates * length * ATOM37_COUNT, 7000);
    return in;
}

static void free_inputs(Inputs **in)
{
    arena_free(&(*in)->arena);
    free(*in);
    *in = NULL;
}

static Status build(const Inputs *in, bool train, int64_t copies, Batch *batch)
{
    FeatureConfig config = feature_config_default();
    FeatureWorkspace *workspace = NULL;
    SampleInput input = {&in->chain, &in->msa, &in->templates};
    Draws draws = {.seed = 8, .epoch = 1, .index = 2};
    config.train = train;
    assert_int_equal(feature_workspace_create(&workspace), OK);
    Status status = features_build(&input, &config, copies, &draws, workspace, batch);
    feature_workspace_destroy(&workspace);
    return status;
}

/* Whatever was in the memory before: every value is written. And everything beyond the sample is zero. */
static void check_filled(const Inputs *in, const BatchSizes *sizes)
{
    Batch *clean = NULL, *dirty = NULL;
    assert_int_equal(batch_create(sizes, NULL, 0, &clean), OK);
    assert_int_equal(batch_create(sizes, NULL, 0, &dirty), OK);
    memset(dirty->memory, 0x7b, dirty->bytes);
    Status status = build(in, true, sizes->copies, clean);
    if (status != OK) fail_msg("%s", status_text());
    assert_int_equal(build(in, true, sizes->copies, dirty), OK);
    for (int i = 0; i < FEATURE_COUNT; ++i)
        for (int64_t k = 0; k < sizes->copies; ++k)
            assert_memory_equal(batch_data(&clean->feature[i], k), batch_data(&dirty->feature[i], k),
                                (size_t)clean->feature[i].count * 4);
    int64_t width = in->chain.length < sizes->crop ? in->chain.length : sizes->crop;
    int64_t clusters = in->msa.rows < sizes->clusters ? in->msa.rows : sizes->clusters;
    assert_int_equal(clean->residues, width);
    const float *feat = batch_f32(clean, FEAT_MSA_FEAT, sizes->copies - 1);
    for (int64_t row = 0; row < sizes->clusters; ++row)
        for (int64_t c = 0; c < sizes->crop; ++c) {
            float one_hot = 0.0f, profile = 0.0f;
            for (int k = 0; k < 23; ++k) {
                one_hot += feat[(row * sizes->crop + c) * 49 + k];
                profile += feat[(row * sizes->crop + c) * 49 + 25 + k];
            }
            bool real = row < clusters && c < width;
            assert_true(one_hot == (real ? 1.0f : 0.0f));
            assert_true(fabsf(profile - (real ? 1.0f : 0.0f)) < 2e-6f); /* counts / (count + 1e-6) */
        }
    batch_destroy(&clean);
    batch_destroy(&dirty);
}

static void test_shapes(void **state)
{
    (void)state;
    static const struct {
        int64_t length, rows, templates;
        BatchSizes sizes;
    } CASES[] = {
        {1, 1, 0, {4, 2, 2, 0, 1}},        {5, 1, 1, {5, 1, 0, 1, 2}},     {20, 3, 4, {8, 8, 8, 4, 3}},
        {20, 40, 2, {32, 8, 16, 4, 2}},    {64, 40, 3, {64, 8, 64, 2, 1}}, {65, 30, 4, {16, 30, 4, 4, 1}},
        {300, 200, 1, {40, 150, 8, 1, 1}},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        Inputs *in = make_inputs(CASES[i].length, CASES[i].rows, CASES[i].templates);
        check_filled(in, &CASES[i].sizes);
        free_inputs(&in);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    const BatchSizes sizes = {16, 4, 4, 2, 2};
    Batch *batch = NULL;
    Inputs *in = make_inputs(20, 6, 2);
    assert_int_equal(batch_create(&sizes, NULL, 0, &batch), OK);
    assert_int_equal(build(in, true, 2, batch), OK);
    assert_int_equal(build(in, true, 3, batch), ERR_USAGE); /* more copies than there is room for */
    assert_int_equal(build(in, true, 0, batch), ERR_USAGE);
    assert_int_equal(build(in, false, 1, batch), ERR_USAGE); /* evaluation does not crop */
    in->msa.columns = 19;
    assert_int_equal(build(in, true, 1, batch), ERR_INPUT);
    in->msa.columns = 20;
    in->templates.columns = 21;
    assert_int_equal(build(in, true, 1, batch), ERR_INPUT);
    in->templates.columns = 20;
    in->msa.rows = 0;
    assert_int_equal(build(in, true, 1, batch), ERR_INPUT);
    batch_destroy(&batch);
    free_inputs(&in);
}

/* Assignment against counting one by one. */
static void test_clusters(void **state)
{
    (void)state;
    static const struct {
        int64_t clusters, extra, columns;
    } CASES[] = {{1, 5, 1}, {3, 20, 64}, {128, 40, 65}, {129, 40, 256}, {300, 30, 700}, {5, 9, 2000}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        int64_t clusters = CASES[i].clusters, extra = CASES[i].extra, columns = CASES[i].columns;
        int64_t stride = msa_stride(columns);
        Arena arena = {0};
        uint8_t *ids = arena_alloc(&arena, (size_t)((clusters + extra) * stride));
        const uint8_t **rows = arena_array(&arena, (size_t)extra, sizeof *rows);
        uint8_t *key = arena_alloc(&arena, (size_t)transform_key_bytes(clusters, columns));
        uint32_t *counts = arena_array(&arena, (size_t)transform_key_clusters(clusters), sizeof *counts);
        int32_t *assignment = arena_array(&arena, (size_t)extra, sizeof *assignment);
        assert_true(ids && rows && key && counts && assignment);
        for (int64_t j = 0; j < (clusters + extra) * stride; ++j)
            ids[j] = (uint8_t)(bits((uint64_t)j) % (columns > 1000 ? 1 : 4) + 19);
        for (int64_t e = 0; e < extra; ++e) rows[e] = ids + (clusters + e) * stride;
        transform_cluster_assign(ids, clusters, rows, extra, columns, key, counts, assignment);
        for (int64_t e = 0; e < extra; ++e) {
            int64_t best = -1, expected = 0;
            for (int64_t k = 0; k < clusters; ++k) {
                int64_t equal = 0;
                for (int64_t c = 0; c < columns; ++c)
                    equal += ids[k * stride + c] == rows[e][c] && rows[e][c] < RESTYPE_GAP;
                if (equal > best) best = equal, expected = k;
            }
            assert_int_equal(assignment[e], expected);
        }
        arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permutations),
        cmocka_unit_test(test_uniforms),
        cmocka_unit_test(test_recorded),
        cmocka_unit_test(test_batch_memory),
        cmocka_unit_test(test_against_specification),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_clusters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
