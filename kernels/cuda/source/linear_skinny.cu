// Linear for few rows: y[m] = x[m]·Wᵀ for m < rows ≤ NM, bf16 with float32 sums; W is read once.
//   x bf16 [rows, K]; W bf16 [N, K]; y bf16 or float32 [rows, N]. K a multiple of 8, N even.
//   grid: G ≤ tiles·chunks blocks of 160 threads, one a multiprocessor.
//   moves 2·N·K bytes of W, and x once for every 64 rows of W (out of the L2).
//   Oracle: kernels/cpu Linear.
//
// W is cut into tiles of BM = 64 rows and these into chunks of 64 columns; block i of G takes chunks [i·total/G, (i+1)·total/G) of that one
// long list ("stream-K"), so that all blocks read the same number of bytes whatever N is. One warp feeds a ring of stages in shared memory
// by tensor copies; W is the 64-row operand of the tensor cores, x the one of 8 … 128 columns. A block goes through its tiles from the last
// to the first. Where a tile is cut between blocks, the one with its last chunk comes to it when it is done with its others; the rest
// came to it first. It waits for them and adds their parts from the workspace in order of k. Since it waits for blocks before it in the
// grid alone, it needs no more of them to fit on the device than were started.
//
// Each output is a sum over k in an order that N, K and G (with or without pairs) alone decide: a row's result depends neither on the other rows, nor on NM,
// nor on when a block ran.
//
// The ring is filled with W before the predecessor's end is waited for (W never changes), and with x after.
// y starts at 4 bytes and ys is even; x's rows start at 16 bytes. A launch on another stream at the same time needs its own workspace.
// Best between a layer's other kernels (kernels/BENCHMARKS.md): a ring of 126 KiB up to 32 rows, of 160 KiB at 64, and at 128 linear_skinny_pair_128 with 200 KiB,
// which has two blocks share x. A ring of less than 114 KiB lets two blocks of one launch meet on a multiprocessor: don't.
#include "hopper.cuh"

struct SkinnyArgs {
    hopper::TensorMap w; // [N, K], box [64, 64], swizzled by 128 bytes
    hopper::TensorMap x; // [rows, K], box [NM, 64], likewise
    void* y;
    long long ys; // elements from row to row
    long long n, k;
    long long rows;
    const int* count;     // rows that are really there, in the step record, before the first `first` are taken off; or 0
    long long first;
    float* partial;       // [G, 64, NM]
    int* arrived;         // [tiles, rounded up to even], zero between launches
    long long stages;     // of the ring; shared memory is 1,024 + stages·(64 + NM)·128
    long long float32;    // y's type
};
static_assert(sizeof(SkinnyArgs) == 384, "the launcher pads to it");

namespace skinny {
[[maybe_unused]] constexpr int max_stages = 24;

#ifdef HOPPER
constexpr int BM = 64;
using hopper::address, hopper::allow_successor, hopper::barrier_arrive, hopper::barrier_arrive_at, hopper::barrier_expect, hopper::barrier_init, hopper::barrier_init_visible, hopper::barrier_wait;
using hopper::cluster_rank, hopper::cluster_sync, hopper::count_up, hopper::counted, hopper::load2d, hopper::load2d_all, hopper::matrix_k, hopper::named_sync, hopper::pack;
using hopper::policy_evict_first, hopper::policy_evict_last, hopper::prefetch_map, hopper::transpose8, hopper::wait_predecessor;
using hopper::wgmma, hopper::wgmma_commit, hopper::wgmma_fence, hopper::wgmma_wait;

// store writes a warp's 16 columns of y from n0 on.
template <int NM> __device__ __forceinline__ void store(const SkinnyArgs& a, const float* c, int n0, int rows) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, n = n0 + 2 * t;
    if (a.float32) {
        float* y = (float*)a.y + 2 * t * a.ys + n0 + g;
        const bool in[2] = {n0 + g < a.n, n0 + g + 8 < a.n};
#pragma unroll
        for (int j = 0; j < NM / 8; j++, y += 8 * a.ys)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (j * 8 + 2 * t + (i & 1) < rows && in[i >> 1]) y[(i & 1) * a.ys + 8 * (i >> 1)] = c[4 * j + i];
        return;
    }
    __nv_bfloat16* y = (__nv_bfloat16*)a.y + g * a.ys + n;
    const bool in[2] = {n < a.n, n + 8 < a.n};
#pragma unroll
    for (int j = 0; j < NM / 8; j++, y += 8 * a.ys)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t v = transpose8(pack(c[4 * j + 2 * i], c[4 * j + 2 * i + 1]));
            if (j * 8 + g < rows && in[i]) *(uint32_t*)(y + 8 * i) = v;
        }
}

