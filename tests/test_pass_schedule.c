/* Starts and waits of collectives, sums of squares next to the buckets, capture segments. */
#include "tests/pass_program.h"

#include "engine/backend.h"
#include "engine/passes/aside.h"
#include "engine/passes/edit.h"

static Switches overlapping(int dap, int dp)
{
    return (Switches){.dap = dap, .dp = dp, .comm_overlap = true};
}

static bool is_start(const Op *op)
{
    return op->stream == 1 && op->kind != OP_COMM_WAIT;
}

static void every_start_has_a_wait_in_front_of_its_reader(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Switches s = overlapping(2, 2);
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int starts = 0, waits = count_kind(p, OP_COMM_WAIT), whole = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (is_start(op)) starts++;
        if (!is_start(op) && op->kind != OP_COMM_WAIT && (op_def(op->kind)->flags & OPF_COMM)) whole++;
        if (op->kind != OP_COMM_WAIT || p->value[op->out[0]].place != PLACE_ARENA) continue;
        int32_t next = i + 1; /* waits for the same reader stand together */
        while (next < p->n_ops && p->op[next].kind == OP_COMM_WAIT) next++;
        bool read = false;
        for (int k = 0; k < p->op[next].n_in; k++) read |= p->op[next].in[k] == op->out[0];
        assert_true(read);
    }
    assert_true(starts > 20);
    assert_int_equal(starts, waits);
    assert_true(whole > 0); /* those with nothing to do meanwhile stay whole */
    prog_destroy(&p);
    recording_free(&r);
}

/* In the backward pass weight gradients fill the time of the collectives. */
static void weight_gradients_run_behind_collectives(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", true);
    Switches s = overlapping(4, 1);
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int beside = 0, all = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->stage != STAGE_BACKWARD || !(op_def(op->kind)->flags & OPF_COMM) || op->kind == OP_COMM_WAIT) continue;
        all++;
        for (int32_t k = i + 1; is_start(op) && p->op[k].kind != OP_COMM_WAIT; k++)
            if (p->op[k].kind == OP_LINEAR_DW || p->op[k].kind == OP_LAYER_NORM_BWD) {
                beside++;
                break;
            }
    }
    assert_true(all > 48 * 9);
    assert_true(beside * 2 > all);
    prog_destroy(&p);
    recording_free(&r);
}

/* FastFold's overlap: the MSA goes back to rows while the pair stack runs. */
static void the_msa_exchange_hides_behind_the_pair_stack(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", false);
    Switches s = overlapping(4, 1);
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int32_t block = 0;
    for (int32_t i = 0; i < p->n_ops; i++)
        if (p->op[i].block > block) block = p->op[i].block;
    block--;
    int32_t start = -1, wait = -1;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        bool to_rows = op->kind == OP_ALL_TO_ALL && op->attr.i[1] == 0 && op->block == block &&
                       tensor_last(out_tensor(p, op, 0)) == 256;
        if (to_rows) start = i;
        if (start >= 0 && wait < 0 && op->kind == OP_COMM_WAIT && op->in[0] == p->op[start].out[0]) wait = i;
    }
    assert_true(start >= 0 && wait > start);
    int products = 0;
    for (int32_t i = start; i < wait; i++) products += p->op[i].kind == OP_TRI_PRODUCT;
    assert_int_equal(products, 2);
    prog_destroy(&p);
    recording_free(&r);
}

static OpKind writer_kind(const Program *p, Val v)
{
    int32_t op = p->value[v].def_op;
    return op < 0 ? OP_COUNT : p->op[op].kind;
}

/* What the row attentions compute is exchanged, not the sums behind them: the MSA's other operand is where it came
 * from, the pairs' one goes with it. What a gradient needs stays as well. */
