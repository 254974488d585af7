// B·z on the tensor cores, for bf16: 16 rows of B are the one operand, z of 8 tokens the other. A row of B is read in runs of 16 bytes,
// 4 lanes beside each other; a token's sum has one order, whatever tokens are beside it.
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

// line is p's 16 bytes; the other 112 of its line come as near as the L2: they are wanted next.
__device__ __forceinline__ uint4 line(const bf16* p) {
    uint4 v;
    asm("ld.global.nc.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

// Expand is the work of one warp on slices of 8 tokens, one after another: it adds B·z of its own rows of B, TILES times 16 of them, for each
// token's adapter. A lane 4g+t has rows n[i/RUN] + 2·(i%RUN) and the next of tile i, n its own, and of sum[i][s+2e] token 2t+s, row e of the two.
// ONCE: there is one slice, its adapters' rows are in no other; of ranks up to 16 it takes two adapters at a time, lanes t ≥ 2 the second one.
// Adapters whose rank is no multiple of 8 come last, without tensor cores.
template <int TILES, int RUN, bool ONCE> struct Expand {
    const bf16* block; // of the lane's token, whose number in the slice the lane's is
    int rank;
    unsigned same, todo, odd; // tokens with that adapter; the first token of each adapter that is left, and of each whose rank is no multiple of 8
    unsigned mask, second; // tokens of the adapter whose rows are here; of the second one
    bool pairs = false;
    const bf16* from;
    int k0, most;               // from element k0 of its rank on
    const bf16* held = nullptr; // what w has, from held_k on: the next slice may need the same
    int held_k = 0;
    uint4 w[TILES][2], z;
    float sum[TILES][4];

    // start finds a slice's adapters; slot are the entries of the m tokens from its first on.
    __device__ __forceinline__ void start(const B& b, const int* slot, int m) {
        const int lane = threadIdx.x & 31;
        int s = -1;
        Adapter a = {0, 0};
        if (b.table && lane < min(m, 8) && (s = slot[lane]) >= 0) a = b.table[s];
        block = (const bf16*)a.block;
        rank = (int)a.rank;
        same = __match_any_sync(~0u, rank ? s : -1);
        todo = __ballot_sync(~0u, rank && lane == __ffs(same) - 1);
        odd = todo & __ballot_sync(~0u, rank % 8);
        todo &= ~odd;
        if (ONCE) pairs = __popc(todo) > 1 && !__any_sync(~0u, rank > 16);
        k0 = most = 0;
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int q = 0; q < 4; q++) sum[i][q] = 0;
    }

    __device__ __forceinline__ const bf16* block_of(int l) const { return (const bf16*)__shfl_sync(~0u, (unsigned long long)block, l); }

    // few_ranks says whether the slice's adapters are so few that all their rows may be asked for at once: more than the L2 holds would drive each other out.
    __device__ __forceinline__ bool few_ranks() const { return __reduce_add_sync(~0u, todo >> (threadIdx.x & 31) & 1 ? rank : 0) <= 64; }

    // fetch brings rows row … row+count-1 of all the slice's adapters as near as the L2.
    __device__ __forceinline__ void fetch(ll row, int count) const {
        for (unsigned left = todo; left; left &= left - 1) {
            const int l = __ffs(left) - 1;
            const ll r = __shfl_sync(~0u, rank, l);
            const char* at = (const char*)(block_of(l) + r * row);
            for (int i = (threadIdx.x & 31) * 128; i < count * (int)r * 2; i += 32 * 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + i));
        }
    }

    // take begins to load the next rows; false: there are none.
    __device__ __forceinline__ bool take(ll offset, const int* n, bool on) {
        const int t = threadIdx.x & 3;
        if (ONCE && pairs) {
            if (!todo) return false;
            const int l = __ffs(todo) - 1;
            todo &= todo - 1;
            const int l2 = todo ? __ffs(todo) - 1 : l;
            todo &= todo - 1;
            mask = __shfl_sync(~0u, same, l);
            second = l2 == l ? 0 : __shfl_sync(~0u, same, l2);
            const bf16* own = block_of(t < 2 ? l : l2);
            const ll r = __shfl_sync(~0u, rank, t < 2 ? l : l2);
            const int k = 8 * (t & 1);
            const bool here = on && k < r && (t < 2 || second);
#pragma unroll
            for (int i = 0; i < TILES; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) w[i][e] = here ? __ldg((const uint4*)(own + r * (offset + n[i / RUN] + 2 * (i % RUN) + e) + k)) : make_uint4(0, 0, 0, 0);
            return true;
        }
        if (k0 + 32 < most) {
            k0 += 32;
        } else {
            if (!todo) return false;
            const int l = __ffs(todo) - 1;
            todo &= todo - 1;
            from = block_of(l);
            most = __shfl_sync(~0u, rank, l);
            mask = __shfl_sync(~0u, same, l);
            k0 = 0;
        }
        if (!ONCE) {
            if (held == from && held_k == k0) return true;
            held = from;
            held_k = k0;
        }
        const bool here = on && k0 + 8 * t < most;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const bf16* row = from + most * (offset + n[i / RUN]) + (k0 + 8 * t) + 2 * (i % RUN) * most;
#pragma unroll
            for (int e = 0; e < 2; e++) w[i][e] = !here ? make_uint4(0, 0, 0, 0) : ONCE ? line(row + e * most) : __ldg((const uint4*)(row + e * most));
        }
        return true;
    }

    // load_z fetches the elements of each token's z from k0 on; src is the slice's first token's z.
    __device__ __forceinline__ void load_z(const bf16* src, ll stride) {
        const int token = (threadIdx.x & 31) >> 2, at = k0 + 8 * (threadIdx.x & (ONCE && pairs ? 1 : 3));
        z = piece(src + token * stride, at, __shfl_sync(~0u, rank, token) & ~7);
    }

    // add multiplies what take has loaded. Tokens of other adapters stay as they are, whatever the rows hold.
    __device__ __forceinline__ void add() {
        const int t = threadIdx.x & 3;
        if (ONCE && pairs) {
            add_half(mask, t < 2);
            if (second) add_half(second, t >= 2);
            return;
        }
        const bool hit[2] = {(mask >> (2 * t) & 1) != 0, (mask >> (2 * t + 1) & 1) != 0};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            float c[4] = {0, 0, 0, 0};
            mma32(c, w[i][0], w[i][1], z);
#pragma unroll
            for (int q = 0; q < 4; q++)
                if (hit[q & 1]) sum[i][q] += c[q];
        }
    }

    __device__ __forceinline__ void add_half(unsigned tokens, bool mine) {
        const int t = threadIdx.x & 3;
        const bool hit[2] = {(tokens >> (2 * t) & 1) != 0, (tokens >> (2 * t + 1) & 1) != 0};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const uint4 none = make_uint4(0, 0, 0, 0);
            float c[4] = {0, 0, 0, 0};
            mma32(c, mine ? w[i][0] : none, mine ? w[i][1] : none, z);
#pragma unroll
            for (int q = 0; q < 4; q++)
                if (hit[q & 1]) sum[i][q] += c[q];
        }
    }

    // run does all of a slice; more: take has been called, and had something.
    __device__ __forceinline__ void run(bool more, const bf16* src, ll stride, ll offset, const int* n, bool on) {
        if (more) {
            load_z(src, stride);
            int at = 0;
            do {
                if (at != k0) {
                    at = k0;
                    load_z(src, stride);
                }
                add();
            } while (take(offset, n, on));
        }
        if (odd) run_odd(src, stride, offset, n, on);
    }

    // run_odd adds B·z of the tokens whose rank is no multiple of 8, a value of z at a time.
    __device__ __forceinline__ void run_odd(const bf16* src, ll stride, ll offset, const int* n, bool on) {
        const int t = threadIdx.x & 3;
#pragma unroll 1
        for (unsigned left = odd; left; left &= left - 1) {
            const int l = __ffs(left) - 1;
            const bf16* own = block_of(l);
            const int r = __shfl_sync(~0u, rank, l);
            const unsigned tokens = __shfl_sync(~0u, same, l) >> 2 * t & 3; // of the lane's two
            if (!on) continue;
#pragma unroll 1
            for (int k = 0; k < r; k++) {
                const float z0 = tokens & 1 ? f(src[2 * t * stride + k]) : 0.f, z1 = tokens & 2 ? f(src[(2 * t + 1) * stride + k]) : 0.f;
#pragma unroll
                for (int i = 0; i < TILES; i++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const float b = f(own[r * (offset + n[i / RUN] + 2 * (i % RUN) + e) + k]);
                        if (tokens & 1) sum[i][2 * e] = fmaf(b, z0, sum[i][2 * e]);
                        if (tokens & 2) sum[i][2 * e + 1] = fmaf(b, z1, sum[i][2 * e + 1]);
                    }
            }
        }
    }
};

