/* Machine files: every shipped one reads back, and contradictions are refused with their line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "analysis/collective.h"
#include "analysis/machine.h"
#include "tests/source_dir.h"

static char folder[] = "/tmp/foldscale_machine_XXXXXX";
static char path[200];

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/m.yaml", folder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void test_shipped_files(void **state)
{
    (void)state;
    char name[600];
    snprintf(name, sizeof name, "%s/experiments/machines", source_dir());
    DIR *dir = opendir(name);
    assert_non_null(dir);
    int read = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strstr(entry->d_name, ".yaml")) continue;
        snprintf(name, sizeof name, "%s/experiments/machines/%.200s", source_dir(), entry->d_name);
        Machine *m = NULL, *back = NULL;
        if (machine_read(name, &m) != OK) fail_msg("%s", status_text());
        assert_int_equal(machine_write(m, path), OK);
        if (machine_read(path, &back) != OK) fail_msg("written back: %s", status_text());
        assert_string_equal(back->name, m->name);
        assert_true(back->device.copy_bytes_per_s.value == m->device.copy_bytes_per_s.value);
        assert_true(back->network.rail_bytes_per_s.value == m->network.rail_bytes_per_s.value);
        assert_int_equal(back->samples, m->samples);
        machine_destroy(&m);
        machine_destroy(&back);
        read++;
    }
    closedir(dir);
    assert_true(read >= 7);
}

#define HEAD                                                                                                           \
    "name: t\ndescription: test\nkind: gpu\ndevice:\n  model: T\n  memory_bytes: {value: 8e10, source: s}\n"           \
    "  copy_bytes_per_s: {value: 3e12, source: s}\n  bf16_flops: {value: 8e14, source: s}\n"                           \
    "  f32_flops: {value: 4e14, source: s}\n  launch_s: {value: 6e-6, source: s}\n"
#define NODE  "node:\n  devices: 8\n  fabric: nvlink\n  link_bytes_per_s: {value: 3.7e11, source: s}\n"
#define NET   "network:\n  nodes: 4\n  rails: 8\n  rail_bytes_per_s: {value: 4.8e10, source: s}\n"
#define NOISE "rank_noise: {value: 0.01, source: s}\n"

static void refused(const char *text, const char *message)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    Machine *m = NULL;
    assert_int_equal(machine_read(path, &m), ERR_INPUT);
    assert_null(m);
    if (!strstr(status_text(), message)) fail_msg("\"%s\" does not contain \"%s\"", status_text(), message);
}

static void test_refused(void **state)
{
    (void)state;
    refused(HEAD NODE NET NOISE "surprise: 1\n", ":20:");
    refused(HEAD NODE NET NOISE "surprise: 1\n", "surprise");
    refused("name: t\nkind: toaster\n", ":2:");
    refused(HEAD "  graph_launch_s: {value: 1e-5, source: s}\n" NODE NET NOISE, ":11: device.graph_launch_s");
    refused(HEAD "node:\n  devices: 8\n  fabric: nvlink\n" NET NOISE, "node.link_bytes_per_s: missing");
    refused(HEAD "node:\n  devices: 1\n  fabric: nvlink\n  link_bytes_per_s: {value: 3e11, source: s}\n" NET NOISE,
            "no neighbour");
    refused(HEAD NODE "network:\n  nodes: 4\n" NOISE, "need rails");
    refused(HEAD NODE "network:\n  nodes: 1\n  rails: 8\n" NOISE, "one node, yet");
    refused(HEAD NODE NET "rank_noise: {value: -1, source: s}\n", ":19: rank_noise: -1 is out of range");
    refused(HEAD NODE NET "rank_noise: {value: 0.1}\n", "source");
    refused(HEAD NODE NET NOISE
            "collectives_source: s\ncollectives:\n  - {collective: all_reduce, ranks: 2, bytes: 1e9, time_s: 1e-4}\n",
            ":21: collectives, entry 1 (all_reduce, 1e+09 bytes): 1e+04 GB/s over links of 370 GB/s");
    refused(HEAD NODE NET NOISE
            "collectives_source: s\ncollectives:\n  - {collective: all_reduce, ranks: 64, bytes: 1e9, time_s: 1}\n",
            "64 ranks (expected 2 to 32");
    refused("", "");
    refused("- 1\n- 2\n", "");
    refused("name: [unclosed\n", "");
    Machine *m = NULL;
    assert_int_equal(machine_read("/nonexistent/m.yaml", &m), ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shipped_files), cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
