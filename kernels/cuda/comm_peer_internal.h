/* Shared by comm_peer.cu and peer_send.cu. */
#ifndef FOLDSCALE_KERNELS_CUDA_COMM_PEER_INTERNAL_H
#define FOLDSCALE_KERNELS_CUDA_COMM_PEER_INTERNAL_H

#include <sys/types.h>

#include "kernels/cuda/comm_peer.h"
#include "kernels/cuda/peer_flags.cuh"

enum { PEER_FLAGS = PEER_BLOCKS * PEER_RANKS, PEER_REGIONS = 8 };

/* Memory that every rank has, laid out alike. */
typedef struct Region {
    char *base[PEER_RANKS]; /* own, and as mapped here */
    size_t bytes;
} Region;

struct Peer {
    int ranks, rank;
    bool loopback;
    uint32_t *flags[PEER_RANKS]; /* of all channels; own: allocated, others: mapped */
    Region region[PEER_REGIONS];
    int regions;
    uint32_t *turn, *failed; /* on the device */
    PeerStatus *status;      /* on the host, mapped */
    pid_t pid[PEER_RANKS];   /* 0: processes of the others cannot be seen */
    double looked_s;
    int most_blocks[PEER_CHANNELS];
    struct {
        cudaStream_t stream; /* of copies within this GPU while copy engines send beside a computation */
        cudaEvent_t fork, join;
    } beside[PEER_CHANNELS];
};

/* The one that an address lies in, or NULL. */
static inline const Region *peer_region_of(const Peer *p, const void *memory)
{
    for (int k = 0; k < p->regions; k++) {
        const char *base = p->region[k].base[p->rank];
        if ((const char *)memory >= base && (const char *)memory < base + p->region[k].bytes) return &p->region[k];
    }
    return NULL;
}

/* landing: on this rank, in `region` of its memory, where what the others send lands; not yet: pieces. */
struct PeerExchange peer_exchange_of(const Peer *p, int channel, const Region *region, const void *landing);

#endif
