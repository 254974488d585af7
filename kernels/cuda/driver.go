//go:build cuda

package cuda

/*
#cgo LDFLAGS: -lcuda -ldl
#include <cuda.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern const char *bhive_driver_state;
extern int bhive_driver_init;

static CUcontext bh_context; // of the one device in use
static int bh_users;
static __thread CUcontext bh_mine;

static int bh_current(void) {
    if (bh_mine == bh_context) return 0;
    bh_mine = bh_context;
    return cuCtxSetCurrent(bh_context);
}
static int bh_retain(int device) {
    CUdevice d;
    int e = cuDeviceGet(&d, device);
    if (!e) e = cuDevicePrimaryCtxRetain(&bh_context, d);
    if (!e) { bh_users++; bh_mine = 0; e = bh_current(); }
    return e;
}
static int bh_release(int device) {
    if (--bh_users == 0) bh_mine = bh_context = 0;
    return cuDevicePrimaryCtxRelease(device);
}
static int bh_attribute(int device, int attribute) {
    int v = 0;
    cuDeviceGetAttribute(&v, attribute, device);
    return v;
}
static const char *bh_error(int e) {
    const char *s = 0;
    cuGetErrorString(e, &s);
    return s ? s : "unknown error";
}
// bh_launch launches f with one block of arguments; overlap: it may start before the stream's last kernel has ended.
static int bh_launch(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned threads, unsigned shared, CUstream s, void *args, size_t bytes, int overlap) {
    int e = bh_current();
    if (e) return e;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, args, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END};
    CUlaunchAttribute a[1];
    CUlaunchConfig c = {gx, gy, gz, threads, 1, 1, shared, s, a, 0};
    if (overlap) {
        a[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        a[0].value.programmaticStreamSerializationAllowed = 1;
        c.numAttrs = 1;
    }
    return cuLaunchKernelEx(&c, f, 0, extra);
}
// bh_launch_value is bh_launch of a function with one parameter that holds tensor maps: the driver aligns it as the function wants.
static int bh_launch_value(CUfunction f, unsigned gx, unsigned threads, unsigned shared, CUstream s, void *value, int overlap) {
    int e = bh_current();
    if (e) return e;
    void *params[] = {value};
    CUlaunchAttribute a[1];
    CUlaunchConfig c = {gx, 1, 1, threads, 1, 1, shared, s, a, 0};
    if (overlap) {
        a[0].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        a[0].value.programmaticStreamSerializationAllowed = 1;
        c.numAttrs = 1;
    }
    return cuLaunchKernelEx(&c, f, params, 0);
}
// bh_map describes a bf16 matrix for tensor copies of boxes of box_rows by 64, swizzled by 128 bytes; what lies outside is zero.
static int bh_map(void *out, uint64_t at, uint64_t rows, uint64_t cols, uint64_t stride, uint32_t box_rows) {
    CUtensorMap m;
    cuuint64_t dims[] = {cols, rows}, strides[] = {2 * stride};
    cuuint32_t box[] = {64, box_rows}, one[] = {1, 1};
    int e = bh_current();
    if (!e)
        e = cuTensorMapEncodeTiled(&m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)at, dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    memcpy(out, &m, sizeof m);
    return e;
}
// bh_map_turns describes the bf16 matrix [2·ff, cols], without gaps, for copies of boxes of 32 of its first ff rows and the 32 beside them, eight and eight in turns.
static int bh_map_turns(void *out, uint64_t at, uint64_t ff, uint64_t cols) {
    CUtensorMap m;
    cuuint64_t dims[] = {cols, 8, 2, ff / 8}, strides[] = {2 * cols, 2 * cols * ff, 16 * cols};
    cuuint32_t box[] = {64, 8, 2, 4}, one[] = {1, 1, 1, 1};
    int e = bh_current();
    if (!e)
        e = cuTensorMapEncodeTiled(&m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)at, dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    memcpy(out, &m, sizeof m);
    return e;
}
static int bh_shared(CUfunction f, int bytes) { return cuFuncSetAttribute(f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes); }
static int bh_pinned(void **p, size_t n) {
    int e = bh_current();
    return e ? e : cuMemHostAlloc(p, n, CU_MEMHOSTALLOC_PORTABLE);
}
static int bh_free_pinned(void *p) {
    int e = bh_current();
    return e ? e : cuMemFreeHost(p);
}
static int bh_begin(CUstream s) {
    int e = bh_current();
    return e ? e : cuStreamBeginCapture(s, CU_STREAM_CAPTURE_MODE_RELAXED);
}
static int bh_end(CUstream s, CUgraphExec *x) {
    CUgraph g = 0;
    int e = cuStreamEndCapture(s, &g);
    if (e) return e;
    e = cuGraphInstantiateWithFlags(x, g, 0);
    cuGraphDestroy(g);
    return e;
}
static int bh_graph_launch(CUgraphExec x, CUstream s) {
    int e = bh_current();
    return e ? e : cuGraphLaunch(x, s);
}
static int bh_graph_free(CUgraphExec x) {
    int e = bh_current();
    return e ? e : cuGraphExecDestroy(x);
}

// cuBLASLt, found when it is first wanted. Its numbers are of its public header.
typedef struct { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; } lt_result;
static struct {
    void *lib, *handle;
    int (*create)(void **);
    int (*matmul)(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *, void *, void *, const void *, void *, size_t, CUstream);
    int (*desc)(void **, int, int);
    int (*desc_set)(void *, int, const void *, size_t);
    int (*layout)(void **, int, uint64_t, uint64_t, int64_t);
    int (*pref)(void **);
    int (*pref_set)(void *, int, const void *, size_t);
    int (*heuristic)(void *, void *, void *, void *, void *, void *, void *, int, lt_result *, int *);
    size_t (*version)(void);
} lt;
static int lt_open(void) {
    if (lt.handle) return 0;
    const char *names[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "libcublasLt.so.12"};
    for (int i = 0; i < 3 && !lt.lib; i++) lt.lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!lt.lib) return -1;
    lt.create = dlsym(lt.lib, "cublasLtCreate");
    lt.matmul = dlsym(lt.lib, "cublasLtMatmul");
    lt.desc = dlsym(lt.lib, "cublasLtMatmulDescCreate");
    lt.desc_set = dlsym(lt.lib, "cublasLtMatmulDescSetAttribute");
    lt.layout = dlsym(lt.lib, "cublasLtMatrixLayoutCreate");
    lt.pref = dlsym(lt.lib, "cublasLtMatmulPreferenceCreate");
    lt.pref_set = dlsym(lt.lib, "cublasLtMatmulPreferenceSetAttribute");
    lt.heuristic = dlsym(lt.lib, "cublasLtMatmulAlgoGetHeuristic");
    lt.version = dlsym(lt.lib, "cublasLtGetVersion");
    if (!lt.create || !lt.matmul || !lt.desc || !lt.desc_set || !lt.layout || !lt.pref || !lt.pref_set || !lt.heuristic || !lt.version) return -2;
    int e = bh_current();
    return e ? e : lt.create(&lt.handle);
}
static int lt_version(void) { return lt.version ? (int)lt.version() : 0; }

// lt_plan is y[m, n] = x[m, k]·w[n, k]ᵀ in bf16, or with back x[m, k]·w[k, n]; y bf16, or float32 with wide.
typedef struct { void *desc, *a, *b, *d; uint64_t algo[8]; } lt_plan;
static lt_plan *lt_make(int64_t n, int64_t m, int64_t k, int64_t ldx, int64_t ldy, int wide, int back, size_t workspace) {
    enum { bf16 = 14, f32 = 0, compute32 = 68, trans = 1, desc_transa = 3, pref_workspace = 1 };
    bh_current();
    lt_plan *p = calloc(1, sizeof *p);
    int t = back ? 0 : trans, found = 0;
    void *pref = 0;
    lt_result r = {0};
    if (lt.desc(&p->desc, compute32, f32) || lt.desc_set(p->desc, desc_transa, &t, sizeof t) || lt.layout(&p->a, bf16, back ? n : k, back ? k : n, back ? n : k) ||
        lt.layout(&p->b, bf16, k, m, ldx) || lt.layout(&p->d, wide ? f32 : bf16, n, m, ldy) || lt.pref(&pref) ||
        lt.pref_set(pref, pref_workspace, &workspace, sizeof workspace) ||
        lt.heuristic(lt.handle, p->desc, p->a, p->b, p->d, p->d, pref, 1, &r, &found) || !found) {
        free(p);
        return 0;
    }
    for (int i = 0; i < 8; i++) p->algo[i] = r.algo[i];
    return p;
}
static int lt_run(lt_plan *p, uint64_t w, uint64_t x, uint64_t y, float beta, uint64_t workspace, size_t bytes, CUstream s) {
    int e = bh_current();
    float one = 1;
    return e ? e : lt.matmul(lt.handle, p->desc, &one, (void *)w, p->a, (void *)x, p->b, &beta, (void *)y, p->d, (void *)y, p->d, p->algo, (void *)workspace, bytes, s);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"gorgonia.org/cu"
)

// driverError is a failure of the driver.
func driverError(what string, e C.int) error {
	if e == 0 {
		return nil
	}
	return fmt.Errorf("cuda: %s: %s (%d)", what, C.GoString(C.bh_error(e)), int(e))
}

// driverState says why the driver cannot be used, "" where it can.
func driverState() string {
	if C.bhive_driver_state != nil {
		return C.GoString(C.bhive_driver_state)
	}
	if C.bhive_driver_init != 0 {
		return fmt.Sprintf("cuInit: error %d", int(C.bhive_driver_init))
	}
	return ""
}

// current makes the context the calling thread's.
func current() error { return driverError("making the context current", C.bh_current()) }

func retain(device int) error {
	return driverError("taking the device's context", C.bh_retain(C.int(device)))
}
func release(device int) error {
	return driverError("giving up the device's context", C.bh_release(C.int(device)))
}

// Device attributes beside cu's.
const (
	attributeProcessors = 16
	attributeMajor      = 75
	attributeMinor      = 76
)

func attribute(device, a int) int { return int(C.bh_attribute(C.int(device), C.int(a))) }

func rawStream(s cu.Stream) C.CUstream       { return *(*C.CUstream)(unsafe.Pointer(&s)) }
func rawFunction(f cu.Function) C.CUfunction { return *(*C.CUfunction)(unsafe.Pointer(&f)) }

// launchRaw launches f with args as its one block of arguments.
func launchRaw(f cu.Function, gx, gy, gz, threads, shared int, s cu.Stream, args []uint64, overlap bool) error {
	o := C.int(0)
	if overlap {
		o = 1
	}
	e := C.bh_launch(rawFunction(f), C.uint(gx), C.uint(gy), C.uint(gz), C.uint(threads), C.uint(shared), rawStream(s), unsafe.Pointer(&args[0]), C.size_t(8*len(args)), o)
	if e != 0 {
		return driverError("a launch", e)
	}
	return nil
}

// launchValue launches f, whose one parameter holds tensor maps and is all of value, with gx blocks.
func launchValue(f cu.Function, gx, threads, shared int, s cu.Stream, value []uint64, overlap bool) error {
	o := C.int(0)
	if overlap {
		o = 1
	}
	return driverError("a launch", C.bh_launch_value(rawFunction(f), C.uint(gx), C.uint(threads), C.uint(shared), rawStream(s), unsafe.Pointer(&value[0]), o))
}

// tensorMap describes a matrix for tensor copies.
type tensorMap [16]uint64

// makeMap describes the bf16 matrix [rows, cols] at an address, stride elements from row to row, for copies of boxes [boxRows, 64].
func makeMap(at uint64, rows, cols, stride, boxRows int) (m tensorMap, err error) {
	e := C.bh_map(unsafe.Pointer(&m), C.uint64_t(at), C.uint64_t(rows), C.uint64_t(cols), C.uint64_t(stride), C.uint32_t(boxRows))
	return m, driverError("a tensor map", e)
}

// makeTurnsMap describes gate's ff rows and up's of a bf16 matrix [2·ff, cols] for copies of 32 and 32, eight and eight in turns; ff is a multiple of 8.
func makeTurnsMap(at uint64, ff, cols int) (m tensorMap, err error) {
	e := C.bh_map_turns(unsafe.Pointer(&m), C.uint64_t(at), C.uint64_t(ff), C.uint64_t(cols))
	return m, driverError("a tensor map", e)
}

// allowShared lets a function have so many bytes of shared memory.
func allowShared(f cu.Function, bytes int) error {
	return driverError("raising shared memory", C.bh_shared(rawFunction(f), C.int(bytes)))
}

func pinned(n int) ([]byte, error) {
	var p unsafe.Pointer
	if e := C.bh_pinned(&p, C.size_t(n)); e != 0 {
		return nil, driverError("pinned memory", e)
	}
	return unsafe.Slice((*byte)(p), n), nil
}

func freePinned(p []byte) error {
	return driverError("freeing pinned memory", C.bh_free_pinned(unsafe.Pointer(unsafe.SliceData(p))))
}

func beginCapture(s cu.Stream) error {
	return driverError("beginning a capture", C.bh_begin(rawStream(s)))
}

type execGraph struct{ x C.CUgraphExec }

func endCapture(s cu.Stream) (g execGraph, err error) {
	return g, driverError("ending a capture", C.bh_end(rawStream(s), &g.x))
}

func (g execGraph) launch(s cu.Stream) error {
	return driverError("launching a graph", C.bh_graph_launch(g.x, rawStream(s)))
}

func (g execGraph) free() error { return driverError("freeing a graph", C.bh_graph_free(g.x)) }

// ltOpen finds cuBLASLt. It says why it cannot.
func ltOpen() error {
	switch e := C.lt_open(); {
	case e == -1:
		return fmt.Errorf("cuda: libcublasLt is not found")
	case e != 0:
		return fmt.Errorf("cuda: cuBLASLt cannot be used: %d", int(e))
	}
	return nil
}

func ltVersion() int { return int(C.lt_version()) }

type ltPlan = *C.lt_plan

// ltMake plans y[m, n] = x[m, k]·w[n, k]ᵀ, or with back x[m, k]·w[k, n]; nil where cuBLASLt has no way.
func ltMake(key ltKey, workspace int) ltPlan {
	flag := func(b bool) C.int {
		if b {
			return 1
		}
		return 0
	}
	return C.lt_make(C.int64_t(key.n), C.int64_t(key.m), C.int64_t(key.k), C.int64_t(key.ldx), C.int64_t(key.ldy), flag(key.wide), flag(key.back), C.size_t(workspace))
}

// ltRun multiplies; y ← x·w + beta·y.
func ltRun(p ltPlan, w, x, y uint64, beta float32, workspace uint64, bytes int, s cu.Stream) error {
	if e := C.lt_run(p, C.uint64_t(w), C.uint64_t(x), C.uint64_t(y), C.float(beta), C.uint64_t(workspace), C.size_t(bytes), rawStream(s)); e != 0 {
		return fmt.Errorf("cuda: cuBLASLt: status %d", int(e))
	}
	return nil
}
