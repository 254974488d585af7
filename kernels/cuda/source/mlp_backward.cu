// MLPBackward: dg = da·u·σ(g)(1 + g(1−σ(g))), du = da·silu(g). MLPForward: act = silu(g)·u, of a saved g and u.
//   da, act [T, F]; gate_up [T, 2·F]; dgu [T, 2·F], may be gate_up. Grid (T, ⌈F/(256·N)⌉), a thread N neighbouring columns.
//   Moves 5·T·F elements backward, 3·T·F forward. Oracle: kernels/cpu MLPBackward, MLPForward.
struct MLPBackwardArgs {
    void* dgu; ll ds;
    void* a; ll as; // da, or act
    const void* gate_up; ll gs;
    ll ff;
    const int* head;
};
template <class T> __device__ __forceinline__ float sigmoid(float g) { return 1.f / (1.f + (sizeof(T) == 2 ? __expf(-g) : expf(-g))); }
template <class T> __device__ __forceinline__ void silu_mul_backward(float& g, float& u, float da) {
    const float s = sigmoid<T>(g), dg = da * u * s * (1.f + g * (1.f - s));
    u = da * (g * s);
    g = dg;
}
template <class T> __device__ void mlp_backward(const MLPBackwardArgs& a) {
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x, c = blockIdx.y * blockDim.x + threadIdx.x;
    if (t >= a.head[0] || c >= a.ff) return;
    const T* gu = (const T*)a.gate_up + t * a.gs + c;
    float g = f(gu[0]), u = f(gu[a.ff]);
    silu_mul_backward<T>(g, u, f(((const T*)a.a)[t * a.as + c]));
    T* d = (T*)a.dgu + t * a.ds + c;
    d[0] = to<T>(g);
    d[a.ff] = to<T>(u);
}
extern "C" __global__ void __launch_bounds__(256) mlp_backward_f32(const __grid_constant__ MLPBackwardArgs a) { mlp_backward<float>(a); }
extern "C" __global__ void __launch_bounds__(256) mlp_backward_bf16(const __grid_constant__ MLPBackwardArgs a) { mlp_backward<bf16>(a); }
template <class T> __device__ void mlp_forward(const MLPBackwardArgs& a) {
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x, c = blockIdx.y * blockDim.x + threadIdx.x;
    if (t >= a.head[0] || c >= a.ff) return;
    const T* gu = (const T*)a.gate_up + t * a.gs + c;
    const float g = f(gu[0]);
    ((T*)a.a)[t * a.as + c] = to<T>(g * sigmoid<T>(g) * f(gu[a.ff]));
}
extern "C" __global__ void __launch_bounds__(256) mlp_forward_f32(const __grid_constant__ MLPBackwardArgs a) { mlp_forward<float>(a); }
extern "C" __global__ void __launch_bounds__(256) mlp_forward_bf16(const __grid_constant__ MLPBackwardArgs a) { mlp_forward<bf16>(a); }

extern "C" __global__ void __launch_bounds__(256) mlp_backward8_bf16(const __grid_constant__ MLPBackwardArgs a) {
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x, c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (t >= a.head[0] || c >= a.ff) return;
    const bf16* gu = (const bf16*)a.gate_up + t * a.gs + c;
    const uint4 gw = *(const uint4*)gu, uw = *(const uint4*)(gu + a.ff), dw = *(const uint4*)((const bf16*)a.a + t * a.as + c);
    float g[8], u[8], da[8];
    widen8(gw, g);
    widen8(uw, u);
    widen8(dw, da);
#pragma unroll
    for (int i = 0; i < 8; i++) silu_mul_backward<bf16>(g[i], u[i], da[i]);
    bf16* d = (bf16*)a.dgu + t * a.ds + c;
    *(uint4*)d = pack8(g);
    *(uint4*)(d + a.ff) = pack8(u);
}
extern "C" __global__ void __launch_bounds__(256) mlp_forward8_bf16(const __grid_constant__ MLPBackwardArgs a) {
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x, c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (t >= a.head[0] || c >= a.ff) return;
    const bf16* gu = (const bf16*)a.gate_up + t * a.gs + c;
    const uint4 gw = *(const uint4*)gu, uw = *(const uint4*)(gu + a.ff);
    float g[8], u[8];
    widen8(gw, g);
    widen8(uw, u);
#pragma unroll
    for (int i = 0; i < 8; i++) g[i] = g[i] * sigmoid<bf16>(g[i]) * u[i];
    *(uint4*)((bf16*)a.a + t * a.as + c) = pack8(g);
}
