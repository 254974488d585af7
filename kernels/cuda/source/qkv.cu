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
extern "C" __global__ void qkv1_bf16(const __grid_constant__ QKVArgs a) { qkv<bf16, 1>(a); }
extern "C" __global__ void qkv4_bf16(const __grid_constant__ QKVArgs a) { qkv<bf16, 4>(a); }
extern "C" __global__ void qkv16_bf16(const __grid_constant__ QKVArgs a) { qkv<bf16, 16>(a); }
