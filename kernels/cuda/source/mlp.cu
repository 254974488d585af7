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
    ll slices;
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

// mlp_slice: a warp takes 64 columns of g and of u, for slices of 8 tokens, one after another; a lane has 8 columns of either for 2 tokens. F is a multiple
// of 8; rows of yz, act and gate_up start at 16 bytes. B's first rows are asked for before the linear has ended.
// Grid (⌈F/(2·threads)⌉, ⌈T/(8·slices)⌉).
template <bool MANY> __device__ __forceinline__ void mlp_slice(const MLPArgs& a) {
    allow_successor();
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, ff = a.ff;
    const int c0 = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * 64, c = c0 + 8 * g, slices = MANY ? (int)a.slices : 1, tokens = a.head[0];
    int t0 = blockIdx.y * 8 * slices;
    const bool on = c < ff;
    const int n[2] = {c, ff + c};
    Expand<8, 4, !MANY> e;
    e.start(a.b, a.adapter + t0, tokens - t0);
    if (!MANY && e.few_ranks()) e.fetch(a.b.offset + c0, min(64, ff - c0)), e.fetch(a.b.offset + ff + c0, min(64, ff - c0));
    bool more = e.take(a.b.offset, n, on);
    wait_predecessor();
    if (t0 >= tokens) return;
    uint4 y[2][2]; // g and u of the two tokens
    auto load = [&](int first) {
        const bf16* yz = (const bf16*)a.yz + (first + 2 * t) * a.ys + c;
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int i = 0; i < 2; i++) y[i][s] = on && first + 2 * t + s < tokens ? *(const uint4*)(yz + s * a.ys + i * ff) : make_uint4(0, 0, 0, 0);
    };
    load(t0);
    for (int slice = 0;;) {
        uint4 now[2][2];
#pragma unroll
        for (int i = 0; i < 4; i++) now[i >> 1][i & 1] = y[i >> 1][i & 1];
        const bool last = !MANY || ++slice == slices || t0 + 8 >= tokens;
        if (!last) load(t0 + 8);
        e.run(more, (const bf16*)a.yz + t0 * a.ys + 2 * ff, a.ys, a.b.offset, n, on);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const ll at = t0 + 2 * t + s;
            if (!on || at >= tokens) continue;
            float p[8], q[8];
            widen8(now[0][s], p), widen8(now[1][s], q);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (a.bias) p[i] += a.bias[c + i], q[i] += a.bias[ff + c + i];
                p[i] += e.sum[i >> 1][s + 2 * (i & 1)], q[i] += e.sum[4 + (i >> 1)][s + 2 * (i & 1)];
            }
            if (a.gate_up) *(uint4*)((bf16*)a.gate_up + at * a.gs + c) = pack8(p), *(uint4*)((bf16*)a.gate_up + at * a.gs + ff + c) = pack8(q);
#pragma unroll
            for (int i = 0; i < 8; i++) p[i] = __fdividef(p[i], 1.f + __expf(-p[i])) * q[i];
            *(uint4*)((bf16*)a.act + at * a.as + c) = pack8(p);
        }
        if (last) return;
        t0 += 8;
        e.start(a.b, a.adapter + t0, tokens - t0);
        more = e.take(a.b.offset, n, on);
    }
}
extern "C" __global__ void __launch_bounds__(64, 8) mlp_slice_bf16(const __grid_constant__ MLPArgs a) { mlp_slice<false>(a); }
extern "C" __global__ void __launch_bounds__(128, 3) mlp_slices_bf16(const __grid_constant__ MLPArgs a) { mlp_slice<true>(a); }
