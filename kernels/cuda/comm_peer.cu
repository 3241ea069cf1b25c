#include "kernels/cuda/comm_peer.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/comm_peer.cuh"
#include "kernels/cuda/comm_peer_internal.h"

extern "C" {
#include "engine/clock.h"
}

/* Before a rank that is alive counts as lost. Ranks may wait for one that writes a checkpoint; one that died is noticed
 * by its process. */
enum { ANSWER_SECONDS = 300 };
enum { LEAST_RUN = 1024 };              /* bytes that a copy engine moves at a time without losing speed */
static const double LOOK_SECONDS = 0.1; /* between two looks at the processes of the others */

/* What a rank tells the others. */
typedef struct Card {
    cudaIpcMemHandle_t memory;
    char host[64];
    int64_t pid, usable;
} Card;
enum { CARD_DOUBLES = (int)(sizeof(Card) / sizeof(double)) };
static_assert(sizeof(Card) % sizeof(double) == 0, "cards travel as doubles");

/* --- opening ------------------------------------------------------------------------------------------------------ */

static Status allocate(Peer *p)
{
    size_t bytes = (size_t)PEER_CHANNELS * PEER_FLAGS * sizeof(uint32_t), turns = PEER_CHANNELS * PEER_BLOCKS;
    CUDA_TRY(cudaMalloc((void **)&p->flags[p->rank], bytes));
    CUDA_TRY(cudaMalloc((void **)&p->turn, (turns + 1) * sizeof *p->turn));
    CUDA_TRY(cudaMemset(p->flags[p->rank], 0, bytes));
    CUDA_TRY(cudaMemset(p->turn, 0, (turns + 1) * sizeof *p->turn));
    p->failed = p->turn + turns;
    for (int k = PEER_ASIDE; k <= PEER_BULK; k++) {
        CUDA_TRY(cudaStreamCreateWithFlags(&p->beside[k].stream, cudaStreamNonBlocking));
        CUDA_TRY(cudaEventCreateWithFlags(&p->beside[k].fork, cudaEventDisableTiming));
        CUDA_TRY(cudaEventCreateWithFlags(&p->beside[k].join, cudaEventDisableTiming));
    }
    CUDA_TRY(cudaHostAlloc((void **)&p->status, sizeof *p->status, cudaHostAllocMapped));
    p->status->lost = p->status->abort = 0;
    p->status->seconds = ANSWER_SECONDS;
    /* Eight blocks saturate the links; more make moves and sums on this GPU faster, and leave a computation next to
     * them fewer SMs. Those beside it may never take all: the first block of an op that sends, which all ranks wait
     * for, has to find room next to blocks that wait themselves. */
    p->most_blocks[PEER_COMPUTE] = PEER_BLOCKS;
    p->most_blocks[PEER_ASIDE] = p->most_blocks[PEER_BULK] = PEER_BLOCKS / 4;
    return cuda_check(cudaDeviceSynchronize(), "flags");
}

/* Maps memory of the others of the group; false with the reason where that does not work. */
static bool map_group(Peer *p, const Card *card, const RankLayout *l, void **mapped, char *why, size_t size)
{
    const Card *own = &card[l->rank];
    for (int r = 0; r < p->ranks; r++) {
        const Card *other = &card[l->dp_rank * l->dap + r];
        if (r == p->rank) continue;
        if (!other->usable || strcmp(other->host, own->host)) {
            snprintf(why, size, "ranks %d and %d are on different hosts", l->rank, l->dp_rank * l->dap + r);
            return false;
        }
        cudaError_t error = cudaIpcOpenMemHandle(&mapped[r], other->memory, cudaIpcMemLazyEnablePeerAccess);
        if (error != cudaSuccess) {
            cudaGetLastError();
            mapped[r] = NULL;
            snprintf(why, size, "the memory of rank %d cannot be mapped: %s", l->dp_rank * l->dap + r,
                     cudaGetErrorString(error));
            return false;
        }
        p->pid[r] = (pid_t)other->pid;
        if (kill(p->pid[r], 0) && errno == ESRCH) p->pid[r] = 0;
    }
    return true;
}

/* mapped[own rank] is known, the others are filled in. Everybody or nobody: ranks that disagreed would wait for each
 * other for ever. */
