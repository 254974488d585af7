// Attention with one new token a sequence: o[t] = softmax(scale·q[t]·Kᵀ)·V over positions p of t's own sequence, c−window ≤ p < c
// (window 0: all), where c = Context and t = QueryStart of the sequence.
//   o, q bf16 [T, Hq·D]; k, v bf16 [slots, Hkv, D], the layer's cache; token p of sequence s is in slot table[s][p/P]·P + p%P.
//   D 64 or 128; Hq/Hkv ≤ 8; P a multiple of 16.
//   grid: any number of blocks of 128 threads, best 3 a multiprocessor; it does not depend on the context.
//   moves 4·Hkv·D bytes a token of context; q, o and partial sums beside it.
//   Oracle: kernels/cpu Attention. Flash-Decoding (split KV), https://pytorch.org/blog/flash-decoding/.
//
// A sequence's positions are cut into parts of `part`, counted from 0, whatever else is in the step; an item is (sequence, part,
// KV head), and its query heads are computed together. A warp takes every fourth tile of 16 tokens: Sᵀ = K·qᵀ and Oᵀ = Vᵀ·Pᵀ with 16 tokens,
// then 16 of D, as rows and the heads as 8 columns. K and V go from memory to registers in 16-byte loads, laid out as the tensor
// cores take them up to an order of D that q and o follow. The next tile's loads are in flight while one is computed.
// Parts are added in their order by the block that comes last: a sequence's result depends on nothing but itself.
#include "hopper.cuh"

struct AttentionDecodeArgs {
    void* o;
    long long os; // elements from row to row, as qs
    const void* q;
    long long qs;
    const void *k, *v;
    double scale;
    long long window;
    long long heads, kv; // Hq, Hkv
    long long block;     // P
    long long blocks;    // width of the block table
    const int *head, *query_start, *context, *table;
    float* partial; // [items, Hq/Hkv·(D + 2)], items = Hkv·Σ parts of the sequences with more than one
    int* arrived;   // [S, Hkv], zero between launches
};

