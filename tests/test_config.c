/* Experiment files: defaults, presets, overrides, round trip, refusals; the points of a study. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "experiments/config.h"
#include "experiments/config_schema.h"
#include "experiments/study.h"

static char path[64];

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static Config *load(const char *text, const TextList *overrides)
{
    Config *config = NULL;
    write_file(text);
    if (config_load(path, overrides, &config) != OK) fail_msg("%s", status_text());
    return config;
}

static int make_path(void **state)
{
    (void)state;
    strcpy(path, "/tmp/foldscale_config_XXXXXX");
    int file = mkstemp(path);
    return file < 0 ? -1 : close(file);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

static void test_defaults(void **state)
{
    (void)state;
    Config *c = load("", NULL);
    assert_int_equal(c->model.size.n_res, 256);
    assert_int_equal(c->model.size.evo_blocks, 48);
    assert_true(c->train.learning_rate == 1e-3 && c->train.clip_norm == 0.1 && c->train.swa_decay == 0.9);
    for (int i = 0; config_switch_names[i]; i++) assert_false(config_switch_get(&c->switches, config_switch_names[i]));
    config_destroy(&c);
    assert_null(c);
}

static void test_values(void **state)
{
    (void)state;
    const TextList set = {.count = 3, .item = {"train.steps=7", "study.ranks=[1, 2]", "model.evo_pair.dropout=0"}};
    Config *c = load("model: {preset: tiny, c_m: 64}\nswitches: {bf16: on, checkpoint: selective, comm_overlap: off}\n"
                     "train: {steps: 3, real: f64}\neval: {chains: [1abc_A, 2xyz_B]}\nbackend: cuda\n",
                     &set);
    assert_int_equal(c->model.size.c_m, 64);
    assert_int_equal(c->model.size.n_res, 32); /* of the preset */
    assert_true(c->model.size.evo_pair.dropout == 0 && c->model.size.extra_pair.dropout > 0);
    assert_int_equal(c->train.steps, 7);
    assert_int_equal(c->train.real, REAL_F64);
    assert_int_equal(c->backend, BACKEND_CUDA);
    assert_true(c->switches.bf16 && !c->switches.comm_overlap);
    assert_int_equal(c->switches.checkpoint, CHECKPOINT_SELECTIVE);
    assert_int_equal(c->study.ranks_count, 2);
    assert_int_equal(c->study.ranks[1], 2);
    assert_int_equal(c->eval.chains_count, 2);
    assert_string_equal(c->eval.chains[1], "2xyz_B");
    assert_int_equal(config_pass_switches(c).precision, PRECISION_BF16);
    config_destroy(&c);
}

/* What run.json keeps is the whole experiment: read back, it gives the same text. */
static void test_round_trip(void **state)
{
    (void)state;
    char *first = NULL, *second = NULL;
    Config *c = load("name: \"a \\\"b\\\" \\\\ c\"\nmodel: {preset: tiny}\ntrain: {learning_rate: 0.1}\n", NULL),
           *again = NULL;
    assert_int_equal(config_to_json(c, &first), OK);
    again = load(first, NULL);
    assert_string_equal(again->name, "a \"b\" \\ c");
    assert_int_equal(config_to_json(again, &second), OK);
    assert_string_equal(first, second);
    free(first);
    free(second);
    config_destroy(&c);
    config_destroy(&again);
}

