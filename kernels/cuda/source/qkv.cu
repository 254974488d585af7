// QKV: with y = yz + bias + B·z, per head: q[t] = rope(norm(y's q)); k = rope(norm(y's k)) and v go to the cache's layer at KVSlot[t].
//   q [T, Hq·D]; yz [T, (Hq+2·Hkv)·D+R]; bias F32, optional; norms F32 [D], optional; rope F32 [positions, D]: cosines, sines.
//   k, v: [slots, Hkv, D] of the layer. pre [T, (Hq+Hkv)·D], optional save.
//   grid (⌈T/TT⌉, Hq+2·Hkv), a thread a value of the head. Oracle: kernels/cpu QKV.
#include "expand.cuh"

struct QKVArgs {
    void* q; ll qs;
    const void* yz; ll ys;
    const float *bias, *q_norm, *k_norm;
    double eps;
    const float* rope; ll rs;
    void *k, *v;
    ll heads, kv, d, r;
    void* pre; ll ps;
    B b;
    const int *adapter, *position, *slot, *head;
    ll slices;
    KVAhead ahead;
};
template <class T, int TT> __device__ void qkv(const QKVArgs& a) {
    extern __shared__ float z[]; // [TT, ldz], then two rows of d
    __shared__ Adapter own[TT];
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int h = blockIdx.y, d = a.d, out = (a.heads + 2 * a.kv) * d, ldz = (a.r + 3) & ~3;
    bool same = true;
    if (a.b.table) same = load_tile<T>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const T*)a.yz + out, a.ys, a.r);
    float* row = z + TT * ldz;
    const int i = threadIdx.x, n = h * d + i;
    float y[TT];
    if (i < d) {
        const float bias = a.bias ? a.bias[n] : 0.f;
#pragma unroll
        for (int t = 0; t < TT; t++) y[t] = t < m ? f(((const T*)a.yz)[(t0 + t) * a.ys + n]) + bias : 0.f;
        if (a.b.table) expand_tile<T, TT>(y, own, same, a.b.offset, n, z, ldz, m);
    }
    const bool value = h >= a.heads + a.kv, key = !value && h >= a.heads;
    const float* norm = key ? a.k_norm : a.q_norm;
#pragma unroll
    for (int t = 0; t < TT; t++) {
        if (t >= m) break;
        const ll at = a.slot[t0 + t] * (a.kv * d) + (h - a.heads) % a.kv * d;
        if (value) {
            if (i < d) ((T*)a.v)[at + i] = to<T>(y[t]);
            continue;
        }
        float x = i < d ? y[t] : 0.f;
        if (a.pre && i < d) ((T*)a.pre)[(t0 + t) * a.ps + n] = to<T>(x);
        if (norm) {
            const float r = 1.f / sqrtf(block_sum(x * x, shared) / (float)d + (float)a.eps);
            if (i < d) x *= r * norm[i];
        }
        float* pair = row + (t & 1) * d; // two rows in turn: one barrier a token
        if (i < d) pair[i] = x;
        __syncthreads();
        if (i < d) {
            const float* angle = a.rope + a.position[t0 + t] * a.rs;
            const int half = d / 2;
            x = i < half ? x * angle[i] - pair[i + half] * angle[half + i] : x * angle[i - half] + pair[i - half] * angle[i];
            if (key) ((T*)a.k)[at + i] = to<T>(x);
            else ((T*)a.q)[(t0 + t) * a.qs + n] = to<T>(x);
        }
    }
}
extern "C" __global__ void qkv_f32(const __grid_constant__ QKVArgs a) { qkv<float, 1>(a); }
extern "C" __global__ void qkv_bf16(const __grid_constant__ QKVArgs a) { qkv<bf16, 1>(a); }