namespace decode {
using namespace hopper;
constexpr int part = 128, warps = 4, tile = 16, steps = part / (tile * warps), max_seqs = 1024;
constexpr int max_group = 8;

__device__ __forceinline__ uint4 load16(const void* p, bool on) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (on) asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// An item, or one past the last.
struct Item {
    int seq, kv, part, parts, low, high, at; // positions [low, high) of the sequence; at: its place among the partial sums
};

template <int D> __device__ __forceinline__ void run(const AttentionDecodeArgs& a) {
    constexpr int KC = D / 32, VC = D / 64; // 16-byte loads of a row of K, and of V
    __shared__ int start[max_seqs + 1];     // first item of each sequence, over Hkv
    __shared__ alignas(16) float so[warps][max_group][D];
    __shared__ float sm[warps][max_group], sl[warps][max_group];
    __shared__ int sums[warps], last;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int seqs = min(a.head[1], max_seqs), kvs = (int)a.kv, group = (int)(a.heads / a.kv), window = (int)a.window;
    const int block_shift = __popc((int)a.block - 1);
    const bool power = ((int)a.block & ((int)a.block - 1)) == 0;
    allow_successor();

    // start: exclusive sums of the sequences' numbers of parts.
    int carry = 0;
    for (int base = 0; base < seqs; base += 128) {
        const int s = base + threadIdx.x;
        int n = 0;
        if (s < seqs) {
            const int c = a.context[s], low = window ? max(0, c - window) : 0;
            n = (c + part - 1) / part - low / part;
        }
        int x = n;
#pragma unroll
        for (int d = 1; d < 32; d <<= 1) {
            const int y = __shfl_up_sync(~0u, x, d);
            if (lane >= d) x += y;
        }
        if (lane == 31) sums[warp] = x;
        __syncthreads();
        int before = carry;
#pragma unroll
        for (int w = 0; w < warps; w++) {
            if (w < warp) before += sums[w];
            carry += sums[w];
        }
        if (s < seqs) start[s] = before + x - n;
        __syncthreads();
    }
    if (threadIdx.x == 0) start[seqs] = carry;
    __syncthreads();
    const int items = carry * kvs;

    auto locate = [&](int i) {
        Item it;
        it.seq = -1;
        if (i >= items) return it;
        const int p = i / kvs;
        int lo = 0, hi = seqs - 1; // the last sequence with start ≤ p
        while (lo < hi) {
            const int mid = (lo + hi + 1) >> 1;
            if (start[mid] <= p) lo = mid;
            else hi = mid - 1;
        }
        const int c = a.context[lo], low = window ? max(0, c - window) : 0;
        it.seq = lo;
        it.kv = i % kvs;
        it.part = p - start[lo];
        it.parts = start[lo + 1] - start[lo];
        const int j = low / part + it.part;
        it.low = max(low, j * part);
        it.high = min(c, (j + 1) * part);
        it.at = (start[lo] * kvs + it.kv * it.parts) + it.part;
        return it;
    };
    // Position of the first token of this warp's tile of an item.
    auto first_of = [&](const Item& it, int step) { return it.low / part * part + (step * warps + warp) * tile; };
    const long long row = (long long)kvs * D;
    auto offset_of = [&](const Item& it, int p0) -> long long { // of the tile's first row, or −1 where it has no tokens
        if (it.seq < 0 || p0 >= it.high || p0 + tile <= it.low) return -1;
        const int b = power ? p0 >> block_shift : p0 / (int)a.block;
        return ((long long)a.table[it.seq * a.blocks + b] * a.block + (p0 - b * (int)a.block)) * row + it.kv * D;
    };
    uint4 kr[2][KC], vr[4][VC];
    auto load_k = [&](long long at) {
        const __nv_bfloat16* k = (const __nv_bfloat16*)a.k + at + t * 8;
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int c = 0; c < KC; c++) kr[r][c] = load16(k + (g + 8 * r) * row + c * 32, at >= 0);
    };
    auto load_v = [&](long long at) {
        const __nv_bfloat16* v = (const __nv_bfloat16*)a.v + at + g * 8;
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < VC; c++) vr[r][c] = load16(v + (2 * t + (r & 1) + (r >> 1) * 8) * row + c * 64, at >= 0);
    };

    int i = blockIdx.x, step = 0;
    Item it = locate(i);
    if (it.seq < 0) {
        wait_predecessor();
        return;
    }
    int p0 = first_of(it, 0);
    long long at = offset_of(it, p0);
    // The step's own token is its predecessor's work; all older ones are there.
    const bool early = p0 + tile < a.context[it.seq];
    if (early) load_k(at), load_v(at);
    wait_predecessor();
    if (!early) load_k(at), load_v(at);

    const float scale = (float)a.scale * 1.4426950408889634f;
    uint4 qr[KC];
    float o[D / 16][4], m[2], l[2];
    while (true) {
        if (step == 0) {
            const __nv_bfloat16* q = (const __nv_bfloat16*)a.q + a.query_start[it.seq] * a.qs + (it.kv * group + g) * D + t * 8;
#pragma unroll
            for (int c = 0; c < KC; c++) qr[c] = load16(q + c * 32, g < group);
#pragma unroll
            for (int j = 0; j < D / 16; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
            m[0] = m[1] = -INFINITY;
            l[0] = l[1] = 0;
        }
        // What comes next.
        Item next = it;
        int next_step = step + 1, next_i = i;
        if (next_step == steps) {
            next_step = 0;
            next_i += gridDim.x;
            next = locate(next_i);
        }
        const int next_p0 = next.seq < 0 ? 0 : first_of(next, next_step);
        const long long next_at = offset_of(next, next_p0);

        float s[4] = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < KC; c++) {
            mma(s, kr[0][c].x, kr[1][c].x, kr[0][c].y, kr[1][c].y, qr[c].x, qr[c].y);
            mma(s, kr[0][c].z, kr[1][c].z, kr[0][c].w, kr[1][c].w, qr[c].z, qr[c].w);
        }
        load_k(next_at);
        const bool edge = p0 < it.low || p0 + tile > it.high;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int p = p0 + g + 8 * r;
            const bool on = !edge || (p >= it.low && p < it.high);
            s[2 * r] = on ? s[2 * r] * scale : -INFINITY;
            s[2 * r + 1] = on ? s[2 * r + 1] * scale : -INFINITY;
        }
        float keep[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[h], s[2 + h]);
