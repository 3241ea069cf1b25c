/* Every switch on = off: loss, gradients, moments and weights of a training step of the tiny model with dropout, for
 * each switch alone, all but one, and all together, times DAP 1 and 2, times the modes of rematerialisation; and two
 * data-parallel replicas = one rank with the averaged gradients of both samples.
 *
 *   test_switches                         the suite
 *   test_switches worker FILE DAP TYPE    one rank of a job that compares all its settings with the numbers in FILE
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/tiny_step.h"

/* Under a sanitizer a step takes ten times as long: no switch and all switches, times DAP and rematerialisation. */
#ifdef __SANITIZE_ADDRESS__
enum { THOROUGH = 0 };
#else
enum { THOROUGH = 1 };
#endif

static const struct {
    const char *name;
    size_t offset;
} flags[] = {
#define SWITCH(name) {#name, offsetof(Switches, name)},
#include "engine/switch_list.def"
#undef SWITCH
};
enum { FLAGS = sizeof flags / sizeof flags[0] };

static void set_flag(Switches *s, int flag, bool on)
{
    *(bool *)((char *)s + flags[flag].offset) = on;
}

static Precision precision_named(const char *name)
{
    return !strcmp(name, "f64") ? PRECISION_F64 : PRECISION_F32;
}

#define LEARNING_RATE 1e-3 /* of tiny_inputs */

enum { GRADIENT, WEIGHT, MOMENT_1, MOMENT_2, AVERAGE, BLOCKS };

/* largest[block]: largest entry of the block over all parameters */
static void find_largest(const TinyStep *s, const double *y, double *largest)
{
    for (int block = 0; block < BLOCKS; block++) largest[block] = 0;
    y += 2;
    for (int k = 0; k < s->registry->n_params; k++)
        for (int block = 0; block < BLOCKS; block++)
            for (int64_t e = 0; e < s->registry->param[k].count; e++, y++)
                if (fabs(*y) > largest[block]) largest[block] = fabs(*y);
}

/* Largest difference relative to the largest entry of its tensor. A gradient may be zero in exact arithmetic (a bias
 * that a softmax does not see) and hold nothing but the rounding of terms as large as other gradients: entries below
 * 1e-3 of the largest gradient are measured against that. Weights: after a step of Adam, lr g / (|g| + eps), what the
 * gradient's error d becomes is at most lr d / eps = 1e3 d, so weights are held to 1e3 times the tolerance relative to
 * lr. */
static double compare(const TinyStep *s, const double *a, const double *b, char *where, size_t size)
{
    double worst = fabs(a[0] - b[0]) / fabs(b[0]), norm = fabs(a[1] - b[1]) / fabs(b[1]);
    snprintf(where, size, "%s", norm > worst ? "gradient norm" : "loss");
    if (!(norm <= worst)) worst = norm;
    static const char *const blocks[BLOCKS] = {"gradient", "weight", "adam_m", "adam_v", "swa"};
    static const double floor_of[BLOCKS] = {1e-3, 0, 1e-3, 1e-6, 0};
    double overall[BLOCKS];
    find_largest(s, b, overall);
    const double *x = a + 2, *y = b + 2;
    for (int k = 0; k < s->registry->n_params; k++) {
        int64_t count = s->registry->param[k].count;
        for (int block = 0; block < BLOCKS; block++, x += count, y += count) {
            double largest = floor_of[block] * overall[block], difference = 0;
            for (int64_t e = 0; e < count; e++) {
                if (fabs(y[e]) > largest) largest = fabs(y[e]);
                double d = fabs(x[e] - y[e]);
                if (!(d <= difference)) difference = d;
            }
            bool weight = block == WEIGHT || block == AVERAGE;
            double relative = weight ? difference / (LEARNING_RATE * 1e3) : difference / largest;
            if (relative <= worst) continue;
            worst = relative;
            snprintf(where, size, "%s of %s", blocks[block], s->registry->param[k].name);
        }
    }
    return worst;
}

static double tolerance(Precision precision)
{
    return precision == PRECISION_F64 ? 1e-12 : 1e-5;
}

