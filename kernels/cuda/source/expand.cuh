// B·z on the tensor cores, for bf16: 16 rows of B are the one operand, z of 8 tokens the other. A row of B is read in runs of 16 bytes,
// 4 lanes beside each other, every byte once for all tokens of a slice; a token's sum has one order, whatever tokens are beside it.
#pragma once
#include "common.cuh"

// mma32: c[16, 8] += b[16, 32]·z[8, 32]ᵀ. A lane 4g+t has elements 8t … 8t+7 of rows g (lo) and g+8 (hi) of b, and of row g of z.
__device__ __forceinline__ void mma32(float* c, const uint4& lo, const uint4& hi, const uint4& z) {
    const uint32_t a0[4] = {lo.x, hi.x, lo.y, hi.y}, z0[2] = {z.x, z.y}, a1[4] = {lo.z, hi.z, lo.w, hi.w}, z1[2] = {z.z, z.w};
    mma(c, a0, z0);
    mma(c, a1, z1);
}

// piece is elements k … k+7 of a row of B whose rank is a multiple of 8, zeros past it or where on is false.
__device__ __forceinline__ uint4 piece(const bf16* row, int k, int rank, bool on = true) {
    return on && k < rank ? __ldg((const uint4*)(row + k)) : make_uint4(0, 0, 0, 0);
}

// Expand is the work of one warp on a slice of 8·NT tokens: it adds B·z of its own rows of B, TILES times 16 of them, for each token's adapter.
// A lane 4g+t has rows n[i] and n[i]+1 of tile i, n[i] its own, and of sum[i][j][s+2e] token 8j+2t+s, row n[i]+e.
template <int NT, int TILES> struct Expand {
    const bf16* block; // of the lane's token, whose number in the slice the lane's is
    int rank;
    unsigned same, todo; // tokens with that adapter; the first token of each adapter that is left
    unsigned mask[2];    // tokens of the one adapter, or two of low rank, whose rows are here
    const bf16* from;
    int k0, most;            // from element k0 of the first's rank on
    uint4 w[TILES][2][2];    // two runs of 32 elements of the one adapter, or one of each of the two
    uint4 z[NT][2];
    float sum[TILES][NT][4];

    // start finds the slice's adapters; slot are its first m tokens' entries.
    __device__ __forceinline__ void start(const B& b, const int* slot, int m) {
        const int lane = threadIdx.x & 31;
        int s = -1;
        Adapter a = {0, 0};
        if (b.table && lane < m && (s = slot[lane]) >= 0) a = b.table[s];
        block = (const bf16*)a.block;
        rank = (int)a.rank;
        same = __match_any_sync(~0u, rank ? s : -1);
        todo = __ballot_sync(~0u, rank && lane == __ffs(same) - 1);
        k0 = most = 0;
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) sum[i][j][q] = 0;
    }

    __device__ __forceinline__ const bf16* block_of(int l) const { return (const bf16*)__shfl_sync(~0u, (unsigned long long)block, l); }

    // take begins to load the next rows; false: there are none.
    __device__ __forceinline__ bool take(ll offset, const int* n, bool on) {
        const int t = threadIdx.x & 3;
        const bf16* second = 0;
        int low = 0;
        if (k0 + 64 < most) {
            k0 += 64;
        } else {
            if (!todo) return false;
            const int l = __ffs(todo) - 1;
            todo &= todo - 1;
            from = block_of(l);
            most = __shfl_sync(~0u, rank, l);
            mask[0] = __shfl_sync(~0u, same, l);
            mask[1] = 0;
            k0 = 0;
            if (todo && most <= 32 && most % 8 == 0) {
                const int l2 = __ffs(todo) - 1;
                low = __shfl_sync(~0u, rank, l2);
                if (low <= 32 && low % 8 == 0) {
                    todo &= todo - 1;
                    second = block_of(l2);
                    mask[1] = __shfl_sync(~0u, same, l2);
                }
            }
        }
        if (most % 8) return true; // not by tensor cores
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const ll row = offset + n[i] + e;
                w[i][e][0] = piece(from + most * row, k0 + 8 * t, most, on);
                w[i][e][1] = mask[1] ? piece(second + low * row, 8 * t, low, on) : piece(from + most * row, k0 + 32 + 8 * t, most, on);
            }
        return true;
    }

    // load_z fetches 64 elements of each token's z from k on; src is the slice's first token's z.
    __device__ __forceinline__ void load_z(const bf16* src, ll stride, int k) {
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int j = 0; j < NT; j++) {
            const int token = 8 * j + g, r = __shfl_sync(~0u, rank, token);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = k + 32 * i + 8 * t;
                z[j][i] = at + 8 <= r ? *(const uint4*)(src + token * stride + at) : make_uint4(0, 0, 0, 0);
            }
        }
    }

    // add multiplies what take has loaded. Tokens of other adapters stay as they are, whatever the rows hold.
    __device__ __forceinline__ void add(const bf16* src, ll stride, ll offset, const int* n, bool on) {
        const int t = threadIdx.x & 3;
        if (most % 8) {
            scalar(src, stride, offset, n, on);
            return;
        }
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                const unsigned hit = mask[p] >> (8 * j) & 255;
                if (!hit) continue;
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    float c[4] = {0, 0, 0, 0};
                    mma32(c, w[i][0][p], w[i][1][p], z[j][0]);
                    if (p == 0 && most - k0 > 32) mma32(c, w[i][0][1], w[i][1][1], z[j][1]);
#pragma unroll
                    for (int q = 0; q < 4; q++)
                        if (hit >> (2 * t + (q & 1)) & 1) sum[i][j][q] += c[q];
                }
            }
    }
    __device__ __forceinline__ void scalar(const bf16* src, ll stride, ll offset, const int* n, bool on) {
        const int t = threadIdx.x & 3;
        if (!on || k0) return;
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    const int token = 8 * j + 2 * t + (q & 1);
                    if (!(mask[0] >> token & 1)) continue;
                    const bf16 *row = from + most * (offset + n[i] + (q >> 1)), *z = src + token * stride;
                    float s = 0;
#pragma unroll 1
                    for (int k = 0; k < most; k++) s = fmaf(f(row[k]), f(z[k]), s);
                    sum[i][j][q] += s;
                }
    }

    // run does all of it; more: take has been called, and had something.
    __device__ __forceinline__ void run(bool more, const bf16* src, ll stride, ll offset, const int* n, bool on) {
        if (!more) return;
        load_z(src, stride, 0);
        int at = 0;
        do {
            if (at != k0) load_z(src, stride, at = k0);
            add(src, stride, offset, n, on);
        } while (take(offset, n, on));
    }
};

