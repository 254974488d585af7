// ResidualNorm: out[t] = x[t] + y[t] + bias + B·z[t]; normed[t] = out[t]·rstd[t]·w. The norm is of the sum as it is stored.
//   out, normed, x [T, H]; yz [T, H+R]; bias, w F32 [H]; rstd F32 [T], optional. carry [T, H], optional: what out's rounding takes is added to it;
//   with fold the sum begins with it, and it begins anew.
//   grid ⌈T/TT⌉ blocks; a thread owns the columns threadIdx + i·threads, at most 16 of them. moves 4·T·H elements (6 with carry) and B's.
//   Oracle: kernels/cpu ResidualNorm.
#include "expand.cuh"
#include "hopper.cuh"

struct ResidualArgs {
    void *out; ll os;
    void* normed; ll ns;
    const void* x; ll xs;
    const void* yz; ll ys;
    const float *bias, *w;
    float* rstd;
    ll h, r; double eps;
    B b;
    const int *adapter, *head;
    void* carry; ll cs; ll fold;
    KVAhead ahead;
};
// stored is a sum as it is stored, and carry what the stream then lacks.
template <class T> __device__ __forceinline__ float stored(float sum, float& carry, bool fold) {
    const float all = sum + carry, s = f(to<T>(fold ? all : sum));
    carry = all - s;
    return s;
}
// stored8 does that for 8 columns, whose carry lies at at.
__device__ __forceinline__ void stored8(float* v, bf16* at, bool fold) {
    float carry[8];
    widen8(*(const uint4*)at, carry);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = stored<bf16>(v[i], carry[i], fold);
    *(uint4*)at = pack8(carry);
}
template <class T, int TT, int COLS> __device__ void residual(const ResidualArgs& a) {
    extern __shared__ float z[];
    __shared__ float shared[33];
    __shared__ Adapter own[TT];
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int h = a.h, ldz = (a.r + 3) & ~3;
    const bool same = load_tile<T>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const T*)a.yz + h, a.ys, a.r);
    float v[COLS][TT], sum[TT];
#pragma unroll
    for (int t = 0; t < TT; t++) sum[t] = 0;
#pragma unroll
    for (int i = 0; i < COLS; i++) {
        const int c = threadIdx.x + i * blockDim.x;
        if (c < h) {
#pragma unroll
            for (int t = 0; t < TT; t++) {
                v[i][t] = 0;
                if (t < m) v[i][t] = f(((const T*)a.x)[(t0 + t) * a.xs + c]) + f(((const T*)a.yz)[(t0 + t) * a.ys + c]);
                if (a.bias) v[i][t] += a.bias[c];
            }
            if (a.b.table) expand_tile<T, TT>(v[i], own, same, a.b.offset, c, z, ldz, m);
#pragma unroll
            for (int t = 0; t < TT; t++) {
                if (a.carry && t < m) {
                    T* at = (T*)a.carry + (t0 + t) * a.cs + c;
                    float carry = f(*at);
                    v[i][t] = stored<T>(v[i][t], carry, a.fold);
                    *at = to<T>(carry);
                }
                v[i][t] = f(to<T>(v[i][t])), sum[t] = fmaf(v[i][t], v[i][t], sum[t]);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TT; t++) {
        if (t >= m) break;
        const float r = 1.f / sqrtf(block_sum(sum[t], shared) / (float)h + (float)a.eps);
        if (a.rstd && threadIdx.x == 0) a.rstd[t0 + t] = r;
        sum[t] = r;
    }
#pragma unroll
    for (int i = 0; i < COLS; i++) {
        const int c = threadIdx.x + i * blockDim.x;
        if (c < h) {
            const float w = a.w[c];
#pragma unroll
            for (int t = 0; t < TT; t++)
                if (t < m) {
                    ((T*)a.out)[(t0 + t) * a.os + c] = to<T>(v[i][t]);
                    ((T*)a.normed)[(t0 + t) * a.ns + c] = to<T>(v[i][t] * sum[t] * w);
                }
        }
    }
}
extern "C" __global__ void __launch_bounds__(1024) residual_f32(const __grid_constant__ ResidualArgs a) { residual<float, 1, 16>(a); }
extern "C" __global__ void __launch_bounds__(1024) residual_bf16(const __grid_constant__ ResidualArgs a) { residual<bf16, 1, 16>(a); }

// residual8: a block takes one token, a thread 8 neighbouring columns of it, H = 8·threads at most; rows start at 16 bytes.
__device__ __forceinline__ void residual8(const ResidualArgs& a) {
    __shared__ float shared[33];
    const int h = a.h, c = threadIdx.x * 8;
    const bool on = c < h;
    float w[8];
    if (on) { // the norm's weights are nobody's output
        *(float4*)w = *(const float4*)(a.w + c);
        *(float4*)(w + 4) = *(const float4*)(a.w + c + 4);
    }
    allow_successor();
    if (a.ahead.each) bring_ahead(a.ahead, a.head[1], blockIdx.x, gridDim.x);
    const ll t = blockIdx.x;
    const bool there = t < a.head[0];
    const int n0 = threadIdx.x / 32 * 256;
    ExpandRow e;
    e.start(a.b, there && a.b.table ? a.adapter[t] : -1);
    e.first(a.b.offset, n0, h);
    wait_predecessor();
    if (!there) return;
    uint4 x, y;
    if (on) {
        x = *(const uint4*)((const bf16*)a.x + t * a.xs + c);
        y = *(const uint4*)((const bf16*)a.yz + t * a.ys + c);
    }
    float v[8] = {}, more[8] = {}, sum = 0;
    e.run(more, (const bf16*)a.yz + t * a.ys + h, a.b.offset, n0, h);
    if (on) {
        float q[8];
        widen8(x, v), widen8(y, q);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] += q[i];
            if (a.bias) v[i] += a.bias[c + i];
            v[i] += more[i];
        }
        if (a.carry) stored8(v, (bf16*)a.carry + t * a.cs + c, a.fold);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = f(to<bf16>(v[i])); // as it is stored
            sum = fmaf(v[i], v[i], sum);
        }
    }
    const float r = 1.f / sqrtf(block_sum(sum, shared) / (float)h + (float)a.eps);
    if (a.rstd && threadIdx.x == 0) a.rstd[t] = r;
    if (!on) return;
    *(uint4*)((bf16*)a.out + t * a.os + c) = pack8(v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * r * w[i];
    *(uint4*)((bf16*)a.normed + t * a.ns + c) = pack8(v);
}
extern "C" __global__ void __launch_bounds__(1024) residual8wide_bf16(const __grid_constant__ ResidualArgs a) { residual8(a); }
extern "C" __global__ void __launch_bounds__(512) residual8_bf16(const __grid_constant__ ResidualArgs a) { residual8(a); }

