/* Checkpoints: bit-exact round trip; every kind of wrong file refused with its reason and the store untouched; a full
 * disk and a kill in the middle leave the old file whole. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/safetensors.h"
#include "engine/store.h"
#include "experiments/checkpoint.h"
#include "kernels/kernels.h"

static const Place blocks[] = {PLACE_PARAM, PLACE_ADAM_M, PLACE_ADAM_V, PLACE_SWA};

typedef struct Fixture {
    Backend *backend;
    Registry *registry;
    Store *store;
    char folder[64], path[128];
} Fixture;

static Status add_param(Registry *r, const char *name, int rank, const int64_t *dim)
{
    int index;
    return registry_param(r, name, rank, dim, INIT_NORMAL, 1, &index);
}

/* `rows` of the second parameter tells models apart */
static void open_model(Fixture *f, int64_t rows, Precision precision, StoreUse use)
{
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &f->backend), OK);
    assert_int_equal(registry_create(&f->registry), OK);
    assert_int_equal(add_param(f->registry, "a.bias", 1, (int64_t[]){5}), OK);
    assert_int_equal(add_param(f->registry, "a.weight", 2, (int64_t[]){rows, 300}), OK);
    assert_int_equal(add_param(f->registry, "b.scale", 1, (int64_t[]){1}), OK);
    assert_int_equal(store_create(f->backend, f->registry, precision, use, &f->store), OK);
}

static void close_model(Fixture *f)
{
    store_destroy(&f->store);
    registry_destroy(&f->registry);
    kernels_close(&f->backend);
}

static void fill(Fixture *f, double offset)
{
    for (int b = 0; b < 4; b++)
        for (int k = 0; k < f->registry->n_params; k++) {
            int64_t count = f->registry->param[k].count;
            double *values = malloc((size_t)count * sizeof *values);
            for (int64_t e = 0; e < count; e++) values[e] = offset + 1.0 / (double)(3 + e + 1000 * b + 77 * k);
            assert_int_equal(store_write_param(f->store, blocks[b], k, DT_F64, values, count), OK);
            free(values);
        }
}

static bool holds(Fixture *f, double offset)
{
    bool same = true;
    for (int b = 0; b < 4; b++)
        for (int k = 0; k < f->registry->n_params; k++) {
            int64_t count = f->registry->param[k].count;
            double *values = malloc((size_t)count * sizeof *values);
            assert_int_equal(store_read_param(f->store, blocks[b], k, DT_F64, values, count), OK);
            for (int64_t e = 0; e < count; e++) {
                double expected = offset + 1.0 / (double)(3 + e + 1000 * b + 77 * k);
                same &= values[e] == (store_real(f->store) == DT_F64 ? expected : (double)(float)expected);
            }
            free(values);
        }
    return same;
}

static int setup(void **state)
{
    Fixture *f = calloc(1, sizeof *f);
    snprintf(f->folder, sizeof f->folder, "/tmp/foldscale_checkpoint_XXXXXX");
    if (!mkdtemp(f->folder)) return 1;
    snprintf(f->path, sizeof f->path, "%s/ckpt.safetensors", f->folder);
    open_model(f, 40, PRECISION_F32, STORE_TRAINING);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    Fixture *f = *state;
    close_model(f);
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", f->folder);
    int code = system(command);
    free(f);
    return code;
}

static void round_trip_is_bit_exact(void **state)
{
    Fixture *f = *state;
    fill(f, 0.25);
    const MetaPair meta[] = {{"step", "17"}, {"sampler", "{\"epoch\": 2}"}};
    assert_int_equal(store_save(f->store, f->path, 2, meta), OK);
    fill(f, 8);
    assert_int_equal(store_load(f->store, f->path, false), OK);
    assert_true(holds(f, 0.25));
    StFile *file = NULL;
    assert_int_equal(st_open(f->path, &file), OK);
    assert_string_equal(st_metadata(file, "step"), "17");
    assert_string_equal(st_metadata(file, "sampler"), "{\"epoch\": 2}");
    assert_int_equal(st_count(file), 12);
    assert_non_null(st_find(file, "a.weight"));
    assert_non_null(st_find(file, "swa.b.scale"));
    st_close(&file);
}

