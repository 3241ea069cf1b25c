/* Shared by the files of the report; not for others. */
#ifndef FOLDSCALE_ANALYSIS_REPORT_INTERNAL_H
#define FOLDSCALE_ANALYSIS_REPORT_INTERNAL_H

#include "analysis/report.h"

/* Runs of one configuration, averaged over its repeats. */
typedef struct RunGroup {
    const RunRow *first;
    int runs;
    int on; /* switches that are on (checkpoint counts as one when it differs from the first group's) */
    double step_s, low_s, high_s; /* mean, smallest and largest repeat */
    double phase_s[SCHEMA_PHASE_COUNT];
    double sample_s; /* seconds per training sample */
} RunGroup;

/* Groups of all runs; caller's arena. */
Status report_group_runs(const ReportInput *input, Arena *arena, RunGroup **groups_out, int *count_out);

bool report_same_switches(const RunRow *a, const RunRow *b);

/* The groups of the ablation: those of the (ranks, dap) pair with the most switch settings, from fewest to most
 * switches on. label[i] names what was turned on: "baseline", "+ bf16", ... */
Status report_ablation(const RunGroup *groups, int count, Arena *arena, const RunGroup ***out, const char ***label_out,
                       int *count_out);

/* The groups of the scaling curve: the switch setting measured at the most rank counts, by ranks. */
Status report_scaling(const RunGroup *groups, int count, Arena *arena, const RunGroup ***out, int *count_out);

/* One plot each; ERR_INPUT when its data are missing (the report leaves it out). */
Status report_plot_waterfall(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_scaling(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_step_time(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_breakdown(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_measured_breakdown(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_roofline(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_ops(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_residuals(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_step_distribution(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_data_wait(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_loss_step(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_loss_time(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_lddt_step(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_lddt_time(const char *folder, const ReportInput *input, Arena *arena);
Status report_plot_train_time(const char *folder, const ReportInput *input, Arena *arena);

#endif