#pragma unroll
            for (int d = 4; d < 32; d <<= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
            x = fmaxf(x, m[h]);
            const float base = x == -INFINITY ? 0.f : x;
            keep[h] = exp2f(m[h] - base);
            m[h] = x;
            s[h] = exp2f(s[h] - base);
            s[2 + h] = exp2f(s[2 + h] - base);
            l[h] = l[h] * keep[h] + s[h] + s[2 + h];
        }
        const uint32_t b0 = transpose8(pack(s[0], s[1])), b1 = transpose8(pack(s[2], s[3]));
        if (edge) { // what lies in the cache beyond the sequence must not count, even times zero
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int p = p0 + 2 * t + (r & 1) + (r >> 1) * 8;
                if (p < it.low || p >= it.high) {
#pragma unroll
                    for (int c = 0; c < VC; c++) vr[r][c] = make_uint4(0, 0, 0, 0);
                }
            }
        }
#pragma unroll
        for (int c = 0; c < VC; c++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float* y = o[c * 4 + j];
                y[0] *= keep[0], y[1] *= keep[1], y[2] *= keep[0], y[3] *= keep[1];
                const uint32_t v0 = word(vr[0][c], j), v1 = word(vr[1][c], j), v2 = word(vr[2][c], j), v3 = word(vr[3][c], j);
                mma(y, __byte_perm(v0, v1, 0x5410), __byte_perm(v0, v1, 0x7632), __byte_perm(v2, v3, 0x5410), __byte_perm(v2, v3, 0x7632), b0, b1);
            }
        load_v(next_at);

        if (next_step == 0) { // the item is done: add the warps' sums in their order
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int d = 4; d < 32; d <<= 1) l[h] += __shfl_xor_sync(~0u, l[h], d);
            if (g == 0) {
#pragma unroll
                for (int h = 0; h < 2; h++) sm[warp][2 * t + h] = m[h], sl[warp][2 * t + h] = l[h];
            }
#pragma unroll
            for (int c = 0; c < VC; c++)
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        if (2 * t + h < group) *(float2*)&so[warp][2 * t + h][c * 64 + g * 8 + 2 * j] = make_float2(o[c * 4 + j][h], o[c * 4 + j][2 + h]);
            __syncthreads();
            const long long size = group * (D + 2);
            float* mine = a.partial + it.at * size;
            __nv_bfloat16* out = (__nv_bfloat16*)a.o + a.query_start[it.seq] * a.os + (long long)it.kv * group * D;
            for (int e = threadIdx.x; e < group * D; e += 128) {
                const int h = e / D, d = e % D;
                float mx = sm[0][h];
#pragma unroll
                for (int w = 1; w < warps; w++) mx = fmaxf(mx, sm[w][h]);
                float x = 0, y = 0;
#pragma unroll
                for (int w = 0; w < warps; w++) {
                    const float f = exp2f(sm[w][h] - mx);
                    x += f * so[w][h][d];
                    y += f * sl[w][h];
                }
                if (it.parts == 1) {
                    out[e] = __float2bfloat16_rn(x / y);
                } else {
                    __stcg(mine + e, x);
                    if (d == 0) __stcg(mine + group * D + h, mx), __stcg(mine + group * (D + 1) + h, y);
                }
            }
            if (it.parts > 1) {
                __threadfence();
                __syncthreads();
                if (threadIdx.x == 0) {
                    int* n = a.arrived + it.seq * kvs + it.kv;
                    last = atomicAdd(n, 1) == it.parts - 1;
                    if (last) *n = 0;
                }
                __syncthreads();
                if (last) {
                    __threadfence();
                    const float* all = mine - it.part * size;
                    for (int e = threadIdx.x; e < group * D; e += 128) {
                        const int h = e / D;
                        float mx = -INFINITY, x = 0, y = 0;
#pragma unroll 4
                        for (int p = 0; p < it.parts; p++) {
                            const float* one = all + p * size;
                            const float pm = __ldcg(one + group * D + h), pl = __ldcg(one + group * (D + 1) + h), px = __ldcg(one + e);
                            const float top = fmaxf(mx, pm), f = exp2f(mx - top), z = exp2f(pm - top);
                            x = x * f + px * z;
                            y = y * f + pl * z;
                            mx = top;
                        }
                        out[e] = __float2bfloat16_rn(x / y);
                    }
                }
            }
            __syncthreads();
            if (next.seq < 0) return;
        }
        it = next, step = next_step, i = next_i, p0 = next_p0;
    }
}
} // namespace decode

extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_64(const __grid_constant__ AttentionDecodeArgs a) { decode::run<64>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_128(const __grid_constant__ AttentionDecodeArgs a) { decode::run<128>(a); }