/* Runs one setting and compares; prints a line when it fails. */
static bool agrees(Backend *backend, const Switches *switches, const char *name, const double *expected)
{
    TinyStep step;
    char where[600] = "";
    double worst = NAN;
    double *result = NULL;
    Status status = tiny_open(backend, switches, &step);
    if (status == OK) {
        result = malloc((size_t)tiny_result_count(&step) * sizeof *result);
        status = tiny_run(&step, backend->layout.dp_rank, result);
    }
    if (status == OK) worst = compare(&step, result, expected, where, sizeof where);
    bool ok = status == OK && worst <= tolerance(switches->precision);
    if (!ok || getenv("VERBOSE"))
        fprintf(stderr, "%s: dap %d, dp %d, %s, checkpoint %d: %.2e at %s %s\n", ok ? "ok" : "FAIL", switches->dap,
                switches->dp, name, (int)switches->checkpoint, worst, where, status == OK ? "" : status_text());
    free(result);
    tiny_close(&step);
    return ok;
}

/* All settings of the suite for this job's ranks; returns the number that fail. */
static int compare_all(Backend *backend, Precision precision, const double *expected)
{
    int failures = 0;
    bool all_settings = THOROUGH && backend->layout.dp == 1;
    Switches base = {.precision = precision, .dap = backend->layout.dap, .dp = backend->layout.dp};
    for (int mode = CHECKPOINT_NONE; mode <= CHECKPOINT_SELECTIVE; mode++)
        for (int alone = -1; alone <= FLAGS; alone++) { /* none, each one, all */
            if (!all_settings && alone >= 0 && alone < FLAGS) continue;
            Switches s = base;
            s.checkpoint = (Checkpointing)mode;
            for (int f = 0; f < FLAGS; f++) set_flag(&s, f, alone == f || alone == FLAGS);
            const char *name = alone < 0 ? "no switch" : alone == FLAGS ? "all switches" : flags[alone].name;
            failures += !agrees(backend, &s, name, expected);
        }
    for (int without = 0; all_settings && without < FLAGS; without++) {
        Switches s = base;
        for (int f = 0; f < FLAGS; f++) set_flag(&s, f, f != without);
        char name[64];
        snprintf(name, sizeof name, "all but %s", flags[without].name);
        failures += !agrees(backend, &s, name, expected);
    }
    return failures;
}

/* --- reference: no switch, one rank --- */

static double *reference(Precision precision, int samples, int64_t *count_out)
{
    Backend *backend = NULL;
    TinyStep step;
    Switches none = {.precision = precision, .dap = 1, .dp = 1};
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    if (tiny_open(backend, &none, &step) != OK) fail_msg("%s", status_text());
    int64_t count = tiny_result_count(&step);
    double *result = calloc((size_t)count, sizeof *result);
    if (samples == 1) {
        if (tiny_run(&step, 0, result) != OK) fail_msg("%s", status_text());
    } else {
        int64_t elements = step.registry->param_elements;
        double *sum = calloc((size_t)elements, sizeof *sum), *one = malloc((size_t)elements * sizeof *one);
        for (int sample = 0; sample < samples; sample++) {
            assert_int_equal(tiny_inputs(&step, sample, 1), OK);
            assert_int_equal(exec_run(step.run_grad), OK);
            if (!sample) assert_int_equal(exec_read_value(step.run_grad, step.grad->loss, DT_F64, result, 1), OK);
            for (int k = 0; k < step.registry->n_params; k++) {
                const ParamInfo *param = &step.registry->param[k];
                assert_int_equal(store_read_param(step.store, PLACE_GRAD, k, DT_F64, one, param->count), OK);
                for (int64_t e = 0; e < param->count; e++) sum[param->offset + e] += one[e] / samples;
            }
        }
        for (int k = 0; k < step.registry->n_params; k++) {
            const ParamInfo *param = &step.registry->param[k];
            assert_int_equal(store_write_param(step.store, PLACE_GRAD, k, DT_F64, sum + param->offset, param->count),
                             OK);
        }
        assert_int_equal(exec_run(step.run_optimizer), OK);
        assert_int_equal(tiny_read(&step, result), OK);
        free(sum);
        free(one);
    }
    assert_true(isfinite(result[0]) && isfinite(result[1]) && result[1] > 0);
    tiny_close(&step);
    kernels_close(&backend);
    *count_out = count;
    return result;
}

