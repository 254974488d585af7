// AttentionBackward by warpgroups: the kernels of dq, and of dk and dv, with 128 rows and 128 keys a block of 2 warpgroups. The tile of
// keys (of queries) is read both ways round from the same shared memory: along D for scores, along the keys (queries) for the sums.
#ifdef HOPPER
// dq: 128 rows (128/G tokens by G heads) a block, 64 keys at a time; dO in shared memory after four tiles of K and V, Q in registers if held, else after dO.
// Grid (Hkv, ⌈T/(128/G)⌉ + S). rows gets lse·log2 e and delta.
template <int D> __device__ void backward_q_warpgroups(const AttentionBackwardArgs& a) {
    using hopper::copies_visible, hopper::scores_r, hopper::scores_s, hopper::settled, hopper::sums_r, hopper::wgmma_commit, hopper::wgmma_fence, hopper::wgmma_wait;
    constexpr int KEYS = 64, ROWS = 128, STAGES = 4, TILE = KEYS * D * 2, CH = D / 8;
    extern __shared__ uint8_t raw[];
    const uint32_t base = (shared_address(raw) + 1023) & ~1023u, dos = base + STAGES * 2 * TILE;
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
    const int own = tid >> 2, part = tid & 3;
    const bf16 *kp = (const bf16*)a.k + (ll)kvh * D + part * 8, *vp = (const bf16*)a.v + (ll)kvh * D + part * 8;
    auto load = [&](int i) {
        if (i < tiles) {
            const uint32_t dst = base + (i % STAGES) * 2 * TILE;
            const int pos = k0 + i * KEYS + own;
            const bool on = pos < hi;
            const unsigned p = (unsigned)a.p, b = (unsigned)pos / p;
            const ll at = on ? ((ll)table[b] * p + (pos - b * p)) * width : 0;
#pragma unroll
            for (int j = 0; j < CH / 4; j++) {
                const uint32_t to = dst + panel_at(KEYS, own, part + 4 * j);
                copy16(to, kp + at + j * 32, on);
                copy16(to + TILE, vp + at + j * 32, on);
            }
        }
        copy_commit();
    };
    const uint32_t queries = held<D> ? base + (STAGES - 1) * 2 * TILE : dos + ROWS * D * 2;
    for (int id = tid; id < ROWS * CH; id += 256) {
        const int r = id / CH, c = id % CH, t = r / g;
        const bool on = t < tokens;
        const ll col = (kvh * g + r % g) * D + c * 8;
        copy16(queries + panel_at(ROWS, r, c), (const bf16*)a.q + (on ? (t0 + t) * a.qs + col : 0), on);
        copy16(dos + panel_at(ROWS, r, c), (const bf16*)a.dout + (on ? (t0 + t) * a.dos + col : 0), on);
    }
    copy_commit();
    load(0);
    load(1);
    int row_pos[2];
    float lse[2], delta[2] = {};
    const bf16* op[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        const bool on = t < tokens;
        row_pos[r] = first + t;
        lse[r] = on ? a.lse[(t0 + t) * a.ls + h] * 1.4426950408889634f : 0.f;
        op[r] = (const bf16*)a.o + (on ? (t0 + t) * a.os + h * D : 0) + (lane & 3) * 2;
    }
    copy_wait<2>();
    __syncthreads();
    uint32_t q[D / 16][4];
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        const uint32_t at = panel_at(ROWS, warp * 16 + (lane & 15), kk * 2 + (lane >> 4));
        if constexpr (held<D>) ldmatrix4(q[kk], queries + at);
        uint32_t x[4];
        ldmatrix4(x, dos + at); // dO's rows past the tokens are zero, and with them delta
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t o = *(const uint32_t*)(op[i & 1] + kk * 16 + (i >> 1) * 8);
            delta[i & 1] = fmaf(__uint_as_float(x[i] << 16), __uint_as_float(o << 16), delta[i & 1]);
            delta[i & 1] = fmaf(__uint_as_float(x[i] & 0xffff0000u), __uint_as_float(o & 0xffff0000u), delta[i & 1]);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        delta[r] += __shfl_xor_sync(~0u, delta[r], 1);
        delta[r] += __shfl_xor_sync(~0u, delta[r], 2);
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        if (t < tokens && (lane & 3) == 0) a.rows[h * a.ldr + t0 + t] = make_float2(lse[r], delta[r]);
    }
    float dq[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dq[i] = 0;
    const float scale = (float)a.scale * 1.4426950408889634f;
    const int group_first = first + (warp & 4) * 16 / g;
    const uint32_t own_rows = (warp & 4) * 16 * 128, dout = dos + own_rows; // the warpgroup's 64 rows
    for (int i = 0; i < tiles; i++) {
        copy_wait<1>();
        copies_visible();
        __syncthreads();
        const uint32_t at = base + (i % STAGES) * 2 * TILE;
        float sc[KEYS / 2], ds[KEYS / 2];
        wgmma_fence();
        if constexpr (held<D>) scores_r<D>(sc, q, at);
        else scores_s<D, ROWS>(sc, queries + own_rows, at);
        wgmma_commit();
        scores_s<D, ROWS>(ds, dout, at + TILE);
        wgmma_commit();
        load(i + 2); // into the place of tile i−2, whose products everybody has waited for
        wgmma_wait<1>();
        settled<KEYS / 2>(sc);
        const int p0 = k0 + i * KEYS;
#pragma unroll
        for (int j = 0; j < KEYS / 2; j++) sc[j] = fast_exp2(fmaf(sc[j], scale, -lse[(j >> 1) & 1]));
        if (p0 + KEYS > group_first + 1 || (window > 0 && p0 <= hi - 1 - window)) {
#pragma unroll
            for (int j = 0; j < KEYS / 2; j++) {
                const int p = p0 + (j >> 2) * 8 + (lane & 3) * 2 + (j & 1), mine = row_pos[(j >> 1) & 1];
                if (p > mine || p >= hi || (window > 0 && p <= mine - window)) sc[j] = 0;
            }
        }
        wgmma_wait<0>();
        settled<KEYS / 2>(ds);
        uint32_t x[KEYS / 16][4];
#pragma unroll
        for (int kk = 0; kk < KEYS / 16; kk++)
#pragma unroll
            for (int y = 0; y < 4; y++) {
                const int j = kk * 8 + y * 2;
                x[kk][y] = pack(sc[j] * (ds[j] - delta[y & 1]), sc[j + 1] * (ds[j + 1] - delta[y & 1]));
            }
        wgmma_fence();
        sums_r<D>(dq, x, at);
        wgmma_commit();
    }
    wgmma_wait<0>();
    settled<D / 2>(dq);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        if (t >= tokens) continue;
        const float by = (float)a.scale;
        bf16* dst = (bf16*)a.dq + (t0 + t) * a.dqs + h * D + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) *(uint32_t*)(dst + j * 8) = pack(dq[j * 4 + 2 * r] * by, dq[j * 4 + 2 * r + 1] * by);
    }
}

