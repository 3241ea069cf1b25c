/* Hopper's asynchronous machinery: warpgroup products (wgmma), barriers in shared memory, tensor copies.
 *
 * Operands of products are k-major tiles of 64 columns (128-byte rows) in the 128-byte swizzle: the 16-byte chunk c of
 * row r lies at c ^ (r & 7). Tensor copies read and write the same layout. */
#ifndef FOLDSCALE_KERNELS_CUDA_HOPPER_CUH
#define FOLDSCALE_KERNELS_CUDA_HOPPER_CUH

#include <cuda.h>

#include "kernels/cuda/mma.cuh"

enum { TENSOR_COLUMNS = 64 }; /* columns of a copied box */

/* D[64, N] (+)= A[64, 16] B[16, N] (PTX ISA, "wgmma matrix descriptor"); ACROSS_A, ACROSS_B: stored along m, n instead
 * of along k */
template <int N, bool ACROSS_A, bool ACROSS_B> struct GroupProduct;
template <bool ACROSS_A, bool ACROSS_B> struct GroupProduct<8, ACROSS_A, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[4], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %8, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3}, "
                     "%4, %5, p, 1, 1, %6, %7;\n}\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "l"(a), "l"(b), "n"(ACROSS_A ? 1 : 0), "n"(ACROSS_B ? 1 : 0), "r"(accumulate));
    }
};
template <bool ACROSS_A, bool ACROSS_B> struct GroupProduct<32, ACROSS_A, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[16], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %20, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "%16, %17, p, 1, 1, %18, %19;\n}\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                       "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
                       "+f"(d[15])
                     : "l"(a), "l"(b), "n"(ACROSS_A ? 1 : 0), "n"(ACROSS_B ? 1 : 0), "r"(accumulate));
    }
};
template <bool ACROSS_A, bool ACROSS_B> struct GroupProduct<64, ACROSS_A, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[32], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %36, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
                     "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                     "%32, %33, p, 1, 1, %34, %35;\n}\n"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                       "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
                       "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
                       "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
                       "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                     : "l"(a), "l"(b), "n"(ACROSS_A ? 1 : 0), "n"(ACROSS_B ? 1 : 0), "r"(accumulate));
    }
};
template <bool ACROSS_A, bool ACROSS_B> struct GroupProduct<128, ACROSS_A, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[64], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %68, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
            "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
            "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "%64, %65, p, 1, 1, %66, %67;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
              "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
              "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
              "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
              "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "l"(a), "l"(b), "n"(ACROSS_A ? 1 : 0), "n"(ACROSS_B ? 1 : 0), "r"(accumulate));
    }
};
template <bool ACROSS_A, bool ACROSS_B> struct GroupProduct<256, ACROSS_A, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[128], uint64_t a, uint64_t b, int accumulate)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %132, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
            "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
            "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, "
            "%65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
            "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "
            "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "
            "%123, %124, %125, %126, %127}, "
            "%128, %129, p, 1, 1, %130, %131;\n}\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
              "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
              "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
              "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
              "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
              "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
              "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
              "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
              "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
              "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]),
              "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]),
              "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]),
              "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]),
              "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
            : "l"(a), "l"(b), "n"(ACROSS_A ? 1 : 0), "n"(ACROSS_B ? 1 : 0), "r"(accumulate));
    }
};
/* both along k */
template <int N> __device__ __forceinline__ void wgmma_step(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate)
{
    GroupProduct<N, false, false>::step(d, a, b, accumulate);
}

/* d[64 x N] += A B: A in registers; rows of B's tile are columns of d, or rows of B where it is stored along n */
template <int N, bool ACROSS_B = false> struct RegisterProduct;
template <bool ACROSS_B> struct RegisterProduct<64, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[32], const uint32_t *a, uint64_t b)
    {
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
                     "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                     "{%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                       "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
                       "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
                       "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
                       "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS_B ? 1 : 0));
    }
};
template <bool ACROSS_B> struct RegisterProduct<128, ACROSS_B> {
    static __device__ __forceinline__ void step(float (&d)[64], const uint32_t *a, uint64_t b)
    {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
            "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "
            "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, 1, 1, 1, %69;"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
              "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
              "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
              "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
              "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
              "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
              "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
              "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(ACROSS_B ? 1 : 0));
    }
};

/* 128-byte swizzle, 8 rows 1024 bytes apart */
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t shared)
{
    return (uint64_t)((shared & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int pending> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/* The compiler writes these registers of a product before this place and reads them after it. */
template <int N> __device__ __forceinline__ void wgmma_settle(float (&d)[N])
{
#pragma unroll
    for (int k = 0; k < N; k++) asm volatile("" : "+f"(d[k])::"memory");
}
/* Ordinary accesses to shared memory before it come before asynchronous ones (products, copies) after it. */
__device__ __forceinline__ void async_fence()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* --- ordinary accesses to shared memory by address */
__device__ __forceinline__ uint32_t shared_word(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ void shared_word_put(uint32_t at, uint32_t v)
{
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}
__device__ __forceinline__ float2 shared_floats(uint32_t at)
{
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
}
/* 16 bytes */
__device__ __forceinline__ void shared_chunk(uint32_t at, uint32_t (&v)[4])
{
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void shared_chunk_put(uint32_t at, const uint32_t (&v)[4])
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    uint32_t done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    } while (!done);
}
/* By all lanes of a warp: what they wrote to shared memory is there for copies and for who waits. One lane arrives for
 * its warp; in a build with FOLDSCALE_LANES_ARRIVE each does, as racecheck (2026.4) does not carry what __syncwarp()
 * orders on into a barrier (tests/gpu_sanitize.sh). Barriers count WARP_ARRIVALS a warp. */
#ifdef FOLDSCALE_LANES_ARRIVE
enum { WARP_ARRIVALS = WARP };
#else
enum { WARP_ARRIVALS = 1 };
#endif
__device__ __forceinline__ void barrier_arrive_warp(uint32_t barrier)
{
    async_fence();
    __syncwarp();
    if (WARP_ARRIVALS > 1 || threadIdx.x % WARP == 0) barrier_arrive(barrier);
}
/* After the first initialisations, before other threads or copies use them. */
__device__ __forceinline__ void barrier_publish()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    async_fence();
}

/* the same place in the shared memory of another block of the cluster */
__device__ __forceinline__ uint32_t cluster_address(uint32_t shared, uint32_t rank)
{
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared), "r"(rank));
    return at;
}