static Status exchange_maps(Peer *p, Comm *host, void **mapped, bool *joined_out, char *why, size_t size)
{
    const RankLayout *l = comm_layout(host);
    Card *card = (Card *)calloc((size_t)l->world, sizeof *card), own;
    if (!card) return status_fail(ERR_MEMORY, "no memory for %d ranks", l->world);
    memset(&own, 0, sizeof own);
    own.pid = getpid();
    gethostname(own.host, sizeof own.host - 1);
    own.usable = cudaIpcGetMemHandle(&own.memory, mapped[p->rank]) == cudaSuccess;
    cudaGetLastError();
    Status status = comm_gather(host, (const double *)&own, CARD_DOUBLES, (double *)card);
    double failures = 0;
    if (status == OK) {
        failures = !map_group(p, card, l, mapped, why, size);
        bool here = failures != 0;
        status = comm_sum(host, &failures, 1);
        if (failures > 0 && !here) snprintf(why, size, "another rank cannot map the memory of its peers");
    }
    free(card);
    *joined_out = failures == 0;
    return status;
}

static void unmap(const Peer *p, void *const *mapped)
{
    for (int r = 0; r < p->ranks && !p->loopback; r++)
        if (r != p->rank && mapped[r]) cudaIpcCloseMemHandle(mapped[r]);
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
        for (int r = 0; r < p->ranks; r++) p->flags[r] = p->flags[p->rank];
    else if (status == OK)
        status = exchange_maps(p, host, (void **)p->flags, &joined, why, size);
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
    while (p->regions) peer_unshare(p, p->region[0].base[p->rank]);
    unmap(p, (void **)p->flags);
    cudaFree(p->flags[p->rank]);
    cudaFree(p->turn);
    for (int k = 0; k < PEER_CHANNELS; k++) {
        if (p->beside[k].stream) cudaStreamDestroy(p->beside[k].stream);
        if (p->beside[k].fork) cudaEventDestroy(p->beside[k].fork);
        if (p->beside[k].join) cudaEventDestroy(p->beside[k].join);
    }
    if (p->status) cudaFreeHost(p->status);
    free(p);
    *peer = NULL;
}

static Region *region_at(Peer *p, const void *memory)
{
    for (int k = 0; k < p->regions; k++)
        if (p->region[k].base[p->rank] == memory) return &p->region[k];
    return NULL;
}

Status peer_share(Peer *p, Comm *host, void *memory, size_t bytes)
{
    char why[120] = "";
    bool joined = true;
    if (region_at(p, memory)) return OK;
    if (p->regions == PEER_REGIONS)
        return status_fail(ERR_INTERNAL, "more than %d shared blocks of memory", (int)PEER_REGIONS);
    Region *region = &p->region[p->regions];
    *region = (Region){{NULL}, bytes};
    region->base[p->rank] = (char *)memory;
    Status status = OK;
    if (!p->loopback) status = exchange_maps(p, host, (void **)region->base, &joined, why, sizeof why);
    p->regions++;
    if (status == OK && joined) return OK;
    peer_unshare(p, memory);
    return status == OK ? status_fail(ERR_COMM, "%s", why) : status;
}

void peer_unshare(Peer *p, const void *memory)
{
    Region *region = region_at(p, memory);
    if (!region) return;
    unmap(p, (void **)region->base);
    *region = p->region[--p->regions];
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
    int64_t unit = (int64_t)sizeof(T) * V;
    PeerExchange *e = &a.exchange;
    e->piece = (uint32_t)(s->piece / unit);
    a.in_units = (uint32_t)(s->in / unit);
    a.out_units = (uint32_t)(s->out / unit);
    a.send = {(uint32_t)(s->send.part / unit), (uint32_t)(s->send.whole / unit),
              s->to_all ? 0 : (uint32_t)(s->send.part / unit)};
    a.receive = {(uint32_t)(s->receive.part / unit), (uint32_t)(s->receive.whole / unit),
                 SUM ? 0 : (uint32_t)(s->receive.part / unit)};
    a.land = a.receive;
    if (!a.direct) a.land = {e->piece, 0, e->piece};
    int64_t least = (int64_t)PEER_THREADS * PEER_UNROLL * unit; /* what the threads of a block move at once */
    int64_t blocks = (s->piece * (p->ranks - 1) + least - 1) / least;
    if (blocks > p->most_blocks[channel]) blocks = p->most_blocks[channel];
    e->share = (uint32_t)((e->piece + blocks - 1) / blocks);
    launch(peer_kernel<T, V, SUM>, (unsigned)blocks, PEER_THREADS, 0, stream, a);
    return cuda_launched("peer_kernel");
}