// dk and dv: 128 keys of the step a block, 64 a warpgroup; for each head of the group the blocks of 64 queries that see them, in four
// places {Q, dO, 64 rows of lse·log2 e and delta} after K and V, two under way. Grid (Hkv, ⌈T/128⌉ + S).
// Queries past the end and keys past the end are as in the kernel by warps.
template <int D> __device__ void backward_kv_warpgroups(const AttentionBackwardArgs& a) {
    using hopper::copies_visible, hopper::scores_r, hopper::scores_s, hopper::settled, hopper::sums_r, hopper::wgmma_commit, hopper::wgmma_fence, hopper::wgmma_wait;
    constexpr int N = 64, KEYS = 128, STAGES = 4, OWN = KEYS * D * 2, TILE = N * D * 2, CH = D / 8, STAGE = 2 * TILE + 1024;
    extern __shared__ uint8_t raw[];
    const uint32_t offset = (1024 - (shared_address(raw) & 1023)) & 1023, base = shared_address(raw) + offset, queries = base + 2 * OWN;
    wait_predecessor();
    allow_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int g = a.heads / a.kv, kvh = blockIdx.x, window = (int)a.window;
    int tile;
    const int s = key_tile_of(a.query_start, a.head[1], KEYS, (int)blockIdx.y, tile);
    if (s < 0) return;
    const int t0 = a.query_start[s] + tile * KEYS, end = a.query_start[s + 1], keys = min(KEYS, end - t0);
    const int last = window > 0 ? min(end, t0 + keys - 1 + window) : end; // queries [t0, last) see some of the keys
    const int blocks = (last - t0 + N - 1) / N, n = blocks * g;
    const ll width = a.kv * D;
    for (int id = tid; id < KEYS * CH; id += 256) {
        const int r = id / CH, c = id % CH;
        const bool on = r < keys;
        const ll at = on ? a.slot[t0 + r] * width + kvh * D + c * 8 : 0;
        copy16(base + panel_at(KEYS, r, c), (const bf16*)a.k + at, on);
        copy16(base + OWN + panel_at(KEYS, r, c), (const bf16*)a.v + at, on);
    }
    const int own = tid >> 2, part = tid & 3;
    int lb = 0, lh = kvh * g; // of the next load
    auto load = [&](int i) {
        if (i < n) {
            const uint32_t dst = queries + (i % STAGES) * STAGE;
            const int t = t0 + lb * N + own;
            const bool on = t < last;
            const bf16 *qp = (const bf16*)a.q + (on ? t * a.qs + lh * D + part * 8 : 0), *gp = (const bf16*)a.dout + (on ? t * a.dos + lh * D + part * 8 : 0);
#pragma unroll
            for (int j = 0; j < CH / 4; j++) {
                const uint32_t to = dst + panel_at(N, own, part + 4 * j);
                copy16(to, on ? qp + j * 32 : qp, on);
                copy16(to + TILE, on ? gp + j * 32 : gp, on);
            }
            if (part == 0) copy8(dst + 2 * TILE + own * 8, a.rows + (on ? lh * a.ldr + t : 0), on);
            if (++lb == blocks) lb = 0, lh++;
        }
        copy_commit();
    };
    load(0);
    load(1);
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++) dk[i] = dv[i] = 0;
    const float scale = (float)a.scale * 1.4426950408889634f;
    const int half = warp >> 2;                     // the warpgroup
    const uint32_t mine = base + half * 64 * 128; // its 64 keys, and OWN further its values
    for (int i = 0, block = 0; i < n; i++) {
        copy_wait<1>();
        copies_visible();
        __syncthreads();
        const uint32_t at = queries + (i % STAGES) * STAGE;
        const float4* rows = (const float4*)(raw + offset + 2 * OWN + (i % STAGES) * STAGE + 2 * TILE);
        float sc[N / 2], ds[N / 2];
        wgmma_fence();
        scores_s<D, KEYS>(sc, mine, at);
        wgmma_commit();
        scores_s<D, KEYS>(ds, mine + OWN, at + TILE);
        wgmma_commit();
        load(i + 2); // into the place of block i−2, whose products everybody has waited for
        wgmma_wait<1>();
        settled<N / 2>(sc);
        const int q0 = block * N; // from the tile's first key
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const float4 row = rows[j * 4 + (lane & 3)];
#pragma unroll
            for (int x = 0; x < 4; x++) sc[j * 4 + x] = fast_exp2(fmaf(sc[j * 4 + x], scale, x & 1 ? -row.z : -row.x));
        }
        if (block <= half || (window > 0 && q0 + N > window)) {
#pragma unroll
            for (int j = 0; j < N / 2; j++) {
                const int past = q0 + (j >> 2) * 8 + (lane & 3) * 2 + (j & 1) - (warp * 16 + (lane >> 2) + ((j >> 1) & 1) * 8); // query − key
                if (past < 0 || (window > 0 && past >= window)) sc[j] = 0;
            }
        }
        uint32_t p[N / 16][4];
