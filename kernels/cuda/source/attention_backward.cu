// AttentionBackward: with p[t,j] = exp(scale·q[t]·k[j] − lse[t]) where t sees j, delta[t] = do[t]·o[t] and ds = p∘(do·vᵀ − delta), a head:
//   dq[t] = scale·Σⱼ ds[t,j]·k[j]; dk[j] = scale·Σ ds[t,j]·q[t] and dv[j] = Σ p[t,j]·do[t] over t and the group's heads.
//   dq, do, o, q [T, Hq·D]; dk, dv [T, Hkv·D]; k, v [slots, Hkv, D] of the layer; lse F32 [T, Hq].
//   rows F32 [Hq, ldr, 2], scratch: lse and delta of a head's rows, written by the kernel of dq and read by that of dk and dv, which comes after it.
//   Each sum has one owner and one order. 7 products of T²/2·Hq·D a sequence. FlashAttention-2 (Dao, 2023). Oracle: kernels/cpu AttentionBackward.
struct AttentionBackwardArgs {
    void* dq; ll dqs;
    void* dk; ll dks;
    void* dv; ll dvs;
    const void* dout; ll dos;
    const void* o; ll os;
    const void* q; ll qs;
    const float* lse; ll ls;
    const void *k, *v;
    ll heads, kv, d, p, blocks; // p: tokens in a block of the cache; blocks: width of the block table
    double scale;
    ll window;
    float2* rows; ll ldr;
    const int *table, *position, *slot, *seq, *query_start, *head;
};

// key_tile_of is tile_of in the order of the tiles' place in their sequence, all sequences' first tiles first: they are seen by the most queries.
__device__ __forceinline__ int key_tile_of(const int* query_start, int seqs, int per, int want, int& tile) {
    constexpr int MOST = 4;
    if (seqs > 32 * MOST) return tile_of(query_start, seqs, per, want, tile);
    const int lane = threadIdx.x & 31;
    int n[MOST]; // tiles of sequences lane, lane + 32, …
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        const int s = i * 32 + lane;
        n[i] = s < seqs ? (query_start[s + 1] - query_start[s] + per - 1) / per : 0;
    }
    for (tile = 0;; tile++) {
        bool any = false;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            unsigned has = __ballot_sync(~0u, n[i] > tile);
            const int count = __popc(has);
            if (want < count) {
                for (; want > 0; want--) has &= has - 1;
                return i * 32 + __ffs(has) - 1;
            }
            want -= count;
            any = any || count;
        }
        if (!any) return -1;
    }
}

// plain: a warp a token and query head, keys one by one, in order. Grid ⌈T·Hq/4⌉, any D up to 256.
template <class T> __device__ void attention_backward_plain_q(const AttentionBackwardArgs& a) {
    wait_predecessor();
    allow_successor();
    const int w = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int t = w / a.heads, h = w % a.heads, d = a.d;
    if (t >= a.head[0]) return;
    const int kvh = h / (a.heads / a.kv), s = a.seq[t], hi = a.position[t] + 1, lo = a.window > 0 ? max(0, hi - (int)a.window) : 0;
    const float lse = a.lse[t * a.ls + h], scale = (float)a.scale;
    float q[8], g[8], dq[8] = {}, delta = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int c = lane + 32 * i;
        q[i] = c < d ? f(((const T*)a.q)[t * a.qs + h * d + c]) : 0.f;
        g[i] = c < d ? f(((const T*)a.dout)[t * a.dos + h * d + c]) : 0.f;
        if (c < d) delta = fmaf(g[i], f(((const T*)a.o)[t * a.os + h * d + c]), delta);
    }
    delta = warp_sum(delta);
    if (lane == 0) a.rows[h * a.ldr + t] = make_float2(lse, delta);
    for (int p = lo; p < hi; p++) {
        const ll slot = (ll)a.table[s * a.blocks + p / a.p] * a.p + p % a.p, at = (slot * a.kv + kvh) * d + lane;
        float k[8], x = 0, y = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            k[i] = 0;
            if (lane + 32 * i < d) {
                k[i] = f(((const T*)a.k)[at + 32 * i]);
                x = fmaf(q[i], k[i], x);
                y = fmaf(g[i], f(((const T*)a.v)[at + 32 * i]), y);
            }
        }
        const float ds = expf(warp_sum(x) * scale - lse) * (warp_sum(y) - delta) * scale;
