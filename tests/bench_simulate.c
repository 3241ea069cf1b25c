/* 4,096 ranks x 1,000 steps with every cause switched on: limit 10 s and 2 GiB on 2 cores. */
#include <stdio.h>
#include <sys/resource.h>

#include "analysis/simulate.h"
#include "engine/clock.h"

int main(void)
{
    SimConfig c = {.ranks = 4096,
                   .dap = 1,
                   .steps = 1000,
                   .compute_s = 0.65,
                   .rank_sd = 0.005,
                   .step_sd = 0.02,
                   .hiccup_rate = 1e-5,
                   .hiccup_s = 0.3,
                   .comm_s = 0.02,
                   .host_s = 0.005,
                   .eval_every = 40,
                   .eval_s = 25,
                   .async_eval = true,
                   .gap_s = 1.1,
                   .checkpoint_every = 200,
                   .checkpoint_s = 3,
                   .seed = 1};
    c.loader = (SimLoader){.workers = 14, .queue = 28, .prepare_s = 3, .prepare_sd = 0.8, .ready_first = true};
    SimResult r;
    double start = clock_now_s();
    if (simulate_run(&c, &r) != OK) {
        fprintf(stderr, "bench_simulate: %s\n", status_text());
        return 1;
    }
    double seconds = clock_now_s() - start;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("4096 ranks x 1000 steps: %.2f s (limit 10 s), %.0f MiB (limit 2048 MiB)\n", seconds,
           (double)usage.ru_maxrss / 1024);
    printf(
        "simulated %.1f s: compute %.1f, communication %.1f, host %.1f, loader %.1f, stragglers %.1f, evaluation %.1f, "
        "checkpoints %.1f\nstep: mean %.4f s, 5 %% %.4f, median %.4f, 95 %% %.4f, 99 %% %.4f\n",
        r.total_s, r.compute_s, r.comm_s, r.host_s, r.loader_s, r.straggler_s, r.eval_s, r.checkpoint_s, r.mean_s,
        r.p05_s, r.median_s, r.p95_s, r.p99_s);
    simulate_free(&r);
    return seconds > 10;
}
