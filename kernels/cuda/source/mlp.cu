// MLP: with [g, u] = yz + bias + B·z: act[t] = silu(g)·u.
//   act [T, F]; yz [T, 2·F+R]; bias F32 [2·F], optional; gate_up [T, 2·F], optional save.
//   grid (⌈F/threads⌉, ⌈T/TT⌉); a thread owns one column of g and of u for TT tokens. moves 3·T·F elements and B's.
//   Oracle: kernels/cpu MLP.
#include "expand.cuh"

struct MLPArgs {
    void* act; ll as;
    const void* yz; ll ys;
    const float* bias;
    void* gate_up; ll gs;
    ll ff, r;
    B b;
    const int *adapter, *head;
};
template <class T, int TT> __device__ void mlp(const MLPArgs& a) {
    extern __shared__ float z[];
    __shared__ Adapter own[TT];
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.y * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int ff = a.ff, ldz = (a.r + 3) & ~3;
    bool same = true;
    if (a.b.table) same = load_tile<T>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const T*)a.yz + 2 * ff, a.ys, a.r);
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= ff) return;
    float g[TT], u[TT];
    const float bg = a.bias ? a.bias[c] : 0.f, bu = a.bias ? a.bias[ff + c] : 0.f;
#pragma unroll
    for (int t = 0; t < TT; t++) {
        g[t] = u[t] = 0;
        if (t < m) {
            g[t] = f(((const T*)a.yz)[(t0 + t) * a.ys + c]) + bg;
            u[t] = f(((const T*)a.yz)[(t0 + t) * a.ys + ff + c]) + bu;
        }
    }
    if (a.b.table) {
        expand_tile<T, TT>(g, own, same, a.b.offset, c, z, ldz, m);
        expand_tile<T, TT>(u, own, same, a.b.offset, ff + c, z, ldz, m);
    }
#pragma unroll
    for (int t = 0; t < TT; t++)
        if (t < m) {
            if (a.gate_up) {
                ((T*)a.gate_up)[(t0 + t) * a.gs + c] = to<T>(g[t]);
                ((T*)a.gate_up)[(t0 + t) * a.gs + ff + c] = to<T>(u[t]);
            }
            ((T*)a.act)[(t0 + t) * a.as + c] = to<T>(g[t] / (1.f + expf(-g[t])) * u[t]);
        }
}
extern "C" __global__ void __launch_bounds__(256) mlp_f32(const __grid_constant__ MLPArgs a) { mlp<float, 1>(a); }
extern "C" __global__ void __launch_bounds__(256) mlp_bf16(const __grid_constant__ MLPArgs a) { mlp<bf16, 1>(a); }

// mlp2: a thread owns two neighbouring columns of g and of u; F and the strides are even.
__device__ __forceinline__ float2 widen2(uint32_t w) { return make_float2(__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u)); }
template <int TT> __device__ void mlp2(const MLPArgs& a) {
    extern __shared__ float z[];
    __shared__ Adapter own[TT];
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.y * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int ff = a.ff, ldz = (a.r + 3) & ~3, c = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    const bool on = c < ff;
    uint32_t gw[TT], uw[TT];
    if (on) {
#pragma unroll
        for (int t = 0; t < TT; t++)
            if (t < m) {
                gw[t] = *(const uint32_t*)((const bf16*)a.yz + (t0 + t) * a.ys + c);
                uw[t] = *(const uint32_t*)((const bf16*)a.yz + (t0 + t) * a.ys + ff + c);
            }
    }
    bool same = true;
    if (a.b.table) same = load_tile<bf16>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const bf16*)a.yz + 2 * ff, a.ys, a.r);
    if (!on) return;
    float gu[4][TT];
    float (*g)[TT] = gu, (*u)[TT] = gu + 2;
