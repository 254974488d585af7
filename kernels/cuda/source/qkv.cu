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

// qkv_warp: heads of D = 64·VEC, a warp each, 4 a block: a lane owns VEC values of either half, so that pairs to rotate meet in it.
// Grid (⌈T/TT⌉, ⌈heads/4⌉).
template <int VEC, int TT> __device__ void qkv_warp(const QKVArgs& a) {
    extern __shared__ float z[];
    __shared__ Adapter own[TT];
    constexpr int D = 64 * VEC, HALF = 32 * VEC;
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int lane = threadIdx.x & 31, h = blockIdx.y * 4 + (threadIdx.x >> 5), all = a.heads + 2 * a.kv, ldz = (a.r + 3) & ~3;
    const bool on = h < all;
    const int n = h * D + lane * VEC; // the lane's first value; HALF further its other ones
    float y[2 * VEC][TT];
    if (on) {
#pragma unroll
        for (int t = 0; t < TT; t++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const bf16* src = (const bf16*)a.yz + (t0 + t) * a.ys + n + i * HALF;
                if (VEC == 2) {
                    const uint32_t w = t < m ? *(const uint32_t*)src : 0;
                    y[i * VEC][t] = __uint_as_float(w << 16);
                    y[i * VEC + VEC - 1][t] = __uint_as_float(w & 0xffff0000u);
                } else {
                    y[i][t] = t < m ? f(*src) : 0.f;
                }
            }
    }
    bool same = true;
    if (a.b.table) same = load_tile<bf16>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const bf16*)a.yz + all * D, a.ys, a.r);
    if (!on) return;
    if (a.bias)
#pragma unroll
        for (int i = 0; i < 2 * VEC; i++)
#pragma unroll
            for (int t = 0; t < TT; t++) y[i][t] += a.bias[n + i / VEC * HALF + i % VEC];
    if (a.b.table && (!same || own[0].rank))
        if (TT > 4 && VEC == 2) {
            expand_cols<TT, VEC>(y, own, same, a.b.offset, n, [](int i) { return i; }, z, ldz, m);
            expand_cols<TT, VEC>(y + VEC, own, same, a.b.offset, n + HALF, [](int i) { return i; }, z, ldz, m);
        } else expand_cols<TT, 2 * VEC>(y, own, same, a.b.offset, n, [](int i) { return i / VEC * HALF + i % VEC; }, z, ldz, m);
    const bool value = h >= a.heads + a.kv, key = !value && h >= a.heads;
    const float* norm = key ? a.k_norm : a.q_norm;
    auto put = [&](bf16* dst, const float* x) { // at the lane's values of either half
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (VEC == 2) *(uint32_t*)(dst + i * HALF) = pack(x[i * VEC], x[i * VEC + VEC - 1]);
            else dst[i * HALF] = to<bf16>(x[i]);
    };
#pragma unroll
    for (int t = 0; t < TT; t++) {
        if (t >= m) break;
        const ll at = a.slot[t0 + t] * (a.kv * D) + (h - a.heads) % a.kv * D + lane * VEC;
        float x[2 * VEC];
#pragma unroll
        for (int i = 0; i < 2 * VEC; i++) x[i] = y[i][t];
        if (value) {
            put((bf16*)a.v + at, x);
            continue;
        }
        if (a.pre) put((bf16*)a.pre + (t0 + t) * a.ps + n, x);
        if (norm) {
            float s = 0;
#pragma unroll
            for (int i = 0; i < 2 * VEC; i++) s = fmaf(x[i], x[i], s);
            const float r = 1.f / sqrtf(warp_sum(s) / (float)D + (float)a.eps);
#pragma unroll
            for (int i = 0; i < 2 * VEC; i++) x[i] *= r * norm[lane * VEC + i / VEC * HALF + i % VEC];
        }
        const float* angle = a.rope + a.position[t0 + t] * a.rs + lane * VEC;
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const float c = angle[i], sn = angle[HALF + i], lo = x[i], hi = x[VEC + i];
            x[i] = __fmaf_rn(lo, c, -__fmul_rn(hi, sn)); // one rounding, whatever TT
            x[VEC + i] = __fmaf_rn(hi, c, __fmul_rn(lo, sn));
        }
        put(key ? (bf16*)a.k + at : (bf16*)a.q + (t0 + t) * a.qs + n, x);
    }
}
#define QKV_WARP(D, VEC, TT) extern "C" __global__ void __launch_bounds__(128, 4) qkv##D##x##TT##_bf16(const __grid_constant__ QKVArgs a) { qkv_warp<VEC, TT>(a); }
QKV_WARP(64, 1, 8)
QKV_WARP(128, 2, 8)