static void a_branch_is_summed_behind_its_exchange(void **state)
{
    (void)state;
    for (int setting = 0; setting < 3; setting++) {
        bool loss = setting == 1, overlaps = setting < 2;
        Recording r = recording_model("initial_training", loss);
        Switches s = overlapping(2, 1);
        s.comm_overlap = overlaps;
        s.fused_attention = s.fused_pointwise = s.fused_layernorm = true;
        Program *p = passed(r.p, &s, PASS_AUTODIFF);
        int before = 0, behind = 0, kept = 0, moved = 0, twice = 0;
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            bool exchange = op->kind == OP_ALL_TO_ALL && op->stage == STAGE_FORWARD;
            OpKind from = exchange ? writer_kind(p, op->in[0]) : OP_COUNT;
            before += from == OP_ATTENTION;
            behind += from == OP_LINEAR_RESIDUAL && op->block >= 0;
            twice += op->kind == OP_ATTENTION && op->attr.i[3] && op->out[3] != VAL_NONE;
            if (op->kind != OP_LINEAR_RESIDUAL || writer_kind(p, op->in[1]) != OP_ALL_TO_ALL) continue;
            kept += writer_kind(p, op->in[0]) == OP_TRANSITION;
            moved += writer_kind(p, op->in[0]) == OP_ALL_TO_ALL;
        }
        if (overlaps)
            assert_true(before >= 2 * 48 && kept >= 47 && moved >= 48 && before == kept + moved);
        else
            assert_true(before == 0 && behind >= 2 * 48);
        assert_int_equal(twice, loss ? before : 0);
        prog_destroy(&p);
        recording_free(&r);
    }
}

static void without_the_switch_nothing_is_split(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Program *p = passed(r.p, &(Switches){.dap = 2, .dp = 2}, PASS_SCHEDULE);
    assert_int_equal(count_kind(p, OP_COMM_WAIT), 0);
    for (int32_t i = 0; i < p->n_ops; i++) assert_int_equal(p->op[i].stream, 0);
    prog_destroy(&p);
    recording_free(&r);
}

/* Every element of the gradient is summed exactly once, after the last op that writes it. */
static void squares_cover_the_gradient_once(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    for (int setting = 0; setting < 4; setting++) {
        Switches s = {.dap = setting & 1 ? 2 : 1, .dp = setting & 2 ? 2 : 1, .overlap_clip = true};
        s.comm_overlap = setting == 3;
        Program *p = passed(r.p, &s, PASS_SCHEDULE);
        int64_t elements = r.registry->param_elements;
        uint8_t *summed = calloc((size_t)elements, 1);
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            bool sums = op->kind == OP_SUM_SQUARES;
            int n = sums ? op->n_in : op->n_out;
            for (int k = 0; k < n; k++) {
                Val v = sums ? op->in[k] : op->out[k];
                if (v == VAL_NONE || p->value[v].place != PLACE_GRAD) continue;
                int64_t first = r.registry->param[p->value[v].slot].offset;
                for (int64_t e = first; e < first + tensor_count(&p->value[v].t); e++) {
                    assert_int_equal(summed[e], 0); /* neither summed twice nor written after its sum */
                    if (sums) summed[e] = 1;
                }
            }
        }
        for (int k = 0; k < r.registry->n_params; k++)
            for (int64_t e = 0; e < r.registry->param[k].count; e++)
                assert_int_equal(summed[r.registry->param[k].offset + e], 1);
        free(summed);
        prog_destroy(&p);
    }
    recording_free(&r);
}

static void graphs_are_one_segment(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    for (int graph = 0; graph < 2; graph++) {
        Program *p = passed(r.p, &(Switches){.dap = 1, .dp = 1, .cuda_graph = graph}, PASS_SCHEDULE);
        for (int32_t i = 0; i < p->n_ops; i++) assert_int_equal(p->op[i].segment, graph ? 0 : -1);
        prog_destroy(&p);
    }
    recording_free(&r);
}

static bool writes_gradients(const Program *p, const Op *op)
{
    return op->n_out && op->out[0] != VAL_NONE && p->value[op->out[0]].place == PLACE_GRAD;
}

/* Under graphs gradients of parameters run aside, in groups that are waited for one behind the next. */
static void weight_gradients_run_aside(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", true);
    for (int dap = 1; dap <= 4; dap *= 4) {
        Switches s = {.dap = dap, .dp = 1, .comm_overlap = true, .overlap_clip = true, .cuda_graph = true};
        Program *p = passed(r.p, &s, PASS_SCHEDULE);
        int32_t first = 0, end;
        int groups = 0, joins = 0, ops = 0, products = 0;
        for (; aside_next(p, &first, &end); first = end) {
            groups++;
            ops += end - first;
        }
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            bool product = op->kind == OP_LINEAR_DW || op->kind == OP_LINEAR_GROUP_DW;
            joins += op->joins;
            products += product;
            if (product && writes_gradients(p, op)) assert_int_equal(op->stream, STREAM_ASIDE);
        }
        assert_true(products > 48 * 20 && ops >= products);
        assert_true(groups > ops / 24 && groups < ops / 8);
        assert_int_equal(joins, groups); /* the clip needs all of them */
        prog_destroy(&p);
    }
    recording_free(&r);
}