// qkv_slice: a warp takes 32 values of a head's first half and the 32 that they are rotated with, for slices of 8 tokens, one after another; a lane has 4 of
// either for 2 tokens. yz and its rows start at 16 bytes, q's and pre's at 8, rope's at 16. Grid (⌈T/(8·slices)⌉, ⌈heads·D/(2·threads)⌉).
template <int D, bool MANY> __device__ __forceinline__ void qkv_slice(const QKVArgs& a) {
    constexpr int HALF = D / 2, WARPS = D / 64; // warps of a head
    __shared__ float squares[2][8][8];
    allow_successor();
    if (!MANY && a.ahead.each) bring_ahead(a.ahead, a.head[1], blockIdx.y * gridDim.x + blockIdx.x, gridDim.x * gridDim.y);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, tokens = a.head[0], slices = MANY ? (int)a.slices : 1;
    int t0 = blockIdx.x * 8 * slices;
    const int unit = blockIdx.y * (blockDim.x >> 5) + warp, all = a.heads + 2 * a.kv, h = unit / WARPS, first = unit % WARPS * 32, i0 = first + 4 * g;
    const bool on = h < all, value = h >= a.heads + a.kv, key = !value && h >= a.heads;
    const int n[2] = {h * D + i0, h * D + HALF + i0};
    const float* norm = value ? nullptr : key ? a.k_norm : a.q_norm;
    Expand<4, 2, !MANY> e;
    e.start(a.b, a.adapter + t0, tokens - t0);
    if (on && !MANY && e.few_ranks()) e.fetch(a.b.offset + h * D + first, 32), e.fetch(a.b.offset + h * D + HALF + first, 32);
    bool more = e.take(a.b.offset, n, on);
    float4 cosine[2], sine[2];
    ll slot[2] = {};
    auto places = [&] {
#pragma unroll
        for (int s = 0; s < 2; s++)
            if (on && t0 + 2 * t + s < tokens) {
                const float* angle = a.rope + a.position[t0 + 2 * t + s] * a.rs + i0;
                if (!value) cosine[s] = *(const float4*)angle, sine[s] = *(const float4*)(angle + HALF);
                slot[s] = a.slot[t0 + 2 * t + s];
            }
    };
    places();
    wait_predecessor();
    if (t0 >= tokens) return;
    uint2 y[2][2]; // the halves of the two tokens
    auto load = [&](int first) {
        const bf16* yz = (const bf16*)a.yz + (first + 2 * t) * a.ys + n[0];
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int i = 0; i < 2; i++) y[i][s] = on && first + 2 * t + s < tokens ? *(const uint2*)(yz + s * a.ys + i * HALF) : make_uint2(0, 0);
    };
    load(t0);
    for (int slice = 0;;) {
        uint2 now[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++) now[i >> 1][i & 1] = y[i >> 1][i & 1];
        const bool last = !MANY || ++slice == slices || t0 + 8 >= tokens;
        if (!last) load(t0 + 8);
        e.run(more, (const bf16*)a.yz + t0 * a.ys + all * D, a.ys, a.b.offset, n, on);
        float x[2][2][4]; // [half][token]
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const uint32_t w[2] = {now[i][s].x, now[i][s].y};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    x[i][s][j] = __uint_as_float(j & 1 ? w[j >> 1] & 0xffff0000u : w[j >> 1] << 16);
                    if (a.bias && on) x[i][s][j] += a.bias[n[i] + j];
                    x[i][s][j] += e.sum[2 * i + (j >> 1)][s + 2 * (j & 1)];
                }
            }
        auto put = [&](bf16* dst, int s) { // the halves of token s
#pragma unroll
            for (int i = 0; i < 2; i++) *(uint2*)(dst + i * HALF) = make_uint2(pack(x[i][s][0], x[i][s][1]), pack(x[i][s][2], x[i][s][3]));
        };
        if (a.pre && on && !value)
#pragma unroll
            for (int s = 0; s < 2; s++)
                if (t0 + 2 * t + s < tokens) put((bf16*)a.pre + (t0 + 2 * t + s) * a.ps + n[0], s);
        if (a.q_norm || a.k_norm) {
            float (*sq)[8] = squares[slice & 1];
#pragma unroll
            for (int s = 0; s < 2; s++) {
                float q = 0;
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) q = fmaf(x[i][s][j], x[i][s][j], q);
#pragma unroll
                for (int o = 4; o < 32; o <<= 1) q += __shfl_xor_sync(~0u, q, o);
                if (g == 0) sq[warp][2 * t + s] = q;
            }
            __syncthreads();
            if (on && norm)
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    float q = 0;
#pragma unroll
                    for (int w = 0; w < WARPS; w++) q += sq[warp / WARPS * WARPS + w][2 * t + s];
                    const float r = 1.f / sqrtf(q / (float)D + (float)a.eps);
#pragma unroll
                    for (int i = 0; i < 2; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++) x[i][s][j] *= r * norm[i * HALF + i0 + j];
                }
        }
#pragma unroll
        for (int s = 0; s < 2; s++) {
            if (!on || t0 + 2 * t + s >= tokens) continue;
            if (!value) {
                const float cs[4] = {cosine[s].x, cosine[s].y, cosine[s].z, cosine[s].w}, sn[4] = {sine[s].x, sine[s].y, sine[s].z, sine[s].w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float lo = x[0][s][j], hi = x[1][s][j];
                    x[0][s][j] = __fmaf_rn(lo, cs[j], -__fmul_rn(hi, sn[j]));
                    x[1][s][j] = __fmaf_rn(hi, cs[j], __fmul_rn(lo, sn[j]));
                }
            }
            const ll at = (slot[s] * a.kv + (h - a.heads) % a.kv) * D + i0;
            put(value ? (bf16*)a.v + at : key ? (bf16*)a.k + at : (bf16*)a.q + (t0 + 2 * t + s) * a.qs + n[0], s);
        }
        if (last) return;
        t0 += 8;
        places();
        e.start(a.b, a.adapter + t0, tokens - t0);
        more = e.take(a.b.offset, n, on);
    }
}
#define QKV_SLICE(D) \
    extern "C" __global__ void __launch_bounds__(128, 4) qkv_slice##D##_bf16(const __grid_constant__ QKVArgs a) { qkv_slice<D, false>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 2) qkv_slices##D##_bf16(const __grid_constant__ QKVArgs a) { qkv_slice<D, true>(a); }
QKV_SLICE(64)
QKV_SLICE(128)
#undef QKV_SLICE
