/* An op that sends (peer_send.cuh) and whose block b gets all it needs from its namesakes b on the other ranks: it
 * talks to them alone, step by step, as the kernel of comm_peer.cuh does, and waits in its midst rather than at the end
 * of the grid. The two share a channel, hence flags [block][sender] and turns [block]: both run on the stream of the
 * computation. The first step says "here, you may write"; what the others mean is the op's affair, as is their number,
 * the same on all ranks. PeerSend comes from peer_send_blocks_of(), and the grid has at most PEER_BLOCKS blocks. */
#ifndef FOLDSCALE_KERNELS_CUDA_PEER_BLOCK_CUH
#define FOLDSCALE_KERNELS_CUDA_PEER_BLOCK_CUH

#include "kernels/cuda/peer_send.cuh"

/* Made behind stage_wait(), by all threads before one of them ends the turn. */
struct PeerBlock {
    const PeerSend &s;
    uint32_t turn;

    __device__ __forceinline__ explicit PeerBlock(const PeerSend &send) : s(send), turn(__ldcg(send.turn + blockIdx.x))
    {
    }

    /* On rank k, where this rank tells how far it is; in loopback it tells so for rank k as well. */
    __device__ __forceinline__ uint32_t *flag_there(int k) const
    {
        return s.flag[k] + blockIdx.x * PEER_RANKS + (s.loopback ? k : s.rank);
    }

    /* By a whole warp, which tells all that follows: the first step. */
    __device__ __forceinline__ void begin() const
    {
        int other = (int)threadIdx.x % WARP;
        if (other < s.ranks) peer_raise(flag_there(other), turn + 1);
        __syncwarp();
    }

    /* What this thread has stored, tensor copies that were waited for among it, is there: told to all, itself
     * included. */
    __device__ __forceinline__ void tell(uint32_t step) const
    {
        peer_fence();
        for (int k = 1; k <= s.ranks; k++) {
            int other = (s.rank + k) % s.ranks;
            peer_tell(flag_there(other), turn + step);
        }
    }

    __device__ __forceinline__ void await(int sender, uint32_t step) const
    {
        peer_await(s, s.flag[s.rank] + blockIdx.x * PEER_RANKS + sender, turn + step, sender);
    }

    /* By one thread: so many steps were told. */
    __device__ __forceinline__ void end(uint32_t steps) const { s.turn[blockIdx.x] = turn + steps; }
};

#endif
