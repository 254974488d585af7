#include "emu.h"
uint8_t* raw_;
#include "common.cuh"
#include "linear_skinny.cu"
#include "linear_mlp.cu"
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <random>
thread_local D3 threadIdx, blockIdx; D3 gridDim, blockDim;
Bar warp_bar[16], block_bar, named_bar[8]; uint64_t xch[16][32][4];
namespace hopper { std::mutex mb_lock; MB mbs[256]; std::atomic<int> mb_n{0}; uint8_t* shared_base; }
template <class T> T* gmem(size_t n) { return (T*)mmap(0, n * sizeof(T) + 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); }
template <class F> bool launch(int grid, int threads, int shared, F kernel) {
    gridDim = {grid, 1, 1}; blockDim = {threads, 1, 1};
    std::vector<pid_t> pids;
    for (int b = 0; b < grid; b++) {
        pid_t p = fork();
        if (p == 0) {
            raw_ = (uint8_t*)aligned_alloc(4096, (shared + 8191) & ~4095); hopper::shared_base = raw_;
            memset(raw_, 0xff, shared);
            std::vector<std::thread> ts;
            for (int t = 0; t < threads; t++) ts.emplace_back([=] { threadIdx = {t, 0, 0}; blockIdx = {b, 0, 0}; kernel(); });
            for (auto& t : ts) t.join();
            _exit(0);
        }
        pids.push_back(p);
    }
    bool ok = true;
    for (auto p : pids) { int st; waitpid(p, &st, 0); if (st) ok = false; }
    return ok;
}
std::mt19937 rng(1);
void fill(bf16* p, size_t n, float s) { std::normal_distribution<float> d(0, s); for (size_t i = 0; i < n; i++) p[i] = __float2bfloat16(d(rng)); }
int main(int argc, char** argv) {
    int n = atoi(argv[1]), k = atoi(argv[2]), rows = atoi(argv[3]), NM = atoi(argv[4]), WG = atoi(argv[5]), grid = atoi(argv[6]), stages = atoi(argv[7]), f32 = atoi(argv[8]);
    bf16 *w = gmem<bf16>((size_t)n * k), *x = gmem<bf16>(rows * k); fill(w, (size_t)n * k, 0.1); fill(x, rows * k, 1);
    int ys = n + 8; bf16* y = gmem<bf16>(rows * ys); float* yf = gmem<float>(rows * ys);
    float* partial = gmem<float>((size_t)grid * 64 * WG * NM); int* arrived = gmem<int>(4096); int* head = gmem<int>(4); head[0] = rows;
    SkinnyArgs a{}; a.w.base = w; a.w.rank = 2; a.x.base = x; a.x.rank = 2;
    a.w.dims[0] = k, a.w.dims[1] = n, a.w.strides[0] = 1, a.w.strides[1] = k, a.w.box[0] = 64, a.w.box[1] = 64 * WG;
    a.x.dims[0] = k, a.x.dims[1] = rows, a.x.strides[0] = 1, a.x.strides[1] = k, a.x.box[0] = 64, a.x.box[1] = NM;
    a.y = f32 ? (void*)yf : (void*)y; a.ys = ys; a.n = n; a.k = k; a.rows = rows; a.count = head; a.partial = partial; a.arrived = arrived; a.stages = stages; a.float32 = f32;
    int total = ((n + 64 * WG - 1) / (64 * WG)) * ((k + 63) / 64); if (grid > total) grid = total;
    for (int round = 0; round < 2; round++) {
        memset(y, 0xff, rows * ys * 2); memset(yf, 0xff, rows * ys * 4);
        bool ok = launch(grid, 128 * WG + 32, 1024 + stages * (64 * WG + NM) * 128, [&] {
            if (WG == 1) { if (NM == 8) linear_skinny_8(a); else if (NM == 16) linear_skinny_16(a); else if (NM == 32) linear_skinny_32(a); else if (NM == 64) linear_skinny_64(a); else linear_skinny_128(a); }
            else { if (NM == 8) linear_skinny_wide_8(a); else if (NM == 16) linear_skinny_wide_16(a); else if (NM == 32) linear_skinny_wide_32(a); else if (NM == 64) linear_skinny_wide_64(a); else linear_skinny_wide_128(a); } });
        if (!ok) { printf("FAILED\n"); return 1; }
        for (int i = 0; i < 4096; i++) if (arrived[i]) { printf("counter %d is %d\n", i, arrived[i]); return 1; }
        double worst = 0;
        for (int m = 0; m < rows; m++) {
            for (int i = 0; i < n; i++) { float s = 0; for (int q = 0; q < k; q++) s += __bfloat162float(x[m * k + q]) * __bfloat162float(w[(size_t)i * k + q]); float got = f32 ? yf[m * ys + i] : __bfloat162float(y[m * ys + i]); double e = fabs(s - got) / (1 + fabs(s)); if (!(e <= worst)) worst = e; }
            for (int i = n; i < ys; i++) { float got = f32 ? yf[m * ys + i] : __bfloat162float(y[m * ys + i]); if (got == got) { printf("past\n"); return 1; } }
        }
        if (!(worst < (f32 ? 1e-4 : 0.005))) { printf("worst %g\n", worst); return 1; }
    }
    return 0;
}
