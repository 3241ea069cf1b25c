/* Exports of a recorded step: Chakra traces are decoded again, Perfetto's JSON is parsed, SimGrid's replay (where
 * installed) must take the time that the trace says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "analysis/trace.h"
#include "engine/passes.h"
#include "tests/machine_helpers.h"

static char folder[] = "/tmp/foldscale_export_XXXXXX";
static Trace *trace;
static Machine *machine;
static OpPrices *prices;

enum { DP = 2, DAP = 2, ROWS = 4096, WIDTH = 1024, LAYERS = 4 };

/* A few dense layers whose rows are split over the model group, gathered at the end. */
static void record(Program *p)
{
    Val x = prog_input(p, "x", DT_F32, 2, (int64_t[]){ROWS, WIDTH});
    for (int i = 0; i < LAYERS; i++) {
        prog_scope_push(p, "layer.%d", i);
        Val w = prog_param(p, "weight", 2, (int64_t[]){WIDTH, WIDTH}, INIT_NORMAL, 0.02);
        x = prog_add(p, OP_LINEAR, 3, (Val[]){x, w, VAL_NONE}, NULL);
        x = prog_add(p, OP_RESHARD, 1, &x, &(OpAttr){.i = {i % 2 ? -1 : 0}});
        prog_scope_pop(p);
    }
    prog_output(p, "y", x);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder)) return -1;
    Registry *registry;
    Program *recorded, *lowered;
    assert_int_equal(registry_create(&registry), OK);
    assert_int_equal(prog_create(registry, &recorded), OK);
    record(recorded);
    Switches s = {.dap = DAP, .dp = DP, .precision = PRECISION_F32};
    if (passes_run(recorded, &s, PASS_SCHEDULE, &lowered) != OK) fail_msg("%s", status_text());
    machine = open_machine("h100_sxm");
    assert_int_equal(opprice_assume(machine, 0.5, 1, 0.1, &prices), OK);
    TracePart part = {lowered, 2, true};
    if (trace_create(&part, 1, prices, machine, DP, DAP, true, &trace) != OK) fail_msg("%s", status_text());
    prog_destroy(&lowered);
    prog_destroy(&recorded);
    registry_destroy(&registry);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    trace_destroy(&trace);
    opprice_destroy(&prices);
    machine_destroy(&machine);
    return system(command);
}

static void test_trace(void **state)
{
    (void)state;
    int collectives = 0;
    double busy = 0;
    for (int i = 0; i < trace->count; i++) {
        const TraceOp *op = &trace->op[i];
        collectives += op->comm;
        busy += op->duration_s;
        for (int d = 0; d < op->deps; d++) {
            int on = trace->dep[op->first_dep + d];
            assert_true(on >= 0 && on < i);
            assert_true(trace->op[on].start_s + trace->op[on].duration_s <= op->start_s + 1e-12);
        }
    }
    assert_true(collectives >= 2);
    assert_true(trace->total_s <= busy + 1e-12); /* streams overlap or follow one another, nothing idles unasked */
    int64_t first, stride;
    assert_int_equal(trace_group(trace, COST_GROUP_DATA, 3, &first, &stride), DP);
    assert_true(first == 1 && stride == 2);
    Trace *bad = NULL;
    assert_int_equal(trace_create(NULL, 0, prices, machine, 1 << 20, 8, true, &bad), ERR_USAGE);
}

/* v, then u, which goes to all ranks as it is computed: bytes that take the wire longer than either takes the GPU; then
 * what is made of v. beside: v runs beside u. Seconds of the step; *sent_out: when u begins to be sent. */
static double two_layers(bool beside, double *sent_out)
{
    Registry *registry;
    Program *recorded, *lowered;
    Trace *of = NULL;
    assert_int_equal(registry_create(&registry), OK);
    assert_int_equal(prog_create(registry, &recorded), OK);
    Val x = prog_input(recorded, "x", DT_F32, 2, (int64_t[]){ROWS, 16});
    x = prog_add(recorded, OP_RESHARD, 1, &x, &(OpAttr){.i = {0}});
    static const char *const names[] = {"v", "u", "w"};
    static const int64_t widths[] = {16, WIDTH, 16};
    Val y[3];
    for (int k = 0; k < 3; k++) {
        Val w = prog_param(recorded, names[k], 2, (int64_t[]){widths[k], 16}, INIT_NORMAL, 0.02);
        y[k] = prog_add(recorded, OP_LINEAR, 3, (Val[]){k == 2 ? y[0] : x, w, VAL_NONE}, NULL);
        if (k == 1) y[k] = prog_add(recorded, OP_RESHARD, 1, &y[k], &(OpAttr){.i = {-1}});
        if (k > 0) prog_output(recorded, names[k], y[k]);
    }
    Switches s = {.dap = DAP, .dp = DP, .precision = PRECISION_F32, .comm_overlap = true};
    if (passes_run(recorded, &s, PASS_SCHEDULE, &lowered) != OK) fail_msg("%s", status_text());
    Op *v = &lowered->op[1], *u = &lowered->op[2];
    assert_true(v->kind == OP_LINEAR && !v->send.active && u->send.active);
    if (beside) v->stream = STREAM_ASIDE, u->send.shares = true;
    TracePart part = {lowered, 1, true};
    if (trace_create(&part, 1, prices, machine, DP, DAP, true, &of) != OK) fail_msg("%s", status_text());
    int first = 0;
    while (first < of->count && !of->op[first].comm) first++;
    assert_true(first < of->count);
    *sent_out = of->op[first].start_s;
    double total = of->total_s;
    trace_destroy(&of);
    prog_destroy(&lowered);
    prog_destroy(&recorded);
    registry_destroy(&registry);
    return total;
}