static void the_verifier_sees_a_group_that_nobody_waits_for(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Switches s = {.dap = 1, .dp = 1, .overlap_clip = true, .cuda_graph = true};
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int32_t last = p->n_ops - 1;
    while (!p->op[last].joins) last--;
    p->op[last].joins--; /* the clip reads sums that are still on their way */
    assert_int_equal(prog_verify(p, PASS_SCHEDULE), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "touches what a group aside is working on"));
    p->op[last].joins += 2;
    assert_int_equal(prog_verify(p, PASS_SCHEDULE), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "waits for more groups than there are"));
    prog_destroy(&p);
    recording_free(&r);
}

/* What was one collective is one still: of its own, or sent by the op that computes its operand, which has no memory
 * then. */
static void ops_send_what_they_compute(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", true);
    Switches s = {.dap = 2, .dp = 1, .gemm_batching = true, .fused_pointwise = true, .fused_layernorm = true};
    Program *apart = passed(r.p, &s, PASS_PLAN);
    s.comm_overlap = true;
    Program *p = passed(r.p, &s, PASS_PLAN);
    int sent = 0;
    for (OpKind kind = 0; kind < OP_COUNT; kind++) {
        if (!(op_def(kind)->flags & OPF_COMM) || kind == OP_COMM_WAIT) continue;
        int of_kind = 0;
        for (int32_t i = 0; i < p->n_ops; i++) of_kind += p->op[i].send.active && p->op[i].send.kind == kind;
        assert_int_equal(count_kind(p, kind) + of_kind, count_kind(apart, kind));
        sent += of_kind;
    }
    assert_true(sent > 10);
    double wire[2] = {0};
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        if (op->send.active) assert_true(p->value[op->send.from].offset < 0 && p->value[op->send.from].def_op < 0);
        for (int k = 0; k < op->n_in; k++)
            assert_true(op->in[k] == VAL_NONE || p->value[op->in[k]].def_op != -1 ||
                        p->value[op->in[k]].place != PLACE_ARENA);
    }
    const Program *programs[] = {apart, p};
    for (int k = 0; k < 2; k++)
        for (int32_t i = 0; i < programs[k]->n_ops; i++) {
            Cost cost;
            prog_op_cost(programs[k], &programs[k]->op[i], &cost);
            wire[k] += cost.wire_bytes;
        }
    assert_true(wire[0] > 0 && wire[0] == wire[1]);
    prog_destroy(&apart);
    prog_destroy(&p);
    recording_free(&r);
}

/* Gradients that an op sums over what it computed in parts are summed over the ranks there, too. */
static void sums_of_parts_are_shared_out(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", true);
    Switches s = overlapping(2, 1);
    s.fused_attention = s.fused_pointwise = s.fused_layernorm = s.gemm_batching = s.cuda_graph = true;
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int bias = 0, products = 0;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const Op *op = &p->op[i];
        bool sum = op->send.active && op->send.kind == OP_REDUCE_SCATTER;
        bias += sum && op->kind == OP_ATTENTION_BWD && op->send.output == 3;
        products += sum && op->kind == OP_OPM_BWD && op->send.output == 1;
        if (op->kind != OP_REDUCE_SCATTER || op->stream) continue;
        OpKind writer = writer_kind(p, op->in[0]);
        assert_true(writer != OP_ATTENTION_BWD && writer != OP_OPM_BWD);
    }
    assert_true(bias >= 2 * (48 + 4 + 2) && products == 48 + 4);
    prog_destroy(&p);
    recording_free(&r);
}

static Switches fusing_and_overlapping(void)
{
    Switches s = overlapping(2, 1);
    s.gemm_batching = s.fused_attention = s.fused_pointwise = s.fused_layernorm = true;
    return s;
}

/* The wire belongs to the row attention that sends what the computation waits for: the pairs start on their way to rows
 * behind it, not where they are complete. That of the MSA starts at once: little is sent beside it. The pairs go to
 * columns beside their own attention, which sends as much: the op in front of it sends them. */