// ExpandRow adds B·z of one token to 8 values a lane, rows n0 + 8·lane …; the warp has rows n0 … n0 + 255, of which those below h exist.
struct ExpandRow {
    const bf16* block;
    int rank;
    uint4 w[2][2][2];

    __device__ __forceinline__ void start(const B& b, int slot) {
        Adapter a = {0, 0};
        if (b.table && slot >= 0) a = b.table[slot];
        block = (const bf16*)a.block;
        rank = (int)a.rank;
    }
    // fetch brings the warp's rows nearer, where they are few bytes.
    __device__ __forceinline__ void fetch(ll offset, int n0, int h) {
        if (rank > 32 || n0 >= h) return;
        const char* at = (const char*)(block + rank * (offset + n0));
        const int bytes = min(256, h - n0) * rank * 2;
        for (int i = (threadIdx.x & 31) * 128; i < bytes; i += 32 * 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + i));
    }
    // load begins step i: 4 tiles of a rank up to 32, else 2 of 64 elements; tile τ holds rows 32g + 2τ, +1.
    __device__ __forceinline__ void load(ll offset, int n0, int h, int i, int k0) {
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
        const bool low = rank <= 32;
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int e = 0; e < 2; e++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const int tile = low ? 4 * i + 2 * j + p : 2 * i + p, k = (low ? 0 : k0 + 32 * j) + 8 * t, n = n0 + 32 * g + 2 * tile + e;
                    w[p][e][j] = piece(block + rank * (offset + n), k, rank, n < h);
                }
    }
    // run adds to v; load(…, 0, 0) has been called where the rank is a multiple of 8, and not 0.
    __device__ __forceinline__ void run(float* v, const bf16* z, ll offset, int n0, int h) {
        const int lane = threadIdx.x & 31, t = lane & 3;
        if (rank == 0) return;
        if (rank % 8) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int n = n0 + 8 * lane + i;
                float s = 0;
                if (n < h) {
                    const bf16* row = block + rank * (offset + n);
#pragma unroll 1
                    for (int k = 0; k < rank; k++) s = fmaf(f(row[k]), f(z[k]), s);
                }
                v[i] += s;
            }
            return;
        }
        uint4 zr[2] = {piece_of(z, 8 * t), piece_of(z, 32 + 8 * t)};
        const bool low = rank <= 32;
        // Lane t keeps tiles 4t … 4t+3: of each, all lanes with one g have the same sums.
        if (low) {
#pragma unroll 1
            for (int i = 0; i < 4; i++) {
                if (i) load(offset, n0, h, i, 0);
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int p = 0; p < 2; p++) {
                        float c[4] = {0, 0, 0, 0};
                        mma32(c, w[p][0][j], w[p][1][j], zr[0]);
                        if (t == i) v[2 * (2 * j + p)] += c[0], v[2 * (2 * j + p) + 1] += c[2];
                    }
            }
            return;
        }
#pragma unroll 1
        for (int q = 0; q < 4; q++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float c[2][4] = {};
#pragma unroll 1
                for (int k0 = 0; k0 < rank; k0 += 64) {
                    if (q || i || k0) load(offset, n0, h, 2 * q + i, k0);
                    if (rank > 64) zr[0] = piece_of(z, k0 + 8 * t), zr[1] = piece_of(z, k0 + 32 + 8 * t);
#pragma unroll
                    for (int p = 0; p < 2; p++) {
                        mma32(c[p], w[p][0][0], w[p][1][0], zr[0]);
                        if (rank - k0 > 32) mma32(c[p], w[p][0][1], w[p][1][1], zr[1]);
                    }
                }
#pragma unroll
                for (int p = 0; p < 2; p++)
                    if (t == q) v[4 * i + 2 * p] += c[p][0], v[4 * i + 2 * p + 1] += c[p][2];
            }
    }
    __device__ __forceinline__ uint4 piece_of(const bf16* z, int k) const { return k < rank ? *(const uint4*)(z + k) : make_uint4(0, 0, 0, 0); }
};
