#include "kernels/cuda/comm_peer.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/comm_peer.cuh"

extern "C" {
#include "engine/clock.h"
}

/* Before a rank that is alive counts as lost. Ranks may wait for one that writes a checkpoint; one that died is noticed
 * by its process. */
enum { ANSWER_SECONDS = 300 };
static const double LOOK_SECONDS = 0.1; /* between two looks at the processes of the others */

enum { STAGING_BYTES = PEER_BLOCKS * 2 * PEER_STAGING, FLAGS = PEER_BLOCKS * PEER_RANKS };

/* What a rank tells the others. */
typedef struct Card {
    cudaIpcMemHandle_t memory;
    char host[64];
    int64_t pid, usable;
} Card;
enum { CARD_DOUBLES = (int)(sizeof(Card) / sizeof(double)) };
static_assert(sizeof(Card) % sizeof(double) == 0, "cards travel as doubles");

struct Peer {
    int ranks, rank;
    bool loopback;
    uint8_t *area[PEER_RANKS]; /* staging of all channels, then their flags; own: allocated, others: mapped */
    uint32_t *turn, *failed;   /* on the device */
    PeerStatus *status;        /* on the host, mapped */
    pid_t pid[PEER_RANKS];     /* 0: processes of the others cannot be seen */
    double looked_s;
    int most_blocks[PEER_CHANNELS];
};

static uint8_t *staging_of(const Peer *p, int rank, int channel)
{
    return p->area[rank] + (size_t)channel * STAGING_BYTES;
}
static uint32_t *flags_of(const Peer *p, int rank, int channel)
{
    return (uint32_t *)(p->area[rank] + (size_t)PEER_CHANNELS * STAGING_BYTES) + channel * FLAGS;
}

/* --- opening ------------------------------------------------------------------------------------------------------ */

static Status allocate(Peer *p)
{
    size_t bytes = (size_t)PEER_CHANNELS * (STAGING_BYTES + FLAGS * sizeof(uint32_t)),
           turns = PEER_CHANNELS * PEER_BLOCKS;
    CUDA_TRY(cudaMalloc((void **)&p->area[p->rank], bytes));
    CUDA_TRY(cudaMalloc((void **)&p->turn, (turns + 1) * sizeof *p->turn));
    CUDA_TRY(cudaMemset(p->area[p->rank], 0, bytes));
    CUDA_TRY(cudaMemset(p->turn, 0, (turns + 1) * sizeof *p->turn));
    p->failed = p->turn + turns;
    CUDA_TRY(cudaHostAlloc((void **)&p->status, sizeof *p->status, cudaHostAllocMapped));
    p->status->lost = p->status->abort = 0;
    p->status->seconds = ANSWER_SECONDS;
    /* blocks of all channels fit on the GPU together, two on an SM; next to a computation few leave it the others */
    p->most_blocks[PEER_COMPUTE] = PEER_BLOCKS;
    p->most_blocks[PEER_ASIDE] = PEER_BLOCKS / 4;
    p->most_blocks[PEER_BULK] = PEER_BLOCKS / 8;
    return cuda_check(cudaDeviceSynchronize(), "staging areas");
}

/* Maps the areas of the others of the group; false with the reason where that does not work. */
static bool map_group(Peer *p, const Card *card, const RankLayout *l, char *why, size_t size)
{
    const Card *own = &card[l->rank];
    for (int r = 0; r < p->ranks; r++) {
        const Card *other = &card[l->dp_rank * l->dap + r];
        if (r == p->rank) continue;
        if (!other->usable || strcmp(other->host, own->host)) {
            snprintf(why, size, "ranks %d and %d are on different hosts", l->rank, l->dp_rank * l->dap + r);
            return false;
        }
        cudaError_t error = cudaIpcOpenMemHandle((void **)&p->area[r], other->memory, cudaIpcMemLazyEnablePeerAccess);
        if (error != cudaSuccess) {
            cudaGetLastError();
            p->area[r] = NULL;
            snprintf(why, size, "the memory of rank %d cannot be mapped: %s", l->dp_rank * l->dap + r,
                     cudaGetErrorString(error));
            return false;
        }
        p->pid[r] = (pid_t)other->pid;
        if (kill(p->pid[r], 0) && errno == ESRCH) p->pid[r] = 0;
    }
    return true;
}