// Walk goes through a block's chunks [begin, end): its tiles from the last to the first, in each the chunks in order.
struct Walk {
    int begin, chunks, tile, chunk, stop;
    __device__ Walk(int begin, int end, int chunks) : begin(begin), chunks(chunks), tile((end - 1) / chunks) {
        chunk = max(0, begin - tile * chunks);
        stop = end - tile * chunks;
    }
    __device__ void next_tile() {
        tile--;
        chunk = max(0, begin - tile * chunks);
        stop = chunks;
    }
    __device__ void next() {
        if (++chunk == stop) next_tile();
    }
};

// load_x fetches this block's share of a chunk of x, for all blocks of its cluster.
template <int NM, int C> __device__ __forceinline__ void load_x(const SkinnyArgs& a, uint8_t* dst, int chunk, int rank, uint64_t* full, uint64_t policy) {
    if (C == 1) load2d(dst, &a.x, chunk * 64, 0, full, policy);
    else load2d_all(dst + rank * (NM / C * 128), &a.x, chunk * 64, rank * (NM / C), full, (1 << C) - 1, policy);
}

// join does what a block has to for a tile shared with others, those of this rank in the clusters first … the one with its last chunk. It returns whether c is
// now the whole tile's, which it is for that one alone.
template <int NM, int C>
__device__ __forceinline__ bool join(const SkinnyArgs& a, float* c, int tile, bool last, int me, int rank, int chunks, unsigned grid, unsigned total) {
    const long long size = BM * NM / 4;
    float4* part = (float4*)a.partial + threadIdx.x;
    int* count = a.arrived + tile * C + rank;
    if (!last) {
#pragma unroll
        for (int i = 0; i < NM / 8; i++) __stcg(part + blockIdx.x * size + i * 128, make_float4(c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]));
        named_sync(1, 128);
        if (threadIdx.x == 0) count_up(count, 1);
        return false;
    }
    const int first = (int)(((tile * chunks + 1) * grid - 1) / total);
    if (threadIdx.x == 0) {
        while (counted(count) != me - first) {}
        *count = 0;
    }
    named_sync(1, 128);
    part += (first * C + rank) * size;
    // All loads of two blocks' parts, of one's where there are many, are under way at once.
    constexpr int ways = NM > 64 ? 1 : 2;
#pragma unroll 1
    for (int p = first; p < me; p += ways, part += ways * C * size) {
        float4 v[ways][NM / 8];
#pragma unroll
        for (int u = 0; u < ways; u++)
#pragma unroll
            for (int i = 0; i < NM / 8; i++)
                if (p + u < me) v[u][i] = __ldcg(part + u * C * size + i * 128);
#pragma unroll
        for (int u = 0; u < ways; u++)
#pragma unroll
            for (int i = 0; i < NM / 8; i++)
                if (p + u < me) c[4 * i] += v[u][i].x, c[4 * i + 1] += v[u][i].y, c[4 * i + 2] += v[u][i].z, c[4 * i + 3] += v[u][i].w;
    }
    return true;
}