// residual_cluster: 8 blocks together take a slice of 8 tokens, each of them 256·⌈H/2048⌉ columns, a warp 64 of these and a lane 8 for 2 tokens; H a
// multiple of 8, at most 8,192; rows start at 16 bytes. B's rows are read once a slice, the first ones before the linear has ended. The squares are summed in
// the order of residual8 and norm8. Grid 8·⌈T/8⌉ blocks of 128·⌈H/2048⌉ threads.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void residual_cluster(const ResidualArgs& a) {
    __shared__ float part[128][9];  // sums of squares of 8 columns, of each token
    __shared__ float sums[32][8];   // of 256 columns, all of the row's
    const int h = a.h, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, rank = hopper::cluster_rank();
    const int t0 = blockIdx.x / 8 * 8, m = min(8, a.head[0] - t0), each = blockDim.x >> 7; // runs of 256 columns
    const int c0 = rank * each * 256 + warp * 64, c = c0 + 8 * g;
    const bool on = c < h;
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    allow_successor();
    float w[8];
    if (on) { // the norm's weights are nobody's output
        *(float4*)w = *(const float4*)(a.w + c);
        *(float4*)(w + 4) = *(const float4*)(a.w + c + 4);
    }
    Expand<4, 4, false> e;
    e.start(a.b, a.adapter + t0, m);
    e.fetch(a.b.offset + c0, min(64, h - c0));
    const bool more = e.take(a.b.offset, &c, on);
    wait_predecessor();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); // all blocks are there
    if (m <= 0) return;
    uint4 x[2], y[2];
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const ll at = t0 + 2 * t + s;
        x[s] = y[s] = make_uint4(0, 0, 0, 0);
        if (on && 2 * t + s < m) x[s] = *(const uint4*)((const bf16*)a.x + at * a.xs + c), y[s] = *(const uint4*)((const bf16*)a.yz + at * a.ys + c);
    }
    e.run(more, (const bf16*)a.yz + t0 * a.ys + h, a.ys, a.b.offset, &c, on);
    float v[2][8];
#pragma unroll
    for (int s = 0; s < 2; s++) {
        float q[8], sum = 0;
        widen8(x[s], v[s]), widen8(y[s], q);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[s][i] += q[i];
            if (a.bias && on) v[s][i] += a.bias[c + i];
            v[s][i] += e.sum[i >> 1][s + 2 * (i & 1)];
        }
        if (a.carry && on && 2 * t + s < m) stored8(v[s], (bf16*)a.carry + (t0 + 2 * t + s) * a.cs + c, a.fold);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[s][i] = f(to<bf16>(v[s][i])); // as it is stored
            sum = fmaf(v[s][i], v[s][i], sum);
        }
        part[warp * 8 + g][2 * t + s] = on && 2 * t + s < m ? sum : 0.f;
        if (on && 2 * t + s < m) *(uint4*)((bf16*)a.out + (t0 + 2 * t + s) * a.os + c) = pack8(v[s]);
    }
    __syncthreads();
    for (int i = warp; i < each * 8; i += each * 4) { // a run's sum for a token goes to all blocks
        const int run = i >> 3, token = i & 7;
        const float sum = warp_sum(part[run * 32 + lane][token]);
        if (lane < 8) hopper::store_at(&sums[rank * each + run][token], lane, sum);
    }
    hopper::cluster_sync();
    float r[8];
#pragma unroll
    for (int i = 0; i < 8; i++) r[i] = lane < each * 8 ? sums[lane][i] : 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) r[i] = 1.f / sqrtf(warp_sum(r[i]) / (float)h + (float)a.eps);
    if (a.rstd && rank == 0 && threadIdx.x == 0)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < m) a.rstd[t0 + i] = r[i];
    if (!on) return;
#pragma unroll
    for (int s = 0; s < 2; s++) {
        if (2 * t + s >= m) break;
        const float mine = t < 2 ? (t == 0 ? r[s] : r[2 + s]) : (t == 2 ? r[4 + s] : r[6 + s]);
#pragma unroll
        for (int i = 0; i < 8; i++) v[s][i] = v[s][i] * mine * w[i];
        *(uint4*)((bf16*)a.normed + (t0 + 2 * t + s) * a.ns + c) = pack8(v[s]);
    }
}
extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(512) residual_cluster_bf16(const __grid_constant__ ResidualArgs a) { residual_cluster(a); }
#else
extern "C" __global__ void residual_cluster_bf16(const __grid_constant__ ResidualArgs a) { __trap(); }
#endif
