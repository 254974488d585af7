// Embed: x[t] = E[token[t]], token[t] = Token[t], or previous[Feed[t]] where Feed[t] ≥ 0.
//   x [T, H], E [V, H]; grid T blocks; moves 2·T·H elements. Oracle: kernels/cpu Embed.
// GatherRows: y[i] = x[RowToken[i]].
//   x [T, H], y [rows, H]; grid rows blocks. Oracle: kernels/cpu GatherRows.
struct EmbedArgs {
    void* x; ll xs;
    const void* e; ll h;
    const int *previous, *token, *feed, *head;
};
template <class T> __device__ void embed(const EmbedArgs& a) {
    wait_predecessor();
    allow_successor(); // later: what a step's other kernels read before they wait, the adapter table too, is there when its first one has waited
    const int t = blockIdx.x;
    if (t >= a.head[0]) return;
    const int feed = a.feed[t];
    const int id = feed >= 0 ? max(a.previous[feed], 0) : a.token[t]; // −1: its logits were no numbers, and its request fails
    T* x = (T*)a.x + t * a.xs;
    const T* e = (const T*)a.e + id * a.h;
    for (int i = threadIdx.x; i < a.h; i += blockDim.x) x[i] = e[i];
}
extern "C" __global__ void embed_f32(const __grid_constant__ EmbedArgs a) { embed<float>(a); }
extern "C" __global__ void embed_bf16(const __grid_constant__ EmbedArgs a) { embed<bf16>(a); }

struct GatherArgs {
    void* y; ll ys;
    const void* x; ll xs, h;
    const int *row_token, *head;
};
template <class T> __device__ void gather(const GatherArgs& a) {
    allow_successor();
    wait_predecessor();
    const int i = blockIdx.x;
    if (i >= a.head[2]) return;
    T* y = (T*)a.y + i * a.ys;
    const T* x = (const T*)a.x + a.row_token[i] * a.xs;
    for (int j = threadIdx.x; j < a.h; j += blockDim.x) y[j] = x[j];
}
extern "C" __global__ void gather_f32(const __grid_constant__ GatherArgs a) { gather<float>(a); }
extern "C" __global__ void gather_bf16(const __grid_constant__ GatherArgs a) { gather<bf16>(a); }
