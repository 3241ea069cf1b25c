/* Collectives of a model-parallel (DAP) group through memory of the peers: ranks of one host whose GPUs reach one
 * another map each other's workspaces, and a collective writes the slices to where they belong, layout change included:
 * one kernel, or beside a computation copy engines between two meetings of the ranks. Without ranks (no_comm) the
 * kernel sends to itself. */
#ifndef FOLDSCALE_KERNELS_CUDA_COMM_PEER_H
#define FOLDSCALE_KERNELS_CUDA_COMM_PEER_H

#include "kernels/cuda/comm.h"

/* Collectives of one channel are enqueued in the same order on all ranks; one channel per stream, and one more on that
 * of the computation, for ops that send and whose blocks do not talk to their namesakes alone. */
enum { PEER_COMPUTE, PEER_ASIDE, PEER_BULK, PEER_SEND, PEER_CHANNELS };

/* All ranks of the job call it together and come to the same result: *peer_out is NULL where memory cannot be shared,
 * and `why` says what stands against it. */
Status peer_open(Comm *host, bool no_comm, Peer **peer_out, char *why, size_t size);
void peer_close(Peer **peer);

/* All ranks together, before peer_run: outputs and scratch memory of their collectives lie at the same places of this
 * block (of one allocation). Nothing to do where that is known. Before the block is freed: peer_unshare. */
Status peer_share(Peer *peer, Comm *host, void *memory, size_t bytes);
void peer_unshare(Peer *peer, const void *memory);

size_t peer_scratch(const Peer *peer, const OpCall *call);
/* A collective over the DAP group, written for call->op. */
Status peer_run(Peer *peer, const OpCall *call, int channel, cudaStream_t stream);

/* Of an op that sends: how the rows of what it computes spread; false where rows do not stay together. Tensors alone.
 */
bool peer_send_rows(const OpCall *call, struct PeerRows *rows_out);
/* What a kernel needs to send (peer_send.cuh); ranks 0 for an op that does not. On the stream of the computation only.
 */
Status peer_send_of(const CudaContext *ctx, const OpCall *call, struct PeerSend *send_out);
/* The same for a kernel whose blocks talk to their namesakes (peer_block.cuh). */
Status peer_send_blocks_of(const CudaContext *ctx, const OpCall *call, struct PeerSend *send_out);
/* Of an op that sends by reduce_scatter from one kernel, whose blocks exchange `share` units of 16 bytes of every piece
 * of `piece` units (peer_exchange.cuh): what they need to. */
Status peer_sum_of(const CudaContext *ctx, const OpCall *call, uint32_t piece, uint32_t share,
                   struct PeerExchange *exchange_out);

/* While waiting for the device: ERR_COMM when a rank of the group is gone or did not answer. Cheap. */
Status peer_check(Peer *peer);

#endif