#pragma unroll
        for (int i = 0; i < 8; i++) dq[i] = fmaf(ds, k[i], dq[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (lane + 32 * i < d) ((T*)a.dq)[t * a.dqs + h * d + lane + 32 * i] = to<T>(dq[i]);
}
// A warp a token and key head; the queries that see it and the group's heads one by one, in order. Grid ⌈T·Hkv/4⌉.
template <class T> __device__ void attention_backward_plain_kv(const AttentionBackwardArgs& a) {
    wait_predecessor();
    allow_successor();
    const int w = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int j = w / a.kv, kvh = w % a.kv, d = a.d, group = a.heads / a.kv;
    if (j >= a.head[0]) return;
    int last = a.query_start[a.seq[j] + 1];
    if (a.window > 0) last = (int)min((ll)last, j + a.window);
    const ll at = (a.slot[j] * a.kv + kvh) * d + lane;
    const float scale = (float)a.scale;
    float k[8], v[8], dk[8] = {}, dv[8] = {};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool on = lane + 32 * i < d;
        k[i] = on ? f(((const T*)a.k)[at + 32 * i]) : 0.f;
        v[i] = on ? f(((const T*)a.v)[at + 32 * i]) : 0.f;
    }
    for (int t = j; t < last; t++)
        for (int h = kvh * group; h < (kvh + 1) * group; h++) {
            float q[8], g[8], x = 0, y = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int c = lane + 32 * i;
                q[i] = c < d ? f(((const T*)a.q)[t * a.qs + h * d + c]) : 0.f;
                g[i] = c < d ? f(((const T*)a.dout)[t * a.dos + h * d + c]) : 0.f;
                x = fmaf(q[i], k[i], x);
                y = fmaf(g[i], v[i], y);
            }
            const float2 row = a.rows[h * a.ldr + t];
            const float p = expf(warp_sum(x) * scale - row.x), ds = p * (warp_sum(y) - row.y) * scale;
#pragma unroll
            for (int i = 0; i < 8; i++) dk[i] = fmaf(ds, q[i], dk[i]), dv[i] = fmaf(p, g[i], dv[i]);
        }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (lane + 32 * i < d) {
            ((T*)a.dk)[j * a.dks + kvh * d + lane + 32 * i] = to<T>(dk[i]);
            ((T*)a.dv)[j * a.dvs + kvh * d + lane + 32 * i] = to<T>(dv[i]);
        }
}
#define BACKWARD_PLAIN(T, SUFFIX) \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_plain_q_##SUFFIX(const __grid_constant__ AttentionBackwardArgs a) { attention_backward_plain_q<T>(a); } \
    extern "C" __global__ void __launch_bounds__(128) attention_backward_plain_kv_##SUFFIX(const __grid_constant__ AttentionBackwardArgs a) { attention_backward_plain_kv<T>(a); }
BACKWARD_PLAIN(float, f32)
BACKWARD_PLAIN(bf16, bf16)