/* Everybody or nobody: ranks that disagreed would wait for each other for ever. */
static Status join(Peer *p, Comm *host, bool *joined_out, char *why, size_t size)
{
    const RankLayout *l = comm_layout(host);
    Card *card = (Card *)calloc((size_t)l->world, sizeof *card), own;
    if (!card) return status_fail(ERR_MEMORY, "no memory for %d ranks", l->world);
    memset(&own, 0, sizeof own);
    own.pid = getpid();
    gethostname(own.host, sizeof own.host - 1);
    own.usable = cudaIpcGetMemHandle(&own.memory, p->area[p->rank]) == cudaSuccess;
    cudaGetLastError();
    Status status = comm_gather(host, (const double *)&own, CARD_DOUBLES, (double *)card);
    double failures = 0;
    if (status == OK) {
        failures = !map_group(p, card, l, why, size);
        bool here = failures != 0;
        status = comm_sum(host, &failures, 1);
        if (failures > 0 && !here) snprintf(why, size, "another rank cannot map the memory of its peers");
    }
    free(card);
    *joined_out = failures == 0;
    return status;
}

Status peer_open(Comm *host, bool no_comm, Peer **peer_out, char *why, size_t size)
{
    const RankLayout *l = comm_layout(host);
    *peer_out = NULL;
    const char *wanted = getenv("FOLDSCALE_COMM");
    if (wanted && strcmp(wanted, "nccl") && strcmp(wanted, "peer"))
        return status_fail(ERR_USAGE, "FOLDSCALE_COMM is \"%s\" (expected nccl or peer)", wanted);
    if (l->dap == 1) return OK;
    bool large = l->dap > PEER_RANKS;
    if (large || (wanted && !strcmp(wanted, "nccl"))) {
        snprintf(why, size, "%s", large ? "the group is too large" : "FOLDSCALE_COMM=nccl");
        return OK;
    }
    Peer *p = (Peer *)calloc(1, sizeof *p);
    if (!p) return status_fail(ERR_MEMORY, "no memory for the peers");
    p->ranks = l->dap;
    p->rank = l->dap_rank;
    p->loopback = no_comm;
    bool joined = true;
    Status status = allocate(p);
    if (status == OK && no_comm)
        for (int r = 0; r < p->ranks; r++) p->area[r] = p->area[p->rank];
    else if (status == OK)
        status = join(p, host, &joined, why, size);
    if (status != OK || !joined)
        peer_close(&p);
    else
        *peer_out = p;
    return status;
}

void peer_close(Peer **peer)
{
    Peer *p = *peer;
    if (!p) return;
    for (int r = 0; r < p->ranks && !p->loopback; r++)
        if (r != p->rank && p->area[r]) cudaIpcCloseMemHandle(p->area[r]);
    cudaFree(p->area[p->rank]);
    cudaFree(p->turn);
    if (p->status) cudaFreeHost(p->status);
    free(p);
    *peer = NULL;
}

/* --- running ------------------------------------------------------------------------------------------------------ */

/* A tensor seen along one axis that is cut into n parts: the slices of one rank are runs of `part` bytes, `whole`
 * apart. */
typedef struct Cut {
    int64_t part, whole;
} Cut;

static Cut cut_of(const Tensor *t, int64_t axis, int n)
{
    Cut cut = {(int64_t)dtype_size(t->dtype), 0};
    for (int k = (int)axis; k < t->rank; k++) cut.part *= t->dim[k];
    cut.whole = cut.part;
    cut.part /= n;
    return cut;
}

/* In bytes. */
typedef struct Shape {
    int64_t piece, in, out;
    Cut send, receive; /* a run as long as the piece: contiguous */
    bool sums, to_all; /* to_all: everybody gets the same piece */
    double factor;
} Shape;

template <typename T, int V, bool SUM>
static Status launch(const Peer *p, PeerArguments a, const Shape *s, int channel, cudaStream_t stream)
{
    int64_t unit = (int64_t)sizeof(T) * V, room = PEER_STAGING / p->ranks / unit;
    a.piece = (uint32_t)(s->piece / unit);
    a.in_units = (uint32_t)(s->in / unit);
    a.out_units = (uint32_t)(s->out / unit);
    a.send = {(uint32_t)(s->send.part / unit), (uint32_t)(s->send.whole / unit),
              s->to_all ? 0 : (uint32_t)(s->send.part / unit)};
    a.receive = {(uint32_t)(s->receive.part / unit), (uint32_t)(s->receive.whole / unit),
                 SUM ? 0 : (uint32_t)(s->receive.part / unit)};
    int64_t turn = (int64_t)PEER_THREADS * unit; /* a unit per thread and peer */
    int64_t blocks = (s->piece * (p->ranks - 1) + turn - 1) / turn;
    if (blocks > p->most_blocks[channel]) blocks = p->most_blocks[channel];
    int64_t chunk = (a.piece + blocks - 1) / blocks;
    a.chunk = (uint32_t)(chunk < room ? chunk : room);
    launch(peer_kernel<T, V, SUM>, (unsigned)blocks, PEER_THREADS, 0, stream, a);
    return cuda_launched("peer_kernel");
}