/* A run.json is read where it lies, with its own lines in what is refused. */
static void test_run(void **state)
{
    (void)state;
    const TextList set = {.count = 1, .item = {"train.steps=9"}};
    Config *c = NULL;
    write_file(
        "{\n\t\"program\":\t\"foldscale\",\n\t\"command\":\t[\"train\", \"a: {b\"],\n"
        "\t\"experiment\":\t{\n\t\t\"name\":\t\"e\",\n\t\t\"model\":\t{\"preset\": \"tiny\", \"c_m\": 64}\n\t}\n}");
    assert_int_equal(config_load_run(path, &set, &c), OK);
    assert_string_equal(c->name, "e");
    assert_int_equal(c->model.size.c_m, 64);
    assert_int_equal(c->train.steps, 9);
    config_destroy(&c);
    write_file("{\"program\": \"foldscale\",\n\"experiment\": {\n\"modle\": {}}}");
    assert_int_equal(config_load_run(path, NULL, &c), ERR_INPUT);
    assert_non_null(strstr(status_text(), ":3: unknown key \"modle\""));
    write_file("{\"program\": \"foldscale\", \"experiment\": 4}");
    assert_int_equal(config_load_run(path, NULL, &c), ERR_INPUT);
    assert_non_null(strstr(status_text(), "no experiment in it"));
    write_file("{\"program\": \"foldscale\",\n\"experi");
    assert_int_equal(config_load_run(path, NULL, &c), ERR_INPUT);
    assert_non_null(strstr(status_text(), ":2: not valid YAML"));
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"train:\n  steps: 4\n  stepz: 4\n", ":3: unknown key \"stepz\" in train (did you mean \"steps\"?)"},
        {"model:\n  zzzzzzzz: 1\n", "expected one of preset, n_res, "},
        {"model:\n  zzzzzzzz: 1\n", "w_resolved, w_violation)"},
        {"model:\n  a_key_that_is_longer_than_any_of_those_that_are_known_and_goes_on_and_on: 1\n",
         "unknown key \"a_key_that_is_longer_than_any_of_those_that_are_known_and_go\" in model"},
        {"train:\n  steps: 1.5\n", ":2: train.steps is not a whole number"},
        {"train:\n  steps: 0\n", ":2: train.steps is out of range"},
        {"train:\n  learning_rate: .nan\n", ":2: train.learning_rate is not a number"},
        {"train: 5\n", ":1: train takes"},
        {"switches:\n  bf16: maybe\n", ":2: switches.bf16 is a switch"},
        {"switches: {checkpoint: all}\n", ":1: switches.checkpoint has an unknown value"},
        {"study:\n  ranks: 4\n", ":2: study.ranks takes a list"},
        {"study:\n  ranks: [1,\n   0]\n", ":3: study.ranks is out of range"},
        {"study:\n  switches: [bf17]\n",
         ":2: study.switches names an unknown switch (found \"bf17\", did you mean \"bf16\""},
        {"backend: [cpu]\n", ":1: backend takes a single value"},
        {"- a\n- b\n", ": not an experiment file"},
        {"a: *b\n", ":1: "},
        {"{a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: {a: 1}}}}}}}}}}}}}}", ":1: nested too deeply"},
        {"a: 1\n---\nb: 2\n", ":2: a second YAML document"},
        {"data:\n  max_release_date: bogus\n", ":2: data.max_release_date is not a date (found \"bogus\""},
        {"data:\n  max_release_date: 2021-99-99\n", ":2: data.max_release_date is not a date"},
        {"data:\n  max_release_date: 2021-02-29\n", ":2: data.max_release_date is not a date"},
        {"data:\n  max_release_date: 20210916\n", ":2: data.max_release_date is not a date"},
        {"model:\n  preset: tiny\n  n_templ: 0\n", ":3: model.n_templ is out of range"},
        {"model:\n  w_chi: 0\n  w_fape: 0\n  w_distogram: 0\n  w_masked_msa: 0\n  w_plddt: 0\n",
         ":3: model.w_fape and the weights of all other losses are 0"},
        {"parallel:\n  ranks: 6\n  dap: 4\n", ":3: parallel.dap does not divide the ranks"},
        {"name: 0123456789012345678901234567890123456789012345678901234567890123456789\n", ":1: name is too long"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Config *c = NULL;
        write_file(cases[i].text);
        assert_int_equal(config_load(path, NULL, &c), ERR_INPUT);
        if (!strstr(status_text(), cases[i].message)) fail_msg("\"%s\" lacks \"%s\"", status_text(), cases[i].message);
        assert_null(c);
    }
    static const char *const bad[] = {"train.steps", "=3", "train.=3", "train.steps=[", "a.b.c=1"};
    write_file("");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const TextList set = {.count = 1, .item = {bad[i]}};
        Config *c = NULL;
        assert_int_equal(config_load(path, &set, &c), ERR_USAGE);
    }
}

/* The schema's range of a size, which a message names, is one that the model takes. */
static void test_model_ranges(void **state)
{
    (void)state;
    int model = 0;
    while (strcmp(config_schema.mapping.fields[model].key, "model") != 0) model++;
    const cyaml_schema_field_t *fields = config_schema.mapping.fields[model].value.mapping.fields;
    for (int i = 0; fields[i].key; i++) {
        const FieldLimit *limit = &config_limits[model].fields[i];
        if (fields[i].value.type != CYAML_INT) continue;
        for (int high = 0; high < 2; high++) {
            char text[100];
            snprintf(text, sizeof text, "model: {%s: %.0f}\n", fields[i].key, high ? limit->high : limit->low);
            Config *c = load(text, NULL);
            config_destroy(&c);
        }
    }
}

