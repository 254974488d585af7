// QKV: with y = yz + bias + B·z, per head: q[t] = rope(norm(y's q)); k = rope(norm(y's k)) and v go to the cache's layer at KVSlot[t].
//   q [T, Hq·D]; yz [T, (Hq+2·Hkv)·D+R]; bias F32, optional; norms F32 [D], optional; rope F32 [positions, D]: cosines, sines.
//   k, v: [slots, Hkv, D] of the layer. pre [T, (Hq+Hkv)·D], optional save.
//   grid (⌈T/TT⌉, Hq+2·Hkv), a thread a value of the head. Oracle: kernels/cpu QKV.
struct QKVArgs {
    void* q; ll qs;
    const void* yz; ll ys;
    const float *bias, *q_norm, *k_norm;
    double eps;
    const float* rope; ll rs;
    void *k, *v;
    ll heads, kv, d, r;
    void* pre; ll ps;
    B b;
    const int *adapter, *position, *slot, *head;
};
template <class T, int TT> __device__ void qkv(const QKVArgs& a) {
    extern __shared__ float z[]; // [TT, ldz], then two rows of d
    __shared__ Adapter own[TT];
    __shared__ float shared[33];
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int h = blockIdx.y, d = a.d, out = (a.heads + 2 * a.kv) * d, ldz = (a.r + 3) & ~3;
    bool same = true;
    if (a.b.table) same = load_tile<T>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const T*)a.yz + out, a.ys, a.r);
    float* row = z + TT * ldz;
    const int i = threadIdx.x, n = h * d + i;
    float y[TT];
    if (i < d) {
        const float bias = a.bias ? a.bias[n] : 0.f;
#pragma unroll
        for (int t = 0; t < TT; t++) y[t] = t < m ? f(((const T*)a.yz)[(t0 + t) * a.ys + n]) + bias : 0.f;
        if (a.b.table) expand_tile<T, TT>(y, own, same, a.b.offset, n, z, ldz, m);
    }
    const bool value = h >= a.heads + a.kv, key = !value && h >= a.heads;
    const float* norm = key ? a.k_norm : a.q_norm;
#pragma unroll
    for (int t = 0; t < TT; t++) {
        if (t >= m) break;
        const ll at = a.slot[t0 + t] * (a.kv * d) + (h - a.heads) % a.kv * d;
        if (value) {
            if (i < d) ((T*)a.v)[at + i] = to<T>(y[t]);
            continue;
        }
        float x = i < d ? y[t] : 0.f;
        if (a.pre && i < d) ((T*)a.pre)[(t0 + t) * a.ps + n] = to<T>(x);
        if (norm) {
            const float r = 1.f / sqrtf(block_sum(x * x, shared) / (float)d + (float)a.eps);
            if (i < d) x *= r * norm[i];
        }
        float* pair = row + (t & 1) * d; // two rows in turn: one barrier a token
        if (i < d) pair[i] = x;
        __syncthreads();
        if (i < d) {
            const float* angle = a.rope + a.position[t0 + t] * a.rs;
            const int half = d / 2;
            x = i < half ? x * angle[i] - pair[i + half] * angle[half + i] : x * angle[i - half] + pair[i - half] * angle[i];
            if (key) ((T*)a.k)[at + i] = to<T>(x);
            else ((T*)a.q)[(t0 + t) * a.qs + n] = to<T>(x);
        }
    }
}
extern "C" __global__ void qkv_f32(const __grid_constant__ QKVArgs a) { qkv<float, 1>(a); }
extern "C" __global__ void qkv_bf16(const __grid_constant__ QKVArgs a) { qkv<bf16, 1>(a); }

