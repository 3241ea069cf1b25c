/* The CPU backend: finds the kernel of an op by kind and type, widens bf16 operands around it, keeps time. */
#include "kernels/cpu/backend.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/clock.h"
#include "engine/convert.h"
#include "engine/send.h"
#include "kernels/cpu/comm.h"
#include "kernels/cpu/entry.h"

#define TABLE(name) extern const CpuEntry name##_f32[], name##_f64[];
#include "kernels/cpu/tables.def"
#undef TABLE

static const CpuEntry *const families[2][32] = {
    {
#define TABLE(name) name##_f32,
#include "kernels/cpu/tables.def"
#undef TABLE
    },
    {
#define TABLE(name) name##_f64,
#include "kernels/cpu/tables.def"
#undef TABLE
    },
};

enum { CPU_ALIGN = 64 };

typedef struct CpuBackend {
    Backend base; /* first: a Backend pointer is a CpuBackend pointer */
    Comm *comm;
    const CpuEntry *entry[2][OP_COUNT]; /* [0] float, [1] double */
    double *mark;
    int marks;
    uint64_t dither; /* state of the row of numbers that rounds (KernelOptions); 0: none */
    char device[128];
} CpuBackend;

static CpuBackend *self(Backend *backend)
{
    return (CpuBackend *)backend;
}

static const CpuBackend *self_const(const Backend *backend)
{
    return (const CpuBackend *)backend;
}

static size_t padded(size_t bytes)
{
    return (bytes + CPU_ALIGN - 1) / CPU_ALIGN * CPU_ALIGN;
}

static void cpu_close(Backend *backend)
{
    CpuBackend *cpu = self(backend);
    comm_close(&cpu->comm);
    free(cpu->mark);
    free(cpu);
}

static Status cpu_alloc(Backend *backend, size_t bytes, void **memory_out)
{
    (void)backend;
    size_t whole = (bytes + 255) / 256 * 256;
    void *memory = bytes > SIZE_MAX / 2 ? NULL : aligned_alloc(256, whole ? whole : 256);
    if (!memory) return status_fail(ERR_MEMORY, "out of memory: %zu bytes", bytes);
    memset(memory, 0, whole);
    *memory_out = memory;
    return OK;
}

static void cpu_release(Backend *backend, void *memory)
{
    (void)backend;
    free(memory);
}

static Status cpu_copy(Backend *backend, void *target, const void *source, size_t bytes)
{
    (void)backend;
    if (bytes) memcpy(target, source, bytes);
    return OK;
}

/* Ops whose operands are converted element by element, whatever their types. */
static bool is_conversion(OpKind kind)
{
    return kind == OP_COPY || kind == OP_CAST || kind == OP_PARAM_LOWER;
}

typedef struct OperandTypes {
    bool f32, f64, bf16;
} OperandTypes;

static void note_type(OperandTypes *types, DType dtype)
{
    types->f32 |= dtype == DT_F32;
    types->f64 |= dtype == DT_F64;
    types->bf16 |= dtype == DT_BF16;
}

static OperandTypes program_types(const Program *p, const Op *op)
{
    OperandTypes types = {0};
    for (int k = 0; k < op->n_in; k++)
        if (op->in[k] != VAL_NONE) note_type(&types, p->value[op->in[k]].t.dtype);
    for (int k = 0; k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) note_type(&types, p->value[op->out[k]].t.dtype);
    return types;
}

static Status cpu_supports(const Backend *backend, const Program *p, const Op *op)
{
    if (comm_is_op(op->kind) || is_conversion(op->kind) || op->kind == OP_FILL) return OK;
    OperandTypes types = program_types(p, op);
    const char *name = op_def(op->kind)->name;
    if (types.f64 && (types.f32 || types.bf16))
        return status_fail(ERR_UNSUPPORTED, "cpu: %s mixes f64 with other real types", name);
    if (!self_const(backend)->entry[types.f64][op->kind])
        return status_fail(ERR_UNSUPPORTED, "cpu: there is no kernel for %s in %s", name, types.f64 ? "f64" : "f32");
    return OK;
}

