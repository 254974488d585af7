// Sample: a token for each row of logits: penalties, bias, mask, temperature, min-p, top-k, top-p, then argmax over the kept tokens of
// logit/temperature + gumbel(seed, draw, token); the token's log-probability and rank in the model's own distribution; top log-probabilities.
//   logits F32 [rows, V], left as they are; x F32 [rows, V] scratch. Grid rows, 1,024 threads; reads V a few times.
//   What is kept is found by radix selection over (value, id), with probability masses in fixed point, so that sums have no order.
//   Oracle: kernels/cpu Sample. Noise: Salmon et al., 2011 (Philox).
struct SampleArgs {
    const float* logits; ll ls;
    float* x;
    ll v;
    int* token;
    float* logprob;
    int* top_id; ll ts;
    float* top_logprob; ll tls;
    int* rank;
    int* counts; ll cs;
    const int* bias_id; ll bs;
    const float* bias; ll fs;
    ll biases;
    const int* mask; ll ms;
    const int *sampler, *forced, *flags, *topk, *top, *seed_lo, *seed_hi, *draw;
    const float *temperature, *topp, *minp, *repetition, *presence, *frequency;
    const int* head;
};

// order maps a float to an unsigned that sorts alike; rank_key is greater for what comes first: higher values, then lower ids.
__device__ __forceinline__ uint32_t order(float x) {
    const uint32_t b = __float_as_uint(x == 0.f ? 0.f : x);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}
__device__ __forceinline__ uint64_t rank_key(float x, int id) { return (uint64_t)order(x) << 32 | (uint32_t)~id; }

__device__ __forceinline__ uint64_t block_max_key(uint64_t v, uint64_t* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        const uint64_t u = __shfl_xor_sync(~0u, v, o);
        v = u > v ? u : v;
    }
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    v = lane < warps ? shared[lane] : 0;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
        const uint64_t u = __shfl_xor_sync(~0u, v, o);
        v = u > v ? u : v;
    }
    __syncthreads();
    return v;
}

__device__ __forceinline__ unsigned long long block_sum_u64(unsigned long long v, unsigned long long* shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if (lane == 0) shared[warp] = v;
    __syncthreads();
    v = lane < warps ? shared[lane] : 0;
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    __syncthreads();
    return v;
}

__device__ __forceinline__ void philox(uint32_t* c, uint32_t k0, uint32_t k1) {
#pragma unroll
    for (int i = 0; i < 10; i++) {
        const uint64_t a = (uint64_t)c[0] * 0xD2511F53u, b = (uint64_t)c[2] * 0xCD9E8D57u;
        const uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[0] = n0; c[1] = (uint32_t)b; c[2] = n2; c[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}
__device__ __forceinline__ float uniform(uint32_t w) { return ((float)(w >> 9) + 0.5f) / 8388608.f; }

// fixed is a probability relative to the greatest, in units of 2⁻⁴⁰.
__device__ __forceinline__ unsigned long long fixed(float x, float top) { return (unsigned long long)(exp((double)(x - top)) * 1099511627776.0); }

// select finds the least rank key of the shortest run of tokens, in order, among those with key ≥ floor, whose weights sum to at least
// goal; weights are 1, or masses. It returns floor where all of them do not reach it.
__device__ uint64_t select(const float* x, int v, float top, uint64_t floor, bool mass, unsigned long long goal, unsigned long long* bins, unsigned long long* shared) {
    uint64_t prefix = 0, known = 0; // the key's bits found so far, and which
    unsigned long long before = 0;  // weight of tokens above the prefix
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) bins[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < v; i += blockDim.x) {
            const uint64_t key = rank_key(x[i], i);
            if (key < floor || (key & known) != prefix) continue;
            atomicAdd(&bins[key >> shift & 255], mass ? fixed(x[i], top) : 1ull);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned long long sum = before;
            int b = 255;
            for (; b >= 0; b--) {
                if (sum + bins[b] >= goal) break;
                sum += bins[b];
            }
            shared[0] = b;
            shared[1] = sum;
        }
        __syncthreads();
        const long long b = (long long)shared[0];
        before = shared[1];
        __syncthreads();
        if (b < 0) return floor;
        prefix |= (uint64_t)b << shift;
        known |= 255ull << shift;
    }
    return prefix;
}

