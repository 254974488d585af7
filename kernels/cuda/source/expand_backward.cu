// ExpandBackward, for each segment with adapter a and lane l: dz[t] = dy[t]·B, zero past a's rank and for the base; dB += scaling·dy[t]ᵀ·z[t].
//   dyz [T, N+R]: dy, and behind it dz; z [T, R]; B [N, rank], scaled; dB F32 [N, rank]. dy is read by each of the two kernels, which moves
//   2·T·N elements. Sums have one order, whatever else is in the batch. Oracle: kernels/cpu ExpandBackward.
struct ExpandBackwardArgs {
    void* dyz; ll ys;
    const void* z; ll zs;
    ll n, r;
    B b;
    const Lane* lanes; ll grad; // lanes is null where nothing is trained; grad: rows of B before this site's
    const int *adapter, *seg_start, *seg_adapter, *seg_lane, *head;
};

// shrink_plain: a token a block, any shape.
template <class T> __device__ void shrink_plain(const ExpandBackwardArgs& a) {
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x;
    if (t >= a.head[0]) return;
    T* row = (T*)a.dyz + t * a.ys;
    const int slot = a.adapter[t];
    Adapter e = {0, 0};
    if (slot >= 0 && a.b.table) e = a.b.table[slot];
    for (int i = 0; i < a.r; i++) {
        float s = 0;
        if (i < e.rank) {
            const T* b = b_row<T>(e, a.b.offset, 0) + i;
            for (int n = threadIdx.x; n < a.n; n += blockDim.x) s = fmaf(f(row[n]), f(b[n * e.rank]), s);
            s = block_sum(s, shared);
        }
        if (threadIdx.x == 0) row[a.n + i] = to<T>(s);
    }
}
extern "C" __global__ void __launch_bounds__(256) shrink_plain_f32(const __grid_constant__ ExpandBackwardArgs a) { shrink_plain<float>(a); }
extern "C" __global__ void __launch_bounds__(256) shrink_plain_bf16(const __grid_constant__ ExpandBackwardArgs a) { shrink_plain<bf16>(a); }

// gradient_plain: an element of dB a thread, any shape; runs of 128 tokens are added up on their own. Grid ⌈N·R/256⌉.
template <class T> __device__ void gradient_plain(const ExpandBackwardArgs& a) {
    wait_predecessor();
    allow_successor();
    const ll id = blockIdx.x * (ll)blockDim.x + threadIdx.x;
    const int n = (int)(id / a.r), i = (int)(id % a.r), segs = a.head[3];
    if (n >= a.n) return;
    for (int s = 0; s < segs; s++) {
        const int l = a.seg_lane[s];
        if (l < 0) continue;
        const Lane lane = a.lanes[l];
        if (i >= lane.rank) continue;
        const int t1 = a.seg_start[s + 1];
        float sum = 0;
        for (int t0 = a.seg_start[s]; t0 < t1; t0 += 128) {
            float run = 0;
            for (int t = t0; t < min(t0 + 128, t1); t++) run = fmaf(f(((const T*)a.dyz)[t * a.ys + n]), f(((const T*)a.z)[t * a.zs + i]), run);
            sum += run;
        }
        lane.grad[lane.rank * (a.grad + n) + i] += (float)lane.scaling * sum;
    }
}
extern "C" __global__ void __launch_bounds__(256) gradient_plain_f32(const __grid_constant__ ExpandBackwardArgs a) { gradient_plain<float>(a); }
extern "C" __global__ void __launch_bounds__(256) gradient_plain_bf16(const __grid_constant__ ExpandBackwardArgs a) { gradient_plain<bf16>(a); }

