// Linears of a few tokens with their adapters' expand, in one launch: z = round(x·Aᵀ), y = x·Wᵀ + B·z, bf16 with float32 sums; linear_mlp ends the MLP too:
// with [g, u] = y + bias: act[t] = silu(g)·u.
//   x [rows ≤ NM, K]; W [N, K], A [R, K] behind it, R 0 … 64; y [rows, N], of linear_mlp [rows, N/2]; bias F32 [N], of linear_mlp alone, optional.
//   K, R and N/2 multiples of 8; rows of x and y start at 16 bytes.
//   grid: G blocks of 192 threads, one a multiprocessor, (tiles + 1)·chunks/G > chunks/32 + 2; shared memory as linear_skinny.
//   moves 2·(N + R)·K bytes of W and A, and B's of the step's adapters once for each of their runs of tokens.
//   Oracle: kernels/cpu Linear, MLP.
//
// It is linear_skinny (which see, for how tiles are cut between blocks) with an epilogue that needs z, and so all of x·Aᵀ, before the first tile is done. The
// first Z = 32 blocks have A's chunks before all others, so many less of W's, and leave their parts of z in the workspace; a warp of each of those blocks then
// sums all parts of some tokens. B's rows of a tile come through the ring, behind the tile's last chunk, in the block that completes it: one run of tokens with
// an adapter after the other, as many to a stage as fit. They are the tensor cores' operand, z of 8 tokens the other. Ranks that are no multiple of 8, or whose
// rows don't fit a stage, are read from memory where they are used.
// linear_mlp's tiles are 32 rows of gate and the 32 of up beside them, eight and eight in turns, so that a lane has both of a column.
//
// All blocks wait for z, and so for the first Z blocks: these have to be on the device together at some time, beside whatever else waits so.
#include "expand.cuh"
#include "hopper.cuh"

struct LinearLoraArgs {
    hopper::TensorMap w; // W as [N, K], box [64, 64], swizzled by 128 bytes; of linear_mlp as [N/16, 2, 8, K], box [4, 2, 8, 64]
    hopper::TensorMap a; // [W; A] as [N+R, K], box [64, 64], likewise
    hopper::TensorMap x; // [rows, K], box [NM, 64], likewise
    void* y; ll ys;
    const float* bias;
    ll n, k, r;
    ll rows;
    const int* head; // of the step record
    const int *seg_start, *seg_adapter; ll segs; // runs of tokens with one adapter, at most so many
    B b;
    float* partial; // [G, 64, NM]
    float* z_parts; // [32, NM, 64]
    bf16* z;        // [NM, 64]
    int* arrived;   // [tiles + 2], zero between launches
    ll stages;      // of the ring
};
static_assert(sizeof(LinearLoraArgs) == 576, "the launcher pads to it");

namespace lora {
#ifdef HOPPER
using hopper::address, hopper::allow_successor, hopper::barrier_arrive, hopper::barrier_expect, hopper::barrier_init, hopper::barrier_init_visible, hopper::barrier_wait;
using hopper::count_up, hopper::counted, hopper::load2d, hopper::load4d, hopper::load_bytes, hopper::named_sync, hopper::pack, hopper::policy_evict_first;
using hopper::policy_evict_last, hopper::prefetch_map, hopper::transpose8, hopper::wait_predecessor;
using skinny::join, skinny::max_stages, skinny::product, skinny::store, skinny::Walk;

constexpr int z_blocks = 32, z_pitch = 64;

// A run of tokens [begin, end) with one adapter, whose rows of this site's B begin at `at`. rank 0: they have none.
struct Run {
    const bf16* at;
    int rank;
    short begin, end;
};

// Cut says which of W's chunks are whose: block i has [begin(i), begin(i + 1)) of the tiles' one after another, and before them a_begin(i) … of A's.
struct Cut {
    unsigned total, a, grid, zs; // chunks of W and of A; blocks; those with a share of A
    __device__ int a_begin(int i) const { return (int)(a * min(i, (int)zs) / zs); }
    __device__ int begin(int i) const { return (int)((total + a) * i / grid) - a_begin(i); }
    // owner is the block that has chunk p.
    __device__ int owner(int p) const {
        int i = min((int)grid - 1, (int)((unsigned)p * grid / (total + a)));
        while (begin(i + 1) <= p) i++;
        while (begin(i) > p) i--;
        return i;
    }
};

// Stages goes through the ring's stages as both sides count them.
struct Stages {
    int count, at = 0, round = 0;
    __device__ void next() {
        if (++at == count) at = 0, round++;
    }
};

// staged is how many bytes of a stage a run's rows of a tile take, 0: they don't come through the ring.
__device__ __forceinline__ int staged(const Run& run, int stage_bytes) {
    const int bytes = 64 * 2 * run.rank;
    return run.rank % 8 == 0 && bytes <= stage_bytes ? bytes : 0;
}

// add adds B·z of a run's k … k+31 to the sums of its tokens. lo and hi are 8 values of the lane's rows of B; z is the same 8 of the lane's token of the first 8.
template <int NM> __device__ __forceinline__ void add(float* c, const Run& run, const uint4& lo, const uint4& hi, const bf16* z, bool there) {
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < NM / 8; j++) {
        if (run.begin >= 8 * j + 8 || run.end <= 8 * j) continue;
        float d[4] = {0, 0, 0, 0};
        mma32(d, lo, hi, there ? *(const uint4*)(z + 8 * j * z_pitch) : make_uint4(0, 0, 0, 0));
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const int m = 8 * j + 2 * t + s;
            if (m >= run.begin && m < run.end) c[4 * j + s] += d[s], c[4 * j + 2 + s] += d[2 + s];
        }
    }
}