// qkv_warp: heads of D = 64·VEC, a warp each, 4 a block: a lane owns VEC values of either half, so that pairs to rotate meet in it.
// Grid (⌈T/TT⌉, ⌈heads/4⌉).
template <int VEC, int TT> __device__ void qkv_warp(const QKVArgs& a) {
    extern __shared__ float z[];
    __shared__ Adapter own[TT];
    constexpr int D = 64 * VEC, HALF = 32 * VEC;
    wait_predecessor();
    allow_successor();
    const int t0 = blockIdx.x * TT, m = min(TT, a.head[0] - t0);
    if (m <= 0) return;
    const int lane = threadIdx.x & 31, h = blockIdx.y * 4 + (threadIdx.x >> 5), all = a.heads + 2 * a.kv, ldz = (a.r + 3) & ~3;
    const bool on = h < all;
    const int n = h * D + lane * VEC; // the lane's first value; HALF further its other ones
    float y[2 * VEC][TT];
    if (on) {
#pragma unroll
        for (int t = 0; t < TT; t++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const bf16* src = (const bf16*)a.yz + (t0 + t) * a.ys + n + i * HALF;
                if (VEC == 2) {
                    const uint32_t w = t < m ? *(const uint32_t*)src : 0;
                    y[i * VEC][t] = __uint_as_float(w << 16);
                    y[i * VEC + VEC - 1][t] = __uint_as_float(w & 0xffff0000u);
                } else {
                    y[i][t] = t < m ? f(*src) : 0.f;
                }
            }
    }
    bool same = true;
    if (a.b.table) same = load_tile<bf16>(own, z, ldz, a.b, a.adapter, t0, m, TT, (const bf16*)a.yz + all * D, a.ys, a.r);
    if (!on) return;
    if (a.bias)
#pragma unroll
        for (int i = 0; i < 2 * VEC; i++)
#pragma unroll
            for (int t = 0; t < TT; t++) y[i][t] += a.bias[n + i / VEC * HALF + i % VEC];
    if (a.b.table && (!same || own[0].rank))
        if (TT > 4 && VEC == 2) {
            expand_cols<TT, VEC>(y, own, same, a.b.offset, n, [](int i) { return i; }, z, ldz, m);
            expand_cols<TT, VEC>(y + VEC, own, same, a.b.offset, n + HALF, [](int i) { return i; }, z, ldz, m);
        } else expand_cols<TT, 2 * VEC>(y, own, same, a.b.offset, n, [](int i) { return i / VEC * HALF + i % VEC; }, z, ldz, m);
    const bool value = h >= a.heads + a.kv, key = !value && h >= a.heads;
    const float* norm = key ? a.k_norm : a.q_norm;
    auto put = [&](bf16* dst, const float* x) { // at the lane's values of either half
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (VEC == 2) *(uint32_t*)(dst + i * HALF) = pack(x[i * VEC], x[i * VEC + VEC - 1]);
            else dst[i * HALF] = to<bf16>(x[i]);
    };
#pragma unroll
    for (int t = 0; t < TT; t++) {
        if (t >= m) break;
        const ll at = a.slot[t0 + t] * (a.kv * D) + (h - a.heads) % a.kv * D + lane * VEC;
        float x[2 * VEC];
#pragma unroll
        for (int i = 0; i < 2 * VEC; i++) x[i] = y[i][t];
        if (value) {
            put((bf16*)a.v + at, x);
            continue;
        }
        if (a.pre) put((bf16*)a.pre + (t0 + t) * a.ps + n, x);
        if (norm) {
            float s = 0;
#pragma unroll
            for (int i = 0; i < 2 * VEC; i++) s = fmaf(x[i], x[i], s);
            const float r = 1.f / sqrtf(warp_sum(s) / (float)D + (float)a.eps);
#pragma unroll
            for (int i = 0; i < 2 * VEC; i++) x[i] *= r * norm[lane * VEC + i / VEC * HALF + i % VEC];
        }
        const float* angle = a.rope + a.position[t0 + t] * a.rs + lane * VEC;
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const float c = angle[i], sn = angle[HALF + i], lo = x[i], hi = x[VEC + i];
            x[i] = __fmaf_rn(lo, c, -__fmul_rn(hi, sn)); // one rounding, whatever TT
            x[VEC + i] = __fmaf_rn(hi, c, __fmul_rn(lo, sn));
        }
        put(key ? (bf16*)a.k + at : (bf16*)a.q + (t0 + t) * a.qs + n, x);
    }
}
#define QKV_WARP(D, VEC, TT) extern "C" __global__ void __launch_bounds__(128, 4) qkv##D##x##TT##_bf16(const __grid_constant__ QKVArgs a) { qkv_warp<VEC, TT>(a); }
QKV_WARP(64, 1, 1)
QKV_WARP(64, 1, 4)
QKV_WARP(64, 1, 8)
QKV_WARP(128, 2, 1)
QKV_WARP(128, 2, 4)
QKV_WARP(128, 2, 8)
