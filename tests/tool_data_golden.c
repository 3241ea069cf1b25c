/* data_golden GOLDEN REAL [SECTION...]: compares the data pipeline with expected numbers, one line per check.
 * Exit status 1 on any FAIL, and when nothing was checked. */
#include <stdio.h>
#include <string.h>

#include "tests/data_golden.h"

static const struct {
    const char *name;
    void (*run)(Golden *golden);
} sections[] = {
    {"mmcif", golden_mmcif},         {"parsers", golden_parsers}, {"msa", golden_msa},
    {"hits", golden_hits},           {"caches", golden_caches},   {"transforms", golden_transforms},
    {"batch", golden_batch},         {"sampler", golden_sampler}, {"metrics", golden_metrics},
    {"templates", golden_templates},
};

static bool asked_for(const char *name, int count, char **names)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return true;
    return count == 0;
}

int main(int argc, char **argv)
{
    const int fixed = 3;
    if (argc < fixed) {
        fprintf(stderr, "usage: data_golden GOLDEN REAL [SECTION...]\nsections:");
        for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) fprintf(stderr, " %s", sections[i].name);
        fprintf(stderr, "\n");
        return 2;
    }
    Golden golden = {.golden = argv[1], .real = argv[2]};
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        if (!asked_for(sections[i].name, argc - fixed, argv + fixed)) continue;
        golden.section = sections[i].name;
        sections[i].run(&golden);
    }
    printf("data_golden: %ld passed, %ld failed, %ld skipped\n", golden.passed, golden.failed, golden.skipped);
    return golden.failed || !golden.passed ? 1 : 0;
}
