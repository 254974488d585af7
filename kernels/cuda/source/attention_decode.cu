// Attention with one new token a sequence: o[t] = softmax(scale·q[t]·Kᵀ)·V over positions p of t's own sequence, c−window ≤ p < c
// (window 0: all), where c = Context and t = QueryStart of the sequence.
//   o, q bf16 [T, Hq·D]; k, v bf16 [slots, Hkv, D], the layer's cache; token p of sequence s is in slot table[s][p/P]·P + p%P.
//   D 64 or 128; Hq/Hkv ≤ 8; P a multiple of 16; at most 1,024 sequences; rows of q and o start at multiples of 16 bytes.
//   grid: any multiple of Hkv, blocks of 128 threads, best 2 or 3 a multiprocessor; it does not depend on the context, though more than
//   S·Hkv·⌈longest context/64⌉ are of no use. Dynamic shared memory: 32·Hq/Hkv·D bytes.
//   moves 4·Hkv·D bytes a token of context; q, o and some partial sums beside it.
//   Oracle: kernels/cpu Attention. Flash-Decoding (split KV), https://pytorch.org/blog/flash-decoding/.
// A launch on another stream at the same time needs its own workspace.
//
// A sequence's positions are cut into parts of 64, counted from 0, whatever else is in the step. Block i works for KV head i mod Hkv, all its
// query heads together, and takes a run of parts; the blocks beside it read the other heads of the same tokens. A warp takes a tile
// of 16 tokens of each part: Sᵀ = K·qᵀ and Oᵀ = Vᵀ·Pᵀ with 16 tokens, then 16 of D, as rows and the heads as 8 columns. K and V go from memory
// to registers in 16-byte loads, laid out as the tensor cores take them up to an order of D that q and o follow. The next tile's
// loads are in flight while one is computed.
// A sequence is the sum of its parts in their order, in registers where one block has them all; else each block writes the sum of its own to
// the workspace and counts its parts, and the one that completes the sequence adds the sums in order. Which parts are a block's depends on the
// other sequences of the step, and so do a result's last bits.
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
    float* partial; // [grid/Hkv, 2, Hkv, Hq/Hkv·(D + 2)]: of each run's first sequence where it begins before the run, and of its last
    int* arrived;   // [S, Hkv], zero between launches
};

namespace decode {
using hopper::allow_successor, hopper::count_up, hopper::mma, hopper::pack, hopper::transpose8, hopper::wait_predecessor;
constexpr int warps = 4, tile = 16, part = tile * warps, max_seqs = 1024, max_group = 8;

__device__ __forceinline__ uint4 load16(const void* p, bool on) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (on) asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// A part of a sequence, and of it this warp's tile.
struct Tile {
    int part;      // counted over the sequences; from end on: none
    int seq, token;
    int low, high; // positions of the sequence that count
    int p0;        // the tile's first position
    long long at;  // offset of its first row in the cache, −1 where it has no tokens
};

// Sum is a head's sum over positions of exp2(score − top)·v, 4 of its D, and weight, that of exp2(score − top).
struct Sum {
    float4 v;
    float top, weight;
};
__device__ __forceinline__ void add(Sum& s, float4 v, float top, float weight) {
    const float t = fmaxf(s.top, top), f = exp2f(s.top - t), z = exp2f(top - t);
    s.v.x = fmaf(s.v.x, f, __fmul_rn(v.x, z)), s.v.y = fmaf(s.v.y, f, __fmul_rn(v.y, z));
    s.v.z = fmaf(s.v.z, f, __fmul_rn(v.z, z)), s.v.w = fmaf(s.v.w, f, __fmul_rn(v.w, z));
    s.weight = fmaf(s.weight, f, __fmul_rn(weight, z));
    s.top = t;
}
__device__ __forceinline__ Sum empty() { return {make_float4(0, 0, 0, 0), -INFINITY, 0}; }
__device__ __forceinline__ void finish(const Sum& s, __nv_bfloat16* out) {
    const float y = 1 / s.weight;
    *(uint2*)out = make_uint2(pack(s.v.x * y, s.v.y * y), pack(s.v.z * y, s.v.w * y));
}

template <int D> __device__ __forceinline__ void run(const AttentionDecodeArgs& a) {
    constexpr int KC = D / 32, VC = D / 64;  // 16-byte loads of a row of K, and of V
    constexpr int EC = max_group * D / 512; // sums a thread has
    extern __shared__ float4 so4[];          // [2][warps][group][D]
    __shared__ int start[max_seqs + 1];      // first part of each sequence
    __shared__ float sm[2][warps][max_group], sl[2][warps][max_group];
    __shared__ int sums[warps], complete[2];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int seqs = min(a.head[1], max_seqs), kvs = (int)a.kv, group = (int)(a.heads / a.kv), window = (int)a.window;
    const int kv = blockIdx.x % kvs, run = blockIdx.x / kvs;
    const int block_shift = __popc((int)a.block - 1);
    const bool power = ((int)a.block & ((int)a.block - 1)) == 0;
    float* so = (float*)so4;
    allow_successor();

    // start: exclusive sums of the sequences' numbers of parts.
    int total = 0;
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
        int before = total;
#pragma unroll
        for (int w = 0; w < warps; w++) {
            if (w < warp) before += sums[w];
            total += sums[w];
        }
        if (s < seqs) start[s] = before + x - n;
        __syncthreads();
    }
    if (threadIdx.x == 0) start[seqs] = total;
    __syncthreads();
    const int runs = min((int)gridDim.x / kvs, total); // each has a part
    const int begin = run < runs ? (int)((long long)total * run / runs) : 0, end = run < runs ? (int)((long long)total * (run + 1) / runs) : 0;
    if (begin == end) {
        wait_predecessor();
        return;
    }
    const long long row = (long long)kvs * D;