static void a_collective_gives_way_to_an_attention_that_sends(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", false);
    Switches s = fusing_and_overlapping();
    s.precision = PRECISION_BF16; /* what kernels send */
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int pairs_behind = 0, pairs_sent = 0, msa_at_once = 0;
    for (int32_t i = 1; i < p->n_ops; i++) {
        const Op *op = &p->op[i], *front = &p->op[i - 1];
        bool sends = op->kind == OP_LINEAR_RESIDUAL && op->send.active;
        pairs_sent += sends && op->send.kind == OP_ALL_TO_ALL && tensor_last(out_tensor(p, op, 0)) == 128;
        if (op->kind != OP_ALL_TO_ALL || !is_start(op)) continue;
        bool at_once = p->value[op->in[0]].def_op == i - 1, to_rows = op->attr.i[1] == 0;
        int64_t channels = tensor_last(out_tensor(p, op, 0));
        pairs_behind += channels == 128 && to_rows && front->kind == OP_ATTENTION && front->send.active;
        msa_at_once += channels == 256 && to_rows && at_once;
    }
    assert_true(pairs_behind >= 48 && pairs_sent >= 48 + 4 && msa_at_once >= 47); /* the last block ends otherwise */
    prog_destroy(&p);
    recording_free(&r);
}

/* Behind the row attention's gradient come gradients of parameters, then the op that reads the sum of the bias'
 * gradient. Under graphs the former run aside and leave too little to hide it: it is sent. */
static void what_runs_aside_hides_no_collective(void **state)
{
    (void)state;
    Recording r = recording_model("initial_training", true);
    for (int graph = 0; graph < 2; graph++) {
        Switches s = fusing_and_overlapping();
        s.cuda_graph = graph;
        Program *p = passed(r.p, &s, PASS_SCHEDULE);
        int starts = 0, sent = 0;
        for (int32_t i = 0; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            bool sends = op->kind == OP_ATTENTION_BWD && op->send.active;
            bool sums = op->kind == OP_REDUCE_SCATTER && writer_kind(p, op->in[0]) == OP_ATTENTION_BWD;
            if ((!sends && !sums) || tensor_last(out_tensor(p, op, sends ? 3 : 0)) != 8) continue; /* the MSA's heads */
            sent += sends;
            starts += is_start(op);
        }
        assert_int_equal(sent + starts, 48 + 4);
        assert_true((graph ? sent : starts) >= 44); /* not all: sums of buckets and ends of stacks lie between */
        prog_destroy(&p);
    }
    recording_free(&r);
}

/* Beside triangle products that send, and the gates in front of them, the next MSA branch begins; in the backward
 * pass, gradients of parameters. What leaves room is what something runs beside, and that stands in front of it. */
static void what_needs_nothing_of_a_sum_runs_beside_it(void **state)
{
    (void)state;
    for (int k = 0; k < 6; k++) {
        bool gradient = k % 2;
        Recording r = recording_model("initial_training", gradient);
        Switches s = fusing_and_overlapping();
        s.dap = 2 << k / 2;
        s.cuda_graph = true;
        s.precision = PRECISION_BF16;
        Program *p = passed(r.p, &s, PASS_SCHEDULE);
        int sums[2] = {0}, gates = 0, norms = 0, groups = 0;
        for (int32_t i = 1; i < p->n_ops; i++) {
            const Op *op = &p->op[i];
            bool forward = op->stage == STAGE_FORWARD, aside = op->stream == STREAM_ASIDE;
            assert_true(!op->send.shares || p->op[i - 1].stream == STREAM_ASIDE);
            sums[!forward] += op->kind == OP_TRI_PRODUCT && op->send.shares;
            gates += op->kind == OP_LINEAR_GATES && op->send.shares;
            norms += forward && aside && op->kind == OP_LAYER_NORM_FUSED;
            groups += forward && aside && op->kind == OP_LINEAR_GROUP;
        }
        assert_true(sums[0] >= 47 && norms >= 47 && groups >= 47);
        assert_true(gradient ? sums[1] >= 47 : sums[1] == 0);
        assert_true(gates >= 47 || s.dap > 2); /* the more ranks, the later the MSA arrives */
        prog_destroy(&p);
        s.cuda_graph = false; /* nothing runs aside */
        p = passed(r.p, &s, PASS_SCHEDULE);
        for (int32_t i = 0; i < p->n_ops; i++) assert_true(!p->op[i].send.shares && p->op[i].stream != STREAM_ASIDE);
        prog_destroy(&p);
        recording_free(&r);
    }
}