// ExpandRow adds B·z of one token to 8 values a lane, rows n0 + 8·lane …; the warp has rows n0 … n0 + 255, of which those below h exist.
struct ExpandRow {
    const bf16* block;
    int rank;
    uint4 w[2][2][2];
    uint4 rest[2][2][2]; // of a rank up to 16: the second half of its tiles

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
    // first begins what needs nothing of z.
    __device__ __forceinline__ void first(ll offset, int n0, int h) {
        if (rank == 0 || rank % 8) return;
        if (rank <= 16) {
            halves(w, offset, n0, h, 0);
            halves(rest, offset, n0, h, 1);
            return;
        }
        load(offset, n0, h, 0, 0);
        fetch(offset, n0, h);
    }
    // halves loads 8 tiles of a rank up to 16: lanes t < 2 the first four, the others the rest; a lane 16 bytes of a row.
    __device__ __forceinline__ void halves(uint4 (*v)[2][2], ll offset, int n0, int h, int i) {
        const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int e = 0; e < 2; e++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const int n = n0 + 32 * g + 2 * (8 * i + 4 * (t >> 1) + 2 * j + p) + e;
                    v[p][e][j] = piece(block + rank * (offset + n), 8 * (t & 1), rank, n < h);
                }
    }
    // add_halves multiplies them: z is in the even columns for lanes t < 2, in the odd ones for the others, so that column 0 is of the first four tiles, 1 of the rest.
    __device__ __forceinline__ void add_halves(float* v, const uint4 (*u)[2][2], const uint4& z, int i) {
        const int t = threadIdx.x & 3;
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                float c[4] = {0, 0, 0, 0};
                mma32(c, u[p][0][j], u[p][1][j], z);
                if (t >> 1 == i) v[2 * (2 * j + p)] += t & 1 ? c[1] : c[0], v[2 * (2 * j + p) + 1] += t & 1 ? c[3] : c[2];
            }
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
    // run adds to v; first has been called.
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
        if (rank <= 16) {
            const uint4 mine = (lane >> 2 & 1) == t >> 1 ? piece_of(z, 8 * (t & 1)) : make_uint4(0, 0, 0, 0);
            add_halves(v, w, mine, 0);
            add_halves(v, rest, mine, 1);
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