// qkv_slice: a warp takes 16 values of a head's first half and the 16 that they are rotated with, for 8 tokens, 4 warps a block; yz and
// its rows start at 16 bytes, the others' at 4, rope's at 8. Grid (⌈T/8⌉, ⌈heads·D/128⌉).
template <int D> __device__ void qkv_slice(const QKVArgs& a) {
    constexpr int HALF = D / 2, WARPS = D / 32; // warps of a head
    __shared__ float squares[4][8];
    allow_successor();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int t0 = blockIdx.x * 8, m = min(8, a.head[0] - t0), unit = blockIdx.y * 4 + warp, all = a.heads + 2 * a.kv;
    const int h = unit / WARPS, i0 = unit % WARPS * 16 + 2 * g;
    const bool on = h < all, value = h >= a.heads + a.kv, key = !value && h >= a.heads;
    const int n[2] = {h * D + i0, h * D + HALF + i0};
    Expand<1, 2> e;
    e.start(a.b, a.adapter + t0, m);
    const bool more = e.take(a.b.offset, n, on);
    float2 cosine[2], sine[2];
    ll slot[2] = {};
#pragma unroll
    for (int s = 0; s < 2; s++)
        if (on && 2 * t + s < m) {
            const float* angle = a.rope + a.position[t0 + 2 * t + s] * a.rs + i0;
            if (!value) cosine[s] = *(const float2*)angle, sine[s] = *(const float2*)(angle + HALF);
            slot[s] = a.slot[t0 + 2 * t + s];
        }
    wait_predecessor();
    if (m <= 0) return;
    const bf16* yz = (const bf16*)a.yz + t0 * a.ys;
    uint32_t y[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int s = 0; s < 2; s++) y[i][s] = on && 2 * t + s < m ? *(const uint32_t*)(yz + (2 * t + s) * a.ys + n[i]) : 0;
    e.run(more, yz + all * D, a.ys, a.b.offset, n, on);
    float2 x[2][2]; // [half][token]
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int s = 0; s < 2; s++) {
            x[i][s] = {__uint_as_float(y[i][s] << 16) + e.sum[i][0][s], __uint_as_float(y[i][s] & 0xffff0000u) + e.sum[i][0][s + 2]};
            if (a.bias && on) x[i][s].x += a.bias[n[i]], x[i][s].y += a.bias[n[i] + 1];
        }
    if (a.pre && on && !value)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int s = 0; s < 2; s++)
                if (2 * t + s < m) *(uint32_t*)((bf16*)a.pre + (t0 + 2 * t + s) * a.ps + n[i]) = pack(x[i][s].x, x[i][s].y);
    if (a.q_norm || a.k_norm) {
#pragma unroll
        for (int s = 0; s < 2; s++) {
            float q = x[0][s].x * x[0][s].x + x[0][s].y * x[0][s].y + x[1][s].x * x[1][s].x + x[1][s].y * x[1][s].y;
#pragma unroll
            for (int o = 4; o < 32; o <<= 1) q += __shfl_xor_sync(~0u, q, o);
            if (g == 0) squares[warp][2 * t + s] = q;
        }
        __syncthreads();
        const float* norm = key ? a.k_norm : a.q_norm;
        if (on && !value && norm) {
            const float2 w0 = {norm[i0], norm[i0 + 1]}, w1 = {norm[HALF + i0], norm[HALF + i0 + 1]};
#pragma unroll
            for (int s = 0; s < 2; s++) {
                float q = 0;
#pragma unroll
                for (int w = 0; w < WARPS; w++) q += squares[warp / WARPS * WARPS + w][2 * t + s];
                const float r = 1.f / sqrtf(q / (float)D + (float)a.eps);
                x[0][s].x *= r * w0.x, x[0][s].y *= r * w0.y, x[1][s].x *= r * w1.x, x[1][s].y *= r * w1.y;
            }
        }
    }
    if (!on) return;
#pragma unroll
    for (int s = 0; s < 2; s++) {
        if (2 * t + s >= m) break;
        float2 lo = x[0][s], hi = x[1][s];
        if (!value) {
            const float2 c = cosine[s], sn = sine[s];
            lo = {__fmaf_rn(x[0][s].x, c.x, -__fmul_rn(x[1][s].x, sn.x)), __fmaf_rn(x[0][s].y, c.y, -__fmul_rn(x[1][s].y, sn.y))};
            hi = {__fmaf_rn(x[1][s].x, c.x, __fmul_rn(x[0][s].x, sn.x)), __fmaf_rn(x[1][s].y, c.y, __fmul_rn(x[0][s].y, sn.y))};
        }
        const ll at = (slot[s] * a.kv + (h - a.heads) % a.kv) * D + i0;
        bf16* dst = value ? (bf16*)a.v + at : key ? (bf16*)a.k + at : (bf16*)a.q + (t0 + 2 * t + s) * a.qs + n[0];
        *(uint32_t*)dst = pack(lo.x, lo.y);
        *(uint32_t*)(dst + HALF) = pack(hi.x, hi.y);
    }
}
extern "C" __global__ void __launch_bounds__(128) qkv_slice64_bf16(const __grid_constant__ QKVArgs a) { qkv_slice<64>(a); }
extern "C" __global__ void __launch_bounds__(128) qkv_slice128_bf16(const __grid_constant__ QKVArgs a) { qkv_slice<128>(a); }
