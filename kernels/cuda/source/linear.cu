// Linear: yz[t] = [x[t]·Wᵀ, x[t]·Aᵀ] over the fused weight w = [W; A].
//   x [T, K]; w [N, K]; yz [T, N]. Oracle: kernels/cpu Linear.
//
// plain: a tile of 64×64 a block, any shape; a thread adds in order of k. Grid (⌈N/64⌉, ⌈T/64⌉).
struct LinearArgs {
    void* y; ll ys;
    const void* x; ll xs;
    const void* w; ll n, k, m; // m: tokens at most
    const int* count; ll first; // tokens, less first
    float* partial; unsigned* arrived;
};
template <class T, class O> __device__ void linear_plain(const LinearArgs& a) {
    __shared__ float xs[16][65], ws[16][65];
    wait_predecessor();
    allow_successor();
    const int m = *a.count - (int)a.first, t0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
    if (t0 >= m) return;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float acc[4][4] = {};
    for (int k0 = 0; k0 < a.k; k0 += 16) {
        for (int i = threadIdx.x; i < 64 * 16; i += 256) {
            const int r = i / 16, c = i % 16;
            xs[c][r] = t0 + r < m && k0 + c < a.k ? f(((const T*)a.x)[(t0 + r) * a.xs + k0 + c]) : 0.f;
            ws[c][r] = n0 + r < a.n && k0 + c < a.k ? f(((const T*)a.w)[(n0 + r) * a.k + k0 + c]) : 0.f;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < 16; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(xs[c][ty + 16 * i], ws[c][tx + 16 * j], acc[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int t = t0 + ty + 16 * i, n = n0 + tx + 16 * j;
            if (t < m && n < a.n) ((O*)a.y)[t * a.ys + n] = to<O>(acc[i][j]);
        }
}
extern "C" __global__ void __launch_bounds__(256) linear_plain_f32(const __grid_constant__ LinearArgs a) { linear_plain<float, float>(a); }
extern "C" __global__ void __launch_bounds__(256) linear_plain_bf16(const __grid_constant__ LinearArgs a) { linear_plain<bf16, bf16>(a); }
extern "C" __global__ void __launch_bounds__(256) linear_plain_bf16_f32(const __grid_constant__ LinearArgs a) { linear_plain<bf16, float>(a); }

// skinny: up to BM tokens; the weight is streamed once, K a multiple of 8. Tiles of 128 rows of w by 64 of k lie one after another
// (k fastest) and are dealt out evenly in runs, one run a block, whatever the number of rows (stream-K: Osama et al., 2023). A row tile that
// several blocks share is summed by the one that comes last, in order of k: the result does not depend on who that is, nor on BM,
// so a token's sum is the same in every batch.
//   8 warps; WR of them along the rows. STAGES copies under way. partial [blocks, 2, 256, values a thread] F32; arrived [tiles], zero.
template <int BM, int WR, int STAGES, class O> __device__ void linear_skinny(const LinearArgs& a) {
    constexpr int MI = 128 / WR / 16, NI = BM / (8 / WR) / 8, ACC = MI * NI * 4;
    constexpr int ABYTES = 128 * 128, BBYTES = BM * 128, STAGE = ABYTES + BBYTES;
    extern __shared__ __align__(128) unsigned char smem[];
    __shared__ int last;
    const uint32_t base = shared_address(smem);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, wr = warp % WR, wt = warp / WR;
    const int kis = (a.k + 63) / 64, tiles = (a.n + 127) / 128;
    const ll total = (ll)tiles * kis;
    const int begin = blockIdx.x * total / gridDim.x, end = (blockIdx.x + 1) * total / gridDim.x, steps = end - begin;

    auto load_w = [&](int it, int stage) {
        const int tile = it / kis, k0 = it % kis * 64;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int id = tid + i * 256, r = id >> 3, c = id & 7, n = tile * 128 + r, k = k0 + c * 8;
            const bool on = n < a.n && k < a.k;
            copy16(base + stage * STAGE + r * 128 + ((c ^ (r & 7)) << 4), (const bf16*)a.w + (on ? n * a.k + k : 0), on);
        }
    };
    auto load_x = [&](int it, int stage) {
        const int k0 = it % kis * 64;
#pragma unroll
        for (int id = tid; id < BM * 8; id += 256) {
            const int r = id >> 3, c = id & 7, k = k0 + c * 8;
            const bool on = r < a.m && k < a.k;
            copy16(base + stage * STAGE + ABYTES + r * 128 + ((c ^ (r & 7)) << 4), (const bf16*)a.x + (on ? r * a.xs + k : 0), on);
        }
    };
    // The weights do not depend on what ran before.
    for (int s = 0; s < STAGES - 1; s++)
        if (s < steps) load_w(begin + s, s);
    wait_predecessor();
    allow_successor();
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load_x(begin + s, s);
        copy_commit();
    }
    const int m = *a.count - (int)a.first;
    float acc[MI][NI][4] = {};
    int from = begin; // first step of the current tile that is ours
    for (int s = 0; s < steps; s++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < steps) {
            load_w(begin + s + STAGES - 1, (s + STAGES - 1) % STAGES);
            load_x(begin + s + STAGES - 1, (s + STAGES - 1) % STAGES);
        }
        copy_commit();
        const uint32_t sa = base + s % STAGES * STAGE, sb = sa + ABYTES;
#pragma unroll
        for (int kk = 0; kk < 4; kk++) {
            uint32_t af[MI][4], bf[NI][2];
#pragma unroll
            for (int i = 0; i < MI; i++) {
                const int r = wr * (128 / WR) + i * 16 + (lane & 15), c = kk * 2 + (lane >> 4);
                ldmatrix4(af[i], sa + r * 128 + ((c ^ (r & 7)) << 4));
            }
            if (NI == 1) {
                const int r = lane & 7, c = kk * 2 + ((lane >> 3) & 1);
                ldmatrix2(bf[0], sb + r * 128 + ((c ^ (r & 7)) << 4));
            } else {
#pragma unroll
                for (int j = 0; j + 1 < NI; j += 2) {
                    const int r = wt * (NI * 8) + j * 8 + (lane & 7) + ((lane >> 4) << 3), c = kk * 2 + ((lane >> 3) & 1);
                    ldmatrix4(bf[j], sb + r * 128 + ((c ^ (r & 7)) << 4)); // bf[j] and bf[j+1] are adjacent
                }
            }
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++) mma(acc[i][j], af[i], bf[j]);
        }
        const int it = begin + s, tile = it / kis;
        if (it % kis != kis - 1 && s != steps - 1) continue;
        // The tile, or our share of it, is complete.
        bool write = true;
        if (from != tile * kis || it != tile * kis + kis - 1) {
            const ll g = gridDim.x;
            const int first = ((ll)tile * kis + 1) * g > 0 ? (((ll)tile * kis + 1) * g - 1) / total : 0;
            const int final_ = (((ll)tile * kis + kis) * g - 1) / total;
            auto place = [&](int block) {
                const int b0 = block * total / g;
                return a.partial + (((ll)block * 2 + (b0 / kis == tile ? 0 : 1)) * ACC) * 256 + tid;
            };
            float* own = place(blockIdx.x);
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++)
#pragma unroll
                    for (int q = 0; q < 4; q++) __stcg(own + ((i * NI + j) * 4 + q) * 256, acc[i][j][q]);
            __threadfence();
            __syncthreads();
            if (tid == 0) {
                const unsigned n = atomicAdd(a.arrived + tile, 1u);
                last = n == (unsigned)(final_ - first);
                if (last) a.arrived[tile] = 0;
            }
            __syncthreads();
            write = last;
            if (write) {
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int j = 0; j < NI; j++)
#pragma unroll
                        for (int q = 0; q < 4; q++) acc[i][j][q] = 0;
                __threadfence();
                for (int block = first; block <= final_; block += 2) { // two shares' loads under way
                    const float *p = place(block), *p2 = place(min(block + 1, final_));
                    float v[ACC], v2[ACC];
#pragma unroll
                    for (int r = 0; r < ACC; r++) v[r] = __ldcg(p + r * 256);
                    if (ACC <= 32)
#pragma unroll
                        for (int r = 0; r < ACC; r++) v2[r] = __ldcg(p2 + r * 256);
#pragma unroll
                    for (int r = 0; r < ACC; r++) ((float*)acc)[r] += v[r];
                    if (block == final_) break;
                    if (ACC > 32)
#pragma unroll
                        for (int r = 0; r < ACC; r++) v2[r] = __ldcg(p2 + r * 256);
#pragma unroll
                    for (int r = 0; r < ACC; r++) ((float*)acc)[r] += v2[r];
                }
            }
        }
        if (write) {
#pragma unroll
            for (int i = 0; i < MI; i++)
#pragma unroll
                for (int j = 0; j < NI; j++)
#pragma unroll
                    for (int q = 0; q < 4; q++) {
                        const int n = tile * 128 + wr * (128 / WR) + i * 16 + (lane >> 2) + (q >> 1) * 8;
                        const int t = wt * (NI * 8) + j * 8 + (lane & 3) * 2 + (q & 1);
                        if (n < a.n && t < m) ((O*)a.y)[t * a.ys + n] = to<O>(acc[i][j][q]);
                    }
        }
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
            for (int j = 0; j < NI; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) acc[i][j][q] = 0;
        from = it + 1;
    }
}
#define SKINNY(BM, WR, STAGES)                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 1) linear##BM##_bf16(const __grid_constant__ LinearArgs a) { linear_skinny<BM, WR, STAGES, bf16>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 1) linear##BM##_bf16_f32(const __grid_constant__ LinearArgs a) { linear_skinny<BM, WR, STAGES, float>(a); }
SKINNY(8, 8, 10)
SKINNY(16, 8, 10)
SKINNY(32, 8, 8)
SKINNY(64, 4, 8)
SKINNY(128, 4, 6)