/* --- jobs of several ranks --- */

static int worker(char **argv)
{
    Precision precision = precision_named(argv[4]);
    Backend *backend = NULL;
    int failures = 1;
    if (kernels_open("cpu", &(KernelOptions){.dap = atoi(argv[3])}, &backend) == OK) {
        FILE *file = fopen(argv[2], "rb");
        int64_t count = 0;
        double *expected = NULL;
        if (file && fread(&count, sizeof count, 1, file) == 1 &&
            (expected = malloc((size_t)count * sizeof *expected)) &&
            fread(expected, sizeof *expected, (size_t)count, file) == (size_t)count) {
            if (backend->layout.dp_rank > 0) { /* only the first replica has sample 0's loss */
                TinyStep step;
                Switches none = {.precision = precision, .dap = backend->layout.dap, .dp = backend->layout.dp};
                double *own = malloc((size_t)count * sizeof *own);
                if (tiny_open(backend, &none, &step) == OK && tiny_run(&step, backend->layout.dp_rank, own) == OK)
                    expected[0] = own[0];
                tiny_close(&step);
                free(own);
            } else if (backend->layout.dp > 1) {
                TinyStep step; /* takes part in the collectives of the branch above */
                Switches none = {.precision = precision, .dap = backend->layout.dap, .dp = backend->layout.dp};
                double *own = malloc((size_t)count * sizeof *own);
                if (tiny_open(backend, &none, &step) != OK || tiny_run(&step, 0, own) != OK)
                    fprintf(stderr, "%s\n", status_text());
                tiny_close(&step);
                free(own);
            }
            failures = compare_all(backend, precision, expected);
        }
        free(expected);
        if (file) fclose(file);
    } else {
        fprintf(stderr, "%s\n", status_text());
    }
    if (failures) kernels_abort(1);
    kernels_close(&backend);
    kernels_finalize();
    return failures != 0;
}

/* Open MPI unloads its modules with their memory, which a sanitizer takes for leaks: they are checked on one rank. */
static void run_job(int ranks, int dap, const char *type, int samples)
{
    int64_t count;
    double *expected = reference(precision_named(type), samples, &count);
    char path[] = "/tmp/foldscale_switches_XXXXXX", self[4096], command[8192];
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    FILE *file = fdopen(descriptor, "wb");
    fwrite(&count, sizeof count, 1, file);
    fwrite(expected, sizeof *expected, (size_t)count, file);
    assert_int_equal(fclose(file), 0);
    free(expected);
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(length > 0);
    self[length] = '\0';
    snprintf(command, sizeof command, "ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe -np %d '%s' worker %s %d %s",
             ranks, self, path, dap, type);
    int code = system(command);
    remove(path);
    assert_int_equal(WEXITSTATUS(code), 0);
}

/* --- the suite --- */

static void one_rank(const char *type)
{
    int64_t count;
    double *expected = reference(precision_named(type), 1, &count);
    Backend *backend = NULL;
    assert_int_equal(kernels_open("cpu", &(KernelOptions){.dap = 1}, &backend), OK);
    int failures = compare_all(backend, precision_named(type), expected);
    kernels_close(&backend);
    free(expected);
    assert_int_equal(failures, 0);
}

static void dap1_f64(void **state)
{
    (void)state;
    one_rank("f64");
}

static void dap1_f32(void **state)
{
    (void)state;
    one_rank("f32");
}

static void dap2_f64(void **state)
{
    (void)state;
    run_job(2, 2, "f64", 1);
}

static void dap2_f32(void **state)
{
    (void)state;
    run_job(2, 2, "f32", 1);
}

static void dp2_f64(void **state)
{
    (void)state;
    run_job(2, 1, "f64", 2);
}

static void dp2_dap2_f64(void **state)
{
    (void)state;
    run_job(4, 2, "f64", 2);
}

int main(int argc, char **argv)
{
    if (argc == 5 && !strcmp(argv[1], "worker")) return worker(argv);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(dap1_f64), cmocka_unit_test(dap1_f32),
                                       cmocka_unit_test(dap2_f64), cmocka_unit_test(dap2_f32),
                                       cmocka_unit_test(dp2_f64),  cmocka_unit_test(dp2_dap2_f64)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
