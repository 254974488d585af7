// QKVBackward: dy = [normᵀ(ropeᵀ(dq)), normᵀ(ropeᵀ(dk)), dv]; a head's norm has x = pre and rstd = 1/√(mean(x²) + eps):
// normᵀ(g) = rstd·(w·g − x·rstd²·mean(w·g·x)).
//   dy [T, (Hq+2·Hkv)·D]; dq [T, Hq·D]; dk, dv [T, Hkv·D]; pre [T, (Hq+Hkv)·D]; rope F32 [positions, D]; norms F32 [D], optional.
//   Moves 2·T·(Hq+2·Hkv)·D elements, and pre. Oracle: kernels/cpu QKVBackward.
struct QKVBackwardArgs {
    void* dy; ll ys;
    const void* dq; ll qs;
    const void* dk; ll ks;
    const void* dv; ll vs;
    const float* rope; ll rs;
    const float *q_norm, *k_norm;
    double eps;
    const void* pre; ll ps;
    ll heads, kv, d;
    const int *position, *head;
};

// Grid (T, Hq+2·Hkv), a thread a value of the head.
template <class T> __device__ void qkv_backward(const QKVBackwardArgs& a) {
    extern __shared__ float pair[]; // [d]
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t = blockIdx.x, h = blockIdx.y, d = a.d, i = threadIdx.x, half = d / 2;
    if (t >= a.head[0]) return;
    const bool on = i < d;
    T* dy = (T*)a.dy + t * a.ys + h * d;
    if (h >= a.heads + a.kv) {
        if (on) dy[i] = ((const T*)a.dv)[t * a.vs + (h - a.heads - a.kv) * d + i];
        return;
    }
    const bool key = h >= a.heads;
    const T* src = key ? (const T*)a.dk + t * a.ks + (h - a.heads) * d : (const T*)a.dq + t * a.qs + h * d;
    float g = on ? f(src[i]) : 0.f;
    if (on) pair[i] = g;
    __syncthreads();
    if (on) {
        const float* angle = a.rope + a.position[t] * a.rs;
        g = i < half ? g * angle[i] + pair[i + half] * angle[half + i] : g * angle[i - half] - pair[i - half] * angle[i];
    }
    if (const float* norm = key ? a.k_norm : a.q_norm) {
        const float x = on ? f(((const T*)a.pre)[t * a.ps + h * d + i]) : 0.f;
        const float r = 1.f / sqrtf(block_sum(x * x, shared) / (float)d + (float)a.eps);
        g *= on ? norm[i] : 0.f;
        g = r * (g - x * (block_sum(g * x, shared) / (float)d * r * r));
    }
    if (on) dy[i] = to<T>(g);
}
extern "C" __global__ void qkv_backward_f32(const __grid_constant__ QKVBackwardArgs a) { qkv_backward<float>(a); }
extern "C" __global__ void qkv_backward_bf16(const __grid_constant__ QKVBackwardArgs a) { qkv_backward<bf16>(a); }

// qkv_backward8: D/16 threads a head, D a power of two from 16 to 512; each has 8 neighbouring values of either half, so that pairs to
// rotate meet in it. Grid ⌈T·(Hq+2·Hkv)·(D/16)/256⌉.
extern "C" __global__ void __launch_bounds__(256) qkv_backward8_bf16(const __grid_constant__ QKVBackwardArgs a) {
    wait_predecessor();
    allow_successor();
    const int d = a.d, half = d / 2, each = d / 16, all = a.heads + 2 * a.kv, units = all * each;
    const int id = blockIdx.x * 256 + threadIdx.x, t = id / units, h = id % units / each, c = id % each * 8;
    const bool on = t < a.head[0], value = h >= a.heads + a.kv, key = !value && h >= a.heads, turns = on && !value;
    float lo[8] = {}, hi[8] = {};
    bf16* dy = (bf16*)a.dy + t * a.ys + h * d + c;
    if (on) {
        const bf16* src = value ? (const bf16*)a.dv + t * a.vs + (h - a.heads - a.kv) * d
                        : key   ? (const bf16*)a.dk + t * a.ks + (h - a.heads) * d
                                : (const bf16*)a.dq + t * a.qs + h * d;
        const uint4 l = *(const uint4*)(src + c), u = *(const uint4*)(src + c + half);
        if (value) *(uint4*)dy = l, *(uint4*)(dy + half) = u;
        widen8(l, lo);
        widen8(u, hi);
    }
    if (turns) {
        const float* angle = a.rope + a.position[t] * a.rs + c;
        float cs[8], sn[8];
#pragma unroll
        for (int i = 0; i < 8; i += 4) *(float4*)(cs + i) = __ldg((const float4*)(angle + i)), *(float4*)(sn + i) = __ldg((const float4*)(angle + half + i));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float x = lo[i], y = hi[i];
            lo[i] = x * cs[i] + y * sn[i];
            hi[i] = y * cs[i] - x * sn[i];
        }
    }
    if (a.q_norm || a.k_norm) { // every thread takes part in the sums
        const float* norm = key ? a.k_norm : a.q_norm;
        const bool normed = turns && norm;
        float x[16] = {}, s = 0, m = 0;
        if (normed) {
            const bf16* pre = (const bf16*)a.pre + t * a.ps + h * d + c;
            widen8(*(const uint4*)pre, x);
            widen8(*(const uint4*)(pre + half), x + 8);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                lo[i] *= norm[c + i], hi[i] *= norm[c + half + i];
                s = fmaf(x[i], x[i], fmaf(x[8 + i], x[8 + i], s));
                m = fmaf(lo[i], x[i], fmaf(hi[i], x[8 + i], m));
            }
        }
        for (int o = each / 2; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o), m += __shfl_xor_sync(~0u, m, o);
        if (normed) {
            const float r = 1.f / sqrtf(s / (float)d + (float)a.eps), k = m / (float)d * r * r;
#pragma unroll
            for (int i = 0; i < 8; i++) lo[i] = r * (lo[i] - x[i] * k), hi[i] = r * (hi[i] - x[8 + i] * k);
        }
    }
    if (turns) *(uint4*)dy = pack8(lo), *(uint4*)(dy + half) = pack8(hi);
}
