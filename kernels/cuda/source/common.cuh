// What all kernels share: types, argument blocks, reductions, the expand of an adapter's B, copies to shared memory, tensor-core products.
//
// An argument block is a struct of 8-byte fields (pointers, long long, double), passed by value. Pointers into the step record are
// computed on the host; head is its first field, {tokens, sequences, rows, segments, …}.
#pragma once
#include <cuda_bf16.h>
#include <math_constants.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef long long ll;

__device__ __forceinline__ float f(float x) { return x; }
__device__ __forceinline__ float f(bf16 x) { return __bfloat162float(x); }
template <class T> __device__ __forceinline__ T to(float x);
template <> __device__ __forceinline__ float to<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 to<bf16>(float x) { return __float2bfloat16_rn(x); }

// A kernel may be launched before its predecessor ends: it waits for it before it touches what that one writes, and it lets its own
// successor start. Both do nothing where the launch does not ask for it.
__device__ __forceinline__ void wait_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void allow_successor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// KVAhead are blocks of a layer's cache, `each` of every sequence from block `from` on, that attention wants soon: while the memory idles they are brought into
// the L2. bytes are a block's of K, or of V.
struct KVAhead {
    const char *k, *v;
    ll bytes;
    const int *table, *context;
    ll width, block, from, each;
};
// bring_ahead is this block's share; block of blocks. Its first warp does it.
__device__ __forceinline__ void bring_ahead(const KVAhead& a, int seqs, int block, int blocks) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x >= 32) return;
#pragma unroll 1
    for (int i = block * 32 + threadIdx.x; i < seqs * (int)a.each; i += blocks * 32) {
        const int s = i % seqs, b = (int)a.from + i / seqs;
        if (b * (int)a.block >= a.context[s]) continue;
        const ll at = a.table[s * a.width + b] * a.bytes;
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(a.k + at), "r"((int)a.bytes) : "memory");
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(a.v + at), "r"((int)a.bytes) : "memory");
    }
#endif
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

// block_sum is the sum over the block, in a fixed order, known to all threads. shared has 33 floats.
__device__ __forceinline__ float block_sum(float v, float* shared) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    v = warp_sum(v);
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    if (warp == 0) {
        v = warp_sum(lane < warps ? shared[lane] : 0.f);
        if (lane == 0) shared[32] = v;
    }
    __syncthreads();
    v = shared[32];
    __syncthreads();
    return v;
}

// An entry of the adapter table: B's block, already scaled, and its rank; rank 0: empty.
struct Adapter {
    const void* block;
    ll rank;
};

// B of one site: row n of adapter slot a is at element rank·(offset + n) of its block. table is null where there are no adapters.
struct B {
    const Adapter* table;
    ll offset;
};

template <class T> __device__ __forceinline__ const T* b_row(const Adapter& a, ll offset, int n) {
    return (const T*)a.block + a.rank * (offset + n);
}