static void test_study(void **state)
{
    (void)state;
    Config *c =
        load("model: {preset: tiny}\nstudy:\n  ablations: [cumulative, one_at_a_time, leave_one_out]\n"
             "  switches: [bf16, fused_attention, checkpoint]\n  ranks: [1, 2, 3]\n  dap: [1, 2]\n  repeats: 2\n",
             NULL);
    StudyPoint *points = NULL;
    int count = 0;
    /* settings: none, b, ba, bac, a, c, ac, bc = 8 at the first pair; all on at (2,1) (2,2) (3,1); twice each */
    assert_int_equal(study_points(c, &points, &count), OK);
    assert_int_equal(count, 2 * (8 + 3));
    for (int i = 0; i < count; i++) {
        assert_int_equal(points[i].ranks % points[i].dap, 0);
        for (int k = 0; k < i; k++) assert_string_not_equal(points[i].id, points[k].id);
    }
    StudyPoint *again = NULL;
    assert_int_equal(study_points(c, &again, &count), OK);
    for (int i = 0; i < count; i++) assert_string_equal(points[i].id, again[i].id); /* resumable: the same order */
    free(points);
    free(again);
    c->study.full_matrix = true;
    assert_int_equal(study_points(c, &points, &count), OK);
    assert_int_equal(count, 2 * 8 * 4);
    free(points);
    config_destroy(&c);
}

/* A point's overrides turn the experiment into that point. */
static void test_overrides(void **state)
{
    (void)state;
    Config *c =
        load("model: {preset: tiny}\nstudy: {switches: [bf16, checkpoint], ranks: [2], dap: [2], steps: 9}\n", NULL);
    StudyPoint *points = NULL;
    int count = 0;
    assert_int_equal(study_points(c, &points, &count), OK);
    for (int i = 0; i < count; i++) {
        Arena arena = {0};
        Config *p = NULL;
        TextList set = {0};
        assert_int_equal(study_overrides(c, &points[i], &arena, &set), OK);
        assert_int_equal(config_load(path, &set, &p), OK);
        assert_memory_equal(&p->switches, &points[i].switches, sizeof p->switches);
        assert_int_equal(p->parallel.ranks, 2);
        assert_int_equal(p->parallel.dap, 2);
        assert_int_equal(p->train.steps, 9);
        config_destroy(&p);
        arena_free(&arena);
    }
    free(points);
    config_destroy(&c);
}

/* A study goes on with more points, not with another experiment. */
static void test_same_study(void **state)
{
    (void)state;
    static const struct {
        const char *set, *message; /* NULL: the same study */
    } cases[] = {
        {"study.repeats=7", NULL},
        {"study.dap=[1, 2]", NULL},
        {"study.switches=[bf16, checkpoint]", NULL},
        {"switches.bf16=off", NULL}, /* of the study: set by every point */
        {"parallel.ranks=4", NULL},
        {"train.steps=50", NULL},
        {"eval.every=3", NULL},
        {"predict.gpus=[4]", NULL},
        {"data.pack=/elsewhere/a.pack", NULL}, /* the one measured is not here to compare */
        {"name=other", "name \"e\", asked for \"other\""},
        {"backend=cuda", "backend \"cpu\", asked for \"cuda\""},
        {"model.c_m=64", "model.c_m 32, asked for 64"},
        {"model.evo_pair.dropout=0.5", "model.evo_pair.dropout 0.25, asked for 0.5"},
        {"data.mmcif=/usr", "data.mmcif \"/tmp\", asked for \"/usr\""},
        {"train.recycling=1", "train.recycling 3, asked for 1"},
        {"parallel.threads=2", "parallel.threads 1, asked for 2"},
        {"switches.fused_layernorm=on", "switches.fused_layernorm false, asked for true"},
        {"study.steps=5", "study.steps 9, asked for 5"},
        {"study.warmup=2", "study.warmup 1, asked for 2"},
    };
    static const char experiment[] = "name: e\nmodel: {preset: tiny, c_m: 32}\nparallel: {threads: 1}\n"
                                     "data: {mmcif: /tmp, pack: /nowhere/a.pack}\nswitches: {bf16: on}\n"
                                     "study: {switches: [bf16], ranks: [1], dap: [1], steps: 9}\n";
    char *text = NULL, *run = NULL;
    Arena arena = {0};
    Config *measured = load(experiment, NULL), *c = NULL;
    measured->train.steps = 9;
    assert_int_equal(config_to_json(measured, &text), OK);
    assert_non_null(run = arena_printf(&arena, "{\"program\": \"foldscale\", \"experiment\": %s}", text));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const TextList set = {.count = 1, .item = {cases[i].set}};
        c = load(experiment, &set);
        write_file(run);
        Status status = study_check_same(c, path);
        if (status != (cases[i].message ? ERR_USAGE : OK)) fail_msg("%s: %s", cases[i].set, status_text());
        if (cases[i].message && !strstr(status_text(), cases[i].message))
            fail_msg("\"%s\" lacks \"%s\"", status_text(), cases[i].message);
        config_destroy(&c);
    }
    free(text);
    arena_free(&arena);
    config_destroy(&measured);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_values),       cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_model_ranges), cmocka_unit_test(test_run),
        cmocka_unit_test(test_study),    cmocka_unit_test(test_overrides),    cmocka_unit_test(test_same_study)};
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
