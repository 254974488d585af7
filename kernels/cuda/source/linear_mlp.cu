// The MLP's linear at decode and its epilogue in one launch: [g, u, z] = x·[W; A]ᵀ, act[t] = silu(g + bias + B·z)·(u + bias + B·z), bf16 with float32 sums.
//   x [rows ≤ NM, K]; W [2·F, K], A [R, K] behind it; act [rows, F]; z [rows, R], out; bias F32 [2·F], optional.
//   K, F and R multiples of 8; rows of x, act and z start at 16 bytes.
//   grid: G ≤ tiles·chunks blocks of 160 threads, one a multiprocessor; shared memory as linear_skinny.
//   moves 2·(2·F + R)·K bytes of W and A, and B's of the step's adapters once for each of their runs of tokens.
//   Oracle: kernels/cpu Linear, MLP.
//
// It is linear_skinny (which see, for how tiles are cut between blocks) with tiles of 32 rows of gate and the 32 of up beside them, eight and eight in turns, so
// that a lane has both of a column; the last tiles are A's. B's rows of a tile come through the same ring, behind the tile's last chunk, in the block that
// completes it: a run of tokens with one adapter after the other, as many to a stage as fit. They are the tensor cores' operand, z of 8 tokens the other. Ranks
// that are no multiple of 8, or whose rows don't fit a stage, are read from memory where they are used.
//
// z is of the block with A's last tile, which comes to that first. Where a token has an adapter it tells the others with a counter: G to begin with, each block
// takes one off. So blocks here wait for one of a higher index: all of the grid has to be on the device at some time, and two such launches at once could wait
// for each other for ever. Serving has one stream.
#include "expand.cuh"
#include "hopper.cuh"

struct LinearMLPArgs {
    hopper::TensorMap w; // W as [F/8, 2, 8, K], box [4, 2, 8, 64], swizzled by 128 bytes
    hopper::TensorMap a; // [W; A] as [2·F+R, K], box [64, 64], likewise
    hopper::TensorMap x; // [rows, K], box [NM, 64], likewise
    void* act; ll as;
    void* z; ll zs;
    const float* bias;
    ll ff, k, r;
    ll rows;
    const int* head; // of the step record
    const int *seg_start, *seg_adapter; ll segs; // runs of tokens with one adapter, at most so many
    B b;
    float* partial; // [G, 64, NM]
    int* arrived;   // [tiles + 2], zero between launches
    ll stages;      // of the ring
};
static_assert(sizeof(LinearMLPArgs) == 576, "the launcher pads to it");

namespace linear_mlp {
#ifdef HOPPER
using hopper::address, hopper::allow_successor, hopper::barrier_arrive, hopper::barrier_expect, hopper::barrier_init, hopper::barrier_init_visible, hopper::barrier_wait;
using hopper::count_up, hopper::counted, hopper::load2d, hopper::named_sync, hopper::pack, hopper::policy_evict_first, hopper::policy_evict_last, hopper::prefetch_map;
using hopper::transpose8, hopper::wait_predecessor;
using skinny::join, skinny::max_stages, skinny::product, skinny::store, skinny::Walk;

// A run of tokens [begin, end) with one adapter, whose rows of this site's B begin at `at`. rank 0: they have none.
struct Run {
    const bf16* at;
    int rank;
    short begin, end;
};

// load_w fetches a chunk of a tile: 64 rows of gate and up, or of A.
__device__ __forceinline__ void load_w(const LinearMLPArgs& a, void* dst, int chunk, int tile, int tiles, uint64_t* full, uint64_t policy) {
    if (tile >= tiles) {
        load2d(dst, &a.a, chunk * 64, 2 * (int)a.ff + (tile - tiles) * 64, full, policy);
        return;
    }
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(address(dst)),
                 "l"(&a.w), "r"(chunk * 64), "r"(0), "r"(tile * 4), "r"(address(full)), "l"(policy)
                 : "memory");
}
// load_rows fetches bytes, a multiple of 16.
__device__ __forceinline__ void load_rows(void* dst, const void* src, int bytes, uint64_t* full) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address(dst)), "l"(src), "r"(bytes), "r"(address(full)) : "memory");
}

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