// few: up to BM = 8 or 16 tokens. A block takes a run of rows of w, a multiple of 16, over all of K: nothing is joined between blocks. Its
// 8 warps take the eight 16-wide slices of each 128 of k, and add up at the end of a tile of 64 rows, in order.
//   grid ⌈N/rows⌉ with rows = 16·⌈N/16/multiprocessors⌉ in partial's place.
template <int BM, int STAGES, class O> __device__ void linear_few(const LinearArgs& a, int rows) {
    constexpr int NI = BM / 8, MI = 4, ABYTES = 64 * 256, BBYTES = BM * 256, STAGE = ABYTES + BBYTES, ACC = MI * NI * 4;
    extern __shared__ __align__(128) unsigned char smem[];
    float* share = (float*)(smem + STAGES * STAGE); // [8, ACC, 32]
    const uint32_t base = shared_address(smem);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int r0 = blockIdx.x * rows, r1 = min((int)a.n, r0 + rows), kis = (a.k + 127) / 128, tiles = (r1 - r0 + 63) / 64, steps = tiles * kis;
    auto load_w = [&](int it, int stage) {
        const int n0 = r0 + it / kis * 64, k0 = it % kis * 128;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int id = tid + i * 256, r = id >> 4, c = id & 15, n = n0 + r, k = k0 + c * 8;
            const bool on = n < r1 && k < a.k;
            copy16(base + stage * STAGE + r * 256 + ((c ^ (r & 7)) << 4), (const bf16*)a.w + (on ? n * a.k + k : 0), on);
        }
    };
    auto load_x = [&](int it, int stage) {
        const int k0 = it % kis * 128;
        if (tid < BM * 16) {
            const int r = tid >> 4, c = tid & 15, k = k0 + c * 8;
            const bool on = r < a.m && k < a.k;
            copy16(base + stage * STAGE + ABYTES + r * 256 + ((c ^ (r & 7)) << 4), (const bf16*)a.x + (on ? r * a.xs + k : 0), on);
        }
    };
    for (int s = 0; s < STAGES - 1; s++)
        if (s < steps) load_w(s, s);
    wait_predecessor();
    allow_successor();
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load_x(s, s);
        copy_commit();
    }
    const int m = *a.count - (int)a.first;
    float acc[MI][NI][4] = {};
    for (int s = 0, stage = 0, ki = 0, n0 = r0; s < steps; s++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        const int ahead = s + STAGES - 1;
        if (ahead < steps) {
            load_w(ahead, ahead % STAGES);
            load_x(ahead, ahead % STAGES);
        }
        copy_commit();
        const uint32_t sa = base + stage * STAGE, sb = sa + ABYTES;
        uint32_t bf[NI][2];
        if (NI == 1) {
            const int r = lane & 7, c = warp * 2 + ((lane >> 3) & 1);
            ldmatrix2(bf[0], sb + r * 256 + ((c ^ (r & 7)) << 4));
        } else {
            const int r = (lane & 7) + ((lane >> 4) << 3), c = warp * 2 + ((lane >> 3) & 1);
            ldmatrix4(bf[0], sb + r * 256 + ((c ^ (r & 7)) << 4));
        }
        const int left = r1 - n0;
#pragma unroll
        for (int i = 0; i < MI; i++)
            if (i * 16 < left) {
                uint32_t af[4];
                const int r = i * 16 + (lane & 15), c = warp * 2 + (lane >> 4);
                ldmatrix4(af, sa + r * 256 + ((c ^ (r & 7)) << 4));
#pragma unroll
                for (int j = 0; j < NI; j++) mma(acc[i][j], af, bf[j]);
            }
        if (++stage == STAGES) stage = 0;
        if (++ki < kis) continue;
#pragma unroll
        for (int r = 0; r < ACC; r++) {
            share[(warp * ACC + r) * 32 + lane] = ((float*)acc)[r];
            ((float*)acc)[r] = 0;
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ACC / 8; r++) {
            const int v = tid + r * 256, q = v >> 5 & 3, j = (v >> 7) % NI, i = (v >> 7) / NI;
            float sum = 0;
#pragma unroll
            for (int w = 0; w < 8; w++) sum += share[w * ACC * 32 + v];
            const int n = n0 + i * 16 + (lane >> 2) + (q >> 1) * 8, t = j * 8 + (lane & 3) * 2 + (q & 1);
            if (n < r1 && t < m) ((O*)a.y)[t * a.ys + n] = to<O>(sum);
        }
        ki = 0;
        n0 += 64;
    }
}
#define FEW(BM, STAGES)                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 1) few##BM##_bf16(const __grid_constant__ LinearArgs a) { linear_few<BM, STAGES, bf16>(a, (int)(ll)a.partial); } \
    extern "C" __global__ void __launch_bounds__(256, 1) few##BM##_bf16_f32(const __grid_constant__ LinearArgs a) { linear_few<BM, STAGES, float>(a, (int)(ll)a.partial); }
FEW(8, 11)
FEW(16, 9)