static Status exchange(const Peer *p, const OpCall *call, const void *in, void *out, const Shape *s, int channel,
                       cudaStream_t stream)
{
    if (s->piece == 0) return OK;
    PeerArguments a;
    memset(&a, 0, sizeof a);
    a.in = in;
    a.out = out;
    a.factor = (float)s->factor;
    a.ranks = p->ranks;
    a.rank = p->rank;
    a.loopback = p->loopback;
    for (int r = 0; r < p->ranks; r++) {
        a.staging[r] = staging_of(p, r, channel);
        a.flag[r] = flags_of(p, r, channel);
    }
    a.turn = p->turn + channel * PEER_BLOCKS;
    a.failed = p->failed;
    a.status = p->status;
    int64_t all = s->piece | s->in | s->out | s->send.part | s->send.whole | s->receive.part | s->receive.whole |
                  (int64_t)(uintptr_t)in | (int64_t)(uintptr_t)out;
    bool wide = all % 16 == 0;
    if (!s->sums)
        return wide ? launch<uint16_t, 8, false>(p, a, s, channel, stream)
                    : launch<uint16_t, 1, false>(p, a, s, channel, stream);
    if (call->in_tensor[0]->dtype == DT_BF16)
        return wide ? launch<bf16, 8, true>(p, a, s, channel, stream) : launch<bf16, 1, true>(p, a, s, channel, stream);
    if (call->in_tensor[0]->dtype != DT_F32) return cuda_bad_type(call, call->in_tensor[0]->dtype);
    return wide ? launch<float, 4, true>(p, a, s, channel, stream) : launch<float, 1, true>(p, a, s, channel, stream);
}

/* Every rank sums its part of the tensor and sends the sum to all. The last part may be shorter, or empty. Nothing else
 * lies in the last 16 bytes: tensors and parameters start at multiples of 256 bytes, and padding is zero. */
static Status all_reduce(const Peer *p, const OpCall *call, int channel, cudaStream_t stream)
{
    int64_t bytes = ((int64_t)tensor_bytes(call->in_tensor[0]) + 15) / 16 * 16;
    int64_t piece = (bytes + p->ranks * 16 - 1) / (p->ranks * 16) * 16, begin = p->rank * piece, own = bytes - begin;
    own = own < 0 ? 0 : own < piece ? own : piece;
    char *sum = (char *)call->out[0] + (own ? begin : 0);
    Cut contiguous = {piece, 0};
    Shape scatter = {piece, bytes, own, contiguous, contiguous, true, false, call->op->attr.f[0]};
    TRY(exchange(p, call, call->in[0], sum, &scatter, channel, stream));
    Shape gather = {piece, own, bytes, contiguous, contiguous, false, true, 1};
    return exchange(p, call, sum, call->out[0], &gather, channel, stream);
}

Status peer_run(Peer *p, const OpCall *call, int channel, cudaStream_t stream)
{
    const Tensor *x = call->in_tensor[0], *y = call->out_tensor[0];
    const int64_t *axis = call->op->attr.i;
    int64_t in = (int64_t)tensor_bytes(x), out = (int64_t)tensor_bytes(y), n = p->ranks;
    Shape s = {in / n, in, out, {in / n, 0}, {in / n, 0}, false, false, 1};
    switch (call->op->kind) {
    case OP_ALL_GATHER:
        s.piece = in;
        s.to_all = true;
        s.send = {in, 0};
        s.receive = cut_of(y, axis[0], p->ranks);
        break;
    case OP_REDUCE_SCATTER:
        s.sums = true;
        s.send = cut_of(x, axis[0], p->ranks);
        break;
    case OP_ALL_TO_ALL:
        s.send = cut_of(x, axis[1], p->ranks);
        s.receive = cut_of(y, axis[0], p->ranks);
        break;
    default:
        return all_reduce(p, call, channel, stream);
    }
    return exchange(p, call, call->in[0], call->out[0], &s, channel, stream);
}

Status peer_check(Peer *p)
{
    double now = clock_now_s();
    if (p->status->lost)
        return status_fail(ERR_COMM, "rank %d of this group did not answer for %u s", (int)p->status->lost - 1,
                           (unsigned)p->status->seconds);
    if (now - p->looked_s < LOOK_SECONDS) return OK;
    p->looked_s = now;
    for (int r = 0; r < p->ranks; r++) {
        if (!p->pid[r] || !kill(p->pid[r], 0) || errno != ESRCH) continue;
        p->status->abort = 1;
        return status_fail(ERR_COMM, "rank %d of this group is gone (process %d)", r, (int)p->pid[r]);
    }
    return OK;
}