    auto sequence = [&](Tile& x) { // x.seq is set
        const int c = a.context[x.seq];
        x.token = a.query_start[x.seq];
        x.low = window ? max(0, c - window) : 0;
        x.high = c;
    };
    auto place = [&](Tile& x) { // and x.part
        x.p0 = (x.low / part + x.part - start[x.seq]) * part + warp * tile;
        x.at = -1;
        if (x.p0 >= x.high || x.p0 + tile <= x.low) return;
        const int b = power ? x.p0 >> block_shift : x.p0 / (int)a.block;
        x.at = ((long long)a.table[x.seq * a.blocks + b] * a.block + (x.p0 - b * (int)a.block)) * row + kv * D;
    };
    auto advance = [&](Tile x) {
        if (++x.part >= end) return x;
        if (x.part == start[x.seq + 1]) {
            do x.seq++;
            while (x.part == start[x.seq + 1]);
            sequence(x);
        }
        place(x);
        return x;
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
        const __nv_bfloat16* q = (const __nv_bfloat16*)a.q + x.token * a.qs + (kv * group + g) * D + t * 8;
#pragma unroll
        for (int c = 0; c < KC; c++) qr[c] = load16(q + c * 32, g < group);
    };

    Tile now;
    now.part = begin;
    {
        int lo = 0, hi = seqs - 1; // the last sequence with start ≤ begin
        while (lo < hi) {
            const int mid = (lo + hi + 1) >> 1;
            if (start[mid] <= begin) lo = mid;
            else hi = mid - 1;
        }
        now.seq = lo;
    }
    const int first = now.seq;
    sequence(now);
    place(now);
    // The step's own token is its predecessor's work; all older ones are there.
    const bool early = now.p0 + tile < now.high;
    if (early) load_k(now), load_v(now);
    Tile next = advance(now);
    wait_predecessor();
    load_q(now);
    if (!early) load_k(now), load_v(now);