static size_t widened_bytes(const Tensor *t)
{
    return t->dtype == DT_BF16 ? padded((size_t)tensor_count(t) * sizeof(float)) : 0;
}

static size_t cpu_scratch_bytes(const Backend *backend, const Program *p, const Op *op)
{
    const CpuBackend *cpu = self_const(backend);
    if (comm_is_op(op->kind)) return comm_scratch_bytes(cpu->comm, p, op);
    if (is_conversion(op->kind) || op->kind == OP_FILL) return 0;
    OperandTypes types = program_types(p, op);
    const CpuEntry *entry = cpu->entry[types.f64][op->kind];
    size_t bytes =
        entry && entry->scratch ? padded(entry->scratch(p, op, types.f64 ? sizeof(double) : sizeof(float))) : 0;
    for (int k = 0; types.bf16 && k < op->n_in; k++)
        if (op->in[k] != VAL_NONE) bytes += widened_bytes(&p->value[op->in[k]].t);
    for (int k = 0; types.bf16 && k < op->n_out; k++)
        if (op->out[k] != VAL_NONE) bytes += widened_bytes(&p->value[op->out[k]].t);
    return bytes;
}

static void fill(const Tensor *t, double value, void *out)
{
    int64_t count = tensor_count(t);
    for (int64_t i = 0; i < count; i++) switch (t->dtype) {
        case DT_F64:
            ((double *)out)[i] = value;
            break;
        case DT_F32:
            ((float *)out)[i] = (float)value;
            break;
        case DT_BF16:
            ((uint16_t *)out)[i] = bf16_from_f32((float)value);
            break;
        default:
            ((int32_t *)out)[i] = (int32_t)value;
            break;
        }
}

/* The next of a row of 64 random bits (splitmix64). */
static uint64_t next_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void round_dithered(const float *x, int64_t count, uint64_t *state, uint16_t *y)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        y[i] = isfinite(x[i]) ? (uint16_t)((bits + (next_bits(state) & 0xffffu)) >> 16) : bf16_from_f32(x[i]);
    }
}

/* What an op computed in double, to float at random; what a float holds stays. */
static void round_to_float_dithered(double *x, int64_t count, uint64_t *state)
{
    const uint64_t dropped = (UINT64_C(1) << 29) - 1; /* of 52 bits of a double, beyond a float's 23 */
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(x[i])) continue;
        uint64_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits = (bits + (next_bits(state) & dropped)) & ~dropped;
        memcpy(&x[i], &bits, sizeof bits);
    }
}

static void dither_outputs(CpuBackend *cpu, const OpCall *call)
{
    for (int k = 0; k < call->op->n_out; k++)
        if (call->out[k] && call->out_tensor[k] && call->out_tensor[k]->dtype == DT_F64)
            round_to_float_dithered(call->out[k], tensor_count(call->out_tensor[k]), &cpu->dither);
}

static Status convert(CpuBackend *cpu, const Tensor *from, const void *source, const Tensor *to, void *target)
{
    if (!cpu->dither || from->dtype != DT_F32 || to->dtype != DT_BF16)
        return convert_array(from->dtype, source, to->dtype, target, tensor_count(to));
    round_dithered(source, tensor_count(to), &cpu->dither, target);
    return OK;
}