template <int NM, int C> __device__ __forceinline__ void run(const SkinnyArgs& a) {
    constexpr int w_bytes = BM * 128, x_bytes = NM * 128, stage_bytes = w_bytes + x_bytes;
    extern __shared__ uint8_t raw[];
    __shared__ alignas(8) uint64_t full[max_stages], empty[max_stages];
    uint8_t* ring = (uint8_t*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);

    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, stages = (int)a.stages;
    const int rank = C == 1 ? 0 : cluster_rank(), me = blockIdx.x / C;
    const int chunks = ((int)a.k + 63) / 64, tiles = ((int)a.n + BM * C - 1) / (BM * C);
    const unsigned total = tiles * chunks, grid = gridDim.x / C; // their product has 32 bits, for the launcher's weights
    const int begin = (int)(total * me / grid), end = (int)(total * (me + 1) / grid);
    const int row0 = rank * BM;

    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int s = 0; s < stages; s++) {
            barrier_init(full + s, 1);
            barrier_init(empty + s, 4 * C);
        }
        barrier_init_visible();
    }
    if (warp == 4) {
        prefetch_map(&a.w);
        prefetch_map(&a.x);
    }
    if (C == 1) __syncthreads();
    else cluster_sync();
    allow_successor();

    if (warp == 4) {
        if (lane == 0) {
            const uint64_t once = policy_evict_first(), again = policy_evict_last();
            const int n = end - begin, ahead = min(stages, n);
            Walk w(begin, end, chunks), x = w;
#pragma unroll 1
            for (int i = 0; i < ahead; i++, w.next()) {
                barrier_expect(full + i, stage_bytes);
                load2d(ring + i * stage_bytes, &a.w, w.chunk * 64, w.tile * (BM * C) + row0, full + i, once);
            }
            wait_predecessor();
#pragma unroll 1
            for (int i = 0; i < ahead; i++, x.next()) load_x<NM, C>(a, ring + i * stage_bytes + w_bytes, x.chunk, rank, full + i, again);
            int s = 0, phase = 0;
#pragma unroll 1
            for (int i = ahead; i < n; i++, w.next()) {
                barrier_wait(empty + s, phase);
                barrier_expect(full + s, stage_bytes);
                uint8_t* stage = ring + s * stage_bytes;
                load2d(stage, &a.w, w.chunk * 64, w.tile * (BM * C) + row0, full + s, once);
                load_x<NM, C>(a, stage + w_bytes, w.chunk, rank, full + s, again);
                if (++s == stages) s = 0, phase ^= 1;
            }
        }
        __syncwarp();
    } else {
        wait_predecessor();
        const int rows = a.count ? min(*a.count - (int)a.first, (int)a.rows) : (int)a.rows;
        float c[NM / 2];
        int s = 0, phase = 0;
        auto release = [&](int stage) { // the stage may be written again, by every block that writes into it
            if (C == 1) {
                if (lane == 0) barrier_arrive(empty + stage);
            } else if (lane < C) barrier_arrive_at(empty + stage, lane);
        };
        Walk walk(begin, end, chunks);
        for (int left = end - begin; left > 0; walk.next_tile()) {
            const int tile = walk.tile, k0 = walk.chunk, k1 = walk.stop;
            int before = 0; // the stage that the product still running reads
            for (int k = k0; k < k1; k++) {
                barrier_wait(full + s, phase);
                const uint32_t stage = address(ring) + s * stage_bytes;
                const uint64_t wd = matrix_k(stage), xd = matrix_k(stage + w_bytes);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; i++) wgmma<NM>(c, wd + 2 * i, xd + 2 * i, i > 0 || k > k0);
                wgmma_commit();
                wgmma_wait<1>();
                if (k > k0) release(before);
                before = s;
                if (++s == stages) s = 0, phase ^= 1;
            }
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < NM / 2; i++) asm volatile("" : "+f"(c[i])::"memory");
            release(before);
            left -= k1 - k0;
            const int n0 = tile * (BM * C) + row0 + warp * 16;
            if (k1 - k0 < chunks && !join<NM, C>(a, c, tile, k1 == chunks, me, rank, chunks, grid, total)) continue;
            store<NM>(a, c, n0, rows);
        }
    }
    if (C > 1) cluster_sync(); // nobody writes into a block that has ended
}
#else
template <int NM, int C> __device__ __forceinline__ void run(const SkinnyArgs&) { __trap(); }
#endif
} // namespace skinny

// linear_skinny_<NM>: at most NM rows of x. linear_skinny_pair_<NM>: clusters of two blocks; the grid is even, x's box [NM/2, 64].
#define LINEAR_SKINNY(NM) \
    extern "C" __global__ void __launch_bounds__(160, 1) linear_skinny_##NM(const __grid_constant__ SkinnyArgs a) { skinny::run<NM, 1>(a); }
LINEAR_SKINNY(8)
LINEAR_SKINNY(16)
LINEAR_SKINNY(32)
LINEAR_SKINNY(64)
LINEAR_SKINNY(128)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define LINEAR_SKINNY_PAIR
#else
#define LINEAR_SKINNY_PAIR __cluster_dims__(2, 1, 1)
#endif
extern "C" __global__ void LINEAR_SKINNY_PAIR __launch_bounds__(160, 1) linear_skinny_pair_128(const __grid_constant__ SkinnyArgs a) { skinny::run<128, 2>(a); }
#undef LINEAR_SKINNY
#undef LINEAR_SKINNY_PAIR
