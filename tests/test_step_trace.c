/* The full-size step replayed by SimGrid: another network model, the same program. Skipped where SimGrid is absent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "experiments/step_trace.h"
#include "tests/source_dir.h"

static void both_simulators_agree(void **state)
{
    (void)state;
    char path[4096];
    StepReplay replay[STEP_REPLAYS];
    snprintf(path, sizeof path, "%s/experiments/initial_training.yaml", source_dir());
    Status status = step_trace_replay(path, replay);
    if (status == ERR_UNSUPPORTED) {
        printf("%s\n", status_text());
        skip();
    }
    if (status != OK) fail_msg("%s", status_text());
    for (int i = 0; i < STEP_REPLAYS; i++) {
        double difference = replay[i].ours_s / replay[i].simgrid_s - 1;
        printf("%d x %d: %.6f s, SimGrid %.6f s, %+.2f %%\n", replay[i].dp, replay[i].dap, replay[i].ours_s,
               replay[i].simgrid_s, 100 * difference);
        assert_true(replay[i].ours_s > 0.05);
        /* ASTRA-sim misses a measured all-reduce by 10 to 21 %; of a step it is a part */
        assert_true(fabs(difference) < 0.10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(both_simulators_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