/* bf16 is storage: operands are widened to float, the float kernel runs, its bf16 outputs are rounded. */
static Status run_widened(CpuBackend *cpu, const CpuEntry *entry, const OpCall *call)
{
    OpCall wide = *call;
    Tensor tensor[OP_MAX_IN + OP_MAX_OUT];
    unsigned char *at = call->scratch;
    for (int k = 0; k < call->op->n_in; k++) {
        const Tensor *t = call->in_tensor[k];
        if (!t || t->dtype != DT_BF16) continue;
        TRY(convert_array(DT_BF16, call->in[k], DT_F32, at, tensor_count(t)));
        tensor[k] = *t;
        tensor[k].dtype = DT_F32;
        wide.in_tensor[k] = &tensor[k];
        wide.in[k] = at;
        at += widened_bytes(t);
    }
    for (int k = 0; k < call->op->n_out; k++) {
        const Tensor *t = call->out_tensor[k];
        if (!t || t->dtype != DT_BF16) continue;
        tensor[OP_MAX_IN + k] = *t;
        tensor[OP_MAX_IN + k].dtype = DT_F32;
        wide.out_tensor[k] = &tensor[OP_MAX_IN + k];
        wide.out[k] = at;
        at += widened_bytes(t);
    }
    wide.scratch = at;
    TRY(entry->run(&cpu->base.layout, &wide));
    for (int k = 0; k < call->op->n_out; k++)
        if (call->out_tensor[k] && call->out_tensor[k]->dtype == DT_BF16)
            TRY(convert(cpu, wide.out_tensor[k], wide.out[k], call->out_tensor[k], call->out[k]));
    return OK;
}

static Status cpu_run(Backend *backend, const OpCall *call)
{
    CpuBackend *cpu = self(backend);
    const Op *op = call->op;
    if (op->send.active) return send_run_apart(backend, call);
    if (comm_is_op(op->kind)) return comm_run(cpu->comm, call);
    TRY(comm_progress(cpu->comm));
    if (is_conversion(op->kind))
        return convert(cpu, call->in_tensor[0], call->in[0], call->out_tensor[0], call->out[0]);
    if (op->kind == OP_FILL) {
        fill(call->out_tensor[0], op->attr.f[0], call->out[0]);
        return OK;
    }
    OperandTypes types = {0};
    for (int k = 0; k < op->n_in; k++)
        if (call->in_tensor[k]) note_type(&types, call->in_tensor[k]->dtype);
    for (int k = 0; k < op->n_out; k++)
        if (call->out_tensor[k]) note_type(&types, call->out_tensor[k]->dtype);
    const CpuEntry *entry = cpu->entry[types.f64][op->kind];
    if (!entry) return status_fail(ERR_UNSUPPORTED, "cpu: there is no kernel for %s", op_def(op->kind)->name);
    TRY(types.bf16 ? run_widened(cpu, entry, call) : entry->run(&backend->layout, call));
    if (cpu->dither && types.f64) dither_outputs(cpu, call);
    return OK;
}

static Status cpu_finish(Backend *backend)
{
    (void)backend;
    return OK;
}

static Status cpu_marks_reserve(Backend *backend, int marks, int *first_out)
{
    CpuBackend *cpu = self(backend);
    double *bigger = realloc(cpu->mark, ((size_t)cpu->marks + (size_t)marks + 1) * sizeof *bigger);
    if (!bigger) return status_fail(ERR_MEMORY, "out of memory for %d timing marks", marks);
    cpu->mark = bigger;
    memset(bigger + cpu->marks, 0, (size_t)marks * sizeof *bigger);
    *first_out = cpu->marks;
    cpu->marks += marks;
    return OK;
}

static Status cpu_mark(Backend *backend, int index)
{
    self(backend)->mark[index] = clock_now_s();
    return OK;
}

static Status cpu_elapsed(Backend *backend, int from, int to, double *seconds_out)
{
    *seconds_out = self(backend)->mark[to] - self(backend)->mark[from];
    return OK;
}

static Status cpu_mark_wait(Backend *backend, int index)
{
    (void)backend, (void)index; /* ops run when they are enqueued */
    return OK;
}

static Status cpu_mark_reached(Backend *backend, int index, bool *reached_out)
{
    (void)backend, (void)index;
    *reached_out = true;
    return OK;
}

static Status cpu_barrier(Backend *backend)
{
    return comm_barrier(self(backend)->comm);
}

