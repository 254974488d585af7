// Gram: c += Σ x[t]ᵀ·x[t] over the step's tokens with a label, in order of t.
//   x [T, K]; c F32 [K, K]; a tile of 64×64 a block, grid (⌈K/64⌉, ⌈K/64⌉). Oracle: kernels/cpu Gram.
struct GramArgs {
    float* c; ll cs;
    const void* x; ll xs;
    ll k;
    const int *label, *head;
};
template <class T> __device__ void gram(const GramArgs& a) {
    __shared__ float rows[16][65], cols[16][65];
    wait_predecessor();
    allow_successor();
    const int m = a.head[0], r0 = blockIdx.y * 64, c0 = blockIdx.x * 64, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float acc[4][4] = {};
    for (int t0 = 0; t0 < m; t0 += 16) {
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
            const int q = i / 64, p = i % 64, t = t0 + q;
            const bool on = t < m && a.label[t] >= 0;
            rows[q][p] = on && r0 + p < a.k ? f(((const T*)a.x)[t * a.xs + r0 + p]) : 0.f;
            cols[q][p] = on && c0 + p < a.k ? f(((const T*)a.x)[t * a.xs + c0 + p]) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < 16; q++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(rows[q][ty + 16 * i], cols[q][tx + 16 * j], acc[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int r = r0 + ty + 16 * i, c = c0 + tx + 16 * j;
            if (r < a.k && c < a.k) a.c[r * a.cs + c] += acc[i][j];
        }
}
extern "C" __global__ void __launch_bounds__(256) gram_f32(const __grid_constant__ GramArgs a) { gram<float>(a); }
extern "C" __global__ void __launch_bounds__(256) gram_bf16(const __grid_constant__ GramArgs a) { gram<bf16>(a); }
