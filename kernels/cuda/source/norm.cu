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
    allow_successor();
    wait_predecessor();
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

// norm8: a thread owns 8 neighbouring columns, H = 8·threads at most; the same order of sums as residual8's.
extern "C" __global__ void __launch_bounds__(1024) norm8_bf16(const __grid_constant__ NormArgs a) {
    __shared__ float shared[33];
    allow_successor();
    wait_predecessor();
    const int t = blockIdx.x, c = threadIdx.x * 8;
    if (t >= a.head[0]) return;
    const bool on = c < a.h;
    float v[8] = {}, s = 0;
    if (on) widen8(*(const uint4*)((const bf16*)a.x + t * a.xs + c), v);
#pragma unroll
    for (int i = 0; i < 8; i++) s = fmaf(v[i], v[i], s);
    const float r = 1.f / sqrtf(block_sum(s, shared) / (float)(int)a.h + (float)a.eps);
    if (a.rstd && threadIdx.x == 0) a.rstd[t] = r;
    if (!on) return;
    uint4 n;
    n.x = pack(v[0] * r * a.w[c], v[1] * r * a.w[c + 1]), n.y = pack(v[2] * r * a.w[c + 2], v[3] * r * a.w[c + 3]);
    n.z = pack(v[4] * r * a.w[c + 4], v[5] * r * a.w[c + 5]), n.w = pack(v[6] * r * a.w[c + 6], v[7] * r * a.w[c + 7]);
    *(uint4*)((bf16*)a.y + t * a.ys + c) = n;
}
