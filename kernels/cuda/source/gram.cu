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

// tile: K and x's stride are multiples of 8. 128×128 of c a block, 32 tokens at a time, 4 copies under way; 8 warps of 64×32. Tokens without a
// label are zeros. Grid (⌈K/128⌉, ⌈K/128⌉).
constexpr int gram_stages = 4, gram_half = 32 * 256;
__device__ __forceinline__ void gram_tile(const GramArgs& a) {
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, wm = warp & 1, wn = warp >> 1, r0 = blockIdx.y * 128, c0 = blockIdx.x * 128;
    wait_predecessor();
    allow_successor();
    const int m = a.head[0], steps = (m + 31) / 32;
    auto load = [&](int step) {
        const uint32_t to = base + step % gram_stages * 2 * gram_half;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int id = tid + i * 256, row = id >> 4, c = id & 15, t = step * 32 + row;
            const bool there = t < m && a.label[t] >= 0;
            const uint32_t at = row * 256 + ((c ^ (row & 7)) << 4);
            const int kr = r0 + c * 8, kc = c0 + c * 8;
            copy16(to + at, (const bf16*)a.x + (there && kr < a.k ? t * a.xs + kr : 0), there && kr < a.k);
            copy16(to + gram_half + at, (const bf16*)a.x + (there && kc < a.k ? t * a.xs + kc : 0), there && kc < a.k);
        }
    };
    for (int s = 0; s < gram_stages - 1; s++) {
        if (s < steps) load(s);
        copy_commit();
    }
    float acc[4][4][4] = {};
    for (int s = 0; s < steps; s++) {
        copy_wait<gram_stages - 2>();
        __syncthreads();
        if (s + gram_stages - 1 < steps) load(s + gram_stages - 1);
        copy_commit();
        const uint32_t rows = base + s % gram_stages * 2 * gram_half, cols = rows + gram_half;
#pragma unroll
        for (int q = 0; q < 2; q++) {
            uint32_t af[4][4], bf[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = q * 16 + (lane & 7) + (lane >> 4) * 8, c = wm * 8 + i * 2 + ((lane >> 3) & 1);
                ldmatrix4t(af[i], rows + r * 256 + ((c ^ (r & 7)) << 4));
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int r = q * 16 + (lane & 15), c = wn * 4 + j * 2 + (lane >> 4);
                ldmatrix4t(bf[j], cols + r * 256 + ((c ^ (r & 7)) << 4));
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mma(acc[i][j], af[i], bf[j >> 1] + (j & 1) * 2);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = r0 + wm * 64 + i * 16 + (lane >> 2) + h * 8, c = c0 + wn * 32 + j * 8 + (lane & 3) * 2;
                if (r >= a.k || c >= a.k) continue;
                float* to = a.c + r * a.cs + c;
                to[0] += acc[i][j][2 * h], to[1] += acc[i][j][2 * h + 1];
            }
}
extern "C" __global__ void __launch_bounds__(256, 2) gram_tile_bf16(const __grid_constant__ GramArgs a) { gram_tile(a); }
