"""Writes forward.c: a forwarder for every function of the driver's header, found in libcuda.so.1 when the program starts.

usage: forward.py CUDA_H... > forward.c
A function that the driver lacks, or any without a driver, returns CUDA_ERROR_NOT_INITIALIZED (3); cuInit reports success all the same,
because gorgonia.org/cu ends the process where it does not. bhive_driver_init is what the driver's answered; bhive_driver_state says why there is none.
"""
import re
import sys

names = set()
for path in sys.argv[1:]:
    text = open(path).read()
    names |= set(re.findall(r"\bCUDAAPI\s+(cu[A-Z]\w*)\s*\(", text))
    names |= set(re.findall(r"^CUresult\s+(cu[A-Z]\w*)\s*\(", text, re.M))
    names |= set(re.findall(r"^\s*#define\s+cu\w+\s+(cu[A-Z]\w*_v\d+)\b", text, re.M))
names |= {"cuGraphInstantiateWithFlags"}
names.discard("cuInit")
names = sorted(names)
print("""// Written by forward.py. Forwarders to libcuda.so.1.
#include <dlfcn.h>
#include <stddef.h>
static int absent(void) { return 3; }
const char *bhive_driver_state = NULL; // NULL: there is a driver; else why not
int bhive_driver_init = 3;
static int (*init)(unsigned);
int cuInit(unsigned flags) {
    if (init) bhive_driver_init = init(flags);
    return 0;
}
#if defined(__x86_64__)
#define F(n) void *bhive_##n = (void *)absent; __asm__(".text\\n.globl " #n "\\n.type " #n ",@function\\n" #n ":\\n\\tjmp *bhive_" #n "(%rip)\\n.size " #n ",.-" #n "\\n");
#elif defined(__aarch64__)
#define F(n) void *bhive_##n = (void *)absent; __asm__(".text\\n.globl " #n "\\n.type " #n ",%function\\n" #n ":\\n\\tadrp x16, bhive_" #n "\\n\\tldr x16, [x16, :lo12:bhive_" #n "]\\n\\tbr x16\\n.size " #n ",.-" #n "\\n");
#endif""")
for n in names:
    print(f"F({n})")
print("static struct { const char *name; void **at; } const table[] = {")
for n in names:
    print(f'    {{"{n}", &bhive_{n}}},')
print("""};
__attribute__((constructor)) static void find(void) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        bhive_driver_state = "there is no NVIDIA driver here (libcuda.so.1 is not found)";
        return;
    }
    init = (int (*)(unsigned))dlsym(lib, "cuInit");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        void *p = dlsym(lib, table[i].name);
        if (p) *table[i].at = p;
    }
}""")
