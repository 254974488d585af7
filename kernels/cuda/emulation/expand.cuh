#pragma once
#include "common.cuh"
// mma32: c[16, 8] += b[16, 32]·z[8, 32]ᵀ. A lane 4g+t has elements 8t … 8t+7 of rows g (lo) and g+8 (hi) of b, and of row g of z.
__device__ __forceinline__ void mma32(float* c, const uint4& lo, const uint4& hi, const uint4& z) {
    const uint32_t a0[4] = {lo.x, hi.x, lo.y, hi.y}, z0[2] = {z.x, z.y}, a1[4] = {lo.z, hi.z, lo.w, hi.w}, z1[2] = {z.z, z.w};
    mma(c, a0, z0);
    mma(c, a1, z1);
}

// few is elements 0 … n-1, n ≤ 8, zeros past them, one at a time.
__device__ __forceinline__ uint4 few(const bf16* p, int n) {
    unsigned long long lo = 0, hi = 0;
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        const unsigned long long v = (unsigned long long)__bfloat16_as_ushort(p[i]) << (16 * (i & 3));
        if (i < 4) lo |= v;
        else hi |= v;
    }
    return make_uint4((uint32_t)lo, (uint32_t)(lo >> 32), (uint32_t)hi, (uint32_t)(hi >> 32));
}