// add adds B·z of a run's k … k+31 to the sums of its tokens. lo and hi are 8 values of the lane's rows of gate and of up; z of its slices' tokens is 8 values beyond.
template <int NM> __device__ __forceinline__ void add(float* c, const Run& run, const uint4& lo, const uint4& hi, const bf16* z, ll zs, int left) {
    const int t = threadIdx.x & 3;
#pragma unroll
    for (int j = 0; j < NM / 8; j++) {
        if (run.begin >= 8 * j + 8 || run.end <= 8 * j) continue;
        float d[4] = {0, 0, 0, 0};
        mma32(d, lo, hi, left > 8 * j ? *(const uint4*)(z + 8 * j * zs) : make_uint4(0, 0, 0, 0));
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const int m = 8 * j + 2 * t + s;
            if (m >= run.begin && m < run.end) c[4 * j + s] += d[s], c[4 * j + 2 + s] += d[2 + s];
        }
    }
}

template <int NM> __device__ __forceinline__ void run(const LinearMLPArgs& a) {
    constexpr int w_bytes = 64 * 128, stage_bytes = w_bytes + NM * 128, consumers = 128;
    extern __shared__ uint8_t raw[];
    __shared__ alignas(8) uint64_t full[max_stages], empty[max_stages], listed, there; // the runs are known; z is
    __shared__ Run runs[NM];
    __shared__ int listed_runs; // 0 where none has an adapter
    uint8_t* ring = (uint8_t*)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);

    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, stages = (int)a.stages, me = blockIdx.x, ff = (int)a.ff;
    const int chunks = ((int)a.k + 63) / 64, tiles = (ff + 31) / 32, of_a = ((int)a.r + 63) / 64;
    const unsigned total = (tiles + of_a) * chunks, grid = gridDim.x; // their product has 32 bits, for the launcher's weights
    const int begin = (int)(total * me / grid), end = (int)(total * (me + 1) / grid);
    int* const parts_of_z = a.arrived + tiles + of_a;
    int* const z_ready = parts_of_z + 1;

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
        constexpr int each = (NM + 31) / 32; // runs a lane lists
        const int segs = a.b.table ? min(a.head[3], (int)a.segs) : 0;
        int slot[each], from[each], to[each];
#pragma unroll
        for (int q = 0; q < each; q++) {
            const int i = q * 32 + lane;
            slot[q] = -1, from[q] = to[q] = 0;
            if (a.b.table && i < a.segs) slot[q] = a.seg_adapter[i], from[q] = a.seg_start[i], to[q] = a.seg_start[i + 1];
        }
        const int n = end - begin;
        Walk w(begin, end, chunks), x = w;
        int ahead = 0, whole = tiles; // chunks whose rows of W are asked for before the predecessor has ended, up to the end of a tile of gate and up
#pragma unroll 1
        for (; ahead < min(stages, n) && whole == tiles; ahead++, w.next()) {
            if (lane == 0) {
                barrier_expect(full + ahead, stage_bytes);
                load_w(a, ring + ahead * stage_bytes, w.chunk, w.tile, tiles, full + ahead, once);
            }
            if (w.chunk + 1 == chunks && w.tile < tiles) whole = w.tile;
        }
        Adapter own[each];
#pragma unroll
        for (int q = 0; q < each; q++) {
            own[q] = {nullptr, 0};
            if (q * 32 + lane < segs && slot[q] >= 0) own[q] = a.b.table[slot[q]];
        }
        wait_predecessor();
#pragma unroll 1
        for (int i = 0; i < ahead; i++, x.next())
            if (lane == 0) load2d(ring + i * stage_bytes + w_bytes, &a.x, x.chunk * 64, 0, full + i, again);
        bool any = false;