    const float scale = (float)a.scale * 1.4426950408889634f;
    const long long size = group * (D + 2);
    Sum sum[EC];
#pragma unroll
    for (int i = 0; i < EC; i++) sum[i] = empty();
    int buffer = 0;
    while (true) {
        float s[4] = {0, 0, 0, 0}, s1[4] = {0, 0, 0, 0};
#pragma unroll
        for (int c = 0; c < KC; c++) {
            mma(s, kr[0][c].x, kr[1][c].x, kr[0][c].y, kr[1][c].y, qr[c].x, qr[c].y);
            mma(s1, kr[0][c].z, kr[1][c].z, kr[0][c].w, kr[1][c].w, qr[c].z, qr[c].w);
        }
        if (next.part < end) {
            load_k(next);
            if (next.seq != now.seq) load_q(next);
        }
        const bool edge = now.p0 < now.low || now.p0 + tile > now.high;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int p = now.p0 + g + 8 * r;
            const bool on = !edge || (p >= now.low && p < now.high);
#pragma unroll
            for (int h = 0; h < 2; h++) s[2 * r + h] = on ? (s[2 * r + h] + s1[2 * r + h]) * scale : -INFINITY;
        }
        float m[2], l[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x = fmaxf(s[h], s[2 + h]);
#pragma unroll
            for (int d = 4; d < 32; d <<= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
            m[h] = x;
            const float base = x == -INFINITY ? 0.f : x;
            s[h] = exp2f(s[h] - base);
            s[2 + h] = exp2f(s[2 + h] - base);
            l[h] = s[h] + s[2 + h];
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
        float* mine = so + (buffer * warps + warp) * group * D;
#pragma unroll
        for (int c = 0; c < VC; c++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float y[4] = {0, 0, 0, 0};
                const uint32_t v0 = word(vr[0][c], j), v1 = word(vr[1][c], j), v2 = word(vr[2][c], j), v3 = word(vr[3][c], j);
                mma(y, __byte_perm(v0, v1, 0x5410), __byte_perm(v0, v1, 0x7632), __byte_perm(v2, v3, 0x5410), __byte_perm(v2, v3, 0x7632), b0, b1);
#pragma unroll
                for (int h = 0; h < 2; h++)
                    if (2 * t + h < group) *(float2*)(mine + (2 * t + h) * D + c * 64 + g * 8 + 2 * j) = make_float2(y[h], y[2 + h]);
            }
        if (next.part < end) load_v(next);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int d = 4; d < 32; d <<= 1) l[h] += __shfl_xor_sync(~0u, l[h], d);
        if (g == 0) {
#pragma unroll
            for (int h = 0; h < 2; h++) sm[buffer][warp][2 * t + h] = m[h], sl[buffer][warp][2 * t + h] = l[h];
        }
        __syncthreads(); // the other buffer's readers are past it too
        const int s0 = start[now.seq], s1_ = start[now.seq + 1];
        const bool whole = s0 >= begin && s1_ <= end, ends = now.part == min(s1_, end) - 1;
        float* split = a.partial + ((long long)(2 * run + (s0 >= begin)) * kvs + kv) * size;
        __nv_bfloat16* out = (__nv_bfloat16*)a.o + now.token * a.os + (long long)kv * group * D;
#pragma unroll
        for (int i = 0; i < EC; i++) {
            const int e = (threadIdx.x + i * 128) * 4;
            if (e >= group * D) break;
            const int h = e / D, d = e % D;
            Sum x = empty(); // the part: the warps' tiles in their order
#pragma unroll
            for (int w = 0; w < warps; w++) x.top = fmaxf(x.top, sm[buffer][w][h]);
#pragma unroll
            for (int w = 0; w < warps; w++) {
                const float f = exp2f(sm[buffer][w][h] - x.top);
                const float4 z = *(const float4*)(so + ((buffer * warps + w) * group + h) * D + d);
                x.v.x = fmaf(f, z.x, x.v.x), x.v.y = fmaf(f, z.y, x.v.y), x.v.z = fmaf(f, z.z, x.v.z), x.v.w = fmaf(f, z.w, x.v.w);
                x.weight = fmaf(f, sl[buffer][w][h], x.weight);
            }
            add(sum[i], x.v, x.top, x.weight);
            if (!ends) continue;
            x = sum[i];
            sum[i] = empty();
            if (whole) {
                finish(x, out + e);
            } else {
                __stcg((float2*)(split + e), make_float2(x.v.x, x.v.y));
                __stcg((float2*)(split + e) + 1, make_float2(x.v.z, x.v.w));
                if (d == 0) __stcg((float2*)(split + group * D + 2 * h), make_float2(x.top, x.weight));
            }
        }
        buffer ^= 1;
        if (next.part >= end) break;
        now = next;
        next = advance(now);
    }

    // The first and the last sequence can be shared with other blocks.
    const int last = now.seq;
    const bool split_first = start[first] < begin || start[first + 1] > end, split_last = last != first && start[last + 1] > end;
    if (!split_first && !split_last) return;
    __syncthreads();
    if (threadIdx.x < 2) {
        const int s = threadIdx.x ? last : first;
        bool done = false;
        if (threadIdx.x ? split_last : split_first) {
            const int n = min(end, start[s + 1]) - max(begin, start[s]), all = start[s + 1] - start[s];
            int* count = a.arrived + s * kvs + kv;
            done = count_up(count, n) + n == all;
            if (done) *count = 0;
        }
        complete[threadIdx.x] = done;
    }
    __syncthreads();
    for (int which = 0; which < 2; which++) {
        if (!complete[which]) continue;
        const int s = which ? last : first;
        // The runs that have parts of it; the first of them has its beginning.
        const int r0 = (int)(((long long)(start[s] + 1) * runs - 1) / total), n = (int)(((long long)start[s + 1] * runs - 1) / total) - r0 + 1;
        const float* all = a.partial + ((long long)2 * r0 * kvs + kv) * size;
        const long long stride = size * kvs;
        __nv_bfloat16* out = (__nv_bfloat16*)a.o + a.query_start[s] * a.os + (long long)kv * group * D;
        for (int e = threadIdx.x * 4; e < group * D; e += 512) {
            const int h = e / D;
            Sum x = empty();
            constexpr int batch = 10;
            for (int p = 0; p < n; p += batch) {
                float2 ml[batch], lo[batch], hi[batch];
#pragma unroll
                for (int u = 0; u < batch; u++) {
                    const float* one = all + (p + u == 0 ? 1 : 2 * min(p + u, n - 1)) * stride;
                    ml[u] = __ldcg((const float2*)(one + group * D + 2 * h));
                    lo[u] = __ldcg((const float2*)(one + e)), hi[u] = __ldcg((const float2*)(one + e) + 1);
                }
#pragma unroll
                for (int u = 0; u < batch; u++)
                    if (p + u < n) add(x, make_float4(lo[u].x, lo[u].y, hi[u].x, hi[u].y), ml[u].x, ml[u].y);
            }
            finish(x, out + e);
        }
    }
}
} // namespace decode

extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_64(const __grid_constant__ AttentionDecodeArgs a) { decode::run<64>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_128(const __grid_constant__ AttentionDecodeArgs a) { decode::run<128>(a); }
