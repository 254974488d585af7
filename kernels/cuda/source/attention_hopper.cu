// prefill by warpgroups: attention's prefill with 128 rows (128/G tokens by G heads) a block of 2 warpgroups, 64 keys at a time, and four
// tiles of keys and values in shared memory, of which two are under way. Q stays in registers, for D = 64 in shared memory after the tiles: see
// held; a product runs while the other warpgroup takes its exponentials. Grid (Hkv, ⌈T/(128/G)⌉ + S). FlashAttention-3 (Shah et al., 2024), without its split of roles.
#include "warpgroup.cuh"

#ifdef HOPPER
// held: Q's fragments are in registers. With D = 64 there are as many of them as of P's, and ptxas 13.0 gives both the same registers, so that
// P overwrites Q after the first tile.
template <int D> constexpr bool held = D > 64;

// Row r of the block is token r/G, head r%G of the group; the thread's rows are warp·16 + lane/4, and 8 more.
template <int D> __device__ void prefill_warpgroups(const AttentionArgs& a) {
    using hopper::copies_visible, hopper::scores_r, hopper::scores_s, hopper::settled, hopper::sums_r, hopper::wgmma_commit, hopper::wgmma_fence, hopper::wgmma_wait;
    constexpr int KEYS = 64, ROWS = 128, STAGES = 4, TILE = KEYS * D * 2, CH = D / 8;
    extern __shared__ uint8_t raw[];
    const uint32_t base = (shared_address(raw) + 1023) & ~1023u;
    wait_predecessor();
    allow_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int g = a.heads / a.kv, per = ROWS / g, kvh = blockIdx.x, window = (int)a.window;
    int tile;
    const int s = tile_of(a.query_start, a.head[1], per, (int)(gridDim.y - 1 - blockIdx.y), tile); // long ones first
    if (s < 0) return;
    const int t0 = a.query_start[s] + tile * per, tokens = min(per, a.query_start[s + 1] - t0);
    const int first = a.position[t0], hi = first + tokens, lo = window > 0 ? max(0, first + 1 - window) : 0;
    const int* table = a.table + s * a.blocks;
    const ll width = a.kv * D;
    const int k0 = lo & ~(KEYS - 1), tiles = (hi - k0 + KEYS - 1) / KEYS;
    // A thread copies a quarter of a key and of a value.
    const int own = tid >> 2, part = tid & 3;
    const bf16 *kp = (const bf16*)a.k + (ll)kvh * D + part * 8, *vp = (const bf16*)a.v + (ll)kvh * D + part * 8;
    auto load = [&](int i) {
        if (i < tiles) {
            const uint32_t dst = base + (i % STAGES) * 2 * TILE;
            const int pos = k0 + i * KEYS + own;
            const bool on = pos < hi;
            const ll at = on ? slot_of(a, table, pos) * width : 0;
#pragma unroll
            for (int j = 0; j < CH / 4; j++) {
                const uint32_t to = dst + panel_at(KEYS, own, part + 4 * j);
                copy16(to, kp + at + j * 32, on);
                copy16(to + TILE, vp + at + j * 32, on);
            }
        }
        copy_commit();
    };
    // Q, held, through the last stage's place.
    const uint32_t queries = base + (held<D> ? STAGES - 1 : STAGES) * 2 * TILE;
    for (int id = tid; id < ROWS * CH; id += 256) {
        const int r = id / CH, c = id % CH, t = r / g;
        const bool on = t < tokens;
        copy16(queries + panel_at(ROWS, r, c), (const bf16*)a.q + (on ? (t0 + t) * a.qs + (kvh * g + r % g) * D + c * 8 : 0), on);
    }
    copy_commit();
    load(0);
    load(1);
    uint32_t q[D / 16][4];
    if constexpr (held<D>) {
        copy_wait<2>();
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < D / 16; kk++) ldmatrix4(q[kk], queries + panel_at(ROWS, warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
    }
    float o[D / 2], m[2] = {-CUDART_INF_F, -CUDART_INF_F}, l[2] = {};
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] = 0;
    const float scale = (float)a.scale * 1.4426950408889634f;
    const int group_first = first + (warp & 4) * 16 / g; // of the warpgroup's rows
    int row_pos[2];
#pragma unroll
    for (int r = 0; r < 2; r++) row_pos[r] = first + (warp * 16 + (lane >> 2) + r * 8) / g;
    for (int i = 0; i < tiles; i++) {
        copy_wait<1>();
        copies_visible();
        __syncthreads();
        const uint32_t at = base + (i % STAGES) * 2 * TILE;
        float sc[KEYS / 2];
        wgmma_fence();
        if constexpr (held<D>) scores_r<D>(sc, q, at);
        else scores_s<D, ROWS>(sc, queries + (warp & 4) * 16 * 128, at); // the warpgroup's 64 rows
        wgmma_commit();
        load(i + 2); // into the place of tile i−2, whose products everybody has waited for
        wgmma_wait<0>();
        settled<KEYS / 2>(sc);
        const int p0 = k0 + i * KEYS;
        if (p0 + KEYS > group_first + 1 || (window > 0 && p0 <= hi - 1 - window)) {
#pragma unroll
            for (int j = 0; j < KEYS / 2; j++) {
                const int p = p0 + (j >> 2) * 8 + (lane & 3) * 2 + (j & 1), mine = row_pos[(j >> 1) & 1];
                if (p > mine || p >= hi || (window > 0 && p <= mine - window)) sc[j] = -CUDART_INF_F;
            }
        }
        float n[2] = {m[0], m[1]}, c[2], sum[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) n[(j >> 1) & 1] = fmaxf(n[(j >> 1) & 1], sc[j]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            n[r] = fmaxf(n[r], __shfl_xor_sync(~0u, n[r], 1));
            n[r] = fmaxf(n[r], __shfl_xor_sync(~0u, n[r], 2));
            const float top = n[r] == -CUDART_INF_F ? 0.f : n[r] * scale;
            c[r] = fast_exp2(fmaf(m[r], scale, -top));
            m[r] = n[r];
            n[r] = top;
        }
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) {
            sc[j] = fast_exp2(fmaf(sc[j], scale, -n[(j >> 1) & 1]));
            sum[(j >> 1) & 1] += sc[j];
        }
#pragma unroll
        for (int r = 0; r < 2; r++) l[r] = l[r] * c[r] + sum[r]; // of the thread's own columns
#pragma unroll
        for (int j = 0; j < D / 2; j++) o[j] *= c[(j >> 1) & 1];
        uint32_t p[KEYS / 16][4];
#pragma unroll
        for (int kk = 0; kk < KEYS / 16; kk++)
#pragma unroll
            for (int x = 0; x < 4; x++) p[kk][x] = pack(sc[kk * 8 + x * 2], sc[kk * 8 + x * 2 + 1]);
        wgmma_fence();
        sums_r<D>(o, p, at + TILE);
        wgmma_commit();
        wgmma_wait<0>(); // under way over the loop's end, it would be serialized by the compiler
        settled<D / 2>(o);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += __shfl_xor_sync(~0u, l[r], 1);
        l[r] += __shfl_xor_sync(~0u, l[r], 2);
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        if (t >= tokens) continue;
        const float inv = 1.f / l[r];
        bf16* dst = (bf16*)a.o + (t0 + t) * a.os + h * D + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) *(uint32_t*)(dst + j * 8) = pack(o[j * 4 + 2 * r] * inv, o[j * 4 + 2 * r + 1] * inv);
        if (a.lse && (lane & 3) == 0) a.lse[(t0 + t) * a.ls + h] = m[r] * scale * 0.6931471805599453f + logf(l[r]);
    }
}
#define WARPGROUPS(CALL) CALL
#else
#define WARPGROUPS(CALL)
#endif
extern "C" __global__ void __launch_bounds__(256, 1) prefill128_warpgroups(const __grid_constant__ AttentionArgs a) { WARPGROUPS(prefill_warpgroups<128>(a)); }
extern "C" __global__ void __launch_bounds__(256, 2) prefill64_warpgroups(const __grid_constant__ AttentionArgs a) { WARPGROUPS(prefill_warpgroups<64>(a)); }
