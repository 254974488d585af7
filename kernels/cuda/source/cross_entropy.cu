// CrossEntropy, for each token t with a label, p = softmax(logits[t]): nll[t] = −log p[label]; and the logits' place is taken by their
// gradient loss[t]·(p − onehot(label)), in T: of bfloat16 in the first half of the row. Other tokens get zeros.
//   logits F32 [C, V] of the tokens from first on; nll F32 [T]; grid C blocks; moves 2.5·C·V elements of 4 bytes. Logits themselves and
//   dh = gradient·E are products of the whole chunk. Oracle: kernels/cpu CrossEntropy.
//
// Each thread sums its own exponentials, few enough for float32; the threads' sums are added in float64, in order.
struct CrossEntropyArgs {
    float* logits; ll v;
    float* nll;
    const int *label, *loss, *count; ll first; // count: tokens of the chunk
    ll train;
};
template <class T, int N> __device__ void cross_entropy(const CrossEntropyArgs& a) {
    __shared__ double sums[32];
    __shared__ float tops[32];
    wait_predecessor();
    allow_successor();
    const int i = blockIdx.x, v = (int)a.v, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, run = blockDim.x * N;
    if (i >= *a.count) return;
    float* x = a.logits + i * a.v;
    T* d = (T*)x;
    const int label = a.label[a.first + i];
    auto put = [&](int c, const float* g) {
        if (N == 1) d[c] = to<T>(g[0]);
        else if (sizeof(T) == 2) *(uint4*)((bf16*)d + c) = make_uint4(pack(g[0], g[1 % N]), pack(g[2 % N], g[3 % N]), pack(g[4 % N], g[5 % N]), pack(g[6 % N], g[7 % N]));
        else {
            ((float4*)(x + c))[0] = make_float4(g[0], g[1 % N], g[2 % N], g[3 % N]);
            ((float4*)(x + c))[1] = make_float4(g[4 % N], g[5 % N], g[6 % N], g[7 % N]);
        }
    };
    auto get = [&](int c, float* g) {
        if (N == 1) g[0] = x[c];
        else {
            const float4 p = ((const float4*)(x + c))[0], q = ((const float4*)(x + c))[1];
            g[0] = p.x, g[1 % N] = p.y, g[2 % N] = p.z, g[3 % N] = p.w, g[4 % N] = q.x, g[5 % N] = q.y, g[6 % N] = q.z, g[7 % N] = q.w;
        }
    };
    if (label < 0) {
        if (threadIdx.x == 0) a.nll[a.first + i] = 0;
        const float zero[N] = {};
        if (a.train)
            for (int c = threadIdx.x * N; c < v; c += run) put(c, zero);
        return;
    }
    const float of = x[label];
    float top = -CUDART_INF_F, sum = 0;
    for (int c = threadIdx.x * N; c < v; c += run) {
        float g[N];
        get(c, g);
        float m = g[0];
#pragma unroll
        for (int j = 1; j < N; j++) m = fmaxf(m, g[j]);
        if (m > top) {
            sum *= expf(top - m); // exp(−∞) is 0
            top = m;
        }
#pragma unroll
        for (int j = 0; j < N; j++) sum += expf(g[j] - top);
    }
    float best = warp_max(top);
    if (lane == 0) tops[warp] = best;
    __syncthreads();
    best = warp_max(lane < warps ? tops[lane] : -CUDART_INF_F);
    double part = sum == 0 ? 0.0 : (double)sum * (double)expf(top - best);
#pragma unroll
    for (int o = 16; o; o >>= 1) part += __shfl_xor_sync(~0u, part, o);
    if (lane == 0) sums[warp] = part;
    __syncthreads();
    double all = 0;
    for (int w = 0; w < warps; w++) all += sums[w];
    if (threadIdx.x == 0) a.nll[a.first + i] = (float)((double)best - (double)of + log(all));
    if (!a.train) return;
    const float loss = __int_as_float(a.loss[a.first + i]), scale = (float)((double)loss / all);
    // A run is read by all before it is written; what is written of it lies in runs that have been read.
    for (int c0 = 0; c0 < v; c0 += run) {
        const int c = c0 + threadIdx.x * N;
        float g[N];
        if (c < v) {
            get(c, g);
#pragma unroll
            for (int j = 0; j < N; j++) g[j] = expf(g[j] - best) * scale - (c + j == label ? loss : 0.f);
        }
        __syncthreads();
        if (c < v) put(c, g);
    }
}
extern "C" __global__ void __launch_bounds__(1024) cross_entropy1_f32(const __grid_constant__ CrossEntropyArgs a) { cross_entropy<float, 1>(a); }
extern "C" __global__ void __launch_bounds__(1024) cross_entropy8_f32(const __grid_constant__ CrossEntropyArgs a) { cross_entropy<float, 8>(a); }
extern "C" __global__ void __launch_bounds__(1024) cross_entropy1_bf16(const __grid_constant__ CrossEntropyArgs a) { cross_entropy<bf16, 1>(a); }
extern "C" __global__ void __launch_bounds__(1024) cross_entropy8_bf16(const __grid_constant__ CrossEntropyArgs a) { cross_entropy<bf16, 8>(a); }

// chunk_counts: counts[i] = how many of the step's tokens are in chunk i of each from first on.
struct ChunkArgs {
    int* counts; ll n, first, each;
    const int* head;
};
extern "C" __global__ void chunk_counts(const __grid_constant__ ChunkArgs a) {
    wait_predecessor();
    allow_successor();
    for (int i = threadIdx.x; i < a.n; i += blockDim.x) a.counts[i] = max(0, min((int)a.each, a.head[0] - (int)a.first - i * (int)a.each));
}
