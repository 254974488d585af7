// ResidualNorm: out[t] = x[t] + y[t] + bias + B·z[t]; normed[t] = out[t]·rstd[t]·w. The norm is of the sum as it is stored.
//   out, normed, x [T, H]; yz [T, H+R]; bias, w F32 [H]; rstd F32 [T], optional.
//   grid ⌈T/TT⌉ blocks; a thread owns the columns threadIdx + i·threads, at most 16 of them. moves 4·T·H elements and B's.
//   Oracle: kernels/cpu ResidualNorm.
#include "expand.cuh"

struct ResidualArgs {
    void *out; ll os;
    void* normed; ll ns;
    const void* x; ll xs;
    const void* yz; ll ys;
    const float *bias, *w;
    float* rstd;
    ll h, r; double eps;
    B b;
    const int *adapter, *head;
};
template <class T, int TT, int COLS> __device__ void residual(const ResidualArgs& a) {
    extern __shared__ float z[];
    __shared__ float shared[33];
    __shared__ Adapter own[TT];
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int h = a.h, ldz = (a.r + 3) & ~3;
    const bool same = load_tile<T>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const T*)a.yz + h, a.ys, a.r);
    float v[COLS][TT], sum[TT];
#pragma unroll
    for (int t = 0; t < TT; t++) sum[t] = 0;
#pragma unroll
    for (int i = 0; i < COLS; i++) {
        const int c = threadIdx.x + i * blockDim.x;
        if (c < h) {
#pragma unroll
            for (int t = 0; t < TT; t++) {
                v[i][t] = 0;
                if (t < m) v[i][t] = f(((const T*)a.x)[(t0 + t) * a.xs + c]) + f(((const T*)a.yz)[(t0 + t) * a.ys + c]);
                if (a.bias) v[i][t] += a.bias[c];
            }
            if (a.b.table) expand_tile<T, TT>(v[i], own, same, a.b.offset, c, z, ldz, m);
#pragma unroll
            for (int t = 0; t < TT; t++) v[i][t] = f(to<T>(v[i][t])), sum[t] = fmaf(v[i][t], v[i][t], sum[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < TT; t++) {
        if (t >= m) break;
        const float r = 1.f / sqrtf(block_sum(sum[t], shared) / (float)h + (float)a.eps);
        if (a.rstd && threadIdx.x == 0) a.rstd[t0 + t] = r;
        sum[t] = r;
    }
#pragma unroll
    for (int i = 0; i < COLS; i++) {
        const int c = threadIdx.x + i * blockDim.x;
        if (c < h) {
            const float w = a.w[c];
#pragma unroll
            for (int t = 0; t < TT; t++)
                if (t < m) {
                    ((T*)a.out)[(t0 + t) * a.os + c] = to<T>(v[i][t]);
                    ((T*)a.normed)[(t0 + t) * a.ns + c] = to<T>(v[i][t] * sum[t] * w);
                }
        }
    }
}
extern "C" __global__ void __launch_bounds__(1024) residual_f32(const __grid_constant__ ResidualArgs a) { residual<float, 1, 16>(a); }
extern "C" __global__ void __launch_bounds__(1024) residual_bf16(const __grid_constant__ ResidualArgs a) { residual<bf16, 1, 16>(a); }

// residual8: a thread owns 8 neighbouring columns, H = 8·threads at most; strides multiples of 8. One token a block: B by tensor cores.
template <int TT> __device__ void residual8(const ResidualArgs& a) {
    extern __shared__ float z[];
    __shared__ float shared[33];
    __shared__ Adapter own[TT];
    const int h = a.h, c = threadIdx.x * 8, ldz = (a.r + 3) & ~3;
    const bool on = c < h;
    float w[8];
    if (on) { // the norm's weights are nobody's output
        *(float4*)w = *(const float4*)(a.w + c);
        *(float4*)(w + 4) = *(const float4*)(a.w + c + 4);
    }
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0), n0 = threadIdx.x / 32 * 256;
    ExpandRow e;
    if (TT == 1) {
        e.start(a.b, m > 0 && a.b.table ? a.adapter[t0] : -1);
        if (e.rank % 8 == 0 && e.rank) {
            e.load(a.b.offset, n0, h, 0, 0);
            e.fetch(a.b.offset, n0, h);
        }
    }
    wait_predecessor();
    if (m <= 0) return;
    uint4 x[TT], y[TT];
    if (on) {
#pragma unroll
        for (int t = 0; t < TT; t++)
            if (t < m) {
                x[t] = *(const uint4*)((const bf16*)a.x + (t0 + t) * a.xs + c);
                y[t] = *(const uint4*)((const bf16*)a.yz + (t0 + t) * a.ys + c);
            }
    }
    bool same = true;
    if (TT > 1 && a.b.table) same = load_tile<bf16>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const bf16*)a.yz + h, a.ys, a.r);
    float v[8][TT], sum[TT];
    float more[8] = {};
    if (TT == 1) e.run(more, (const bf16*)a.yz + t0 * a.ys + h, a.b.offset, n0, h);
    if (on) {
#pragma unroll
        for (int t = 0; t < TT; t++) {
            float p[8] = {}, q[8] = {};
            if (t < m) widen8(x[t], p), widen8(y[t], q);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i][t] = p[i] + q[i];
        }
        if (a.bias)
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int t = 0; t < TT; t++) v[i][t] += a.bias[c + i];
        if (TT == 1)
#pragma unroll
            for (int i = 0; i < 8; i++) v[i][0] += more[i];
        else if (a.b.table && (!same || own[0].rank))
            expand_cols<TT, 4>(v, own, same, a.b.offset, c, [](int i) { return i; }, z, ldz, m), expand_cols<TT, 4>(v + 4, own, same, a.b.offset, c + 4, [](int i) { return i; }, z, ldz, m);
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int t = 0; t < TT; t++) v[i][t] = f(to<bf16>(v[i][t])); // as it is stored
    }
#pragma unroll
    for (int t = 0; t < TT; t++) {
        sum[t] = 0;
        if (on)
#pragma unroll
            for (int i = 0; i < 8; i++) sum[t] = fmaf(v[i][t], v[i][t], sum[t]);
        const float r = 1.f / sqrtf(block_sum(sum[t], shared) / (float)h + (float)a.eps);
        if (a.rstd && threadIdx.x == 0 && t < m) a.rstd[t0 + t] = r;
        if (on && t < m) {
            uint4 o, n;
            o.x = pack(v[0][t], v[1][t]), o.y = pack(v[2][t], v[3][t]), o.z = pack(v[4][t], v[5][t]), o.w = pack(v[6][t], v[7][t]);
            n.x = pack(v[0][t] * r * w[0], v[1][t] * r * w[1]), n.y = pack(v[2][t] * r * w[2], v[3][t] * r * w[3]);
            n.z = pack(v[4][t] * r * w[4], v[5][t] * r * w[5]), n.w = pack(v[6][t] * r * w[6], v[7][t] * r * w[7]);
            *(uint4*)((bf16*)a.out + (t0 + t) * a.os + c) = o;
            *(uint4*)((bf16*)a.normed + (t0 + t) * a.ns + c) = n;
        }
    }
}
extern "C" __global__ void __launch_bounds__(1024) residual8wide_bf16(const __grid_constant__ ResidualArgs a) { residual8<1>(a); }
extern "C" __global__ void __launch_bounds__(512) residual8x1_bf16(const __grid_constant__ ResidualArgs a) { residual8<1>(a); }
extern "C" __global__ void __launch_bounds__(512) residual8x4_bf16(const __grid_constant__ ResidualArgs a) { residual8<4>(a); }
