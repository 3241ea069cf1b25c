/* metrics/: lDDT-CA, dRMSD, RMSD, GDT of perturbed chains. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/metrics.h"
#include "data/residue.h"
#include "tests/data_golden_numbers.h"

/* float64 golden: the same definitions in another order of summation. float32 golden: the reference's own rounding adds
 * half a unit in the last place of the coordinates. */
static const double TOLERANCE_F64 = 1e-9, TOLERANCE_F32 = 1e-5;

static uint8_t *bytes(Golden *golden, const StFile *file, const char *name, Arena *arena, int64_t *count_out)
{
    int64_t *in = golden_i64(golden, file, name, arena, count_out);
    uint8_t *out = in ? arena_alloc(arena, (size_t)*count_out) : NULL;
    for (int64_t i = 0; out && i < *count_out; ++i) out[i] = (uint8_t)in[i];
    return out;
}

static void check_row(Golden *golden, const GoldenTable *table, int64_t row, const StructureMetrics *metrics,
                      double largest)
{
    const struct {
        const char *column;
        double value;
    } COMPARED[] = {{"lddt_ca", metrics->lddt_ca},
                    {"drmsd_ca", metrics->drmsd},
                    {"alignment_rmsd", metrics->rmsd},
                    {"gdt_ts", metrics->gdt_ts},
                    {"gdt_ha", metrics->gdt_ha}};
    bool wide = strcmp(golden_cell(table, row, "precision"), "f64") == 0;
    char label[96];
    snprintf(label, sizeof label, "%s perturbation %s %s", golden_cell(table, row, "chain"),
             golden_cell(table, row, "perturbation"), golden_cell(table, row, "precision"));
    double worst = 0.0;
    for (size_t i = 0; i < sizeof COMPARED / sizeof COMPARED[0]; ++i)
        worst = fmax(worst, fabs(strtod(golden_cell(table, row, COMPARED[i].column), NULL) - COMPARED[i].value));
    golden_check(golden, worst <= (wide ? TOLERANCE_F64 : TOLERANCE_F32 + largest * 0x1p-24), label,
                 "lDDT %.6f, dRMSD %.6f, RMSD %.6f, GDT-TS %.6f, GDT-HA %.6f, largest error %.2g", metrics->lddt_ca,
                 metrics->drmsd, metrics->rmsd, metrics->gdt_ts, metrics->gdt_ha, worst);
}

static void check_perturbation(Golden *golden, const StFile *file, const GoldenTable *table, int64_t row, Arena *arena)
{
    char name[64];
    int64_t count, residues;
    const char *which = golden_cell(table, row, "perturbation"), *precision = golden_cell(table, row, "precision");
    snprintf(name, sizeof name, "in.pred_ca_%.16s", which);
    const double *predicted = golden_f64(golden, file, name, arena, &count);
    const double *truth = golden_f64(golden, file, "in.target_ca", arena, NULL);
    const uint8_t *mask = bytes(golden, file, "in.ca_mask", arena, &residues);
    double *each = arena_array(arena, (size_t)residues, sizeof *each);
    StructureMetrics metrics;
    if (!predicted || !truth || !mask || !each || count != residues * 3) return;
    if (!golden_ok(golden, metrics_compare(predicted, truth, mask, residues, each, &metrics), name)) return;
    double largest = 0.0;
    for (int64_t i = 0; i < count; ++i) largest = fmax(largest, fabs(predicted[i]));
    check_row(golden, table, row, &metrics, largest);
    snprintf(name, sizeof name, "out.%.8s.per_residue_lddt_%.16s", precision, which);
    float *each_f32 = arena_array(arena, (size_t)residues, sizeof *each_f32),
          *valid = each_f32 ? arena_array(arena, (size_t)residues, sizeof *valid) : NULL;
    const float *want = golden_f32(golden, file, name, arena, NULL);
    if (!each_f32 || !valid) return;
    for (int64_t i = 0; i < residues; ++i) {
        each_f32[i] = (float)each[i];
        valid[i] = mask[i];
    }
    golden_match_f32(golden, name, each_f32, want, residues, TOLERANCE_F32, valid, 1);
}

static void check_bounds(Golden *golden, Arena *arena)
{
    enum { COUNT = 21 * 14 * 14 };
    char *path = golden_path(arena, golden->golden, "metrics/atom14_distance_bounds.safetensors");
    StFile *file = NULL;
    if (!golden_exists(path) || !golden_ok(golden, st_open(path, &file), path)) return;
    static const char *const NAMES[3] = {"lower_bound_factor12", "upper_bound_factor12", "stddev"};
    float *ours[3];
    for (int i = 0; i < 3; ++i) ours[i] = arena_array(arena, COUNT, sizeof(float));
    if (ours[0] && ours[1] && ours[2]) {
        residue_atom14_bounds(1.5, 12.0, ours[0], ours[1], ours[2]);
        for (int i = 0; i < 3; ++i) {
            int64_t count;
            const float *want = golden_f32(golden, file, NAMES[i], arena, &count);
            if (want && count == COUNT)
                golden_match_f32(golden, NAMES[i], ours[i], want, COUNT, TOLERANCE_F32, NULL, 1);
        }
    }
    st_close(&file);
}

void golden_metrics(Golden *golden)
{
    Arena arena = {0};
    GoldenTable table;
    char *path = golden_path(&arena, golden->golden, "metrics/metrics.csv");
    if (!golden_exists(path)) {
        golden_skip(golden, "metrics.csv", "not in the golden folder");
    } else if (golden_table_read(golden, path, &arena, &table)) {
        for (int64_t row = 0; row < table.rows; ++row) {
            StFile *file = NULL;
            char *numbers =
                golden_path(&arena, golden->golden, "metrics/%s.safetensors", golden_cell(&table, row, "chain"));
            if (!golden_ok(golden, st_open(numbers, &file), numbers)) continue;
            check_perturbation(golden, file, &table, row, &arena);
            st_close(&file);
        }
    }
    check_bounds(golden, &arena);
    arena_free(&arena);
}
