// LinearBackward: dx[t] = dyz[t]·w over the fused weight w = [W; A], or dx[t] += with accumulate.
//   dyz [T, N]; w [N, K]; dx [T, K]. Oracle: kernels/cpu LinearBackward.
//
// plain: a tile of 64×64 a block, any shape. Every 128 rows of w are added up on their own, and then those sums: over a vocabulary one
// long chain of additions would lose bits. Grid (⌈K/64⌉, ⌈T/64⌉).
struct LinearBackwardArgs {
    void* dx; ll xs;
    const void* dyz; ll ys;
    const void* w; ll n, k;
    const int* count; ll accumulate;
};
template <class T> __device__ void linear_backward_plain(const LinearBackwardArgs& a) {
    __shared__ float ds[16][65], ws[16][65];
    wait_predecessor();
    allow_successor();
    const int m = *a.count, t0 = blockIdx.y * 64, k0 = blockIdx.x * 64;
    if (t0 >= m) return;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {}, acc[4][4] = {};
    for (int n0 = 0; n0 < a.n; n0 += 16) {
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
            const int r = i / 16, c = i % 16, q = i / 64, p = i % 64;
            ds[c][r] = t0 + r < m && n0 + c < a.n ? f(((const T*)a.dyz)[(t0 + r) * a.ys + n0 + c]) : 0.f;
            ws[q][p] = n0 + q < a.n && k0 + p < a.k ? f(((const T*)a.w)[(n0 + q) * a.k + k0 + p]) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < 16; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(ds[c][ty + 16 * i], ws[c][tx + 16 * j], acc[i][j]);
        __syncthreads();
        if ((n0 & 127) == 112)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] += acc[i][j], acc[i][j] = 0;
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int t = t0 + ty + 16 * i, k = k0 + tx + 16 * j;
            if (t >= m || k >= a.k) continue;
            T* to_x = (T*)a.dx + t * a.xs + k;
            const float v = sum[i][j] + acc[i][j];
            *to_x = to<T>(a.accumulate ? f(*to_x) + v : v);
        }
}
extern "C" __global__ void __launch_bounds__(256) linear_backward_plain_f32(const __grid_constant__ LinearBackwardArgs a) { linear_backward_plain<float>(a); }
extern "C" __global__ void __launch_bounds__(256) linear_backward_plain_bf16(const __grid_constant__ LinearBackwardArgs a) { linear_backward_plain<bf16>(a); }

// tile: where cuBLASLt is absent or results may not depend on the batch. N, K and the strides are multiples of 8. 128 tokens by 128
// columns a block, 32 rows of w at a time, 4 copies under way; 8 warps of 64 tokens by 32 columns. A token's sum has one order in every
// batch. Grid (⌈K/128⌉, ⌈T/128⌉).
constexpr int lb_stages = 4, lb_stage = 128 * 64 + 32 * 256;
__device__ __forceinline__ void linear_backward_tile(const LinearBackwardArgs& a) {
    extern __shared__ __align__(128) unsigned char smem[];
    const uint32_t base = shared_address(smem);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, wm = warp & 1, wn = warp >> 1;
    const int t0 = blockIdx.y * 128, k0 = blockIdx.x * 128, steps = ((int)a.n + 31) / 32;
    wait_predecessor();
    allow_successor();
    const int m = *a.count;
    if (t0 >= m) return;
    auto load = [&](int step) {
        const uint32_t to_d = base + step % lb_stages * lb_stage, to_w = to_d + 128 * 64;
        const int n0 = step * 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int id = tid + i * 256, r = id >> 2, c = id & 3, t = t0 + r, n = n0 + c * 8;
            const bool on = t < m && n < a.n;
            copy16(to_d + r * 64 + ((c ^ ((r >> 1) & 3)) << 4), (const bf16*)a.dyz + (on ? t * a.ys + n : 0), on);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int id = tid + i * 256, r = id >> 4, c = id & 15, n = n0 + r, k = k0 + c * 8;
            const bool on = n < a.n && k < a.k;
            copy16(to_w + r * 256 + ((c ^ (r & 7)) << 4), (const bf16*)a.w + (on ? n * a.k + k : 0), on);
        }
    };
    for (int s = 0; s < lb_stages - 1; s++) {
        if (s < steps) load(s);
        copy_commit();
    }
    float acc[4][4][4] = {};
    for (int s = 0; s < steps; s++) {
        copy_wait<lb_stages - 2>();
        __syncthreads();
        if (s + lb_stages - 1 < steps) load(s + lb_stages - 1);
        copy_commit();
        const uint32_t sd = base + s % lb_stages * lb_stage, sw = sd + 128 * 64;
#pragma unroll
        for (int q = 0; q < 2; q++) {
            uint32_t af[4][4], bf[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = wm * 64 + i * 16 + (lane & 15), c = q * 2 + (lane >> 4);
                ldmatrix4(af[i], sd + r * 64 + ((c ^ ((r >> 1) & 3)) << 4));
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int r = q * 16 + (lane & 15), c = wn * 4 + j * 2 + (lane >> 4);
                ldmatrix4t(bf[j], sw + r * 256 + ((c ^ (r & 7)) << 4));
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
                const int t = t0 + wm * 64 + i * 16 + (lane >> 2) + h * 8, k = k0 + wn * 32 + j * 8 + (lane & 3) * 2;
                if (t >= m || k >= a.k) continue;
                uint32_t* at = (uint32_t*)((bf16*)a.dx + t * a.xs + k);
                float x = acc[i][j][2 * h], y = acc[i][j][2 * h + 1];
                if (a.accumulate) {
                    const uint32_t old = *at;
                    x += __uint_as_float(old << 16), y += __uint_as_float(old & 0xffff0000u);
                }
                *at = pack(x, y);
            }
}
extern "C" __global__ void __launch_bounds__(256, 2) linear_backward_bf16(const __grid_constant__ LinearBackwardArgs a) { linear_backward_tile(a); }
