#include "kernels/cuda/upload.h"

#include <stdlib.h>

#include "kernels/cuda/device.cuh"

/* All copies of a full-size batch (4 x 12 MB) fit, so that they arrive whatever the device computes. */
enum { SEGMENTS = 4, SEGMENT_BYTES = 16 << 20 };

struct CudaUpload {
    cudaStream_t stream;
    cudaEvent_t arrived, drained[SEGMENTS]; /* drained: everything has left the segment; never recorded counts as so */
    char *memory;
    int segment;
    size_t used; /* of the segment */
};

Status cuda_upload_open(CudaUpload **upload_out)
{
    CudaUpload *u = (CudaUpload *)calloc(1, sizeof *u);
    if (!u) return status_fail(ERR_MEMORY, "no memory for uploads");
    Status status = cuda_check(cudaStreamCreateWithFlags(&u->stream, cudaStreamNonBlocking), "stream of uploads");
    if (status == OK) status = cuda_check(cudaEventCreateWithFlags(&u->arrived, cudaEventDisableTiming), "event");
    for (int k = 0; k < SEGMENTS && status == OK; k++)
        status = cuda_check(cudaEventCreateWithFlags(&u->drained[k], cudaEventDisableTiming), "event");
    if (status == OK)
        status = cuda_check(cudaMalloc(&u->memory, (size_t)SEGMENTS * SEGMENT_BYTES), "staging memory of uploads");
    if (status != OK) {
        cuda_upload_close(&u);
        return status;
    }
    *upload_out = u;
    return OK;
}

void cuda_upload_close(CudaUpload **upload)
{
    CudaUpload *u = *upload;
    if (!u) return;
    if (u->stream) cudaStreamSynchronize(u->stream);
    if (u->arrived) cudaEventDestroy(u->arrived);
    for (int k = 0; k < SEGMENTS; k++)
        if (u->drained[k]) cudaEventDestroy(u->drained[k]);
    if (u->stream) cudaStreamDestroy(u->stream);
    cudaFree(u->memory);
    free(u);
    *upload = NULL;
}

static Status next_segment(CudaUpload *u, cudaStream_t compute)
{
    CUDA_TRY(cudaEventRecord(u->drained[u->segment], compute));
    u->segment = (u->segment + 1) % SEGMENTS;
    u->used = 0;
    return cuda_check(cudaStreamWaitEvent(u->stream, u->drained[u->segment], 0), "order of uploads");
}

Status cuda_upload(CudaUpload *u, void *target, const void *host, size_t bytes, cudaStream_t compute)
{
    for (size_t done = 0; done < bytes;) {
        if (u->used == SEGMENT_BYTES) TRY(next_segment(u, compute));
        size_t room = SEGMENT_BYTES - u->used, piece = bytes - done < room ? bytes - done : room;
        char *staged = u->memory + (size_t)u->segment * SEGMENT_BYTES + u->used;
        CUDA_TRY(cudaMemcpyAsync(staged, (const char *)host + done, piece, cudaMemcpyHostToDevice, u->stream));
        CUDA_TRY(cudaEventRecord(u->arrived, u->stream));
        CUDA_TRY(cudaStreamWaitEvent(compute, u->arrived, 0));
        CUDA_TRY(cudaMemcpyAsync((char *)target + done, staged, piece, cudaMemcpyDeviceToDevice, compute));
        done += piece;
        u->used += align_up(piece);
    }
    return OK;
}

Status cuda_upload_finish(CudaUpload *u)
{
    return cuda_check(cudaStreamSynchronize(u->stream), "uploads");
}
