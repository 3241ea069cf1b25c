/* Names of symmetric atoms (AlphaFold2 supplement, algorithm 26): arithmetic in double as on the CPU. */
#include "kernels/cuda/cluster.cuh"

typedef float real;
#include "kernels/rigid_groups.h"

enum { RENAME_THREADS = 128, RENAME_BLOCKS = 8 /* of a residue */ };

#define F32_IN(k)  ((const float *)call->in[k])
#define F32_OUT(k) ((float *)call->out[k])

/* An ambiguous atom of a residue: predicted, true, and true under the other name. */
struct RenameAtom {
    float x[3], gt[3], alt[3];
    double weight;
};

/* The ambiguous atoms of residue i, by the block; returns their number, the same in every block of the cluster. */
__device__ __forceinline__ int rename_atoms(int64_t i, const float *x, const float *gt, const float *alt,
                                            const float *exists, const float *ambiguous, RenameAtom *atom)
{
    int lane = threadIdx.x % WARP;
    int64_t a = ATOMS * i + (lane < ATOMS ? lane : 0);
    double weight = (double)exists[a] * ambiguous[a];
    unsigned which = __ballot_sync(0xffffffffu, lane < ATOMS && weight != 0);
    if (threadIdx.x < WARP && which >> lane & 1) {
        RenameAtom *to = atom + __popc(which & ((1u << lane) - 1));
        for (int k = 0; k < 3; k++) to->x[k] = x[3 * a + k], to->gt[k] = gt[3 * a + k], to->alt[k] = alt[3 * a + k];
        to->weight = weight;
    }
    __syncthreads();
    return __popc(which);
}

/* Errors of the distances from the ambiguous atoms to this block's share of all others, under either name */
__device__ __forceinline__ double2 rename_errors(int64_t n, double eps, const float *x, const float *gt,
                                                 const float *alt, const float *exists, const float *ambiguous,
                                                 const RenameAtom *atom, int atoms)
{
    double2 error = {0, 0};
    int64_t first = (int64_t)cluster_rank() * RENAME_THREADS + threadIdx.x;
    for (int64_t b = first; b < ATOMS * n; b += RENAME_BLOCKS * RENAME_THREADS) {
        float here = exists[b], clear = 1 - ambiguous[b];
        if (here == 0 || clear == 0) continue;
#pragma unroll 2
        for (int k = 0; k < atoms; k++) {
            double mask = atom[k].weight * here * clear, d = point_distance(atom[k].x, x + 3 * b, eps);
            double e = d - point_distance(atom[k].gt, gt + 3 * b, eps),
                   f = d - point_distance(atom[k].alt, alt + 3 * b, eps);
            error.x += mask * sqrt(eps + e * e);
            error.y += mask * sqrt(eps + f * f);
        }
    }
    return error;
}

/* Sums over the cluster, the same bits in every thread */
__device__ __forceinline__ double2 rename_sum(double2 error)
{
    __shared__ double2 of_warp[RENAME_THREADS / WARP];
    __shared__ double2 of_block;
    error = make_double2(lanes_sum<WARP>(error.x), lanes_sum<WARP>(error.y));
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = error;
    __syncthreads();
    if (threadIdx.x == 0) {
        double2 sum = of_warp[0];
        for (int w = 1; w < RENAME_THREADS / WARP; w++) sum.x += of_warp[w].x, sum.y += of_warp[w].y;
        of_block = sum;
    }
    cluster_sync();
    double2 total = {0, 0};
    for (uint32_t r = 0; r < RENAME_BLOCKS; r++) {
        float4 raw = cluster_load(cluster_address(shared_address(&of_block), r));
        double2 sum = *reinterpret_cast<double2 *>(&raw);
        total.x += sum.x, total.y += sum.y;
    }
    cluster_sync(); /* nobody leaves while its sums are read */
    return total;
}

/* Algorithm 26, a cluster per residue: the naming of symmetric atoms whose distances to the unambiguous atoms fit
 * better. Few residues have such atoms: those are spread over the device, of the others the blocks leave at once. */
__global__ void __launch_bounds__(RENAME_THREADS)
    rename_kernel(int64_t n, double eps, const float *x, const float *gt, const float *alt, const float *exists,
                  const float *alt_exists, const float *ambiguous, float *better, float *gt_out, float *exists_out)
{
    stage_wait();
    __shared__ RenameAtom atom[ATOMS];
    int64_t i = blockIdx.x / RENAME_BLOCKS;
    int atoms = rename_atoms(i, x, gt, alt, exists, ambiguous, atom);
    double2 error = {0, 0};
    if (atoms > 0) error = rename_sum(rename_errors(n, eps, x, gt, alt, exists, ambiguous, atom, atoms));
    if (cluster_rank() != 0) return;
    bool swap = error.y < error.x;
    if (threadIdx.x == 0) better[i] = swap;
    if (threadIdx.x >= ATOMS) return;
    int64_t a = ATOMS * i + threadIdx.x;
    for (int k = 0; k < 3; k++) gt_out[3 * a + k] = (swap ? alt : gt)[3 * a + k];
    exists_out[a] = (swap ? alt_exists : exists)[a];
}

static Status rename_symmetric(CudaContext *context, const OpCall *call)
{
    int64_t n = call->in_tensor[0]->dim[0];
    if (n == 0) return OK;
    launch_clusters(rename_kernel, (unsigned)(RENAME_BLOCKS * n), RENAME_THREADS, 0, RENAME_BLOCKS, context->stream, n,
                    call->op->attr.f[0], F32_IN(0), F32_IN(1), F32_IN(2), F32_IN(3), F32_IN(4), F32_IN(5), F32_OUT(0),
                    F32_OUT(1), F32_OUT(2));
    return cuda_launched("rename_kernel");
}

const CudaEntry cuda_rigid_rename[] = {{OP_RENAME_SYMMETRIC, rename_symmetric, NULL}, {OP_COUNT, NULL, NULL}};