// shrink: 32 tokens of one segment a block, and 64 of the R columns (blockIdx.y); N and dyz's stride are multiples of 8. Each of 8 warps
// takes every eighth run of 32 columns of dy, and they add up at the end, in order. dy goes from memory straight into fragments: a
// lane reads 8 neighbours, so that what the product calls column 2q+e of its first (second) half of 16 is column 8q+4j+e (8q+4j+2+e) of the run;
// B's rows are put into shared memory in that order. Grid (⌈T/32⌉ + segments, ⌈R/64⌉).
constexpr int shrink_tokens = 32, shrink_pitch = 144, shrink_run = 32 * shrink_pitch;
template <int NT> __device__ __forceinline__ void shrink_tile(const ExpandBackwardArgs& a, const Adapter& e, int t0, int m, int i0, int cols, unsigned char* smem) {
    constexpr int pitch = NT * 16 + 16, size = 32 * pitch;
    constexpr int stages = NT == 1 ? 8 : NT == 2 ? 6 : NT == 4 ? 3 : 2, depth = NT <= 2 ? 4 : 3; // runs of B in shared memory, of dy in registers
    static_assert(stages * size <= 2 * shrink_run, "a warp's share");
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, n = (int)a.n, runs = (n + 31) / 32;
    const uint32_t own = shared_address(smem) + warp * 2 * shrink_run;
    const bf16* b = b_row<bf16>(e, a.b.offset, 0) + i0;
    const bf16* dy = (const bf16*)a.dyz + t0 * a.ys;
    const bool wide = e.rank % 8 == 0;
    auto load_b = [&](int run, int stage) {
        const uint32_t at = own + stage * size;
        if (run >= runs) return;
        if (wide) {
#pragma unroll
            for (int q = 0; q < NT; q++) {
                const int id = lane + q * 32, r = id / NT, p = id % NT, k = run * 32 + r;
                const int slot = ((r >> 1) & 3) * 8 + 2 * (r >> 3) + (r & 1); // [j, first or second half, 2q+e]
                const bool on = k < n && p * 8 < cols;
                copy16(at + slot * pitch + p * 16, b + (on ? k * e.rank + p * 8 : 0), on);
            }
        } else {
            bf16* to_b = (bf16*)(smem + warp * 2 * shrink_run + stage * size);
            for (int id = lane; id < 32 * NT * 8; id += 32) {
                const int r = id / (NT * 8), c = id % (NT * 8), k = run * 32 + r;
                const int slot = ((r >> 1) & 3) * 8 + 2 * (r >> 3) + (r & 1); // [j, first or second half, 2q+e]
                to_b[slot * (pitch / 2) + c] = k < n && c < cols ? b[k * e.rank + c] : to<bf16>(0.f);
            }
        }
    };
    auto load_a = [&](uint4* v, int run) {
        const int k = run * 32 + (lane & 3) * 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = i * 8 + (lane >> 2);
            v[i] = row < m && k < n ? *(const uint4*)(dy + row * a.ys + k) : make_uint4(0, 0, 0, 0);
        }
    };
    float acc[2][NT][4] = {};
    uint4 dys[depth][4];
#pragma unroll
    for (int i = 0; i < stages - 1; i++) {
        load_b(warp + 8 * i, i);
        copy_commit();
    }
#pragma unroll
    for (int i = 0; i < depth - 1; i++) load_a(dys[i], warp + 8 * i);
    for (int run = warp, stage = 0; run < runs; run += 8, stage = stage + 1 == stages ? 0 : stage + 1) {
        load_b(run + 8 * (stages - 1), stage == 0 ? stages - 1 : stage - 1); // the place of the run before, which the warp has left
        copy_commit();
        load_a(dys[depth - 1], run + 8 * (depth - 1));
        copy_wait<stages - 1>();
        __syncwarp();
        const uint32_t at = own + stage * size;
        const uint32_t *v0 = (const uint32_t*)dys[0], *v1 = (const uint32_t*)(dys[0] + 2);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint32_t a0[4] = {v0[2 * j], v0[4 + 2 * j], v0[2 * j + 1], v0[4 + 2 * j + 1]}, a1[4] = {v1[2 * j], v1[4 + 2 * j], v1[2 * j + 1], v1[4 + 2 * j + 1]};
#pragma unroll
            for (int t = 0; t < NT; t += 2) {
                uint32_t bf[4];
                const int slot = j * 16 + ((lane >> 3) & 1) * 8 + (lane & 7), p = NT == 1 ? 0 : t + (lane >> 4);
                ldmatrix4t(bf, at + slot * pitch + p * 16);
                mma(acc[0][t], a0, bf);
                mma(acc[1][t], a1, bf);
                if (NT > 1) {
                    mma(acc[0][t + 1 < NT ? t + 1 : t], a0, bf + 2);
                    mma(acc[1][t + 1 < NT ? t + 1 : t], a1, bf + 2);
                }
            }
        }
        __syncwarp();