extern "C" __global__ void __launch_bounds__(1024) sample(const __grid_constant__ SampleArgs a) {
    __shared__ unsigned long long bins[256], shared[33];
    __shared__ float fshared[66];
    wait_predecessor();
    allow_successor();
    const int row = blockIdx.x, tid = threadIdx.x, v = a.v;
    if (row >= a.head[2]) return;
    const float* raw = a.logits + row * a.ls;
    // Maximum and Σ exp of the row as it is.
    float m = -CUDART_INF_F, l = 0;
    int at0 = -1; // of the thread's greatest, the first
    auto take = [&](float r, int i) {
        if (r > m) {
            l = l * __expf(m - r) + 1.f;
            m = r;
            at0 = i;
        } else {
            l += r > -CUDART_INF_F ? __expf(r - m) : 0.f;
        }
    };
    bool nan = false;
    const bool fours = v % 4 == 0 && ((uint64_t)raw & 15) == 0;
    if (fours) {
#pragma unroll 4
        for (int i = tid * 4; i < v; i += blockDim.x * 4) {
            const float4 r = *(const float4*)(raw + i);
            nan = nan || !(r.x == r.x && r.y == r.y && r.z == r.z && r.w == r.w);
            take(r.x, i), take(r.y, i + 1), take(r.z, i + 2), take(r.w, i + 3);
        }
    } else {
        for (int i = tid; i < v; i += blockDim.x) {
            nan = nan || raw[i] != raw[i];
            take(raw[i], i);
        }
    }
    uint64_t best = nan ? rank_key(CUDART_NAN_F, 0) : at0 >= 0 ? rank_key(m, at0) : rank_key(-CUDART_INF_F, 0);
    best = block_max_key(best, (uint64_t*)shared);
    const int first = (int)~(uint32_t)best;
    const float peak = best >> 32 == order(CUDART_NAN_F) ? CUDART_NAN_F : raw[first];
    const float sum = block_sum(m > -CUDART_INF_F ? l * expf(m - peak) : 0.f, fshared);
    // +∞ counts as the greatest number: the difference of two is then one too.
    const float lse = peak == CUDART_INF_F ? CUDART_MAX_NORMAL_F : peak + logf(sum);

    for (int j = 0, n = min((int)a.top[row], 20); j < 20; j++) {
        uint64_t next = 0;
        if (j < n) {
            if (j == 0) {
                next = peak > -CUDART_INF_F ? best : 0;
                if (next == 0) n = 0;
            } else {
                for (int i = tid; i < v; i += blockDim.x) {
                    const uint64_t key = rank_key(raw[i], i);
                    if (key < best && key > next && raw[i] > -CUDART_INF_F) next = key;
                }
                next = block_max_key(next, (uint64_t*)shared);
                best = next;
                if (next == 0) n = 0;
            }
        }
        if (tid == 0) {
            const int id = (int)~(uint32_t)next;
            a.top_id[row * a.ts + j] = next ? id : -1;
            a.top_logprob[row * a.tls + j] = next ? fminf(raw[id], CUDART_MAX_NORMAL_F) - lse : -CUDART_INF_F;
        }
    }

    int token = a.forced[row];
    const int flags = a.flags[row], at = a.sampler[row];
    int* counts = a.counts + at * a.cs;
    if (token < 0 && (flags & 15) == 8) token = first;
    if (token < 0) {
        float* x = a.x + (ll)row * v;
        const float rep = a.repetition[row], pres = a.presence[row], freq = a.frequency[row];
        for (int i = tid; i < v; i += blockDim.x) {
            float r = raw[i];
            if (flags & 1) {
                const int c = counts[i];
                if (c) {
                    r = r > 0 ? r / rep : r * rep;
                    const int n = c & ~(1 << 30);
                    if (n > 0) r -= __fadd_rn(__fmul_rn(freq, (float)n), pres);
                }
            }
            x[i] = r;
        }
        __syncthreads();
        if (flags & 2)
            for (int j = tid; j < a.biases; j += blockDim.x) {
                const int id = a.bias_id[at * a.bs + j];
                if (id >= 0) x[id] += a.bias[at * a.fs + j];
            }
        __syncthreads();
        const bool greedy = flags & 8;
        const float inverse = greedy ? 1.f : 1.f / a.temperature[row];
        best = 0;
        for (int i = tid; i < v; i += blockDim.x) {
            float r = x[i];
            if (flags & 4 && !(a.mask[at * a.ms + i / 32] >> (i % 32) & 1)) r = -CUDART_INF_F;
            r *= inverse;
            x[i] = r;
            const uint64_t key = rank_key(r, i);
            best = key > best ? key : best;
        }
        best = block_max_key(best, (uint64_t*)shared);
        token = (int)~(uint32_t)best;
        const float top = x[token];
        if (!greedy && top > -CUDART_INF_F && top < CUDART_INF_F) { // else nothing is allowed, or nothing has a chance beside it
            const float minp = a.minp[row], topp = a.topp[row];
            const int topk = a.topk[row];
            const float least = minp > 0 ? top + (float)log((double)minp) : -CUDART_INF_F;
            uint64_t floor = minp > 0 ? rank_key(least, v) & ~0xffffffffull : ((uint64_t)order(-CUDART_INF_F) + 1) << 32;
            if (topk > 0 && topk < v) floor = select(x, v, top, floor, false, topk, bins, shared);
            if (topp < 1.f) {
                unsigned long long mass = 0;
                for (int i = tid; i < v; i += blockDim.x)
                    if (rank_key(x[i], i) >= floor) mass += fixed(x[i], top);
                mass = block_sum_u64(mass, shared);
                floor = select(x, v, top, floor, true, max(1ull, (unsigned long long)((double)topp * (double)mass)), bins, shared);
            }
            // The race: in float32 first, then those near the winner in float64, as the oracle has it.
            const uint32_t k0 = a.seed_lo[row], k1 = a.seed_hi[row], draw = a.draw[row];
            float near = -CUDART_INF_F;
            for (int g = tid; g * 4 < v; g += blockDim.x) {
                bool any = false;
                for (int j = 0; j < 4; j++) any = any || (g * 4 + j < v && rank_key(x[g * 4 + j], g * 4 + j) >= floor);
                if (!any) continue;
                uint32_t c[4] = {draw, (uint32_t)g, 0, 0};
                philox(c, k0, k1);
                for (int j = 0; j < 4; j++) {
                    const int i = g * 4 + j;
                    if (i < v && rank_key(x[i], i) >= floor) near = fmaxf(near, x[i] - logf(-logf(uniform(c[j]))));
                }
            }
            near = warp_max(near);
            if ((tid & 31) == 0) fshared[tid >> 5] = near;
            __syncthreads();
            near = warp_max((tid & 31) < (blockDim.x >> 5) ? fshared[tid & 31] : -CUDART_INF_F);
            __syncthreads();
            best = 0;
            for (int g = tid; g * 4 < v; g += blockDim.x) {
                bool any = false;
                for (int j = 0; j < 4; j++) any = any || (g * 4 + j < v && x[g * 4 + j] >= near - 17.f && rank_key(x[g * 4 + j], g * 4 + j) >= floor);
                if (!any) continue;
                uint32_t c[4] = {draw, (uint32_t)g, 0, 0};
                philox(c, k0, k1);
                for (int j = 0; j < 4; j++) {
                    const int i = g * 4 + j;
                    if (i >= v || rank_key(x[i], i) < floor) continue;
                    const float u = uniform(c[j]);
                    if (x[i] - logf(-logf(u)) < near - 1e-2f) continue;
                    const uint64_t key = rank_key(x[i] + (float)-log(-log((double)u)), i);
                    best = key > best ? key : best;
                }
            }
            best = block_max_key(best, (uint64_t*)shared);
            if (best) token = (int)~(uint32_t)best; // else noise is lost beside logits that large
        }
    }
    if (!(peak > -CUDART_INF_F)) token = -1; // logits that are no numbers, or all −∞, have no draw
    if (tid == 0 && flags & 1 && token >= 0) counts[token]++;
    const float own = token >= 0 ? raw[token] : peak;
    unsigned long long above = 0;
    if (fours) {
#pragma unroll 4
        for (int i = tid * 4; i < v; i += blockDim.x * 4) {
            const float4 r = *(const float4*)(raw + i);
            above += (r.x > own || (r.x == own && i < token)) + (r.y > own || (r.y == own && i + 1 < token)) + (r.z > own || (r.z == own && i + 2 < token)) + (r.w > own || (r.w == own && i + 3 < token));
        }
    } else {
        for (int i = tid; i < v; i += blockDim.x) above += raw[i] > own || (raw[i] == own && i < token);
    }
    above = block_sum_u64(above, shared);
    if (tid == 0) {
        a.token[row] = token;
        a.logprob[row] = fminf(own, CUDART_MAX_NORMAL_F) - lse;
        a.rank[row] = (int)above + 1;
    }
}