static void test_what_runs_beside_a_sender(void **state)
{
    (void)state;
    double sent[2], alone = two_layers(false, &sent[0]), beside = two_layers(true, &sent[1]);
    assert_true(sent[1] < sent[0]);
    assert_true(fabs((alone - beside) - (sent[0] - sent[1])) < 1e-12); /* v is hidden, the wire is what is waited for */
}

static unsigned char *read_file(const char *name, long *size)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size = ftell(f);
    rewind(f);
    unsigned char *data = calloc(1, (size_t)*size + 1);
    assert_int_equal(fread(data, 1, (size_t)*size, f), (size_t)*size);
    fclose(f);
    return data;
}

static uint64_t take_varint(const unsigned char **at, const unsigned char *end)
{
    uint64_t value = 0;
    for (int shift = 0; *at < end; shift += 7) {
        unsigned char byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (!(byte & 128)) return value;
    }
    fail_msg("a varint is cut off");
    return 0;
}

/* id, type and number of dependencies of a node; every field must be of a wire type that the schema has */
static void decode_node(const unsigned char *at, const unsigned char *end, uint64_t *id, uint64_t *type, int *deps)
{
    *deps = 0;
    while (at < end) {
        uint64_t key = take_varint(&at, end), value = take_varint(&at, end);
        if (key >> 3 == 1) *id = value;
        if (key >> 3 == 3) *type = value;
        if ((key & 7) == 0) continue;
        assert_int_equal(key & 7, 2);
        const unsigned char *stop = at + value; /* value is the length of the bytes that follow */
        assert_true(stop <= end);
        if (key >> 3 == 5)
            while (at < stop) take_varint(&at, stop), (*deps)++;
        at = stop;
    }
}

static void test_chakra(void **state)
{
    (void)state;
    assert_int_equal(export_chakra(trace, folder, "step", DP * DAP), OK);
    for (int rank = 0; rank < DP * DAP; rank++) {
        char name[40];
        long size;
        snprintf(name, sizeof name, "step.%d.et", rank);
        unsigned char *data = read_file(name, &size);
        const unsigned char *at = data, *end = data + size;
        uint64_t length = take_varint(&at, end);
        assert_memory_equal(at,
                            "\x0a\x05"
                            "0.0.4",
                            7);
        at += length;
        int nodes = 0, deps, all = 0;
        while (at < end) {
            uint64_t id = 0, type = 0;
            length = take_varint(&at, end);
            assert_true(at + length <= end);
            decode_node(at, at + length, &id, &type, &deps);
            assert_int_equal(id, nodes);
            assert_int_equal(type, trace->op[nodes].comm ? 7 : 4);
            assert_int_equal(deps, trace->op[nodes].deps);
            all += deps;
            at += length;
            nodes++;
        }
        assert_int_equal(nodes, trace->count);
        assert_int_equal(all, trace->dep_count);
        free(data);
    }
    assert_int_equal(export_chakra(trace, folder, "step", 99), ERR_USAGE);
    assert_int_equal(export_chakra(trace, "/nonexistent", "step", 1), ERR_IO);
}

static void test_perfetto(void **state)
{
    (void)state;
    char path[300];
    long size;
    OpRow measured[] = {
        {.kind = "linear", .name = "a \"quoted\"\tname", .stage = "forward", .calls = 1.5, .time_s = 1e-3, .flops = 4}};
    snprintf(path, sizeof path, "%s/timeline.json", folder);
    assert_int_equal(export_perfetto(trace, measured, 1, path), OK);
    unsigned char *data = read_file("timeline.json", &size);
    cJSON *root = cJSON_Parse((const char *)data);
    assert_non_null(root);
    const cJSON *events = cJSON_GetObjectItem(root, "traceEvents"), *event;
    int complete = 0;
    cJSON_ArrayForEach(event, events)
    {
        if (strcmp(cJSON_GetObjectItem(event, "ph")->valuestring, "X")) continue;
        const cJSON *what = cJSON_GetObjectItem(event, "args");
        if (complete++ == trace->count) /* an event of all calls: its flops are theirs as its time is */
            assert_true(cJSON_GetObjectItem(what, "flops")->valuedouble == 6);
    }
    assert_int_equal(complete, trace->count + 1);
    cJSON_Delete(root);
    free(data);
}

static void test_simgrid(void **state)
{
    (void)state;
    assert_int_equal(export_simgrid(trace, machine, folder), OK);
    double seconds;
    Status status = simgrid_replay(folder, &seconds);
    if (status == ERR_UNSUPPORTED) skip();
    if (status != OK) fail_msg("%s", status_text());
    printf("replay %.6f s, trace %.6f s\n", seconds, trace->total_s);
    /* another network model: collectives may differ by their share, computation may not */
    assert_true(fabs(seconds / trace->total_s - 1) < 0.25);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_trace), cmocka_unit_test(test_what_runs_beside_a_sender),
                                       cmocka_unit_test(test_chakra), cmocka_unit_test(test_perfetto),
                                       cmocka_unit_test(test_simgrid)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