/* The barriers of a ring of slots, from `at` on: filled, empty again, results ready to leave (four warps); last that of
 * what stays. One for all threads of the block, before they are synchronized. */
template <int SLOTS, typename Place> __device__ __forceinline__ void slot_barriers(Place *place, uint32_t at)
{
    place->full = at, place->empty = at + SLOTS * 8, place->done = at + 2 * SLOTS * 8,
    place->ready = at + 3 * SLOTS * 8;
    if (threadIdx.x > 0) return;
    for (int s = 0; s < SLOTS; s++) {
        barrier_init(place->full + s * 8, 1);
        barrier_init(place->empty + s * 8, 1);
        barrier_init(place->done + s * 8, 4 * WARP_ARRIVALS);
    }
    barrier_init(place->ready, 1);
    barrier_publish();
}

/* A box of 64 columns from (row, column) of the mapped matrix; zeros beyond its edges. */
__device__ __forceinline__ void tensor_load(uint32_t target, const CUtensorMap *map, int row, int column,
                                            uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(target),
                 "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}
/* Brings a box to the L2 cache. */
__device__ __forceinline__ void tensor_prefetch_box(const CUtensorMap *map, int row, int column)
{
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void tensor_store(const CUtensorMap *map, uint32_t source, int row, int column)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(source), "r"(column), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void tensor_store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* until shared memory may be written again, but for that of the last `pending` groups */
template <int pending = 0> __device__ __forceinline__ void tensor_store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
/* until they are complete */
template <int pending = 0> __device__ __forceinline__ void tensor_store_wait()
{
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

/* The box of a map of four dimensions at these coordinates; zeros beyond its edges. */
__device__ __forceinline__ void tensor_load_box(uint32_t target, const CUtensorMap *map, int x, int y, int z, int w,
                                                uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
                 "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
/* the same out of shared memory; what lies beyond the edges stays */
__device__ __forceinline__ void tensor_store_box(const CUtensorMap *map, uint32_t source, int x, int y, int z, int w)
{
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(source), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
/* bytes: a multiple of 16 */
__device__ __forceinline__ void bulk_load(uint32_t target, const void *source, uint32_t bytes, uint32_t barrier)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
        "l"(source), "r"(bytes), "r"(barrier)
        : "memory");
}

/* the same of what should leave the second level cache before anything else */
__device__ __forceinline__ void bulk_load_passing(uint32_t target, const void *source, uint32_t bytes, uint32_t barrier)
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
        "%4;" ::"r"(target),
        "l"(source), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}

/* the same out of shared memory, in the bulk group of the thread */
__device__ __forceinline__ void bulk_store(void *target, uint32_t source, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes)
                 : "memory");
}

/* Brings them to the L2 cache. */
__device__ __forceinline__ void bulk_prefetch(const void *source, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}

/* A bf16 tensor whose first dimension is contiguous; pitch[k]: bytes between steps of dimension k + 1. The driver's
 * function is found at run time: nothing links against it. */
static inline Status tensor_map_of(const void *p, int rank, const cuuint64_t *extent, const cuuint64_t *pitch,
                                   const cuuint32_t *box, CUtensorMapSwizzle swizzle, CUtensorMap *out)
{
    typedef decltype(&cuTensorMapEncodeTiled) Encode;
    const cuuint32_t step[5] = {1, 1, 1, 1, 1};
    void *entry = NULL;
    cudaDriverEntryPointQueryResult found;
    CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (!entry) return status_fail(ERR_UNSUPPORTED, "this driver makes no tensor maps");
    CUresult result = ((Encode)entry)(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank, (void *)p, extent, pitch,
                                      box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return OK;
    return status_fail(ERR_INTERNAL, "tensor map of %d dimensions, the first of %lld: error %d", rank,
                       (long long)extent[0], (int)result);
}

/* A row-major bf16 matrix for copies of boxes of `box_rows` x 64. */
static inline Status tensor_map(const void *p, int64_t rows, int64_t columns, int box_rows, CUtensorMap *out)
{
    cuuint64_t extent[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)columns * sizeof(bf16)};
    cuuint32_t box[2] = {TENSOR_COLUMNS, (cuuint32_t)box_rows};
    return tensor_map_of(p, 2, extent, pitch, box, CU_TENSOR_MAP_SWIZZLE_128B, out);
}

#endif