template <int NM, bool MLP> __device__ __forceinline__ void run(const LinearLoraArgs& a) {
    constexpr int w_bytes = 64 * 128, stage_bytes = w_bytes + NM * 128, consumers = 128;
    extern __shared__ uint8_t raw[];
    __shared__ alignas(8) uint64_t full[max_stages], empty[max_stages], listed, there; // the runs are known; z is
    __shared__ Run runs[NM];
    __shared__ int listed_runs; // 0 where none has an adapter
    uint8_t* ring = (uint8_t*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);

    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, stages = (int)a.stages, me = blockIdx.x, n = (int)a.n;
    const int chunks = ((int)a.k + 63) / 64, tiles = (n + 63) / 64, each = MLP ? 32 : 64; // rows of B a tile has in one piece
    const Cut cut{(unsigned)(tiles * chunks), a.r ? (unsigned)chunks : 0, gridDim.x, (unsigned)min(min(z_blocks, chunks), (int)gridDim.x)};
    const int begin = cut.begin(me), end = cut.begin(me + 1), a_first = cut.a_begin(me), of_a = cut.a_begin(me + 1) - a_first;
    int *const z_stored = a.arrived + tiles, *const z_ready = z_stored + 1;

    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int s = 0; s < stages; s++) {
            barrier_init(full + s, 1);
            barrier_init(empty + s, 4);
        }
        barrier_init(&listed, 1);
        barrier_init(&there, 1);
        barrier_init_visible();
    }
    if (warp == 4) {
        prefetch_map(&a.w);
        prefetch_map(&a.a);
        prefetch_map(&a.x);
    }
    __syncthreads();
    allow_successor();

    if (warp == 4) {
        const uint64_t once = policy_evict_first(), again = policy_evict_last();
        constexpr int each_lane = (NM + 31) / 32; // runs a lane lists
        const int segs = a.b.table ? min(a.head[3], (int)a.segs) : 0;
        int slot[each_lane], from[each_lane], to[each_lane];
#pragma unroll
        for (int q = 0; q < each_lane; q++) {
            const int i = q * 32 + lane;
            slot[q] = -1, from[q] = to[q] = 0;
            if (a.b.table && i < a.segs) slot[q] = a.seg_adapter[i], from[q] = a.seg_start[i], to[q] = a.seg_start[i + 1];
        }
        auto load_w = [&](int s, int tile, int chunk) {
            barrier_expect(full + s, stage_bytes);
            if (MLP && tile < tiles) load4d(ring + s * stage_bytes, &a.w, chunk * 64, tile * 4, full + s, once);
            else load2d(ring + s * stage_bytes, &a.a, chunk * 64, tile < tiles ? tile * 64 : n, full + s, once);
        };
        const int all = of_a + end - begin;
        Walk w(begin, end, chunks), x = w;
        int ahead = 0, whole = tiles; // chunks whose rows of W are asked for before the predecessor has ended, up to the end of a tile
#pragma unroll 1
        for (; ahead < min(stages, all) && whole == tiles; ahead++) {
            const bool of_w = ahead >= of_a;
            if (lane == 0) load_w(ahead, of_w ? w.tile : tiles, of_w ? w.chunk : a_first + ahead);
            if (!of_w) continue;
            if (w.chunk + 1 == chunks) whole = w.tile;
            w.next();
        }
        Adapter own[each_lane];
#pragma unroll
        for (int q = 0; q < each_lane; q++) {
            own[q] = {nullptr, 0};
            if (q * 32 + lane < segs && slot[q] >= 0) own[q] = a.b.table[slot[q]];
        }
        wait_predecessor();
#pragma unroll 1
        for (int i = 0; i < ahead; i++) {
            if (lane == 0) load2d(ring + i * stage_bytes + w_bytes, &a.x, (i < of_a ? a_first + i : x.chunk) * 64, 0, full + i, again);
            if (i >= of_a) x.next();
        }
        bool any = false;
#pragma unroll
        for (int q = 0; q < each_lane; q++) {
            const int rank = (int)own[q].rank;
            if (q * 32 + lane < NM) runs[q * 32 + lane] = {(const bf16*)own[q].block + rank * a.b.offset, rank, (short)from[q], (short)to[q]};
            any = any || rank;
        }
        any = __any_sync(~0u, any);
        if (lane == 0) listed_runs = any ? segs : 0;
        __syncwarp();
        if (lane == 0) barrier_arrive(&listed);

        Stages s{stages};
        s.at = ahead == stages ? 0 : ahead;
        s.round = ahead == stages ? 1 : 0;
        bool waited = !any;
        auto wait_z = [&] {
            if (waited) return;
            waited = true;
            if (lane == 0) {
                while (counted(z_ready) >> 16 < (int)cut.zs) {}
                barrier_arrive(&there);
            }
            __syncwarp();
        };
        // rows_of fetches B's rows of a tile.
        auto rows_of = [&](int tile) {
            if (!any) return;
            wait_z();
            const int first = tile * each, count = min(each, (MLP ? n / 2 : n) - first);
#pragma unroll 1
            for (int i = 0; i < segs;) {
                int used = 0, next = i; // of a stage
#pragma unroll 1
                for (; next < segs; next++) {
                    const int bytes = staged(runs[next], stage_bytes);
                    if (used + bytes > stage_bytes) break;
                    used += bytes;
                }
                if (used) {
                    uint64_t* const f = full + s.at;
                    uint8_t* dst = ring + s.at * stage_bytes;
                    if (lane == 0) {
                        if (s.round) barrier_wait(empty + s.at, (s.round - 1) & 1);
                        barrier_expect(f, used / each * count);
                    }
                    __syncwarp();
#pragma unroll 1
                    for (int turn = 0; i < next; i++) {
                        const Run& one = runs[i];
                        const int bytes = staged(one, stage_bytes);
                        if (!bytes) continue;
                        if (lane == turn) load_bytes(dst, one.at + (ll)first * one.rank, 2 * one.rank * count, f);
                        if (MLP && lane == turn + 1) load_bytes(dst + bytes / 2, one.at + (ll)(n / 2 + first) * one.rank, 2 * one.rank * count, f);
                        dst += bytes;
                        turn = (turn + 2) & 31;
                    }
                    s.next();
                }
                i = next;
            }
        };
#pragma unroll 1
        for (int i = ahead;; i++) {
            if (whole < tiles) rows_of(whole);
            if (i == all) break;
            const bool of_w = i >= of_a;
            if (lane == 0) { // alone: a lane that looks late would find the phase after the next
                if (s.round) barrier_wait(empty + s.at, (s.round - 1) & 1);
                load_w(s.at, of_w ? w.tile : tiles, of_w ? w.chunk : a_first + i);
                load2d(ring + s.at * stage_bytes + w_bytes, &a.x, (of_w ? w.chunk : a_first + i) * 64, 0, full + s.at, again);
            }
            s.next();
            if (!of_w) continue;
            whole = w.chunk + 1 == chunks ? w.tile : tiles;
            w.next();
        }
        if (any) {
            wait_z();
            if (lane == 0 && (count_up(z_ready, 1) & 0xffff) == (int)cut.grid - 1) *z_stored = 0, *z_ready = 0; // all have seen it
        }
    } else if (warp == 5) { // z of some tokens
        if (me >= (int)cut.zs) return;
        barrier_wait(&listed, 0);
        if (listed_runs == 0) return;
        const int rows = min(a.head[0], (int)a.rows);
        if (lane == 0)
            while (counted(z_stored) != (int)cut.zs) {}
        __syncwarp();
#pragma unroll 1
        for (int m = me; m < rows; m += cut.zs) {
            const float* part = a.z_parts + m * z_pitch + 2 * lane;
            float2 v[z_blocks], sum = make_float2(0, 0);
#pragma unroll
            for (int p = 0; p < z_blocks; p++)
                if (p < (int)cut.zs) v[p] = __ldcg((const float2*)(part + p * NM * z_pitch));
#pragma unroll
            for (int p = 0; p < z_blocks; p++)
                if (p < (int)cut.zs) sum.x += v[p].x, sum.y += v[p].y;
            *(uint32_t*)(a.z + m * z_pitch + 2 * lane) = pack(sum.x, sum.y);
        }
        __syncwarp();
        if (lane == 0) count_up(z_ready, 1 << 16);
    } else {
        wait_predecessor();
        const int rows = min(a.head[0], (int)a.rows), g = lane >> 2, t = lane & 3;
        float c[NM / 2];
        int s = 0, phase = 0;
        auto release = [&](int stage) {
            if (lane == 0) barrier_arrive(empty + stage);
        };
        if (of_a > 0) {
            product<NM, w_bytes, stage_bytes>(c, ring, 0, full, stages, s, phase, of_a, release);
            barrier_wait(&listed, 0);
            if (listed_runs) {
                float* part = a.z_parts + (me * NM + 2 * t) * z_pitch + warp * 16 + g;
#pragma unroll
                for (int j = 0; j < NM / 8; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++) __stcg(part + (8 * j + (i & 1)) * z_pitch + 8 * (i >> 1), c[4 * j + i]);
                named_sync(1, consumers);
                if (threadIdx.x == 0) count_up(z_stored, 1);
            }
        }
        Walk walk(begin, end, chunks);
        for (int left = end - begin; left > 0; walk.next_tile()) {
            const int tile = walk.tile, k0 = walk.chunk, k1 = walk.stop;
            product<NM, w_bytes, stage_bytes>(c, ring, 0, full, stages, s, phase, k1 - k0, release);
            left -= k1 - k0;
            if (k1 - k0 < chunks && !join<NM, 1, 1>(a, c, tile, k1 == chunks, me, cut.owner(tile * chunks), 0)) continue;
            barrier_wait(&listed, 0);
            // The lane's rows of the tile: row and the up-th after it.
            const int row = tile * each + warp * (each / 4) + g, limit = MLP ? n / 2 : n;
            const bool in = row < limit, in_hi = MLP ? in : row + 8 < limit;
            if (const int segs = listed_runs) {
                barrier_wait(&there, 0);
                int used = 0;
                bool open = false;
                auto close = [&] {
                    if (!open) return;
                    __syncwarp();
                    release(s);
                    if (++s == stages) s = 0, phase ^= 1;
                    open = false;
                };
#pragma unroll 1
                for (int i = 0; i < segs; i++) {
                    const Run one = runs[i];
                    if (one.rank == 0) continue;
                    const int bytes = staged(one, stage_bytes), rank = one.rank;
                    if (used + bytes > stage_bytes) close();
                    if (bytes && !open) {
                        barrier_wait(full + s, phase);
                        open = true;
                        used = 0;
                    }
                    const bf16* lo_row = bytes ? (const bf16*)(ring + s * stage_bytes + used) + (row - tile * each) * rank : one.at + (ll)row * rank;
                    const ll up = (ll)(!MLP ? 8 : bytes ? 32 : n / 2) * rank;
#pragma unroll 1
                    for (int k = 8 * t; k - 8 * t < rank; k += 32) {
                        const int here = min(8, rank - k);
                        uint4 lo = make_uint4(0, 0, 0, 0), hi = lo;
                        if (bytes && here == 8) lo = *(const uint4*)(lo_row + k), hi = *(const uint4*)(lo_row + up + k);
                        if (!bytes && in && here > 0) lo = few(lo_row + k, here);
                        if (!bytes && in_hi && here > 0) hi = few(lo_row + up + k, here);
                        add<NM>(c, one, lo, hi, a.z + g * z_pitch + k, k < z_pitch);
                    }
                    used += bytes;
                }
                close();
            }
            if (!MLP) {
                store<NM>((bf16*)a.y, a.ys, n, c, tile * 64 + warp * 16, rows);
                continue;
            }
            const float bg = a.bias && in ? a.bias[row] : 0.f, bu = a.bias && in ? a.bias[n / 2 + row] : 0.f;
            bf16* act = (bf16*)a.y + g * a.ys + row - g + 2 * t;
#pragma unroll
            for (int j = 0; j < NM / 8; j++, act += 8 * a.ys) {
                float v[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float p = c[4 * j + i] + bg;
                    v[i] = __fdividef(p, 1.f + __expf(-p)) * (c[4 * j + 2 + i] + bu);
                }
                const uint32_t y = transpose8(pack(v[0], v[1]));
                if (8 * j + g < rows && row - g < limit) *(uint32_t*)act = y;
            }
        }
    }
}
#else
template <int NM, bool MLP> __device__ __forceinline__ void run(const LinearLoraArgs&) { __trap(); }
#endif
} // namespace lora

// linear_lora_<NM>, linear_mlp_<NM>: at most NM rows of x.
#define LINEAR_LORA(NM) \
    extern "C" __global__ void __launch_bounds__(192, 1) linear_lora_##NM(const __grid_constant__ LinearLoraArgs a) { lora::run<NM, false>(a); } \
    extern "C" __global__ void __launch_bounds__(192, 1) linear_mlp_##NM(const __grid_constant__ LinearLoraArgs a) { lora::run<NM, true>(a); }
LINEAR_LORA(8)
LINEAR_LORA(16)
LINEAR_LORA(32)
LINEAR_LORA(64)
LINEAR_LORA(128)
#undef LINEAR_LORA