/* What goes on from a checkpoint believes none of its metadata unseen. */
static void metadata_is_checked(void **state)
{
    Fixture *f = *state;
    enum { KEYS = 6 };
    static const char *const key[KEYS] = {"format", "step", "samples", "seed", "elapsed_s", "loader"};
    static const char *const good[KEYS] = {"foldscale-1", "4", "8", "1", "1.5", ""};
    static const struct {
        int key;
        const char *value; /* NULL: left out */
        const char *says;
    } bad[] = {{0, "foldscale-999", "expected foldscale-1"},
               {0, NULL, "expected foldscale-1"},
               {1, "9223372036854775807", "expected a whole number"},
               {1, "5", "a checkpoint of step 5"},
               {2, "9223372036854775807", "expected a whole number"},
               {2, "-1", "expected a whole number"},
               {3, "seven", "expected a whole number"},
               {4, "nan", "expected seconds"},
               {4, "-1e300", "expected seconds"},
               {4, "1.5s", "expected seconds"},
               {4, NULL, "expected seconds"},
               {5, NULL, "expected the loader's state"}};
    RunState *run = malloc(sizeof *run);
    char path[160];
    snprintf(path, sizeof path, "%s/ckpt_000004.safetensors", f->folder);
    for (int n = -1; n < (int)(sizeof bad / sizeof *bad); n++) {
        MetaPair meta[KEYS];
        int count = 0;
        for (int k = 0; k < KEYS; k++) {
            const char *value = n >= 0 && bad[n].key == k ? bad[n].value : good[k];
            if (value) meta[count++] = (MetaPair){key[k], value};
        }
        assert_int_equal(store_save(f->store, path, count, meta), OK);
        if (n < 0) {
            assert_int_equal(checkpoint_state(path, run), OK);
            assert_true(run->step == 4 && run->samples == 8 && run->seed == 1 && run->elapsed_s == 1.5);
            continue;
        }
        assert_int_equal(checkpoint_state(path, run), ERR_INPUT);
        assert_non_null(strstr(status_text(), path));
        if (!strstr(status_text(), bad[n].says)) fail_msg("case %d: %s", n, status_text());
    }
    free(run);
}

/* One bit of a tensor, wherever it is. */
static void damage_is_noticed(void **state)
{
    Fixture *f = *state;
    fill(f, 0.25);
    assert_int_equal(store_save(f->store, f->path, 0, NULL), OK);
    struct stat info;
    assert_int_equal(stat(f->path, &info), 0);
    for (long back = 1; back < 4 * 12000; back += 11999) {
        FILE *file = fopen(f->path, "r+b");
        assert_non_null(file);
        for (int once = 0; once < 2; once++) { /* and put right again */
            fseek(file, (long)info.st_size - back, SEEK_SET);
            int byte = getc(file);
            fseek(file, -1, SEEK_CUR);
            putc(byte ^ 4, file);
            fflush(file);
            if (once == 1) break;
            fill(f, 3);
            assert_int_equal(store_load(f->store, f->path, false), ERR_INPUT);
            assert_non_null(strstr(status_text(), "the tensors are damaged"));
            assert_true(holds(f, 3));
        }
        fclose(file);
    }
    assert_int_equal(store_load(f->store, f->path, false), OK);
    assert_true(holds(f, 0.25));
}

static void f64_round_trip(void **state)
{
    Fixture *f = *state;
    Fixture wide = {0};
    open_model(&wide, 40, PRECISION_F64, STORE_TRAINING);
    fill(&wide, 0.1);
    assert_int_equal(store_save(wide.store, f->path, 0, NULL), OK);
    fill(&wide, 5);
    assert_int_equal(store_load(wide.store, f->path, false), OK);
    assert_true(holds(&wide, 0.1));
    /* another type is refused rather than rounded */
    fill(f, 3);
    assert_int_equal(store_load(f->store, f->path, false), ERR_INPUT);
    assert_non_null(strstr(status_text(), "is F64, expected F32"));
    assert_true(holds(f, 3));
    close_model(&wide);
}

static void evaluation_loads_the_weights_or_their_average(void **state)
{
    Fixture *f = *state;
    fill(f, 0.5);
    assert_int_equal(store_save(f->store, f->path, 0, NULL), OK);
    Fixture eval = {0};
    open_model(&eval, 40, PRECISION_BF16, STORE_FORWARD);
    for (int average = 0; average < 2; average++) {
        float expected, found;
        assert_int_equal(store_load(eval.store, f->path, average), OK);
        assert_int_equal(store_read_param(f->store, average ? PLACE_SWA : PLACE_PARAM, 2, DT_F32, &expected, 1), OK);
        assert_int_equal(store_read_param(eval.store, PLACE_PARAM, 2, DT_F32, &found, 1), OK);
        assert_true(expected == found);
        assert_int_equal(store_read_param(eval.store, PLACE_PARAM_LOW, 2, DT_F32, &found, 1), OK);
        assert_true(found != 0);
    }
    close_model(&eval);
}

static void refused(Fixture *f, const char *why)
{
    fill(f, 3);
    assert_int_equal(store_load(f->store, f->path, false), ERR_INPUT);
    assert_non_null(strstr(status_text(), f->path));
    if (!strstr(status_text(), why)) fail_msg("\"%s\" does not say \"%s\"", status_text(), why);
    assert_true(holds(f, 3));
}

