#pragma once
#include <time.h>
inline bool late() { static long t0 = time(0); return time(0) - t0 > 40; }
#include "emu.h"
namespace hopper {
struct alignas(64) TensorMap { const bf16* base; ll dims[4], strides[4]; int box[4]; int rank; int pad; ll fill[2]; };
inline void wait_predecessor() {}
inline void allow_successor() {}
inline uint32_t address(const void*);
inline uint32_t pack(float lo, float hi) { return pack2(lo, hi); }
inline int count_up(int* p, int n) { return __atomic_fetch_add(p, n, __ATOMIC_ACQ_REL); }
inline int counted(const int* p) { sched_yield(); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline uint32_t transpose8(uint32_t v) {
    auto all = exchange(v);
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    auto M = [&](int r, int c) { uint32_t x = all.v[r * 4 + (c >> 1)]; return (c & 1) ? x >> 16 : x & 0xffff; };
    return M(2 * t, g) | M(2 * t + 1, g) << 16;
}
// mbarriers: {phase:1, pending count, expected, tx}
struct MB { std::atomic<int> pending; int expected; std::atomic<int> tx; std::atomic<int> phase; };
extern std::mutex mb_lock;
struct Entry { MB* m; };
extern MB mbs[256]; extern std::atomic<int> mb_n;
inline MB* of(uint64_t* b) { return &mbs[*b]; }
inline void flip(MB* m) { if (m->pending == 0 && m->tx == 0) { m->pending = m->expected; m->phase++; } }
inline void barrier_init(uint64_t* b, int count) { int i = mb_n++; *b = i; mbs[i].pending = count; mbs[i].expected = count; mbs[i].tx = 0; mbs[i].phase = 0; }
inline void barrier_init_visible() {}
inline void barrier_expect(uint64_t* b, int bytes) { std::lock_guard<std::mutex> l(mb_lock); MB* m = of(b); m->tx += bytes; m->pending--; if (m->pending < 0) { fprintf(stderr, "too many arrivals\n"); abort(); } flip(m); }
inline void complete(uint64_t* b, int bytes) { std::lock_guard<std::mutex> l(mb_lock); MB* m = of(b); m->tx -= bytes; flip(m); }
inline void barrier_arrive(uint64_t* b) { std::lock_guard<std::mutex> l(mb_lock); MB* m = of(b); m->pending--; if (m->pending < 0) { fprintf(stderr, "too many arrivals\n"); abort(); } flip(m); }
inline void barrier_arrive_at(uint64_t* b, int) { barrier_arrive(b); }
inline void barrier_wait(uint64_t* b, int phase) {
    MB* m = of(b); long spins = 0;
    while ((m->phase.load() & 1) == phase) { sched_yield(); if (++spins % 256 == 0 && late()) { fprintf(stderr, "stuck mbarrier %ld block %d thread %d\n", (long)(m - mbs), blockIdx.x, threadIdx.x); abort(); } }
}
inline void named_sync(int id, int threads) { named_bar[id].wait(threads); }
inline uint64_t policy_evict_first() { return 0; }
inline uint64_t policy_evict_last() { return 0; }
inline void prefetch_map(const TensorMap*) {}
inline void load_box(void* dst, const TensorMap* m, const int* at, uint64_t* b) {
    bf16* d = (bf16*)dst; int n = 0;
    int bx[4] = {1, 1, 1, 1};
    for (int i = 0; i < m->rank; i++) bx[i] = m->box[i];
    for (int i3 = 0; i3 < bx[3]; i3++) for (int i2 = 0; i2 < bx[2]; i2++) for (int i1 = 0; i1 < bx[1]; i1++) for (int i0 = 0; i0 < bx[0]; i0++) {
        int i[4] = {i0, i1, i2, i3}; ll off = 0; bool in = true;
        for (int q = 0; q < m->rank; q++) { ll x = at[q] + i[q]; if (x < 0 || x >= m->dims[q]) in = false; off += x * m->strides[q]; }
        bf16 v = __float2bfloat16(0.f); if (in) v = m->base[off];
        d[n++] = v; // unswizzled: rows of 64
    }
    complete(b, n * 2);
}
inline void load2d(void* dst, const TensorMap* m, int x, int y, uint64_t* b, uint64_t) { int at[4] = {x, y, 0, 0}; load_box(dst, m, at, b); }
inline void load4d(void* dst, const TensorMap* m, int x, int w, uint64_t* b, uint64_t) { int at[4] = {x, 0, 0, w}; load_box(dst, m, at, b); }
inline void load_bytes(void* dst, const void* src, int bytes, uint64_t* b) {
    if (bytes <= 0 || bytes % 16 || (uintptr_t)src % 16 || (uintptr_t)dst % 16) { fprintf(stderr, "misaligned rows\n"); abort(); }
    memcpy(dst, src, bytes); complete(b, bytes);
}
inline void load2d_all(void*, const TensorMap*, int, int, uint64_t*, uint16_t, uint64_t) { abort(); }
inline int cluster_rank() { return 0; }
inline void cluster_sync() {}
extern uint8_t* shared_base;
inline uint32_t address(const void* p) { return (uint32_t)((const uint8_t*)p - shared_base); }
inline uint64_t matrix_k(uint32_t a) { return a / 16; }
inline void wgmma_fence() { named_bar[(threadIdx.x >> 7) + 2].wait(128); }
inline void wgmma_commit() {}
template <int N> inline void wgmma_wait() { named_bar[(threadIdx.x >> 7) + 4].wait(128); }
template <int NM> inline void wgmma(float* c, uint64_t a, uint64_t b, int keep) {
    // rows of 64 bf16 (128 bytes): a, b may be 2*i units of 16 bytes along k
    const bf16* A = (const bf16*)(shared_base + a * 16); const bf16* Bm = (const bf16*)(shared_base + b * 16);
    int lane = threadIdx.x & 31, w = (threadIdx.x >> 5) & 3, g = lane >> 2, t = lane & 3;
    for (int j = 0; j < NM / 8; j++) for (int i = 0; i < 4; i++) {
        int row = 16 * w + g + 8 * (i >> 1), n = 8 * j + 2 * t + (i & 1);
        float s = keep ? c[4 * j + i] : 0;
        for (int k = 0; k < 16; k++) s += __bfloat162float(A[row * 64 + k]) * __bfloat162float(Bm[n * 64 + k]);
        c[4 * j + i] = s;
    }
}
}