// dot_b is Σ b[i]·z[i] for i < r; z in shared memory.
__device__ __forceinline__ float dot_b(const float* b, const float* z, int r) {
    float s = 0;
    for (int i = 0; i < r; i++) s = fmaf(b[i], z[i], s);
    return s;
}
__device__ __forceinline__ void widen8(uint4 v, float* x) {
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(w[i] << 16);
        x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ float dot_b(const bf16* b, const float* z, int r) {
    float s = 0;
    if (r % 8 == 0) {
        for (int i = 0; i < r; i += 8) {
            float x[8];
            widen8(__ldg((const uint4*)(b + i)), x);
#pragma unroll
            for (int j = 0; j < 8; j++) s = fmaf(x[j], z[i + j], s);
        }
        return s;
    }
    for (int i = 0; i < r; i++) s = fmaf(f(b[i]), z[i], s);
    return s;
}

// expand_tile adds B·z of row n to acc for TT tokens, of which the first m are real. uniform: they share the adapter entry own[0]. The order
// of a token's sum is the same in both cases.
// z is [TT, ldz] in shared memory.
template <class T, int TT> __device__ __forceinline__ void expand_tile(float* acc, const Adapter* own, bool uniform, ll offset, int n, const float* z, int ldz, int m) {
    if (uniform) {
        const Adapter a = own[0];
        if (a.rank == 0) return;
        const T* b = b_row<T>(a, offset, n);
        float sum[TT];
#pragma unroll
        for (int t = 0; t < TT; t++) sum[t] = 0;
        if (sizeof(T) == 2 && a.rank % 8 == 0) {
            for (int i = 0; i < a.rank; i += 8) {
                float x[8];
                widen8(__ldg((const uint4*)((const bf16*)b + i)), x);
#pragma unroll
                for (int t = 0; t < TT; t++) {
                    const float4 p = *(const float4*)(z + t * ldz + i), q = *(const float4*)(z + t * ldz + i + 4);
                    float s = sum[t];
                    s = fmaf(x[0], p.x, s); s = fmaf(x[1], p.y, s); s = fmaf(x[2], p.z, s); s = fmaf(x[3], p.w, s);
                    s = fmaf(x[4], q.x, s); s = fmaf(x[5], q.y, s); s = fmaf(x[6], q.z, s); s = fmaf(x[7], q.w, s);
                    sum[t] = s;
                }
            }
        } else {
            for (int i = 0; i < a.rank; i++) {
                const float x = f(b[i]);
#pragma unroll
                for (int t = 0; t < TT; t++) sum[t] = fmaf(x, z[t * ldz + i], sum[t]);
            }
        }
#pragma unroll
        for (int t = 0; t < TT; t++) acc[t] += sum[t];
        return;
    }
#pragma unroll
    for (int t = 0; t < TT; t++) {
        const Adapter a = own[t];
        if (t < m && a.rank) acc[t] += dot_b(b_row<T>(a, offset, n), z + t * ldz, a.rank);
    }
}

// load_tile fetches the adapter entries and z of tokens [t0, t0+m) into shared memory, zeros past m, and reports whether they share
// one adapter. Every thread of the block calls it. z's rows have ldz floats (R rounded up to 4), those past R zero.
template <class T> __device__ __forceinline__ bool load_tile(Adapter* own, float* z, int ldz, const B& b, const int* adapter, int t0, int m, int tt, const T* src, ll stride, int r) {
    __shared__ int same;
    if (threadIdx.x < 32) {
        bool eq = true;
        for (int t = threadIdx.x; t < tt; t += 32) {
            Adapter a = {0, 0};
            int slot = -1;
            if (t < m && b.table && (slot = adapter[t0 + t]) >= 0) a = b.table[slot];
            own[t] = a;
            if (t < m) eq = eq && adapter[t0 + t] == adapter[t0];
        }
        eq = __all_sync(~0u, eq);
        if (threadIdx.x == 0) same = eq;
    }
    for (int i = threadIdx.x; i < tt * ldz; i += blockDim.x) {
        const int t = i / ldz, j = i % ldz;
        z[i] = t < m && j < r ? f(src[(t0 + t) * stride + j]) : 0.f;
    }
    __syncthreads();
    return same;
}

// Copies of 16 bytes to shared memory, in the background; on = false writes zeros.
__device__ __forceinline__ void copy16(uint32_t dst, const void* src, bool on) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(on ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy8(uint32_t dst, const void* src, bool on) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(dst), "l"(src), "r"(on ? 8 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void ldmatrix4(uint32_t* r, uint32_t a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldmatrix2(uint32_t* r, uint32_t a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a) : "memory");
}
__device__ __forceinline__ void ldmatrix4t(uint32_t* r, uint32_t a) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
// mma: c[16, 8] += a[16, 16]·b[16, 8].
__device__ __forceinline__ void mma(float* c, const uint32_t* a, const uint32_t* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t*)&v;
}
__device__ __forceinline__ uint4 pack8(const float* x) { return make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])); }
