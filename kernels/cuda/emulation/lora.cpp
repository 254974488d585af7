#include "emu.h"
uint8_t* raw_;
#include "common.cuh"
#include "linear_skinny.cu"
#include "linear_lora.cu"
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
    int N = atoi(argv[1]), k = atoi(argv[2]), r = atoi(argv[3]), rows = atoi(argv[4]), NM = atoi(argv[5]), grid = atoi(argv[6]), stages = atoi(argv[7]), mode = atoi(argv[8]), mlp = atoi(argv[9]);
    int ff = N / 2, out = mlp ? ff : N;
    bf16 *w = gmem<bf16>((size_t)(N + r) * k), *x = gmem<bf16>(rows * k), *y = gmem<bf16>(rows * (out + 8)), *z = gmem<bf16>(NM * 64);
    fill(w, (size_t)(N + r) * k, 0.1); fill(x, rows * k, 1);
    float* bias = gmem<float>(N); for (int i = 0; i < N; i++) bias[i] = 0.01f * (i % 17);
    int ranks[] = {8, 16, 16, 64, 8, 16, 40, 64, 3, 16, 32, 24};
    Adapter* table = gmem<Adapter>(12); ll offset = 3;
    for (int i = 0; i < 12; i++) { if (ranks[i] > r) ranks[i] = r; bf16* b = gmem<bf16>((size_t)ranks[i] * (3 + N)); fill(b, (size_t)ranks[i] * (3 + N), 0.1); table[i] = {b, ranks[i]}; }
    int* head = gmem<int>(16); int *ss = gmem<int>(rows + 2), *sa = gmem<int>(rows + 2); std::vector<int> ad(rows);
    for (int i = 0; i < rows; i++) ad[i] = mode == 0 ? -1 : mode == 1 ? 1 : mode == 2 ? i % 12 : mode == 3 ? 8 : mode == 4 ? 3 : (int[]){-1, 1, 3, -1, 1, 10, 1, -1, 3}[i % 9];
    int segs = 0; for (int i = 0; i < rows; i++) if (!segs || sa[segs - 1] != ad[i]) { ss[segs] = i; sa[segs++] = ad[i]; }
    ss[segs] = rows; head[0] = rows; head[3] = segs;
    float* partial = gmem<float>((size_t)grid * 64 * NM); int* arrived = gmem<int>(4096);
    LinearLoraArgs a{};
    a.w.base = w; a.w.rank = 4; ll d4[] = {k, 8, 2, ff / 8}, s4[] = {1, k, (ll)k * ff, 8 * k}; int b4[] = {64, 8, 2, 4};
    a.a.base = w; a.a.rank = 2; a.x.base = x; a.x.rank = 2;
    for (int i = 0; i < 4; i++) a.w.dims[i] = d4[i], a.w.strides[i] = s4[i], a.w.box[i] = b4[i];
    a.a.dims[0] = k, a.a.dims[1] = N + r, a.a.strides[0] = 1, a.a.strides[1] = k, a.a.box[0] = 64, a.a.box[1] = 64;
    a.x.dims[0] = k, a.x.dims[1] = rows, a.x.strides[0] = 1, a.x.strides[1] = k, a.x.box[0] = 64, a.x.box[1] = NM;
    a.y = y; a.ys = out + 8; a.z = z; a.bias = bias; a.n = N; a.k = k; a.r = r; a.rows = rows; a.head = head; a.seg_start = ss; a.seg_adapter = sa; a.segs = rows + 1;
    a.b = {r ? table : nullptr, offset}; a.partial = partial; a.z_parts = gmem<float>((size_t)32 * NM * 64); a.arrived = arrived; a.stages = stages;
    int chunks = (k + 63) / 64, tiles = (N + 63) / 64, zs = std::min(32, std::min(chunks, grid));
    while (grid > 1 && (tiles + 1) * chunks / grid < (chunks + zs - 1) / zs + 2) grid--, zs = std::min(32, std::min(chunks, grid));
    memset(z, 0xff, NM * 64 * 2);
    for (int round = 0; round < 2; round++) {
        memset(y, 0xff, rows * (out + 8) * 2);
        bool ok = launch(grid, 192, 1024 + stages * (64 + NM) * 128, [&] {
            if (mlp) { if (NM == 8) linear_mlp_8(a); else if (NM == 16) linear_mlp_16(a); else if (NM == 32) linear_mlp_32(a); else if (NM == 64) linear_mlp_64(a); else linear_mlp_128(a); }
            else { if (NM == 8) linear_lora_8(a); else if (NM == 16) linear_lora_16(a); else if (NM == 32) linear_lora_32(a); else if (NM == 64) linear_lora_64(a); else linear_lora_128(a); } });
        if (!ok) { printf("FAILED\n"); return 1; }
        for (int i = 0; i < 4096; i++) if (arrived[i]) { printf("counter %d is %d (tiles %d)\n", i, arrived[i], tiles); return 1; }
        double worst = 0;
        for (int m = 0; m < rows; m++) {
            std::vector<float> v(N + r);
            for (int i = 0; i < N + r; i++) { float s = 0; for (int q = 0; q < k; q++) s += __bfloat162float(x[m * k + q]) * __bfloat162float(w[(size_t)i * k + q]); v[i] = s; }
            for (int i = 0; i < r; i++) v[N + i] = __bfloat162float(__float2bfloat16(v[N + i]));
            if (ad[m] >= 0 && r) { auto t = table[ad[m]]; const bf16* b = (const bf16*)t.block; for (int i = 0; i < N; i++) { float s = 0; for (int q = 0; q < t.rank; q++) s += __bfloat162float(b[t.rank * (offset + i) + q]) * v[N + q]; v[i] += s; } }
            for (int i = 0; i < out + 8; i++) {
                float got = __bfloat162float(y[m * (out + 8) + i]);
                if (i >= out) { if (got == got) { printf("past\n"); return 1; } continue; }
                float want = v[i]; if (mlp) { float p = v[i] + bias[i], u = v[ff + i] + bias[ff + i]; want = p / (1 + expf(-p)) * u; }
                double e = fabs(want - got) / (1 + fabs(want)); if (!(e <= worst)) worst = e;
                if (!(e < 0.015)) { printf("y[%d,%d] %g want %g grid %d\n", m, i, got, want, grid); return 1; }
            }
        }
        printf("round %d worst %.4f grid %d\n", round, worst, grid);
    }
    return 0;
}