#pragma unroll
        for (int q = 0; q < each; q++) {
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
                while (counted(z_ready) <= 0) {}
                count_up(z_ready, -1);
                barrier_arrive(&there);
            }
            __syncwarp();
        };
        // rows_of fetches B's rows of a tile.
        auto rows_of = [&](int tile) {
            if (!any) return;
            wait_z();
            const int first = tile * 32, count = min(32, ff - first);
#pragma unroll 1
            for (int i = 0; i < segs;) {
                int used = 0, held = 0, next = i; // of a stage, and of it what is copied
#pragma unroll 1
                for (; next < segs; next++) {
                    const int bytes = staged(runs[next], stage_bytes);
                    if (used + bytes > stage_bytes) break;
                    used += bytes, held += bytes / 32 * count;
                }
                if (used) {
                    uint64_t* const f = full + s.at;
                    uint8_t* dst = ring + s.at * stage_bytes;
                    if (lane == 0) {
                        if (s.round) barrier_wait(empty + s.at, (s.round - 1) & 1);
                        barrier_expect(f, held);
                    }
                    __syncwarp();
#pragma unroll 1
                    for (int turn = 0; i < next; i++) {
                        const Run& one = runs[i];
                        const int bytes = staged(one, stage_bytes);
                        if (!bytes) continue;
                        if (lane == turn) load_rows(dst, one.at + (ll)first * one.rank, 2 * one.rank * count, f);
                        if (lane == turn + 1) load_rows(dst + bytes / 2, one.at + (ll)(ff + first) * one.rank, 2 * one.rank * count, f);
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
            if (i == n) break;
            uint8_t* stage = ring + s.at * stage_bytes;
            if (lane == 0) { // alone: a lane that looks late would find the phase after the next
                if (s.round) barrier_wait(empty + s.at, (s.round - 1) & 1);
                barrier_expect(full + s.at, stage_bytes);
                load_w(a, stage, w.chunk, w.tile, tiles, full + s.at, once);
                load2d(stage + w_bytes, &a.x, w.chunk * 64, 0, full + s.at, again);
            }
            s.next();
            whole = w.chunk + 1 == chunks ? w.tile : tiles;
            w.next();
        }
        wait_z();
    } else {
        wait_predecessor();
        const int rows = min(*a.head, (int)a.rows), g = lane >> 2, t = lane & 3;
        const bf16* const z = (const bf16*)a.z;
        float c[NM / 2];
        int s = 0, phase = 0;
        auto release = [&](int stage) {
            if (lane == 0) barrier_arrive(empty + stage);
        };
        Walk walk(begin, end, chunks);
        for (int left = end - begin; left > 0; walk.next_tile()) {
            const int tile = walk.tile, k0 = walk.chunk, k1 = walk.stop;
            product<NM, w_bytes, stage_bytes>(c, ring, 0, full, stages, s, phase, k1 - k0, release);
            left -= k1 - k0;
            if (k1 - k0 < chunks && !join<NM, 1, 1>(a, c, tile, k1 == chunks, me, 0, chunks, grid, total)) continue;
            barrier_wait(&listed, 0);
            if (tile >= tiles) {
                store<NM>((bf16*)a.z, a.zs, (int)a.r, c, (tile - tiles) * 64 + warp * 16, rows);
                if (listed_runs == 0) continue;
                named_sync(1, consumers);
                if (threadIdx.x == 0 && count_up(parts_of_z, 1) == of_a - 1) {
                    *parts_of_z = 0;
                    count_up(z_ready, (int)grid);
                }
                continue;
            }
            const int first = tile * 32 + warp * 8, col = first + g; // of gate; up's is ff further
            const bool in = col < ff;
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
                    const bf16* row = bytes ? (const bf16*)(ring + s * stage_bytes + used) + (warp * 8 + g) * rank : one.at + (ll)col * rank;
                    const ll up = (ll)(bytes ? 32 : ff) * rank;
#pragma unroll 1
                    for (int k = 8 * t; k - 8 * t < rank; k += 32) {
                        const int here = bytes || in ? min(8, rank - k) : 0;
                        uint4 lo = make_uint4(0, 0, 0, 0), hi = lo;
                        if (bytes && here == 8) lo = *(const uint4*)(row + k), hi = *(const uint4*)(row + up + k);
                        if (!bytes && here > 0) lo = few(row + k, here), hi = few(row + up + k, here);
                        add<NM>(c, one, lo, hi, z + g * a.zs + k, a.zs, k < a.r ? rows - g : 0);
                    }
                    used += bytes;
                }
                close();
            }
            const float bg = a.bias && in ? a.bias[col] : 0.f, bu = a.bias && in ? a.bias[ff + col] : 0.f;
            bf16* act = (bf16*)a.act + g * a.as + first + 2 * t;
#pragma unroll
            for (int j = 0; j < NM / 8; j++, act += 8 * a.as) {
                float v[2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float p = c[4 * j + i] + bg;
                    v[i] = __fdividef(p, 1.f + __expf(-p)) * (c[4 * j + 2 + i] + bu);
                }
                const uint32_t y = transpose8(pack(v[0], v[1]));
                if (8 * j + g < rows && first < ff) *(uint32_t*)act = y;
            }
        }
    }
}
#else
template <int NM> __device__ __forceinline__ void run(const LinearMLPArgs&) { __trap(); }
#endif
} // namespace linear_mlp

// linear_mlp_<NM>: at most NM rows of x.
#define LINEAR_MLP(NM) \
    extern "C" __global__ void __launch_bounds__(160, 1) linear_mlp_##NM(const __grid_constant__ LinearMLPArgs a) { linear_mlp::run<NM>(a); }
LINEAR_MLP(8)
LINEAR_MLP(16)
LINEAR_MLP(32)
LINEAR_MLP(64)
LINEAR_MLP(128)
#undef LINEAR_MLP
