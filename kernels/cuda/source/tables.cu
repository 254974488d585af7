// SetAdapter: table[slot] = {block, rank}, in the stream's order.
struct SetArgs {
    Adapter* table; ll slot;
    const void* block; ll rank;
};
extern "C" __global__ void set_adapter(const __grid_constant__ SetArgs a) {
    wait_predecessor(); // and no successor before the end: epilogues read the table before they wait
    a.table[a.slot] = {a.block, a.rank};
}

// Copy: dst = src, converting the dtype. Grid (⌈cols/256⌉, rows).
struct CopyArgs {
    void* dst; ll ds;
    const void* src; ll ss;
    ll cols;
};
template <class A, class C> __device__ void copy(const CopyArgs& a) {
    wait_predecessor();
    allow_successor();
    const ll c = blockIdx.x * (ll)blockDim.x + threadIdx.x, r = blockIdx.y;
    if (c < a.cols) ((A*)a.dst)[r * a.ds + c] = to<A>(f(((const C*)a.src)[r * a.ss + c]));
}
extern "C" __global__ void copy_f32_f32(const __grid_constant__ CopyArgs a) { copy<float, float>(a); }
extern "C" __global__ void copy_f32_bf16(const __grid_constant__ CopyArgs a) { copy<float, bf16>(a); }
extern "C" __global__ void copy_bf16_f32(const __grid_constant__ CopyArgs a) { copy<bf16, float>(a); }
extern "C" __global__ void copy_bf16_bf16(const __grid_constant__ CopyArgs a) { copy<bf16, bf16>(a); }

// copy_wide: dst = src of one dtype, where rows, strides and addresses are whole runs of 16 bytes; cols and strides in such runs. A thread
// copies 4 of them, a block's threads neighbouring ones. Grid ⌈rows·cols/1024⌉.
struct CopyWideArgs {
    uint4* dst; ll ds;
    const uint4* src; ll ss;
    ll rows, cols;
};
extern "C" __global__ void __launch_bounds__(256) copy_wide(const __grid_constant__ CopyWideArgs a) {
    wait_predecessor();
    allow_successor();
    const unsigned n = (unsigned)(a.rows * a.cols), cols = (unsigned)a.cols, at = blockIdx.x * 1024 + threadIdx.x;
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at + i * 256 < n) v[i] = a.src[(at + i * 256) / cols * a.ss + (at + i * 256) % cols];
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at + i * 256 < n) a.dst[(at + i * 256) / cols * a.ds + (at + i * 256) % cols] = v[i];
}

// Fill: x[i] = scale·(u − ½)·√12, u uniform from (seed, i): weights of a random model. Grid-stride.
struct FillArgs {
    void* x; ll n;
    double scale;
    ll seed;
};
template <class T> __device__ void fill(const FillArgs& a) {
    for (ll i = blockIdx.x * (ll)blockDim.x + threadIdx.x; i < a.n; i += (ll)gridDim.x * blockDim.x) {
        uint64_t z = (uint64_t)a.seed * 0x9E3779B97F4A7C15ull + (uint64_t)i * 0xD1B54A32D192ED03ull; // splitmix64's finish
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        ((T*)a.x)[i] = to<T>(((float)(z >> 40) / 16777216.f - 0.5f) * 3.4641016f * (float)a.scale);
    }
}
extern "C" __global__ void fill_f32(const __grid_constant__ FillArgs a) { fill<float>(a); }
extern "C" __global__ void fill_bf16(const __grid_constant__ FillArgs a) { fill<bf16>(a); }