#pragma unroll
    for (int t = 0; t < TT; t++) {
        const float2 p = t < m ? widen2(gw[t]) : make_float2(0, 0), q = t < m ? widen2(uw[t]) : make_float2(0, 0);
        g[0][t] = p.x, g[1][t] = p.y, u[0][t] = q.x, u[1][t] = q.y;
    }
    if (a.bias)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int t = 0; t < TT; t++) g[i][t] += a.bias[c + i], u[i][t] += a.bias[ff + c + i];
    if (a.b.table && (!same || own[0].rank) && TT > 4) {
        expand_cols<TT, 2>(g, own, same, a.b.offset, c, [](int i) { return i; }, z, ldz, m);
        expand_cols<TT, 2>(u, own, same, a.b.offset, ff + c, [](int i) { return i; }, z, ldz, m);
    } else if (a.b.table && (!same || own[0].rank)) expand_cols<TT, 4>(gu, own, same, a.b.offset, c, [ff](int i) { return (i >> 1) * ff + (i & 1); }, z, ldz, m);
#pragma unroll
    for (int t = 0; t < TT; t++)
        if (t < m) {
            if (a.gate_up) {
                *(uint32_t*)((bf16*)a.gate_up + (t0 + t) * a.gs + c) = pack(g[0][t], g[1][t]);
                *(uint32_t*)((bf16*)a.gate_up + (t0 + t) * a.gs + ff + c) = pack(u[0][t], u[1][t]);
            }
            *(uint32_t*)((bf16*)a.act + (t0 + t) * a.as + c) = pack(g[0][t] / (1.f + __expf(-g[0][t])) * u[0][t], g[1][t] / (1.f + __expf(-g[1][t])) * u[1][t]);
        }
}
extern "C" __global__ void __launch_bounds__(256, 2) mlp2x8_bf16(const __grid_constant__ MLPArgs a) { mlp2<8>(a); }

// mlp_slice: a warp takes 16 columns of g and of u for 8·NT tokens, 4 warps a block; F even; yz and its rows start at 16 bytes, z too. B's
// first rows are asked for before the linear has ended. Grid (⌈F/64⌉, ⌈T/(8·NT)⌉).
template <int NT> __device__ void mlp_slice(const MLPArgs& a) {
    allow_successor();
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, ff = a.ff;
    const int t0 = blockIdx.y * 8 * NT, m = min(8 * NT, a.head[0] - t0), c = (blockIdx.x * 4 + (threadIdx.x >> 5)) * 16 + 2 * g;
    const bool on = c < ff;
    const int n[2] = {c, ff + c};
    Expand<NT, 2> e;
    e.start(a.b, a.adapter + t0, m);
    const bool more = e.take(a.b.offset, n, on);
    wait_predecessor();
    if (m <= 0) return;
    const bf16* yz = (const bf16*)a.yz + t0 * a.ys;
    uint32_t y[2][NT][2];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const int token = 8 * j + 2 * t + s;
                y[i][j][s] = on && token < m ? *(const uint32_t*)(yz + token * a.ys + n[i]) : 0;
            }
    e.run(more, yz + 2 * ff, a.ys, a.b.offset, n, on);
    if (!on) return;
    float2 bg = {0, 0}, bu = {0, 0};
    if (a.bias) bg = {a.bias[c], a.bias[c + 1]}, bu = {a.bias[ff + c], a.bias[ff + c + 1]};
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const int token = 8 * j + 2 * t + s;
            if (token >= m) continue;
            const float2 p = widen2(y[0][j][s]), q = widen2(y[1][j][s]);
            const float g0 = p.x + bg.x + e.sum[0][j][s], g1 = p.y + bg.y + e.sum[0][j][s + 2], u0 = q.x + bu.x + e.sum[1][j][s], u1 = q.y + bu.y + e.sum[1][j][s + 2];
            const ll at = t0 + token;
            if (a.gate_up) {
                *(uint32_t*)((bf16*)a.gate_up + at * a.gs + c) = pack(g0, g1);
                *(uint32_t*)((bf16*)a.gate_up + at * a.gs + ff + c) = pack(u0, u1);
            }
            *(uint32_t*)((bf16*)a.act + at * a.as + c) = pack(g0 / (1.f + __expf(-g0)) * u0, g1 / (1.f + __expf(-g1)) * u1);
        }
}
extern "C" __global__ void __launch_bounds__(128) mlp_slice_bf16(const __grid_constant__ MLPArgs a) { mlp_slice<1>(a); }
