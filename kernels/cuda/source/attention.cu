// Attention: o[t] = softmax(scale·q[t]·Kᵀ)·V over the keys of t's own sequence at positions p, Position[t]−window < p ≤ Position[t].
//   q, o [T, Hq·D]; k, v [slots, Hkv, D] of the layer; lse F32 [T, Hq], optional. Oracle: kernels/cpu Attention.
// What the cache holds beyond a sequence's tokens is never read. Of its own tokens a tile's masked ones count times 0: one whose values are no numbers
// makes NaN of those that go over the keys together with it, in all kernels but plain, and in the backward's. Another sequence's never do.
struct AttentionArgs {
    void* o; ll os;
    const void* q; ll qs;
    const void *k, *v;
    ll heads, kv, d, p, blocks; // p: tokens in a block of the cache; blocks: width of the block table
    double scale;
    ll window;
    float* lse; ll ls;
    const int *table, *position, *seq, *query_start, *head;
};

// plain: a warp a token and head, keys one by one. Grid ⌈T·Hq/4⌉, any D up to 256.
template <class T> __device__ void attention_plain(const AttentionArgs& a) {
    wait_predecessor();
    allow_successor();
    const int w = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int t = w / a.heads, h = w % a.heads, d = a.d;
    if (t >= a.head[0]) return;
    const int kvh = h / (a.heads / a.kv), s = a.seq[t], hi = a.position[t] + 1, lo = a.window > 0 ? max(0, hi - (int)a.window) : 0;
    float q[8], o[8] = {}, m = -CUDART_INF_F, l = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = lane + 32 * i < d ? f(((const T*)a.q)[t * a.qs + h * d + lane + 32 * i]) : 0.f;
    for (int p = lo; p < hi; p++) {
        const ll slot = (ll)a.table[s * a.blocks + p / a.p] * a.p + p % a.p, at = (slot * a.kv + kvh) * d + lane;
        float x = 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (lane + 32 * i < d) x = fmaf(q[i], f(((const T*)a.k)[at + 32 * i]), x);
        x = warp_sum(x) * (float)a.scale;
        const float n = fmaxf(m, x), c = expf(m - n), e = expf(x - n);
        l = l * c + e;
        m = n;
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (lane + 32 * i < d) o[i] = o[i] * c + e * f(((const T*)a.v)[at + 32 * i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (lane + 32 * i < d) ((T*)a.o)[t * a.os + h * d + lane + 32 * i] = to<T>(o[i] / l);
    if (a.lse && lane == 0) a.lse[t * a.ls + h] = m + logf(l);
}
extern "C" __global__ void __launch_bounds__(128) attention_plain_f32(const __grid_constant__ AttentionArgs a) { attention_plain<float>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_plain_bf16(const __grid_constant__ AttentionArgs a) { attention_plain<bf16>(a); }

// slot_of is the cache slot of a position.
__device__ __forceinline__ ll slot_of(const AttentionArgs& a, const int* table, int pos) {
    const unsigned p = (unsigned)a.p, b = (unsigned)pos / p;
    return (ll)table[b] * p + (pos - b * p);
}

// tile_of finds the tile of that index among those of all sequences, of `per` tokens each: its sequence, or −1 past the last, and its place there.
__device__ __forceinline__ int tile_of(const int* query_start, int seqs, int per, int want, int& tile) {
    const int lane = threadIdx.x & 31;
    for (int at = 0, before = 0; at < seqs; at += 32) { // the same in every warp
        const int i = at + lane;
        int n = i < seqs ? (query_start[i + 1] - query_start[i] + per - 1) / per : 0;
        const int own = n;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            const int up = __shfl_up_sync(~0u, n, o);
            if (lane >= o) n += up;
        }
        const unsigned hit = __ballot_sync(~0u, before + n > want);
        if (hit) {
            const int who = __ffs(hit) - 1;
            tile = want - before - __shfl_sync(~0u, n - own, who);
            return at + who;
        }
        before += __shfl_sync(~0u, n, 31);
    }
    return -1;
}

// A warp's 16 query rows against KEYS keys in shared memory: row i is token i/G, head i%G of the group.
// sq: scores scaled to log2; k, v: swizzled rows of D.
template <int D> __device__ __forceinline__ uint32_t swizzle(int row, int chunk) { return row * (D * 2) + ((chunk ^ (row & 7)) << 4); }

template <int D, int KEYS> __device__ __forceinline__ void scores(float (*s)[4], const uint32_t (*q)[4], uint32_t k, int lane) {
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = 0;
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];
            ldmatrix4(b, k + swizzle<D>(j * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
            mma(s[2 * j], q[kk], b);
            mma(s[2 * j + 1], q[kk], b + 2);
        }
}

// absorb folds scores (masked, times scale·log2 e) into the running maximum m, sum l and output o of rows lane/4 and lane/4 + 8.
template <int D, int KEYS> __device__ __forceinline__ void absorb(float (*s)[4], float* m, float* l, float (*o)[4], uint32_t v, int lane) {
    float n[2] = {m[0], m[1]}, c[2], sum[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) n[i >> 1] = fmaxf(n[i >> 1], s[j][i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        n[r] = fmaxf(n[r], __shfl_xor_sync(~0u, n[r], 1));
        n[r] = fmaxf(n[r], __shfl_xor_sync(~0u, n[r], 2));
        const float at = n[r] == -CUDART_INF_F ? 0.f : n[r];
        c[r] = exp2f(m[r] - at);
        m[r] = n[r];
        n[r] = at;
    }
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] = exp2f(s[j][i] - n[i >> 1]);
            sum[i >> 1] += s[j][i];
        }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
        sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
        l[r] = l[r] * c[r] + sum[r];
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[j][i] *= c[i >> 1];
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) {
        const uint32_t p[4] = {pack(s[2 * kk][0], s[2 * kk][1]), pack(s[2 * kk][2], s[2 * kk][3]), pack(s[2 * kk + 1][0], s[2 * kk + 1][1]), pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            uint32_t b[4];
            ldmatrix4t(b, v + swizzle<D>(kk * 16 + (lane & 7) + (((lane >> 3) & 1) << 3), j * 2 + (lane >> 4)));
            mma(o[2 * j], p, b);
            mma(o[2 * j + 1], p, b + 2);
        }
    }
}

// prefill: 64 rows (64/G tokens by G heads) a block of 4 warps, 64 keys at a time, two tiles of keys under way.
// Grid (Hkv, ⌈T/(64/G)⌉ + S); a block finds its sequence and tile. FlashAttention-2 (Dao, 2023).
template <int D> __device__ void attention_prefill(const AttentionArgs& a) {
    constexpr int KEYS = 64, TILE = KEYS * D * 2, CH = D / 8;
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    wait_predecessor();
    allow_successor();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int g = a.heads / a.kv, per = 64 / g, kvh = blockIdx.x, seqs = a.head[1];
    int tile;
    const int s = tile_of(a.query_start, seqs, per, (int)(gridDim.y - 1 - blockIdx.y), tile); // long ones first
    if (s < 0) return;
    const int t0 = a.query_start[s] + tile * per, tokens = min(per, a.query_start[s + 1] - t0);
    const int first = a.position[t0], hi = first + tokens, lo = a.window > 0 ? max(0, first + 1 - (int)a.window) : 0;
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
            const ll at = on ? slot_of(a, table, pos) * width + c * 8 : 0;
            copy16(dst + swizzle<D>(r, c), kp + at, on);
            copy16(dst + TILE + swizzle<D>(r, c), vp + at, on);
        }
        copy_commit();
    };
    // Q through the second buffer's place.
    for (int id = tid; id < 64 * CH; id += 128) {
        const int r = id / CH, c = id % CH, t = r / g;
        const bool on = t < tokens;
        copy16(base + 2 * TILE + swizzle<D>(r, c), (const bf16*)a.q + (on ? (t0 + t) * a.qs + (kvh * g + r % g) * D + c * 8 : 0), on);
    }
    copy_commit();
    load(0);
    copy_wait<1>();
    __syncthreads();
    uint32_t q[D / 16][4];
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) ldmatrix4(q[kk], base + 2 * TILE + swizzle<D>(warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
    __syncthreads();
    float o[D / 8][4] = {}, m[2] = {-CUDART_INF_F, -CUDART_INF_F}, l[2] = {};
    const float scale = (float)a.scale * 1.4426950408889634f;
    int row_pos[2];
#pragma unroll
    for (int r = 0; r < 2; r++) row_pos[r] = first + (warp * 16 + (lane >> 2) + r * 8) / g;
    for (int i = 0; i < tiles; i++) {
        if (i + 1 < tiles) {
            load(i + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float sc[KEYS / 8][4];
        const uint32_t at = base + (i & 1) * 2 * TILE;
        scores<D, KEYS>(sc, q, at, lane);
        const int p0 = k0 + i * KEYS;
        const bool masked = p0 + KEYS > first + 1 || a.window > 0;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int x = 0; x < 4; x++) {
                sc[j][x] *= scale;
                if (masked) {
                    const int p = p0 + j * 8 + (lane & 3) * 2 + (x & 1), mine = row_pos[x >> 1];
                    if (p > mine || p >= hi || (a.window > 0 && p <= mine - (int)a.window)) sc[j][x] = -CUDART_INF_F;
                }
            }
        absorb<D, KEYS>(sc, m, l, o, at + TILE, lane);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = warp * 16 + (lane >> 2) + r * 8, t = row / g, h = kvh * g + row % g;
        if (t >= tokens) continue;
        const float inv = 1.f / l[r];
        bf16* dst = (bf16*)a.o + (t0 + t) * a.os + h * D + (lane & 3) * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) *(uint32_t*)(dst + j * 8) = pack(o[j][2 * r] * inv, o[j][2 * r + 1] * inv);
        if (a.lse && (lane & 3) == 0) a.lse[(t0 + t) * a.ls + h] = m[r] * 0.6931471805599453f + logf(l[r]);
    }
}
extern "C" __global__ void __launch_bounds__(128) prefill128_bf16(const __grid_constant__ AttentionArgs a) { attention_prefill<128>(a); }
extern "C" __global__ void __launch_bounds__(128) prefill64_bf16(const __grid_constant__ AttentionArgs a) { attention_prefill<64>(a); }
