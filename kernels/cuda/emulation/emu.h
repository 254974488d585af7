#pragma once
#include <cuda_bf16.h>
#include <vector_types.h>
#include <vector_functions.h>
#include <stdint.h>
#include <math.h>
#include <string.h>
#include <atomic>
#include <thread>
#include <vector>
#include <mutex>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#undef __shared__
#define __shared__ static
#undef __device__
#define __device__
#undef __global__
#define __global__
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline
#define HOPPER 1
struct D3 { int x, y, z; };
extern thread_local D3 threadIdx, blockIdx;
extern D3 gridDim, blockDim;
typedef long long ll;
typedef __nv_bfloat16 bf16;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float f(float x) { return x; }
inline float f(bf16 x) { return __bfloat162float(x); }
// spinning barrier
struct Bar {
    std::atomic<int> count{0}, gen{0};
    void wait(int n) {
        int g = gen.load();
        if (count.fetch_add(1) + 1 == n) { count = 0; gen++; }
        else { int spins = 0; while (gen.load() == g) { sched_yield(); if (++spins > 30000000) { fprintf(stderr, "stuck barrier block %d thread %d\n", blockIdx.x, threadIdx.x); abort(); } } }
    }
};
extern Bar warp_bar[16], block_bar, named_bar[8];
extern uint64_t xch[16][32][4];
inline void __syncthreads() { block_bar.wait(blockDim.x); }
inline void __syncwarp() { warp_bar[threadIdx.x >> 5].wait(32); }
template <class T> struct All { T v[32]; };
template <class T> inline All<T> exchange(const T& v) {
    static_assert(sizeof(T) <= 32);
    int w = threadIdx.x >> 5, l = threadIdx.x & 31;
    memcpy(xch[w][l], &v, sizeof v);
    __syncwarp();
    All<T> a;
    for (int i = 0; i < 32; i++) memcpy(&a.v[i], xch[w][i], sizeof(T));
    __syncwarp();
    return a;
}
template <class T> inline T __shfl_sync(unsigned, T v, int l) { return exchange(v).v[l & 31]; }
inline unsigned __ballot_sync(unsigned, int p) { auto a = exchange(p); unsigned r = 0; for (int i = 0; i < 32; i++) if (a.v[i]) r |= 1u << i; return r; }
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(x); }
template <class T> inline T __ldcg(const T* p) { return *(const volatile T*)p, *p; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }
template <class T> inline T __ldg(const T* p) { return *p; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf_(float x) { return expf(x); }
#define __expf __expf_
inline float bfbits(uint16_t u) { uint32_t v = (uint32_t)u << 16; float r; memcpy(&r, &v, 4); return r; }
inline uint32_t pack2(float lo, float hi) { __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi); uint32_t r; memcpy(&r, &v, 4); return r; }
struct MF { uint32_t a[4], b[2]; };
inline void mma_emu(float* c, const uint32_t* a, const uint32_t* b) {
    MF mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    auto all = exchange(mine);
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    auto A = [&](int r, int k) { int gl = r & 7, tl = (k & 7) >> 1, reg = (r >> 3) + 2 * (k >> 3); uint32_t v = all.v[gl * 4 + tl].a[reg]; return bfbits(k & 1 ? v >> 16 : v & 0xffff); };
    auto B = [&](int k, int n) { int tl = (k & 7) >> 1, reg = k >> 3; uint32_t v = all.v[n * 4 + tl].b[reg]; return bfbits(k & 1 ? v >> 16 : v & 0xffff); };
    for (int i = 0; i < 4; i++) {
        int r = g + 8 * (i >> 1), n = 2 * t + (i & 1);
        float s = c[i];
        for (int k = 0; k < 16; k++) s += A(r, k) * B(k, n);
        c[i] = s;
    }
}