/* x -> linear_residual -> all_to_all: part of it, unless somebody else wants what it computes. */
static void what_others_read_is_not_sent_away(void **state)
{
    (void)state;
    for (int other = 0; other < 3; other++) {
        Recording r = recording_empty();
        Program *p = r.p;
        p->dap = 2;
        Val source = prog_input(p, "x", DT_F32, 3, (int64_t[]){4, 8, 16}),
            w = prog_param(p, "w", 2, (int64_t[]){16, 16}, INIT_ZERO, 0);
        Val x = prog_add(p, OP_SHARD_SLICE, 1, &source, &(OpAttr){.i = {0}});
        Val y = prog_add(p, OP_LINEAR_RESIDUAL, 3, (Val[]){x, x, w}, NULL);
        Val z = prog_add(p, OP_ALL_TO_ALL, 1, &y, &(OpAttr){.i = {0, 1}});
        if (other == 1) prog_tap(p, y, "tap");
        if (other == 2) prog_output(p, "reader", prog_add(p, OP_COPY, 1, &y, NULL));
        prog_output(p, "z", z);
        Program *out = NULL;
        assert_int_equal(pass_schedule(p, &(Switches){.dap = 2, .dp = 1, .comm_overlap = true}, &out), OK);
        assert_int_equal(prog_verify(out, PASS_SCHEDULE), OK);
        const Op *op = nth_kind(out, OP_LINEAR_RESIDUAL, 0);
        assert_int_equal(op->send.active, other == 0);
        if (!other) {
            assert_true(op->send.kind == OP_ALL_TO_ALL && op->send.attr.i[1] == 1 && op->send.from == y);
            assert_int_equal(op->out[0], prog_find(out, "z"));
            out->value[y].t.dim[2] = 8; /* the verifier infers what is sent */
            assert_int_equal(prog_verify(out, PASS_SCHEDULE), ERR_INTERNAL);
            assert_non_null(strstr(status_text(), "not what it computes"));
        }
        prog_destroy(&out);
        recording_free(&r);
    }
}

static void the_verifier_sees_a_missing_wait(void **state)
{
    (void)state;
    Recording r = recording_model("tiny", false);
    Switches s = overlapping(2, 1);
    Program *p = passed(r.p, &s, PASS_SCHEDULE);
    int32_t wait = (int32_t)(nth_kind(p, OP_COMM_WAIT, 0) - p->op);
    Val early = p->op[wait].in[0], arrived = p->op[wait].out[0];
    for (int32_t i = 0; i < p->n_ops; i++) /* the reader takes the value in flight */
        for (int k = 0; k < p->op[i].n_in; k++)
            if (p->op[i].in[k] == arrived) p->op[i].in[k] = early;
    Op moved = p->op[wait]; /* and the wait comes last */
    memmove(p->op + wait, p->op + wait + 1, (size_t)(p->n_ops - wait - 1) * sizeof moved);
    p->op[p->n_ops - 1] = moved;
    edit_renumber(p);
    assert_int_equal(prog_verify(p, PASS_SCHEDULE), ERR_INTERNAL);
    assert_non_null(strstr(status_text(), "before it has arrived"));
    prog_destroy(&p);
    recording_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_start_has_a_wait_in_front_of_its_reader),
        cmocka_unit_test(the_msa_exchange_hides_behind_the_pair_stack),
        cmocka_unit_test(weight_gradients_run_behind_collectives),
        cmocka_unit_test(a_branch_is_summed_behind_its_exchange),
        cmocka_unit_test(without_the_switch_nothing_is_split),
        cmocka_unit_test(squares_cover_the_gradient_once),
        cmocka_unit_test(graphs_are_one_segment),
        cmocka_unit_test(ops_send_what_they_compute),
        cmocka_unit_test(sums_of_parts_are_shared_out),
        cmocka_unit_test(what_needs_nothing_of_a_sum_runs_beside_it),
        cmocka_unit_test(what_others_read_is_not_sent_away),
        cmocka_unit_test(a_collective_gives_way_to_an_attention_that_sends),
        cmocka_unit_test(what_runs_aside_hides_no_collective),
        cmocka_unit_test(the_verifier_sees_a_missing_wait),
        cmocka_unit_test(weight_gradients_run_aside),
        cmocka_unit_test(the_verifier_sees_a_group_that_nobody_waits_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