#pragma unroll
        for (int d = 0; d + 1 < depth; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) dys[d][i] = dys[d + 1][i];
    }
    copy_wait<0>();
    __syncthreads();
    float* sums = (float*)smem; // [8, 32, NT·8]
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int q = 0; q < 4; q++) sums[((warp * 32 + i * 16 + (lane >> 2) + (q >> 1) * 8) * NT + t) * 8 + (lane & 3) * 2 + (q & 1)] = acc[i][t][q];
    __syncthreads();
    for (int id = threadIdx.x; id < 32 * NT * 8; id += 256) {
        const int row = id / (NT * 8), c = id % (NT * 8);
        if (row >= m || c >= cols) continue;
        float s = 0;
#pragma unroll
        for (int w = 0; w < 8; w++) s += sums[w * 32 * NT * 8 + id];
        ((bf16*)a.dyz)[(t0 + row) * a.ys + n + i0 + c] = to<bf16>(s);
    }
}
__device__ __forceinline__ void shrink(const ExpandBackwardArgs& a) {
    extern __shared__ __align__(128) unsigned char smem[];
    wait_predecessor();
    allow_successor();
    const int segs = a.head[3];
    int s = 0, tile = blockIdx.x, t0 = 0, t1 = 0;
    for (; s < segs; s++) {
        t0 = a.seg_start[s], t1 = a.seg_start[s + 1];
        const int tiles = (t1 - t0 + shrink_tokens - 1) / shrink_tokens;
        if (tile < tiles) break;
        tile -= tiles;
    }
    if (s == segs) return;
    t0 += tile * shrink_tokens;
    const int m = min(shrink_tokens, t1 - t0), i0 = blockIdx.y * 64, width = min(64, (int)a.r - i0), slot = a.seg_adapter[s];
    Adapter e = {0, 0};
    if (slot >= 0 && a.b.table) e = a.b.table[slot];
    const int cols = max(0, min(width, (int)e.rank - i0));
    for (int id = threadIdx.x; id < m * (width - cols); id += 256)
        ((bf16*)a.dyz)[(t0 + id / (width - cols)) * a.ys + a.n + i0 + cols + id % (width - cols)] = to<bf16>(0.f);
    if (cols == 0) return;
    if (cols <= 8) shrink_tile<1>(a, e, t0, m, i0, cols, smem);
    else if (cols <= 16) shrink_tile<2>(a, e, t0, m, i0, cols, smem);
    else if (cols <= 32) shrink_tile<4>(a, e, t0, m, i0, cols, smem);
    else shrink_tile<8>(a, e, t0, m, i0, cols, smem);
}
extern "C" __global__ void __launch_bounds__(256, 2) shrink_bf16(const __grid_constant__ ExpandBackwardArgs a) { shrink(a); }

