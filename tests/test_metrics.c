/* Structure metrics against the reference's numbers (golden/data/metrics). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "analysis/table.h"
#include "data/metrics.h"
#include "engine/safetensors.h"

enum { MOST = 512 };

typedef struct Case {
    double predicted[3 * MOST], target[3 * MOST], per_residue[MOST];
    uint8_t mask[MOST];
    int64_t n;
} Case;

static void read_f64(const StFile *file, const char *name, double *out, int64_t *count_out)
{
    const StTensor *t = st_find(file, name);
    assert_non_null(t);
    assert_true(t->count <= 3 * MOST);
    assert_int_equal(st_read_f64(t, 0, t->count, out), OK);
    *count_out = t->count;
}

static void read_case(const char *folder, const char *chain, int perturbation, Case *c)
{
    char path[4096], name[64];
    StFile *file = NULL;
    int64_t count, values[MOST];
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, chain);
    assert_int_equal(st_open(path, &file), OK);
    read_f64(file, "in.target_ca", c->target, &count);
    c->n = count / 3;
    snprintf(name, sizeof name, "in.pred_ca_%d", perturbation);
    read_f64(file, name, c->predicted, &count);
    snprintf(name, sizeof name, "out.f64.per_residue_lddt_%d", perturbation);
    read_f64(file, name, c->per_residue, &count);
    assert_int_equal(st_read_i64(st_find(file, "in.ca_mask"), 0, c->n, values), OK);
    for (int64_t i = 0; i < c->n; i++) c->mask[i] = (uint8_t)values[i];
    st_close(&file);
}

static void check_row(const char *folder, const Table *table, int64_t row)
{
    static const char *const names[] = {"lddt_ca", "drmsd_ca", "alignment_rmsd", "gdt_ts", "gdt_ha"};
    static Case c;
    double per_residue[MOST];
    StructureMetrics m;
    read_case(folder, table_cell(table, row, table_find(table, "chain")),
              atoi(table_cell(table, row, table_find(table, "perturbation"))), &c);
    assert_int_equal(metrics_compare(c.predicted, c.target, c.mask, c.n, per_residue, &m), OK);
    const double ours[] = {m.lddt_ca, m.drmsd, m.rmsd, m.gdt_ts, m.gdt_ha};
    for (int k = 0; k < 5; k++) {
        double theirs;
        assert_int_equal(table_double(table, row, table_find(table, names[k]), &theirs), OK);
        /* positions are float32 numbers around 50 Angstrom: exact agreement is the arithmetic's, not the data's */
        if (fabs(ours[k] - theirs) > 1e-6)
            fail_msg("row %d %s: %.12g, expected %.12g", (int)row, names[k], ours[k], theirs);
    }
    for (int64_t i = 0; i < c.n; i++)
        if (c.mask[i]) assert_true(fabs(per_residue[i] - c.per_residue[i]) < 1e-9);
}

static void test_reference(void **state)
{
    (void)state;
    const char *shared = getenv("FOLDSCALE_SHARED");
    char folder[2048], path[4096];
    Table *table = NULL;
    snprintf(folder, sizeof folder, "%s/golden/data/metrics", shared ? shared : "../shared");
    snprintf(path, sizeof path, "%s/metrics.csv", folder);
    if (table_read(path, &table) != OK) {
        print_message("skipped: %s\n", status_text());
        skip();
    }
    int rows = 0;
    for (int64_t row = 0; row < table->rows; row++)
        if (strcmp(table_cell(table, row, table_find(table, "precision")), "f64") == 0) {
            check_row(folder, table, row);
            rows++;
        }
    table_destroy(&table);
    assert_int_equal(rows, 10);
}

/* A turned and shifted copy is the same structure; its mirror image is not. */
static void test_motion(void **state)
{
    (void)state;
    double target[30], moved[30], mirror[30];
    uint8_t mask[10];
    StructureMetrics m;
    memset(mask, 1, sizeof mask);
    for (int i = 0; i < 10; i++) {
        double p[3] = {4 * cos(i), 4 * sin(i), 1.5 * i};
        for (int a = 0; a < 3; a++) target[3 * i + a] = p[a];
        moved[3 * i] = -p[1] + 5;
        moved[3 * i + 1] = p[0] - 3;
        moved[3 * i + 2] = p[2] + 100;
        for (int a = 0; a < 3; a++) mirror[3 * i + a] = a == 2 ? -p[a] : p[a];
    }
    assert_int_equal(metrics_compare(moved, target, mask, 10, NULL, &m), OK);
    assert_true(m.rmsd < 1e-10 && m.gdt_ha == 1 && fabs(m.lddt_ca - 1) < 1e-7);
    assert_int_equal(metrics_compare(mirror, target, mask, 10, NULL, &m), OK);
    assert_true(m.rmsd > 1 && m.drmsd < 1e-10);
}

static void test_refusals(void **state)
{
    (void)state;
    double p[9] = {0, 0, 0, 1, 1, 1, 2, 2, 2}, t[9] = {0};
    uint8_t two[3] = {1, 1, 0}, all[3] = {1, 1, 1};
    StructureMetrics m;
    assert_int_equal(metrics_compare(p, t, two, 3, NULL, &m), ERR_INPUT);
    p[4] = NAN;
    assert_int_equal(metrics_compare(p, t, all, 3, NULL, &m), ERR_NUMERIC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_motion),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
