// NormBackward: dx[t] += rstd[t]·(w·dy[t] − x[t]·rstd[t]²·mean(w·dy[t]·x[t])).
//   dx, dy, x [T, H]; w F32 [H]; rstd F32 [T]; grid T blocks; moves 4·T·H elements. Oracle: kernels/cpu NormBackward.
struct NormBackwardArgs {
    void* dx; ll ds;
    const void* dy; ll ys;
    const void* x; ll xs;
    const float *w, *rstd;
    ll h;
    const int* head;
};
template <class T> __device__ void norm_backward(const NormBackwardArgs& a) {
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x;
    if (t >= a.head[0]) return;
    const T *x = (const T*)a.x + t * a.xs, *dy = (const T*)a.dy + t * a.ys;
    T* dx = (T*)a.dx + t * a.ds;
    float s = 0;
    for (int i = threadIdx.x; i < a.h; i += blockDim.x) s = fmaf(a.w[i] * f(dy[i]), f(x[i]), s);
    const float r = a.rstd[t], c = block_sum(s, shared) / (float)a.h * r * r;
    for (int i = threadIdx.x; i < a.h; i += blockDim.x) dx[i] = to<T>(f(dx[i]) + r * (a.w[i] * f(dy[i]) - f(x[i]) * c));
}
extern "C" __global__ void norm_backward_f32(const __grid_constant__ NormBackwardArgs a) { norm_backward<float>(a); }
extern "C" __global__ void norm_backward_bf16(const __grid_constant__ NormBackwardArgs a) { norm_backward<bf16>(a); }

// norm_backward8: a thread owns 8 neighbouring columns, which stay in its registers; H = 8·threads at most.
extern "C" __global__ void __launch_bounds__(1024) norm_backward8_bf16(const __grid_constant__ NormBackwardArgs a) {
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x, c = threadIdx.x * 8;
    if (t >= a.head[0]) return;
    const bool on = c < a.h;
    float x[8] = {}, g[8] = {}, s = 0;
    uint4 was = {};
    bf16* dx = (bf16*)a.dx + t * a.ds + c;
    if (on) {
        const uint4 xw = *(const uint4*)((const bf16*)a.x + t * a.xs + c), gw = *(const uint4*)((const bf16*)a.dy + t * a.ys + c);
        was = *(const uint4*)dx;
        float w[8];
        *(float4*)w = __ldg((const float4*)(a.w + c)), *(float4*)(w + 4) = __ldg((const float4*)(a.w + c + 4));
        widen8(xw, x);
        widen8(gw, g);
#pragma unroll
        for (int i = 0; i < 8; i++) g[i] *= w[i], s = fmaf(g[i], x[i], s);
    }
    const float r = a.rstd[t], m = block_sum(s, shared) / (float)(int)a.h * r * r;
    if (!on) return;
    float d[8];
    widen8(was, d);
#pragma unroll
    for (int i = 0; i < 8; i++) d[i] += r * (g[i] - x[i] * m);
    *(uint4*)dx = pack8(d);
}
