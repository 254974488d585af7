// RMSNorm: y[t] = x[t]·rstd[t]·w, rstd[t] = 1/√(mean(x[t]²) + eps).
//   x, y [T, H]; w F32 [H]; rstd F32 [T], optional; grid T blocks; moves 2·T·H elements. Oracle: kernels/cpu RMSNorm.
struct NormArgs {
    void* y; ll ys;
    const void* x; ll xs;
    const float* w; float* rstd;
    ll h; double eps;
    const int* head;
};
template <class T> __device__ void rms_norm(const NormArgs& a) {
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x;
    if (t >= a.head[0]) return;
    const T* x = (const T*)a.x + t * a.xs;
    T* y = (T*)a.y + t * a.ys;
    float s = 0;
    for (int i = threadIdx.x; i < a.h; i += blockDim.x) s = fmaf(f(x[i]), f(x[i]), s);
    const float r = 1.f / sqrtf(block_sum(s, shared) / (float)a.h + (float)a.eps);
    if (a.rstd && threadIdx.x == 0) a.rstd[t] = r;
    for (int i = threadIdx.x; i < a.h; i += blockDim.x) y[i] = to<T>(f(x[i]) * r * a.w[i]);
}
extern "C" __global__ void norm_f32(const __grid_constant__ NormArgs a) { rms_norm<float>(a); }
extern "C" __global__ void norm_bf16(const __grid_constant__ NormArgs a) { rms_norm<bf16>(a); }
