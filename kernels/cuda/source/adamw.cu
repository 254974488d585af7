// GradNorm: norms[l] = Σ g² over lane l's gradient, 0 where the lane is not set.
//   grid (256, lanes): a block sums every 256th run of 4,096 elements; grad_norm adds the blocks' sums in order. float64 sums.
//   Oracle: kernels/cpu GradNorm.
struct GradNormArgs {
    const Lane* lanes;
    double* sums; // [lanes, blocks]
    float* norms; ll n, blocks;
};
extern "C" __global__ void __launch_bounds__(256) grad_squares(const __grid_constant__ GradNormArgs a) {
    __shared__ double shared[8];
    wait_predecessor();
    allow_successor();
    const Lane lane = a.lanes[blockIdx.y];
    double sum = 0;
    if (lane.rank)
        for (ll at = blockIdx.x * 4096LL; at < lane.size; at += gridDim.x * 4096LL) {
            float run = 0;
            for (int i = threadIdx.x; i < 4096; i += 256)
                if (at + i < lane.size) {
                    const float g = lane.grad[at + i];
                    run = fmaf(g, g, run);
                }
            sum += (double)run;
        }
#pragma unroll
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    sum = 0;
    for (int w = 0; w < 8; w++) sum += shared[w];
    a.sums[blockIdx.y * a.blocks + blockIdx.x] = sum;
}
extern "C" __global__ void grad_norm(const __grid_constant__ GradNormArgs a) {
    wait_predecessor();
    allow_successor();
    double sum = 0;
    for (int i = threadIdx.x; i < a.blocks; i += 32) sum += a.sums[blockIdx.x * a.blocks + i];
#pragma unroll
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    if (threadIdx.x == 0) a.norms[blockIdx.x] = a.lanes[blockIdx.x].rank ? (float)sum : 0.f;
}

// AdamW, of one lane's B, as kernels.AdamWArgs says:
//   g ← g·min(1, clip/n);  ĝ = g·C;  m ← β₁m + (1−β₁)ĝ;  v ← β₂v + (1−β₂)ĝ²;  B ← B − lr·√(1−β₂ᵗ)/(1−β₁ᵗ)·m/(√v + eps);
//   B ← B − lr·decay·B;  working ← scaling·B;  g ← 0. Where n is not finite g ← 0 alone.
//   master, m, v, grad F32 [rows·rank]; working T [rows·rank]; C F32 [sites, rank, rank], or null.
//   A block takes each (= ⌊4096/rank⌋) rows of one site; grid (blocks of the longest site, sites). moves 34 (T = bf16: 32) bytes an element.
//   Oracle: kernels/cpu AdamW.
constexpr int adamw_sites = 32;
struct AdamWArgs {
    float *master, *m, *v, *grad;
    void* working;
    ll rank, each;
    const float* correction;
    const float* norm; // of the lane
    const float* hyper;
    ll rows[adamw_sites + 1]; // first row of each of the launch's sites, and the end
};
template <class T> __device__ void adamw(const AdamWArgs& a) {
    extern __shared__ float rows[]; // the block's gradients, where there is a correction
    __shared__ float clip, size;
    __shared__ int move;
    wait_predecessor();
    allow_successor();
    const ll r0 = a.rows[blockIdx.y] + blockIdx.x * a.each, r1 = min(a.rows[blockIdx.y + 1], r0 + a.each);
    if (r0 >= r1) return;
    const float beta1 = a.hyper[1], beta2 = a.hyper[2], eps = a.hyper[3], shrink = a.hyper[0] * a.hyper[4], scaling = a.hyper[7];
    if (threadIdx.x == 0) {
        const double norm = sqrt((double)*a.norm), most = a.hyper[5], step = a.hyper[6];
        move = isfinite(norm);
        clip = most > 0 && norm > most ? (float)(most / norm) : 1.f;
        size = (float)((double)a.hyper[0] * sqrt(1 - pow((double)beta2, step)) / (1 - pow((double)beta1, step)));
    }
    __syncthreads();
    const int rank = (int)a.rank, n = (int)((r1 - r0) * a.rank);
    const ll at = r0 * a.rank;
    if (!move) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) a.grad[at + i] = 0;
        return;
    }
    const float* c = a.correction;
    if (c) {
        c += blockIdx.y * a.rank * a.rank;
        for (int i = threadIdx.x; i < n; i += blockDim.x) rows[i] = a.grad[at + i] * clip;
        __syncthreads();
    }
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float g = 0;
        if (c) {
            const int j = i % rank;
            const float* row = rows + (i - j);
            for (int k = 0; k < rank; k++) g = fmaf(row[k], __ldg(c + k * rank + j), g);
        } else g = a.grad[at + i] * clip;
        const float m = beta1 * a.m[at + i] + (1 - beta1) * g, v = beta2 * a.v[at + i] + (1 - beta2) * g * g;
        a.m[at + i] = m, a.v[at + i] = v;
        float b = a.master[at + i] - size * m / (sqrtf(v) + eps);
        b -= shrink * b;
        a.master[at + i] = b;
        ((T*)a.working)[at + i] = to<T>(b * scaling);
        a.grad[at + i] = 0;
    }
}
extern "C" __global__ void __launch_bounds__(256) adamw_f32(const __grid_constant__ AdamWArgs a) { adamw<float>(a); }
extern "C" __global__ void __launch_bounds__(256) adamw_bf16(const __grid_constant__ AdamWArgs a) { adamw<bf16>(a); }