// add_product: o[16, D] += p[16, N]·b[N, D], p in the places of a product's result, b swizzled rows of D in shared memory.
template <int D, int N> __device__ __forceinline__ void add_product(float (*o)[4], const float (*p)[4], uint32_t b, int lane) {
#pragma unroll
    for (int kk = 0; kk < N / 16; kk++) {
        const uint32_t x[4] = {pack(p[2 * kk][0], p[2 * kk][1]), pack(p[2 * kk][2], p[2 * kk][3]), pack(p[2 * kk + 1][0], p[2 * kk + 1][1]), pack(p[2 * kk + 1][2], p[2 * kk + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t y[4];
            ldmatrix4t(y, b + swizzle<D>(kk * 16 + (lane & 7) + (((lane >> 3) & 1) << 3), j * 2 + (lane >> 4)));
            mma(o[2 * j], x, y);
            mma(o[2 * j + 1], x, y + 2);
        }
    }
}
// row_scores is scores with the warp's 16 rows, from `row` on, in shared memory too.
template <int D, int N> __device__ __forceinline__ void row_scores(float (*s)[4], uint32_t a, int row, uint32_t b, int lane) {
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = 0;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        uint32_t x[4];
        ldmatrix4(x, a + swizzle<D>(row + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            uint32_t y[4];
            ldmatrix4(y, b + swizzle<D>(j * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
            mma(s[2 * j], x, y);
            mma(s[2 * j + 1], x, y + 2);
        }
    }
}

// dq: 64 rows (64/G tokens by G heads) a block of 4 warps, 64 keys at a time, two tiles of keys and values under way, as prefill has it.
// Grid (Hkv, ⌈T/(64/G)⌉ + S). rows gets lse·log2 e and delta.
template <int D> __device__ void attention_backward_q(const AttentionBackwardArgs& a) {
    constexpr int KEYS = 64, TILE = KEYS * D * 2, CH = D / 8;
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    wait_predecessor();
    allow_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int g = a.heads / a.kv, per = 64 / g, kvh = blockIdx.x;
    int tile;
    const int s = tile_of(a.query_start, a.head[1], per, (int)(gridDim.y - 1 - blockIdx.y), tile); // long ones first
    if (s < 0) return;
    const int t0 = a.query_start[s] + tile * per, tokens = min(per, a.query_start[s + 1] - t0);
    const int first = a.position[t0], hi = first + tokens, window = (int)a.window, lo = window > 0 ? max(0, first + 1 - window) : 0;
    const int* table = a.table + s * a.blocks;
    const bf16 *kp = (const bf16*)a.k + (ll)kvh * D, *vp = (const bf16*)a.v + (ll)kvh * D;
    const ll width = a.kv * D;
    const int k0 = lo & ~(KEYS - 1), tiles = (hi - k0 + KEYS - 1) / KEYS;

    auto load = [&](int i) {
        const uint32_t dst = base + (i & 1) * 2 * TILE;
#pragma unroll
        for (int id = tid; id < KEYS * CH; id += 128) {
            const int r = id / CH, c = id % CH, pos = k0 + i * KEYS + r;
            const bool on = pos < hi;
            const unsigned p = (unsigned)a.p, b = (unsigned)pos / p;
            const ll at = on ? ((ll)table[b] * p + (pos - b * p)) * width + c * 8 : 0;
            copy16(dst + swizzle<D>(r, c), kp + at, on);
            copy16(dst + TILE + swizzle<D>(r, c), vp + at, on);
        }
        copy_commit();
    };
    // Q and dO through the second tile's place.
    for (int id = tid; id < 64 * CH; id += 128) {
        const int r = id / CH, c = id % CH, t = r / g;
        const bool on = t < tokens;
        const ll col = (kvh * g + r % g) * D + c * 8;
        copy16(base + 2 * TILE + swizzle<D>(r, c), (const bf16*)a.q + (on ? (t0 + t) * a.qs + col : 0), on);
        copy16(base + 3 * TILE + swizzle<D>(r, c), (const bf16*)a.dout + (on ? (t0 + t) * a.dos + col : 0), on);
    }
    copy_commit();
    load(0);
    int row_pos[2];
    float lse[2], delta[2];
    const bf16* op[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        const bool on = t < tokens;
        row_pos[r] = first + t;
        lse[r] = on ? a.lse[(t0 + t) * a.ls + h] * 1.4426950408889634f : 0.f;
        op[r] = (const bf16*)a.o + (on ? (t0 + t) * a.os + h * D : 0) + (lane & 3) * 2;
        delta[r] = 0;
    }
    copy_wait<1>();
    __syncthreads();
    uint32_t q[D / 16][4], dout[D / 16][4];
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
        const uint32_t at = swizzle<D>(warp * 16 + (lane & 15), kk * 2 + (lane >> 4));
        ldmatrix4(q[kk], base + 2 * TILE + at);
        ldmatrix4(dout[kk], base + 3 * TILE + at);
    }
    // dO's rows past the tokens are zero, and with them delta.
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t o = *(const uint32_t*)(op[i & 1] + kk * 16 + (i >> 1) * 8), x = dout[kk][i];
            delta[i & 1] = fmaf(__uint_as_float(x << 16), __uint_as_float(o << 16), delta[i & 1]);
            delta[i & 1] = fmaf(__uint_as_float(x & 0xffff0000u), __uint_as_float(o & 0xffff0000u), delta[i & 1]);
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        delta[r] += __shfl_xor_sync(~0u, delta[r], 1);
        delta[r] += __shfl_xor_sync(~0u, delta[r], 2);
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        if (t < tokens && (lane & 3) == 0) a.rows[h * a.ldr + t0 + t] = make_float2(lse[r], delta[r]);
    }
    __syncthreads();
    float dq[D / 8][4] = {};
    const float scale = (float)a.scale * 1.4426950408889634f;
    for (int i = 0; i < tiles; i++) {
        if (i + 1 < tiles) {
            load(i + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float sc[KEYS / 8][4], ds[KEYS / 8][4];
        const uint32_t at = base + (i & 1) * 2 * TILE;
        scores<D, KEYS>(sc, q, at, lane);
        const int p0 = k0 + i * KEYS;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int x = 0; x < 4; x++) sc[j][x] = exp2f(fmaf(sc[j][x], scale, -lse[x >> 1]));
        if (p0 + KEYS > first + 1 || (window > 0 && p0 <= hi - 1 - window)) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int x = 0; x < 4; x++) {
                    const int p = p0 + j * 8 + (lane & 3) * 2 + (x & 1), mine = row_pos[x >> 1];
                    if (p > mine || p >= hi || (window > 0 && p <= mine - window)) sc[j][x] = 0;
                }
        }
        scores<D, KEYS>(ds, dout, at + TILE, lane);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int x = 0; x < 4; x++) ds[j][x] = sc[j][x] * (ds[j][x] - delta[x >> 1]);
        add_product<D, KEYS>(dq, ds, at, lane);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        if (t >= tokens) continue;
        const float by = (float)a.scale;
        bf16* dst = (bf16*)a.dq + (t0 + t) * a.dqs + h * D + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) *(uint32_t*)(dst + j * 8) = pack(dq[j][2 * r] * by, dq[j][2 * r + 1] * by);
    }
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_q128_bf16(const __grid_constant__ AttentionBackwardArgs a) { attention_backward_q<128>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_q64_bf16(const __grid_constant__ AttentionBackwardArgs a) { attention_backward_q<64>(a); }

// dk and dv: 64 keys of the step a block of 4 warps; for each head of the group the blocks of 64 queries that see them, two under way.
// A warp has 16 keys: scores, probabilities and ds are [keys, queries], and in the registers where the next product wants them.
// Shared memory: K, V, then twice {Q, dO, 64 rows of lse·log2 e and delta}. Grid (Hkv, ⌈T/64⌉ + S).
// Queries past the end are zero rows with lse and delta 0: p = 1, but do = 0 and ds = 0. Keys past the end are rows of their own, and not stored.
template <int D> __device__ void attention_backward_kv(const AttentionBackwardArgs& a) {
    constexpr int N = 64, TILE = N * D * 2, CH = D / 8, STAGE = 2 * TILE + N * 8;
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    wait_predecessor();
    allow_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int g = a.heads / a.kv, kvh = blockIdx.x;
    int tile;
    const int s = key_tile_of(a.query_start, a.head[1], N, (int)blockIdx.y, tile);
    if (s < 0) return;
    const int t0 = a.query_start[s] + tile * N, end = a.query_start[s + 1], keys = min(N, end - t0), window = (int)a.window;
    const int last = window > 0 ? min(end, t0 + keys - 1 + window) : end; // queries [t0, last) see some of the keys
    const int blocks = (last - t0 + N - 1) / N, n = blocks * g;
    const ll width = a.kv * D;
    for (int id = tid; id < N * CH; id += 128) {
        const int r = id / CH, c = id % CH;
        const bool on = r < keys;
        const ll at = on ? a.slot[t0 + r] * width + kvh * D + c * 8 : 0;
        copy16(base + swizzle<D>(r, c), (const bf16*)a.k + at, on);
        copy16(base + TILE + swizzle<D>(r, c), (const bf16*)a.v + at, on);
    }
    int lb = 0, lh = kvh * g; // of the next load
    auto load = [&](int i) {
        if (i < n) {
            const uint32_t dst = base + 2 * TILE + (i & 1) * STAGE;
            const int from = t0 + lb * N;
#pragma unroll
            for (int id = tid; id < N * CH; id += 128) {
                const int r = id / CH, c = id % CH, t = from + r;
                const bool on = t < last;
                copy16(dst + swizzle<D>(r, c), (const bf16*)a.q + (on ? t * a.qs + lh * D + c * 8 : 0), on);
                copy16(dst + TILE + swizzle<D>(r, c), (const bf16*)a.dout + (on ? t * a.dos + lh * D + c * 8 : 0), on);
            }
            if (tid < N) {
                const bool on = from + tid < last;
                copy8(dst + 2 * TILE + tid * 8, a.rows + (on ? lh * a.ldr + from + tid : 0), on);
            }
            if (++lb == blocks) lb = 0, lh++;
        }
        copy_commit();
    };
    load(0);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    const float scale = (float)a.scale * 1.4426950408889634f;
    for (int i = 0, block = 0; i < n; i++) {
        load(i + 1);
        copy_wait<1>();
        __syncthreads();
        const uint32_t at = base + 2 * TILE + (i & 1) * STAGE;
        const float4* rows = (const float4*)(smem + 2 * TILE + (i & 1) * STAGE + 2 * TILE);
        float p[N / 8][4], ds[N / 8][4];
        row_scores<D, N>(p, base, warp * 16, at, lane);
        const int q0 = block * N; // from the tile's first key
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const float4 row = rows[j * 4 + (lane & 3)];
#pragma unroll
            for (int x = 0; x < 4; x++) p[j][x] = exp2f(fmaf(p[j][x], scale, x & 1 ? -row.z : -row.x));
        }
        if (block == 0 || (window > 0 && q0 + N > window)) {
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int x = 0; x < 4; x++) {
                    const int past = q0 + j * 8 + (lane & 3) * 2 + (x & 1) - (warp * 16 + (lane >> 2) + (x >> 1) * 8); // query − key
                    if (past < 0 || (window > 0 && past >= window)) p[j][x] = 0;
                }
        }
        add_product<D, N>(dv, p, at + TILE, lane);
        row_scores<D, N>(ds, base + TILE, warp * 16, at + TILE, lane);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const float4 row = rows[j * 4 + (lane & 3)];
#pragma unroll
            for (int x = 0; x < 4; x++) ds[j][x] = p[j][x] * (ds[j][x] - (x & 1 ? row.w : row.y));
        }
        add_product<D, N>(dk, ds, at, lane);
        if (++block == blocks) block = 0;
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = t0 + row;
        if (row >= keys) continue;
        const float by = (float)a.scale;
        bf16 *k = (bf16*)a.dk + t * a.dks + kvh * D + (lane & 3) * 2, *v = (bf16*)a.dv + t * a.dvs + kvh * D + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            *(uint32_t*)(k + j * 8) = pack(dk[j][2 * r] * by, dk[j][2 * r + 1] * by);
            *(uint32_t*)(v + j * 8) = pack(dv[j][2 * r], dv[j][2 * r + 1]);
        }
    }
}
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_kv128_bf16(const __grid_constant__ AttentionBackwardArgs a) { attention_backward_kv<128>(a); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_kv64_bf16(const __grid_constant__ AttentionBackwardArgs a) { attention_backward_kv<64>(a); }