// gradient: NB rows of dB a block, and 64 of its columns (blockIdx.y), over all tokens, segment by segment, 64 tokens a stage, 4 stages;
// R and the strides are multiples of 8, N of 8. Warps share the rows, 16 each, and the tokens; the shares of a segment are added up in order.
// Grid (⌈N/NB⌉, ⌈R/64⌉).
template <int NB, int NT> __device__ __forceinline__ void gradient_segment(const ExpandBackwardArgs& a, const Lane& lane, int t0, int t1, int n0, int i0, int cols, unsigned char* smem) {
    constexpr int MT = NB / 16, WS = 8 / MT, pitch = NT * 16 + 16, stages = 4, zat = 64 * NB * 2, size = zat + 64 * 144, pieces = NB / 8;
    const int tid = threadIdx.x, id = tid & 31, warp = tid >> 5, mt = warp % MT, ws = warp / MT;
    const uint32_t base = shared_address(smem);
    float* sums = (float*)(smem + stages * size); // [WS, NB, NT·8]
    const int steps = (t1 - t0 + 63) / 64;
    auto swizzle = [](int row, int p) { return NB == 64 ? p ^ (row & 7) : p ^ ((row >> 1) & 3); };
    auto load = [&](int step) {
        const uint32_t at = base + step % stages * size;
        const int from = t0 + step * 64;
#pragma unroll
        for (int i = 0; i < 64 * pieces / 256; i++) {
            const int k = tid + i * 256, row = k / pieces, p = k % pieces, t = from + row, n = n0 + p * 8;
            const bool on = t < t1 && n < a.n;
            copy16(at + row * NB * 2 + swizzle(row, p) * 16, (const bf16*)a.dyz + (on ? t * a.ys + n : 0), on);
        }
        for (int k = tid; k < 64 * NT; k += 256) {
            const int row = k / NT, p = k % NT, t = from + row, i = i0 + p * 8;
            const bool on = t < t1 && i < a.r;
            copy16(at + zat + row * pitch + p * 16, (const bf16*)a.z + (on ? t * a.zs + i : 0), on);
        }
    };
    for (int s = 0; s < stages - 1; s++) {
        if (s < steps) load(s);
        copy_commit();
    }
    float acc[NT][4] = {};
    for (int s = 0; s < steps; s++) {
        copy_wait<stages - 2>();
        __syncthreads();
        if (s + stages - 1 < steps) load(s + stages - 1);
        copy_commit();
        const uint32_t at = base + s % stages * size;
#pragma unroll
        for (int q = ws; q < 4; q += WS) {
            uint32_t af[4];
            const int row = q * 16 + (id & 7) + (id >> 4) * 8;
            ldmatrix4t(af, at + row * NB * 2 + swizzle(row, mt * 2 + ((id >> 3) & 1)) * 16);
#pragma unroll
            for (int t = 0; t < NT; t += 2) {
                uint32_t bf[4];
                const int zrow = q * 16 + (id & 15), p = NT == 1 ? 0 : t + (id >> 4);
                ldmatrix4t(bf, at + zat + zrow * pitch + p * 16);
                mma(acc[t], af, bf);
                if (NT > 1) mma(acc[t + 1 < NT ? t + 1 : t], af, bf + 2);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < NT; t++)
#pragma unroll
        for (int q = 0; q < 4; q++) sums[((ws * NB + mt * 16 + (id >> 2) + (q >> 1) * 8) * NT + t) * 8 + (id & 3) * 2 + (q & 1)] = acc[t][q];
    copy_wait<0>();
    __syncthreads();
    const float scaling = (float)lane.scaling;
    for (int k = tid; k < NB * NT * 8; k += 256) {
        const int n = n0 + k / (NT * 8), i = k % (NT * 8);
        if (n >= a.n || i >= cols) continue;
        float s = 0;
#pragma unroll
        for (int w = 0; w < WS; w++) s += sums[w * NB * NT * 8 + k];
        lane.grad[lane.rank * (a.grad + n) + i0 + i] += scaling * s;
    }
    __syncthreads();
}
template <int NB> __device__ void gradient(const ExpandBackwardArgs& a) {
    extern __shared__ __align__(128) unsigned char smem[];
    wait_predecessor();
    allow_successor();
    const int segs = a.head[3], n0 = blockIdx.x * NB, i0 = blockIdx.y * 64;
    for (int s = 0; s < segs; s++) {
        const int l = a.seg_lane[s];
        if (l < 0) continue;
        const Lane lane = a.lanes[l];
        const int cols = min(min(64, (int)lane.rank - i0), (int)a.r - i0), t0 = a.seg_start[s], t1 = a.seg_start[s + 1];
        if (cols <= 0) continue;
        if (cols <= 8) gradient_segment<NB, 1>(a, lane, t0, t1, n0, i0, cols, smem);
        else if (cols <= 16) gradient_segment<NB, 2>(a, lane, t0, t1, n0, i0, cols, smem);
        else if (cols <= 32) gradient_segment<NB, 4>(a, lane, t0, t1, n0, i0, cols, smem);
        else gradient_segment<NB, 8>(a, lane, t0, t1, n0, i0, cols, smem);
    }
}
extern "C" __global__ void __launch_bounds__(256, 2) gradient32_bf16(const __grid_constant__ ExpandBackwardArgs a) { gradient<32>(a); }
extern "C" __global__ void __launch_bounds__(256, 2) gradient64_bf16(const __grid_constant__ ExpandBackwardArgs a) { gradient<64>(a); }
