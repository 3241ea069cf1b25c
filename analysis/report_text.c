/* Plain conclusions, each computed from the tables. */
#include "analysis/report_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct Text {
    char *buffer;
    size_t size, used;
} Text;

static void say(Text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(Text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(t->buffer + t->used, t->size - t->used, format, args);
    va_end(args);
    if (wrote > 0) t->used = t->used + (size_t)wrote < t->size ? t->used + (size_t)wrote : t->size - 1;
}

static void say_switches(Text *t, const ReportInput *input, Arena *arena)
{
    RunGroup *groups;
    const RunGroup **list;
    const char **label;
    int count, used;
    if (report_group_runs(input, arena, &groups, &count) != OK ||
        report_ablation(groups, count, arena, &list, &label, &used) != OK)
        return;
    int best = 0;
    double most = 0;
    for (int i = 1; i < used; i++) {
        double saved = list[i - 1]->step_s - list[i]->step_s;
        if (saved > most) most = saved, best = i;
    }
    double total = list[0]->step_s / list[used - 1]->step_s;
    say(t, "On %lld rank%s a step took %.3g s with the baseline and %.3g s with the last setting: %.2f times %s. ",
        (long long)list[0]->first->ranks, list[0]->first->ranks == 1 ? "" : "s", list[0]->step_s,
        list[used - 1]->step_s, total >= 1 ? total : 1 / total, total >= 1 ? "as fast" : "as slow");
    double noise = 0;
    for (int i = 0; i < used; i++) noise = fmax(noise, list[i]->high_s - list[i]->low_s);
    if (best && most > noise)
        say(t, "Switch on first: \"%s\", which alone saved %.1f %% of the step. ", label[best],
            100 * most / list[best - 1]->step_s);
    else
        say(t,
            "No single switch saved more than the spread between repeats (%.2g s), so nothing can be said about which "
            "to "
            "switch on first. ",
            noise);
}

static const char *largest_part(const PredictionRow *p, double *share)
{
    const char *const names[] = {"serial work",           "computation",
                                 "exposed communication", "waiting for the slowest rank",
                                 "the data loader",       "host overhead"};
    const double parts[] = {p->serial_s, p->compute_s, p->comm_exposed_s, p->straggler_s, p->loader_s, p->host_s};
    int best = 0;
    for (int i = 1; i < 6; i++)
        if (parts[i] > parts[best]) best = i;
    *share = parts[best] / p->step_s;
    return names[best];
}

/* The next larger prediction of the same machine and DAP degree. */
static const PredictionRow *next_of(const ReportInput *input, const PredictionRow *row)
{
    const PredictionRow *next = NULL;
    for (int64_t r = 0; r < input->prediction_count; r++) {
        const PredictionRow *p = &input->predictions[r];
        if (strcmp(p->machine, row->machine) || p->dap != row->dap || p->gpus <= row->gpus) continue;
        if (!next || p->gpus < next->gpus) next = p;
    }
    return next;
}

/* More GPUs stop paying where doubling them buys less than half of what it should: efficiency of the increment. */
static void say_limit(Text *t, const ReportInput *input, const PredictionRow *first)
{
    const PredictionRow *row = first, *next;
    while ((next = next_of(input, row))) {
        double speedup = (row->step_s / (double)row->dp) / (next->step_s / (double)next->dp);
        double ideal = (double)next->gpus / (double)row->gpus;
        if (speedup < 1 + 0.5 * (ideal - 1)) {
            double share;
            const char *part = largest_part(next, &share);
            say(t,
                "With DAP %lld on %s more GPUs stop paying at %lld: going on to %lld would speed training up only %.2f "
                "times "
                "(ideal %.3g), because of %s (%.0f %% of the step). ",
                (long long)row->dap, row->machine, (long long)row->gpus, (long long)next->gpus, speedup, ideal, part,
                100 * share);
            return;
        }
        row = next;
    }
    double share;
    const char *part = largest_part(row, &share);
    say(t,
        "With DAP %lld on %s every predicted increase up to %lld GPUs pays for at least half of itself; there a step "
        "takes "
        "%.3g s (90 %% interval %.3g to %.3g s), most of it %s (%.0f %%). ",
        (long long)row->dap, row->machine, (long long)row->gpus, row->step_s, row->lo90_s, row->hi90_s, part,
        100 * share);
}

static void say_predictions(Text *t, const ReportInput *input)
{
    int said = 0;
    for (int64_t r = 0; r < input->prediction_count && said < 4; r++) {
        const PredictionRow *p = &input->predictions[r];
        bool smallest = true;
        for (int64_t q = 0; q < input->prediction_count && smallest; q++) {
            const PredictionRow *o = &input->predictions[q];
            if (strcmp(o->machine, p->machine) || o->dap != p->dap) continue;
            smallest = o->gpus > p->gpus || (o->gpus == p->gpus && q >= r);
        }
        if (!smallest) continue;
        say_limit(t, input, p);
        said++;
    }
    int64_t flagged = 0;
    double widest = 1;
    for (int64_t r = 0; r < input->prediction_count; r++) {
        flagged += input->predictions[r].flagged;
        widest = fmax(widest, input->predictions[r].hi90_s / input->predictions[r].lo90_s);
    }
    if (flagged)
        say(t,
            "%lld of %lld predictions reach beyond what was measured (more than 8 times the ranks, or another machine) "
            "and are "
            "flagged; the widest interval spans a factor of %.2g. ",
            (long long)flagged, (long long)input->prediction_count, widest);
}

static void say_fit(Text *t, const ReportInput *input)
{
    const FitModel *m = input->fit;
    if (!m) return;
    /* phases that hardly exist have large relative errors and no weight: the two that make up a step */
    const char *const what[] = {"step", "compute", "communication"};
    const char *const name[] = {"steps", "computation", "communication"};
    say(t, "The fit (form \"%s\", %d runs at %d rank counts) leaves, as root mean square,", FIT_FORM_NAMES[m->form],
        m->points, m->counts);
    bool first = true;
    for (int k = 0; k < 3; k++) {
        double square = 0;
        int rows = 0;
        for (int r = 0; r < m->residuals; r++) {
            if (strcmp(m->residual[r].what, what[k])) continue;
            square += pow(log(m->residual[r].fitted_s / m->residual[r].measured_s), 2);
            rows++;
        }
        if (!rows) continue;
        say(t, "%s %.1f %% of %s", first ? "" : " and", 100 * sqrt(square / rows), name[k]);
        first = false;
    }
    double chain = m->candidate[m->form].forward_error;
    if (isfinite(chain)) say(t, "; fitted on fewer ranks it missed the next larger count by %.1f %%", 100 * chain);
    if (m->counts == 1)
        say(t, "; a single rank count cannot separate serial from parallel work, so the intervals rest on priors");
    say(t, ". ");
}

static void say_ops(Text *t, const ReportInput *input)
{
    double total = 0, worst = 0, predicted = 0, compared = 0;
    const OpRow *longest = NULL;
    for (int64_t i = 0; i < input->op_count; i++) {
        const OpRow *row = &input->ops[i];
        if (!(row->time_s > 0)) continue;
        total += row->time_s;
        if (row->time_s > worst) worst = row->time_s, longest = row;
        if (row->predicted_s > 0) predicted += row->predicted_s, compared += row->time_s;
    }
    if (!longest) return;
    say(t, "The longest op is %s (%.1f %% of the profiled time). ", longest->kind, 100 * worst / total);
    if (compared > 0)
        say(t,
            "The prices of ops, fitted to this profile, come to %.1f %% of its time; ops that exchange are left out. ",
            100 * predicted / compared);
}

static void say_loader(Text *t, const ReportInput *input)
{
    double wait[2] = {0, 0}, step[2] = {0, 0};
    for (int64_t i = 0; i < input->step_count; i++) {
        wait[0] += input->steps[i].phase_s[PHASE_DATA_WAIT];
        step[0] += input->steps[i].step_s;
    }
    for (int64_t i = 0; i < input->step_blocking_count; i++) {
        wait[1] += input->steps_blocking[i].phase_s[PHASE_DATA_WAIT];
        step[1] += input->steps_blocking[i].step_s;
    }
    if (step[0] > 0 && step[1] > 0 && isfinite(wait[0] + wait[1]))
        say(t,
            "Waiting for data took %.2f %% of the time with the ready-first loader and %.2f %% with the blocking one. ",
            100 * wait[0] / step[0], 100 * wait[1] / step[1]);
}

char *report_conclusions(const ReportInput *input, Arena *arena)
{
    Text t = {.size = 8192};
    t.buffer = arena_alloc(arena, t.size);
    if (!t.buffer) return NULL;
    say_switches(&t, input, arena);
    say_fit(&t, input);
    say_predictions(&t, input);
    say_ops(&t, input);
    say_loader(&t, input);
    for (int i = 0; i < input->train_time_count; i++)
        say(&t, "Time to train, %s: %.3g min (90 %% interval %.3g to %.3g), of which %.0f %% are training steps. ",
            input->train_labels[i], input->train_times[i].total_s / 60, input->train_times[i].lo90_s / 60,
            input->train_times[i].hi90_s / 60, 100 * input->train_times[i].steps_s / input->train_times[i].total_s);
    if (!t.used) say(&t, "The tables hold too little to conclude anything.");
    return t.buffer;
}