static void wrong_shapes_are_refused(void **state)
{
    Fixture *f = *state;
    Fixture other = {0};
    open_model(&other, 41, PRECISION_F32, STORE_TRAINING);
    assert_int_equal(store_save(other.store, f->path, 0, NULL), OK);
    refused(f, "tensor \"a.weight\" has shape [41, 300], expected [40, 300]");
    close_model(&other);
}

static void missing_and_foreign_tensors_are_refused(void **state)
{
    Fixture *f = *state;
    Fixture other = {0};
    open_model(&other, 40, PRECISION_F32, STORE_FORWARD); /* saves no moments */
    assert_int_equal(store_save(other.store, f->path, 0, NULL), OK);
    refused(f, "tensor \"adam_m.a.bias\" is missing");
    close_model(&other);
    open_model(&other, 40, PRECISION_F32, STORE_FORWARD);
    store_destroy(&other.store);
    assert_int_equal(add_param(other.registry, "c.extra", 1, (int64_t[]){2}), OK);
    assert_int_equal(store_create(other.backend, other.registry, PRECISION_F32, STORE_TRAINING, &other.store), OK);
    assert_int_equal(store_save(other.store, f->path, 0, NULL), OK);
    refused(f, "tensor \"c.extra\" is no parameter of this model");
    close_model(&other);
}

static void truncated_and_foreign_files_are_refused(void **state)
{
    Fixture *f = *state;
    fill(f, 1);
    assert_int_equal(store_save(f->store, f->path, 0, NULL), OK);
    struct stat info;
    assert_int_equal(stat(f->path, &info), 0);
    const off_t lengths[] = {info.st_size - 1, info.st_size / 2, 100, 7, 0};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        assert_int_equal(truncate(f->path, lengths[i]), 0);
        refused(f, "");
    }
    FILE *file = fopen(f->path, "w");
    fputs("data_1ABC\nloop_\n_atom_site.id\n1 2 3\n", file);
    fclose(file);
    refused(f, "");
    remove(f->path);
    assert_int_equal(store_load(f->store, f->path, false), ERR_IO);
}

/* In a child of its own, since a limit cannot be raised again. */
static int in_child(Fixture *f, void (*act)(Fixture *))
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        act(f);
        _exit(0);
    }
    int code = 0;
    assert_int_equal(waitpid(child, &code, 0), child);
    return code;
}

static void save_to_a_full_disk(Fixture *f)
{
    signal(SIGXFSZ, SIG_IGN); /* the write fails with EFBIG instead */
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){65536, 65536});
    Status status = store_save(f->store, f->path, 0, NULL);
    _exit(status == ERR_IO && strstr(status_text(), "ckpt.safetensors") ? 0 : 1);
}

static void save_until_killed(Fixture *f)
{
    /* the default action of SIGXFSZ kills the process within the write of the data */
    signal(SIGXFSZ, SIG_DFL);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){65536, 65536});
    store_save(f->store, f->path, 0, NULL);
}

static int entries(const Fixture *f)
{
    char command[256];
    snprintf(command, sizeof command, "ls '%s' | wc -l", f->folder);
    FILE *pipe = popen(command, "r");
    int count = -1;
    assert_int_equal(fscanf(pipe, "%d", &count), 1);
    pclose(pipe);
    return count;
}

static void a_full_disk_leaves_the_old_file(void **state)
{
    Fixture *f = *state;
    fill(f, 0.125);
    assert_int_equal(store_save(f->store, f->path, 0, NULL), OK);
    fill(f, 9);
    int code = in_child(f, save_to_a_full_disk);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 0);
    assert_int_equal(entries(f), 1); /* no temporary file is left */
    assert_int_equal(store_load(f->store, f->path, false), OK);
    assert_true(holds(f, 0.125));
}

static void a_kill_in_the_middle_leaves_the_old_file(void **state)
{
    Fixture *f = *state;
    fill(f, 0.125);
    assert_int_equal(store_save(f->store, f->path, 0, NULL), OK);
    fill(f, 9);
    int code = in_child(f, save_until_killed);
    assert_true(WIFSIGNALED(code));
    assert_int_equal(entries(f), 2); /* the unfinished one lies beside it ... */
    assert_int_equal(store_load(f->store, f->path, false), OK);
    assert_true(holds(f, 0.125));
    assert_int_equal(store_save(f->store, f->path, 0, NULL), OK); /* ... and the next save replaces it */
    assert_int_equal(entries(f), 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(round_trip_is_bit_exact),
        TEST(metadata_is_checked),
        TEST(damage_is_noticed),
        TEST(f64_round_trip),
        TEST(evaluation_loads_the_weights_or_their_average),
        TEST(wrong_shapes_are_refused),
        TEST(missing_and_foreign_tensors_are_refused),
        TEST(truncated_and_foreign_files_are_refused),
        TEST(a_full_disk_leaves_the_old_file),
        TEST(a_kill_in_the_middle_leaves_the_old_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
