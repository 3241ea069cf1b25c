/* Speed of predictions over a grid: pricing one configuration (limit 1 ms) and one row with its interval from 1,000
 * draws (goal: 1,000 rows a second). The cost has as many classes of ops as a full-size model's. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "analysis/predict.h"
#include "engine/clock.h"

enum { CLASSES = 600, POINTS = 12, ROWS = 2000 };

static Status make_cost(StepCost **out)
{
    TRY(cost_create(8, false, out));
    for (int i = 0; i < CLASSES; i++) {
        char kind[20];
        snprintf(kind, sizeof kind, "kind%d", i % 60);
        CostClass c = {.kind = kind,
                       .stage = (CostStage)(i % 3),
                       .rate = RATE_BF16,
                       .sharded = true,
                       .calls = 48,
                       .flops = 1e8 * (1 + i),
                       .bytes = 1e6 * (1 + i % 37)};
        if (i % 30 == 0) c.comm = true, c.collective = COLLECTIVE_ALL_TO_ALL, c.tensor_bytes = 1e6;
        TRY(cost_add(*out, &c));
    }
    return OK;
}

/* Curves from as many measured shapes, none of them the shapes to be priced: every class looks at its neighbours. */
static Status make_prices(const Machine *machine, OpPrices **out)
{
    OpTiming timing[CLASSES];
    char kind[CLASSES][20];
    for (int i = 0; i < CLASSES; i++) {
        snprintf(kind[i], sizeof kind[i], "kind%d", i % 60);
        timing[i] = (OpTiming){kind[i], RATE_BF16, 1.3e8 * (1 + i), 1.1e6 * (1 + i % 37), 4, 4e-5 * (1 + i % 37), 0};
    }
    return opprice_fit_timings(timing, CLASSES, machine, out);
}

static Status make_fit(FitModel **out)
{
    FitPoint point[POINTS];
    for (int i = 0; i < POINTS; i++) {
        double n = 1 << (i / 3);
        point[i] =
            (FitPoint){.shape = {.ranks = n, .work = 1, .latency_s = n > 1 ? 1e-3 : 0, .wire_s = 5e-3 * (n - 1) / n},
                       .compute_s = 0.6 + 0.005 * (i % 3),
                       .loader_s = NAN,
                       .host_s = NAN};
        point[i].comm_s = (point[i].shape.latency_s + point[i].shape.wire_s) * (1 + 0.03 * (i % 3));
        point[i].step_s = point[i].compute_s + point[i].comm_s;
    }
    return fit_run(point, POINTS, NULL, out);
}

static Status run(const char *machine_path)
{
    Machine *machine;
    OpPrices *prices;
    StepCost *cost = NULL;
    FitModel *fit;
    StepPrice price;
    StepShape shape;
    Arena arena = {0};
    PredictionRow row;
    TRY(machine_read(machine_path, &machine));
    TRY(make_prices(machine, &prices));
    TRY(make_cost(&cost));
    double start = clock_now_s();
    TRY(make_fit(&fit));
    printf("fit of %d runs with 1000 draws: %.2f s (limit 5 s)\n", (int)POINTS, clock_now_s() - start);
    start = clock_now_s();
    for (int i = 0; i < ROWS; i++) TRY(predict_shape(prices, machine, cost, 1 + i % 256, 0.5, &shape, &price));
    printf("pricing %d classes of ops: %.4f ms a configuration (limit 1 ms)\n", cost->count,
           1e3 * (clock_now_s() - start) / ROWS);
    start = clock_now_s();
    for (int i = 0; i < ROWS; i++) {
        PredictRequest q = {.machine = machine, .dp = 1 + i % 256, .dap = 8};
        TRY(predict_shape(prices, machine, cost, q.dp, 0.5, &q.shape, &price));
        TRY(predict_row(fit, &q, &arena, &row));
    }
    printf("rows with intervals: %.0f a second (goal 1000)\n", ROWS / (clock_now_s() - start));
    arena_free(&arena);
    fit_destroy(&fit);
    cost_destroy(&cost);
    opprice_destroy(&prices);
    machine_destroy(&machine);
    return OK;
}

int main(int argc, char **argv)
{
    if (run(argc > 1 ? argv[1] : "experiments/machines/h100_sxm.yaml") == OK) return 0;
    fprintf(stderr, "bench_predict: %s\n", status_text());
    return 1;
}
