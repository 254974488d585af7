// ResidualNorm: out[t] = x[t] + y[t] + bias + B·z[t]; normed[t] = out[t]·rstd[t]·w. The norm is of the unrounded sum.
//   out, normed, x [T, H]; yz [T, H+R]; bias, w F32 [H]; rstd F32 [T], optional.
//   grid ⌈T/TT⌉ blocks; a thread owns the columns threadIdx + i·threads, at most 16 of them. moves 4·T·H elements and B's.
//   Oracle: kernels/cpu ResidualNorm.
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
            for (int t = 0; t < TT; t++) sum[t] = fmaf(v[i][t], v[i][t], sum[t]);
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
extern "C" __global__ void __launch_bounds__(512) residual4_bf16(const __grid_constant__ ResidualArgs a) { residual<bf16, 4, 8>(a); }
