/* Prices of ops: time = roofline / efficiency + overhead, where roofline = max(flops / rate, bytes / bandwidth).
 *
 * With a constant overhead the efficiency seen at size s (in seconds of roofline) is s / (s / e + overhead): small ops
 * run far below the ceilings and large ones approach e. The two constants are fitted per op kind on measured ops
 * (ops.csv). A shape that was measured takes its measured time; one between measured shapes is drawn to them from the
 * curve, the more the nearer they are; kinds that nobody measured take the pooled curve and its wider spread. Other
 * machines scale by their ceilings and launch times and add an uncertainty of their own. */
#ifndef FOLDSCALE_ANALYSIS_OPPRICE_H
#define FOLDSCALE_ANALYSIS_OPPRICE_H

#include "analysis/cost.h"
#include "analysis/schema.h"

/* Equal ops of measured programs. */
typedef struct OpTiming {
    const char *kind;
    CostRate rate;
    double flops, bytes, calls; /* flops and bytes per call */
    double time_s;              /* of all calls */
    double sd; /* log standard deviation of this time where the prices are wanted; 0: as equal shapes differ */
} OpTiming;

/* One shape that was measured: its place between shapes of its kind (logarithms of flops and bytes) and how far it lies
 * from the kind's curve. */
typedef struct OpSample {
    const char *kind;
    CostRate rate;
    double log_flops, log_bytes;
    double roofline_s, time_s; /* per call */
    double weight;             /* in the fit of a curve */
    double sd;                 /* of the logarithm of its time; 0: OpPrices.context_sd */
    double misfit;             /* log(measured / curve) */
} OpSample;

typedef struct OpCurve {
    const char *kind;
    double overhead_s; /* per call, launch included */
    double slowness;   /* 1 / efficiency at large sizes */
    double sd;         /* of log(measured / priced) of shapes that were not measured */
    int samples;       /* 0: pooled */
    int first;         /* of OpPrices.sample */
} OpCurve;

typedef struct OpPrices {
    Arena arena;
    OpCurve *curve;
    int count;
    OpCurve pooled;
    OpSample *sample;                /* those of one kind together */
    double context_sd;               /* of the logarithm of one shape's time from program to program */
    double launch_s, graph_launch_s; /* of the machine the ops were measured on */
    char *machine;                   /* its name */
    double kernels_per_op; /* launches of one recorded op: 1 for this engine, more for codes that compose ops of smaller
                              kernels */
    double slowness_factor; /* on all curves, overheads left alone: calibrates one code's kernels (1 after a fit) */
    double total_measured_s, total_priced_s; /* of the profile: what the curves leave unexplained in sum */
    /* Times measured inside graphs hold no launch: an op that the host launches takes gap_s more, and the host needs
     * host_s for each. Both 0: measured as launched. */
    bool from_graphs;
    double gap_s, host_s;
} OpPrices;

/* Log standard deviation added when ops are priced for a machine other than the measured one: how far the same kernel's
 * efficiency differs between GPUs of neighbouring generations (assumed; validate reports what it achieved). */
#define OPPRICE_OTHER_MACHINE_SD 0.08
/* ... to a GPU from a CPU, or back, whose kernels have nothing in common: the one error known. From a fit on two CPU
 * cores (experiments/quickstart.sh) an H100's step at DAP 1 is predicted as 0.955 s; this engine takes 0.213 s on an
 * H200, which has the same rate of products (experiments/results/h200/step.csv), with the H100's copy rate at most
 * 0.25 s: ln(0.955 / 0.25). */
#define OPPRICE_OTHER_KIND_SD 1.34

/* The same for shapes smaller or larger than any that was measured of their kind, per octave, all kinds alike: DAP 8 of
 * the step in experiments/results/h200/validation priced from DAP 1, and DAP 1 from DAP 8, three octaves apart
 * (logarithms of errors -0.64 and 0.28). */
#define OPPRICE_OCTAVE_SD 0.16

/* Fits the curves. `rate` is the element type of the profiled products. Rows without calls or time are left out;
 * ERR_INPUT when nothing is left. */
Status opprice_fit(const OpRow *rows, int64_t count, const Machine *machine, CostRate rate, OpPrices **prices_out);

/* The same from the classes of several programs; times without what the clock's marks add. Times of a shape in several
 * programs give context_sd. */
Status opprice_fit_timings(const OpTiming *timing, int count, const Machine *machine, OpPrices **prices_out);

/* Prices without a profile: every kind at `efficiency` with `kernels_per_op` launches, spread `sd`. */
Status opprice_assume(const Machine *machine, double efficiency, double kernels_per_op, double sd,
                      OpPrices **prices_out);
/* One kind of another number of launches: codes fuse some ops and compose others. Prices without a profile only. */
Status opprice_assume_kind(OpPrices *prices, const char *kind, double kernels);
/* Sets the time of a launch of prices without a profile. */
void opprice_set_launch(OpPrices *prices, double launch_s);
void opprice_destroy(OpPrices **prices);

double opprice_roofline(const Machine *machine, CostRate rate, double flops, double bytes);

/* Seconds of one call. */
double opprice_time(const OpPrices *prices, const Machine *machine, const char *kind, CostRate rate, double flops,
                    double bytes, bool in_graph, double *sd_out);

/* A step priced on a machine. */
typedef struct StepPrice {
    double compute_s; /* all ops but collectives */
    double stage_s[COST_STAGE_COUNT];
    double unsharded_s;       /* part of compute_s that no DAP degree divides */
    double overhead_s;        /* part of compute_s that is overhead: launches and small-size losses */
    double latency_s, wire_s; /* exposed collectives, by term */
    double comm_total_s;      /* before hiding */
    double sd;                /* log standard deviation of compute_s: shapes of one kind err together, kinds apart, but
                                 for sizes that nobody measured */
    double measured;          /* share of compute_s whose very shapes were measured */
} StepPrice;

/* Sets slowness_factor so that the computation of a step takes compute_s; ERR_INPUT when overheads alone take longer or
 * no factor from 0.01 to 1000 does it. */
Status opprice_calibrate(OpPrices *prices, const Machine *machine, const StepCost *cost, int64_t dp, double compute_s);

/* Groups are placed as group_model and group_data say. */
Status opprice_step(const OpPrices *prices, const Machine *machine, const StepCost *cost, int64_t dp, StepPrice *out);

#endif