static Status cpu_host_sum(Backend *backend, double *values, int count)
{
    return comm_sum(self(backend)->comm, values, count);
}

static Status cpu_host_gather(Backend *backend, const double *value, int count, double *all_out)
{
    return comm_gather(self(backend)->comm, value, count, all_out);
}

static Status cpu_host_broadcast(Backend *backend, void *data, size_t bytes, int root)
{
    return comm_broadcast(self(backend)->comm, data, bytes, root);
}

static Status cpu_comm_reserve(Backend *backend, int slots, void *workspace, size_t bytes)
{
    (void)workspace;
    (void)bytes;
    return comm_reserve(self(backend)->comm, slots);
}

static Status fill_table(CpuBackend *cpu)
{
    for (int wide = 0; wide < 2; wide++)
        for (int f = 0; families[wide][f]; f++)
            for (const CpuEntry *entry = families[wide][f]; entry->run; entry++) {
                if (cpu->entry[wide][entry->kind])
                    return status_fail(ERR_INTERNAL, "cpu: two kernels for %s", op_def(entry->kind)->name);
                cpu->entry[wide][entry->kind] = entry;
            }
    return OK;
}

static void processor_name(char *name, size_t size)
{
    snprintf(name, size, "CPU");
    FILE *info = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (info && fgets(line, sizeof line, info)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(name, size, "%s", colon + 2);
        break;
    }
    if (info) fclose(info);
}

/* The user's word counts: the option, then OMP_NUM_THREADS; else the fair share. */
static int choose_threads(const KernelOptions *options, const Comm *comm)
{
    if (options->threads > 0) return options->threads;
    const char *text = getenv("OMP_NUM_THREADS");
    char *end = NULL;
    long asked = text ? strtol(text, &end, 10) : 0;
    return asked > 0 && asked <= 1024 && *end == '\0' ? (int)asked : comm_fair_threads(comm);
}

static const Backend operations = {
    .name = "cpu",
    .close = cpu_close,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .host_alloc = cpu_alloc,
    .host_release = cpu_release,
    .upload = cpu_copy,
    .upload_finish = cpu_finish,
    .download = cpu_copy,
    .read_later = cpu_copy,
    .supports = cpu_supports,
    .scratch_bytes = cpu_scratch_bytes,
    .run = cpu_run,
    .comm_reserve = cpu_comm_reserve,
    .finish = cpu_finish,
    .marks_reserve = cpu_marks_reserve,
    .mark = cpu_mark,
    .mark_wait = cpu_mark_wait,
    .mark_reached = cpu_mark_reached,
    .elapsed = cpu_elapsed,
    .barrier = cpu_barrier,
    .host_all_reduce_sum = cpu_host_sum,
    .host_all_gather = cpu_host_gather,
    .host_broadcast = cpu_host_broadcast,
};

Status cpu_backend_open(const KernelOptions *options, Backend **backend_out)
{
    CpuBackend *cpu = calloc(1, sizeof *cpu);
    if (!cpu) return status_fail(ERR_MEMORY, "out of memory for a backend");
    cpu->base = operations;
    cpu->dither = options->dither;
    Status status = fill_table(cpu);
    if (status == OK) status = comm_open(options, &cpu->comm);
    if (status != OK) {
        free(cpu);
        return status;
    }
    int threads = choose_threads(options, cpu->comm);
    openblas_set_num_threads(1); /* products are spread over the OpenMP threads (ops/gemm.c) */
    omp_set_num_threads(threads);
    cpu->base.layout = *comm_layout(cpu->comm);
    char processor[96];
    processor_name(processor, sizeof processor);
    snprintf(cpu->device, sizeof cpu->device, "%s, %d thread%s", processor, threads, threads == 1 ? "" : "s");
    cpu->base.device = cpu->device;
    cpu->base.memory_bytes = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    *backend_out = &cpu->base;
    return OK;
}