#pragma unroll
        for (int kk = 0; kk < N / 16; kk++)
#pragma unroll
            for (int x = 0; x < 4; x++) p[kk][x] = pack(sc[kk * 8 + x * 2], sc[kk * 8 + x * 2 + 1]);
        wgmma_fence();
        sums_r<D>(dv, p, at + TILE);
        wgmma_commit();
        wgmma_wait<1>();
        settled<N / 2>(ds);
        uint32_t y[N / 16][4];
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const float4 row = rows[j * 4 + (lane & 3)];
#pragma unroll
            for (int r = 0; r < 2; r++)
                y[j >> 1][(j & 1) * 2 + r] = pack(sc[j * 4 + 2 * r] * (ds[j * 4 + 2 * r] - row.y), sc[j * 4 + 2 * r + 1] * (ds[j * 4 + 2 * r + 1] - row.w));
        }
        wgmma_fence();
        sums_r<D>(dk, y, at);
        wgmma_commit();
        wgmma_wait<0>(); // under way over the loop's end, they would be serialized by the compiler
        settled<D / 2>(dk);
        settled<D / 2>(dv);
        if (++block == blocks) block = 0;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = t0 + row;
        if (row >= keys) continue;
        const float by = (float)a.scale;
        bf16 *k = (bf16*)a.dk + t * a.dks + kvh * D + (lane & 3) * 2, *v = (bf16*)a.dv + t * a.dvs + kvh * D + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *(uint32_t*)(k + j * 8) = pack(dk[j * 4 + 2 * r] * by, dk[j * 4 + 2 * r + 1] * by);
            *(uint32_t*)(v + j * 8) = pack(dv[j * 4 + 2 * r], dv[j * 4 + 2 * r + 1]);
        }
    }
}
#endif
#define BACKWARD_WARPGROUPS(D, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) attention_backward_q##D##_warpgroups(const __grid_constant__ AttentionBackwardArgs a) { WARPGROUPS(backward_q_warpgroups<D>(a)); } \
    extern "C" __global__ void __launch_bounds__(256, 1) attention_backward_kv##D##_warpgroups(const __grid_constant__ AttentionBackwardArgs a) { WARPGROUPS(backward_kv_warpgroups<D>(a)); }
BACKWARD_WARPGROUPS(128, 1)
BACKWARD_WARPGROUPS(64, 1)