/* Sums are taken from scratch memory, and what does not lie in shared memory cannot be written from afar. */
static Status find_landing(const Peer *p, const OpCall *call, bool sums, int channel, PeerArguments *a)
{
    const Region *region = sums ? NULL : peer_region_of(p, a->out);
    a->direct = region != NULL && !p->loopback;
    void *landing = region ? a->out : call->scratch;
    if (!region) region = peer_region_of(p, call->scratch);
    if (!region) return status_fail(ERR_INTERNAL, "the workspace of a collective was not shared");
    a->exchange = peer_exchange_of(p, channel, region, landing);
    return OK;
}

/* Beside a computation copy engines send, which take no SM from it. The runs of one of the two layouts have to be
 * pieces of those of the other. */
typedef struct Copies {
    int64_t width, rows;
} Copies;

static Copies copies_of(const Shape *s, const Cut *to)
{
    int64_t width = s->send.part < to->part ? s->send.part : to->part;
    bool fits = (s->send.part == s->piece || s->send.part == width) && (to->part == s->piece || to->part == width);
    Copies c = {width, fits && s->piece % width == 0 ? s->piece / width : 0};
    return c;
}

static Status copy_piece(const Shape *s, const Cut *to, const void *in, int slice, void *target, int place,
                         cudaStream_t stream)
{
    Copies c = copies_of(s, to);
    const char *from = (const char *)in + (s->to_all ? 0 : slice * s->send.part);
    size_t read = (size_t)(s->send.part < s->piece ? s->send.whole : c.width),
           write = (size_t)(to->part < s->piece ? to->whole : c.width);
    return cuda_check(cudaMemcpy2DAsync((char *)target + place * to->part, write, from, read, (size_t)c.width,
                                        (size_t)c.rows, cudaMemcpyDefault, stream),
                      "copy to a peer");
}

static Status send_by_engines(const Peer *p, PeerArguments *a, const Shape *s, int channel, cudaStream_t stream)
{
    Cut contiguous = {s->piece, 0};
    const Cut *to = a->direct ? &s->receive : &contiguous;
    if (a->direct) { /* the own piece: as long a copy as another rank's, by another engine */
        cudaStream_t beside = p->beside[channel].stream;
        CUDA_TRY(cudaEventRecord(p->beside[channel].fork, stream));
        CUDA_TRY(cudaStreamWaitEvent(beside, p->beside[channel].fork, 0));
        TRY(copy_piece(s, &s->receive, a->in, p->rank, a->out, p->rank, beside));
        CUDA_TRY(cudaEventRecord(p->beside[channel].join, beside));
    }
    launch(peer_meet_kernel, 1, WARP, 0, stream, a->exchange);
    for (int k = 1; k < p->ranks; k++) {
        int r = (p->rank + k) % p->ranks;
        TRY(copy_piece(s, to, a->in, r, a->exchange.landing[r], p->rank, stream));
    }
    if (a->direct) CUDA_TRY(cudaStreamWaitEvent(stream, p->beside[channel].join, 0));
    launch(peer_meet_kernel, 1, WARP, 0, stream, a->exchange);
    a->exchange.arrived = true;
    return cuda_launched("peer_meet_kernel");
}

static bool engines_can(const Peer *p, const PeerArguments *a, const Shape *s, int channel)
{
    Cut contiguous = {s->piece, 0};
    Copies c = copies_of(s, a->direct ? &s->receive : &contiguous);
    /* a bucket's last piece may be shorter: ranks have to decide alike, and what they hold of it differs */
    bool whole = (s->to_all ? s->out : s->in) >= s->piece * p->ranks;
    return channel != PEER_COMPUTE && !p->loopback && c.rows > 0 && c.width >= LEAST_RUN && whole;
}

static Status exchange(const Peer *p, const OpCall *call, const void *in, void *out, const Shape *s, int channel,
                       cudaStream_t stream)
{
    if (s->piece == 0) return OK;
    PeerArguments a;
    memset(&a, 0, sizeof a);
    a.in = in;
    a.out = out;
    TRY(find_landing(p, call, s->sums, channel, &a));
    a.exchange.factor = (float)s->factor;
    if (engines_can(p, &a, s, channel)) {
        TRY(send_by_engines(p, &a, s, channel, stream));
        if (a.direct) return OK;
    }
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

size_t peer_scratch(const Peer *p, const OpCall *call)
{
    size_t bytes = tensor_bytes(call->in_tensor[0]);
    return call->op->kind == OP_ALL_REDUCE ? bytes + (size_t)p->ranks * 16 + 16
                                           : bytes * (call->op->kind == OP_ALL_GATHER ? (size_t)p->ranks : 1);
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
