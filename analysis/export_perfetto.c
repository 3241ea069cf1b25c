/* Chrome trace event format, which Perfetto reads: complete events ("ph": "X") in microseconds. */
#include "analysis/trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SIMULATED = 1, MEASURED = 2 }; /* processes of the timeline */

static void put_string(FILE *f, const char *text)
{
    fputc('"', f);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < ' ')
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void put_name(FILE *f, const char *what, int process, int thread, const char *name)
{
    fprintf(f, "{\"ph\": \"M\", \"name\": \"%s\", \"pid\": %d, \"tid\": %d, \"args\": {\"name\": ", what, process,
            thread);
    put_string(f, name);
    fputs("}},\n", f);
}

static void put_event(FILE *f, const char *name, const char *category, int process, int thread, double start_s,
                      double duration_s, double flops, double bytes, double wire)
{
    fputs("{\"ph\": \"X\", \"name\": ", f);
    put_string(f, name);
    fputs(", \"cat\": ", f);
    put_string(f, category);
    fprintf(f,
            ", \"pid\": %d, \"tid\": %d, \"ts\": %.4f, \"dur\": %.4f, \"args\": {\"flops\": %.17g, \"bytes\": %.17g, "
            "\"tensor_bytes\": %.17g}},\n",
            process, thread, start_s * 1e6, duration_s * 1e6, flops, bytes, wire);
}

static void put_measured(FILE *f, const OpRow *rows, int64_t count)
{
    double now = 0;
    put_name(f, "process_name", MEASURED, 0, "measured (ops.csv, end to end)");
    put_name(f, "thread_name", MEASURED, 0, "ops");
    for (int64_t i = 0; i < count; i++) {
        const OpRow *r = &rows[i];
        if (!(r->time_s > 0)) continue;
        put_event(f, *r->name ? r->name : r->kind, r->stage, MEASURED, 0, now, r->time_s, r->calls * r->flops,
                  r->calls * r->bytes, r->calls * r->wire_bytes);
        now += r->time_s;
    }
}

Status export_perfetto(const Trace *trace, const OpRow *measured, int64_t measured_count, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f) return status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    fputs("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n", f);
    put_name(f, "thread_name", SIMULATED, 0, "compute");
    put_name(f, "thread_name", SIMULATED, 1, "communication");
    for (int i = 0; i < trace->count; i++) {
        const TraceOp *op = &trace->op[i];
        put_event(f, op->name, COST_STAGE_NAMES[op->stage], SIMULATED, op->stream, op->start_s, op->duration_s,
                  op->flops, op->bytes, op->tensor_bytes);
    }
    if (measured) put_measured(f, measured, measured_count);
    /* last, so that the list needs no comma after it */
    fprintf(f, "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": {\"name\": \"simulated\"}}\n]}\n",
            SIMULATED);
    bool bad = ferror(f) != 0;
    if (fclose(f)) bad = true;
    if (!bad) return OK;
    Status status = status_fail_at(ERR_IO, path, 0, "cannot write: %s", strerror(errno));
    unlink(path);
    return status;
}
