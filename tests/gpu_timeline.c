/* A library that the CUDA driver loads into a program (CUDA_INJECTION64_PATH) to record when each kernel and copy ran,
 * those of replayed graphs too, through CUPTI's activity records (CUDA toolkit, CUPTI documentation). It costs about
 * one percent of a step. tests/gpu_timeline.sh runs it and says what the time was spent on.
 *
 * One line per kernel or copy in $GPU_TIMELINE.PID (/tmp/gpu_timeline.PID):
 *   start end (ns) stream graph (0: none) node blocks (copies: bytes) name ("copy") */
#include <cupti.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BUFFER_BYTES = 8 << 20, BUFFER_ALIGNMENT = 8 };

static FILE *timeline;

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *most_records)
{
    *buffer = aligned_alloc(BUFFER_ALIGNMENT, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *most_records = 0;
}

static void write_line(uint64_t start, uint64_t end, uint32_t stream, uint32_t graph, uint64_t node, uint64_t size,
                       const char *name)
{
    fprintf(timeline, "%llu %llu %u %u %llu %llu %s\n", (unsigned long long)start, (unsigned long long)end, stream,
            graph, (unsigned long long)node, (unsigned long long)size, name);
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t filled)
{
    (void)context, (void)stream, (void)size;
    CUpti_Activity *record = NULL;
    while (cuptiActivityGetNextRecord(buffer, filled, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const CUpti_ActivityKernel9 *k = (const CUpti_ActivityKernel9 *)record;
            uint64_t blocks = (uint64_t)k->gridX * (uint64_t)k->gridY * (uint64_t)k->gridZ;
            write_line(k->start, k->end, k->streamId, k->graphId, k->graphNodeId, blocks, k->name);
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const CUpti_ActivityMemcpy5 *c = (const CUpti_ActivityMemcpy5 *)record;
            write_line(c->start, c->end, c->streamId, c->graphId, c->graphNodeId, c->bytes, "copy");
        } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY2) {
            const CUpti_ActivityMemcpyPtoP4 *c = (const CUpti_ActivityMemcpyPtoP4 *)record;
            write_line(c->start, c->end, c->streamId, c->graphId, c->graphNodeId, c->bytes, "copy to a peer");
        }
    }
    free(buffer);
}

static void finish(void)
{
    cuptiActivityFlushAll(1);
    if (fclose(timeline)) perror("gpu_timeline");
}

/* Called by the driver. */
int InitializeInjection(void);
int InitializeInjection(void)
{
    static const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                               CUPTI_ACTIVITY_KIND_MEMCPY2};
    const char *path = getenv("GPU_TIMELINE");
    char name[4096];
    snprintf(name, sizeof name, "%s.%d", path ? path : "/tmp/gpu_timeline", (int)getpid());
    timeline = fopen(name, "w");
    if (!timeline) {
        perror(name);
        return 0;
    }
    CUptiResult result = cuptiActivityRegisterCallbacks(give_buffer, take_buffer);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds && result == CUPTI_SUCCESS; k++)
        result = cuptiActivityEnable(kinds[k]);
    if (result != CUPTI_SUCCESS) fprintf(stderr, "gpu_timeline: CUPTI error %d\n", (int)result);
    atexit(finish);
    return 1;
}
