// A stand-in for libcuda.so.1: what a test of the host side needs of the driver, with its limits, and no device. Kernels and copies do nothing.
// From the environment, counted from the start: BAD_MODULES loads of modules fail; ROOM bytes of memory are left; BAD_INIT is what it answers to cuInit.
#include <stdlib.h>
#include <string.h>

enum { invalid_value = 1, no_memory = 2, invalid_device = 101, invalid_image = 200, invalid_context = 201, not_ready = 600 };
typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; void *stream, *attributes; unsigned count; } config;
static int retained[2], capturing, bad_modules;
static long long room;
static __thread void *context;
static char handles[1 << 16], *next = handles;

static int given(void **p) { return *p = next++, 0; }
int cuInit(unsigned flags) {
    const char *bad = getenv("BAD_MODULES"), *bytes = getenv("ROOM"), *answer = getenv("BAD_INIT");
    bad_modules = bad ? atoi(bad) : 0;
    room = bytes ? atoll(bytes) : 1ll << 40;
    return answer ? atoi(answer) : 0;
}
int cuGetErrorString(int e, const char **s) { return *s = "an error of the test's driver", 0; }
int cuDeviceGetCount(int *n) { return *n = 2, 0; }
int cuDeviceGet(int *d, int i) { return i < 0 || i > 1 ? invalid_device : (*d = i, 0); }
int cuDeviceGetName(char *s, int n, int d) { return strncpy(s, "no device", n), 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { return *v = a == 75 ? 8 : a == 16 ? 4 : 0, 0; }
// A device has one context, which the one who retains it most holds twice.
int cuDevicePrimaryCtxRetain(void **c, int d) { return retained[d] == 2 ? no_memory : (retained[d]++, *c = retained + d, 0); }
int cuDevicePrimaryCtxRelease_v2(int d) { return retained[d] ? (retained[d]--, 0) : invalid_context; }
int cuCtxSetCurrent(void *c) { return context = c, 0; }
int cuModuleLoadData(void **m, const void *image) { return bad_modules ? (bad_modules--, invalid_image) : given(m); }
int cuModuleUnload(void *m) { return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { return given(f); }
int cuFuncSetAttribute(void *f, int a, int v) { return 0; }
int cuStreamCreate(void **s, unsigned flags) { return context ? given(s) : invalid_context; }
int cuStreamDestroy_v2(void *s) { return 0; }
int cuStreamSynchronize(void *s) { return 0; }
int cuStreamBeginCapture_v2(void *s, int mode) { return capturing ? invalid_value : (capturing = 1, 0); }
int cuStreamEndCapture(void *s, void **g) { return capturing ? (capturing = 0, given(g)) : invalid_value; }
int cuGraphInstantiateWithFlags(void **x, void *g, unsigned long long flags) { return given(x); }
int cuGraphDestroy(void *g) { return 0; }
int cuGraphExecDestroy(void *x) { return 0; }
int cuMemAlloc_v2(unsigned long long *p, size_t n) {
    static unsigned long long at = 1 << 20;
    if ((long long)n > room) return no_memory;
    room -= n;
    *p = at, at += (n + 255) / 256 * 256;
    return 0;
}
int cuMemFree_v2(unsigned long long p) { return 0; }
int cuMemsetD8Async(unsigned long long p, unsigned char v, size_t n, void *s) { return 0; }
int cuLaunchKernelEx(const config *c, void *f, void **params, void **extra) {
    return !c->gx || !c->gy || !c->gz || c->gx > 0x7fffffff || c->gy > 65535 || c->gz > 65535 || c->bx > 1024 ? invalid_value : 0;
}
