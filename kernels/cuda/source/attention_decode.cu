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
// A block that is done with its items counts them; the one that completes a sequence's head adds its parts in their order: a sequence's
// result depends on nothing but itself. q, o rows start at multiples of 16 bytes.
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
    float* partial; // [Hkv·Σ parts, Hq/Hkv·(D + 2)]
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

// A tile of an item (a sequence's part and KV head), or one past the last.
struct Tile {
    int seq;        // −1: past the last
    int item, step; // step: which of this warp's tiles of the item
    int kv, part, parts, token;
    int low, high;  // positions [low, high) of the sequence are the item's
    int p0;         // the tile's first position
    int sum;        // the item's place among the partial sums
    long long at;   // offset of the tile's first row in the cache, −1 where it has no tokens
};

template <int D> __device__ __forceinline__ void run(const AttentionDecodeArgs& a) {
    constexpr int KC = D / 32, VC = D / 64; // 16-byte loads of a row of K, and of V
    __shared__ int start[max_seqs + 1];     // first part of each sequence
    __shared__ alignas(16) float so[2][warps][max_group][D];
    __shared__ float sm[2][warps][max_group], sl[2][warps][max_group];
    __shared__ int sums[warps];
    __shared__ int ready[128];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int seqs = min(a.head[1], max_seqs), kvs = (int)a.kv, group = (int)(a.heads / a.kv), window = (int)a.window;
    const int block_shift = __popc((int)a.block - 1);
    const bool power = ((int)a.block & ((int)a.block - 1)) == 0;

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
    const long long row = (long long)kvs * D;

    auto place = [&](Tile& x) {
        x.p0 = x.low / part * part + (x.step * warps + warp) * tile;
        x.at = -1;
        if (x.p0 >= x.high || x.p0 + tile <= x.low) return;
        const int b = power ? x.p0 >> block_shift : x.p0 / (int)a.block;
        x.at = ((long long)a.table[x.seq * a.blocks + b] * a.block + (x.p0 - b * (int)a.block)) * row + x.kv * D;
    };
    auto locate = [&](int i) {
        Tile x;
        x.seq = -1, x.item = i, x.step = 0, x.at = -1;
        if (i >= items) return x;
        const int p = i / kvs;
        int lo = 0, hi = seqs - 1; // the last sequence with start ≤ p
        while (lo < hi) {
            const int mid = (lo + hi + 1) >> 1;
            if (start[mid] <= p) lo = mid;
            else hi = mid - 1;
        }
        const int c = a.context[lo], low = window ? max(0, c - window) : 0;
        x.seq = lo;
        x.token = a.query_start[lo];
        x.kv = i % kvs;
        x.part = p - start[lo];
        x.parts = start[lo + 1] - start[lo];
        const int j = low / part + x.part;
        x.low = max(low, j * part);
        x.high = min(c, (j + 1) * part);
        x.sum = (start[lo] * kvs + x.kv * x.parts) + x.part;
        return x;
    };
    auto advance = [&](const Tile& x) {
        if (x.seq < 0) return x;
        Tile y = x;
        if (++y.step == steps) y = locate(x.item + gridDim.x);
        if (y.seq >= 0) place(y);
        return y;
    };
    uint4 kr[2][KC], vr[4][VC], qr[KC];
    auto load_k = [&](const Tile& x) {
        const __nv_bfloat16* k = (const __nv_bfloat16*)a.k + x.at + t * 8;
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int c = 0; c < KC; c++) kr[r][c] = load16(k + (g + 8 * r) * row + c * 32, x.at >= 0);
    };
    auto load_v = [&](const Tile& x) {
        const __nv_bfloat16* v = (const __nv_bfloat16*)a.v + x.at + g * 8;
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int c = 0; c < VC; c++) vr[r][c] = load16(v + (2 * t + (r & 1) + (r >> 1) * 8) * row + c * 64, x.at >= 0);
    };
    auto load_q = [&](const Tile& x) {
        const __nv_bfloat16* q = (const __nv_bfloat16*)a.q + x.token * a.qs + (x.kv * group + g) * D + t * 8;
#pragma unroll
        for (int c = 0; c < KC; c++) qr[c] = load16(q + c * 32, g < group);
    };

    Tile now = locate(blockIdx.x);
    if (now.seq < 0) {
        allow_successor();
        wait_predecessor();
        return;
    }
    place(now);
    // The step's own token is its predecessor's work; all older ones are there.
    const bool early = now.p0 + tile < a.context[now.seq];
    if (early) load_k(now), load_v(now);
    Tile next = advance(now);
    if (next.seq < 0) allow_successor();
    wait_predecessor();
    load_q(now);
    if (!early) load_k(now), load_v(now);

    const float scale = (float)a.scale * 1.4426950408889634f;
    const long long size = group * (D + 2);
    float o[D / 16][4], m[2], l[2];
    int buffer = 0;
    bool shared_out = false; // some item here is only a part of its sequence
    while (true) {
        if (now.step == 0) {
#pragma unroll
            for (int j = 0; j < D / 16; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
            m[0] = m[1] = -INFINITY;
            l[0] = l[1] = 0;
        }
        float s[4] = {0, 0, 0, 0}, s1[4] = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < KC; c++) {
            mma(s, kr[0][c].x, kr[1][c].x, kr[0][c].y, kr[1][c].y, qr[c].x, qr[c].y);
            mma(s1, kr[0][c].z, kr[1][c].z, kr[0][c].w, kr[1][c].w, qr[c].z, qr[c].w);
        }
        if (next.seq >= 0) {
            load_k(next);
            if (next.step == 0) load_q(next);
        }
        const bool edge = now.p0 < now.low || now.p0 + tile > now.high;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int p = now.p0 + g + 8 * r;
            const bool on = !edge || (p >= now.low && p < now.high);
#pragma unroll
            for (int h = 0; h < 2; h++) s[2 * r + h] = on ? (s[2 * r + h] + s1[2 * r + h]) * scale : -INFINITY;
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
                const int p = now.p0 + 2 * t + (r & 1) + (r >> 1) * 8;
                if (p < now.low || p >= now.high) {
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
        if (next.seq >= 0) load_v(next);

        if (now.step == steps - 1) { // the item is done: add the warps' sums in their order
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int d = 4; d < 32; d <<= 1) l[h] += __shfl_xor_sync(~0u, l[h], d);
            if (g == 0) {
#pragma unroll
                for (int h = 0; h < 2; h++) sm[buffer][warp][2 * t + h] = m[h], sl[buffer][warp][2 * t + h] = l[h];
            }
#pragma unroll
            for (int c = 0; c < VC; c++)
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        if (2 * t + h < group) *(float2*)&so[buffer][warp][2 * t + h][c * 64 + g * 8 + 2 * j] = make_float2(o[c * 4 + j][h], o[c * 4 + j][2 + h]);
            __syncthreads(); // the other buffer's readers are past it too
            float* mine = a.partial + now.sum * size;
            __nv_bfloat16* out = (__nv_bfloat16*)a.o + now.token * a.os + (long long)now.kv * group * D;
            for (int e = threadIdx.x * 4; e < group * D; e += 512) {
                const int h = e / D, d = e % D;
                float mx = sm[buffer][0][h];
#pragma unroll
                for (int w = 1; w < warps; w++) mx = fmaxf(mx, sm[buffer][w][h]);
                float4 x = make_float4(0, 0, 0, 0);
                float y = 0;
#pragma unroll
                for (int w = 0; w < warps; w++) {
                    const float f = exp2f(sm[buffer][w][h] - mx);
                    const float4 z = *(const float4*)&so[buffer][w][h][d];
                    x.x += f * z.x, x.y += f * z.y, x.z += f * z.z, x.w += f * z.w;
                    y += f * sl[buffer][w][h];
                }
                if (now.parts == 1) {
                    y = 1 / y;
                    *(uint2*)(out + e) = make_uint2(pack(x.x * y, x.y * y), pack(x.z * y, x.w * y));
                } else {
                    __stcg((float2*)(mine + e), make_float2(x.x, x.y));
                    __stcg((float2*)(mine + e) + 1, make_float2(x.z, x.w));
                    if (d == 0) __stcg((float2*)(mine + group * D + 2 * h), make_float2(mx, y));
                }
            }
            shared_out = shared_out || now.parts > 1;
            buffer ^= 1;
            if (next.seq < 0) break;
        }
        now = next;
        next = advance(now);
        if (next.seq < 0) allow_successor();
    }
    if (!shared_out) return;

    // Of the sequences whose last part came from here, add the parts: a warp 128 columns.
    __threadfence();
    for (int base = blockIdx.x; base < items; base += 128 * gridDim.x) {
        __syncthreads();
        const int i = base + threadIdx.x * gridDim.x;
        int n = -1;
        if (i < items) {
            const Tile x = locate(i);
            if (x.parts > 1) {
                int* count = a.arrived + x.seq * kvs + x.kv;
                if (atomicAdd(count, 1) == x.parts - 1) *count = 0, n = i;
            }
        }
        ready[threadIdx.x] = n;
        __syncthreads();
        __threadfence();
        for (int r = 0; r < 128 && base + r * (int)gridDim.x < items; r++) {
            if (ready[r] < 0) continue;
            const Tile x = locate(ready[r]);
            const float* all = a.partial + (x.sum - x.part) * size;
            __nv_bfloat16* out = (__nv_bfloat16*)a.o + x.token * a.os + (long long)x.kv * group * D;
            for (int e = threadIdx.x * 4; e < group * D; e += 512) {
                const int h = e / D;
                float mx = -INFINITY, y = 0;
                float4 sum = make_float4(0, 0, 0, 0);
                constexpr int batch = 8;
                for (int p = 0; p < x.parts; p += batch) {
                    float2 ml[batch], lo[batch], hi[batch];
#pragma unroll
                    for (int u = 0; u < batch; u++) {
                        const float* one = all + min(p + u, x.parts - 1) * size;
                        ml[u] = __ldcg((const float2*)(one + group * D + 2 * h));
                        lo[u] = __ldcg((const float2*)(one + e)), hi[u] = __ldcg((const float2*)(one + e) + 1);
                    }
#pragma unroll
                    for (int u = 0; u < batch; u++) {
                        if (p + u >= x.parts) break;
                        const float top = fmaxf(mx, ml[u].x), f = exp2f(mx - top), z = exp2f(ml[u].x - top);
                        sum.x = sum.x * f + lo[u].x * z, sum.y = sum.y * f + lo[u].y * z;
                        sum.z = sum.z * f + hi[u].x * z, sum.w = sum.w * f + hi[u].y * z;
                        y = y * f + ml[u].y * z;
                        mx = top;
                    }
                }
                y = 1 / y;
                *(uint2*)(out + e) = make_uint2(pack(sum.x * y, sum.y * y), pack(sum.z * y, sum.w * y));
            }
        }
    }
}
} // namespace decode

extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_64(const __grid_constant__ AttentionDecodeArgs a) { decode::run<64>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_128(const __grid_constant__ AttentionDecodeArgs a) { decode::run<128>(a); }
