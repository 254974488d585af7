cd emulation; python3 - <<'P'
import re
S='$PWD/kernels/cuda/source/'
for n in ('linear_skinny.cu','linear_lora.cu'):
    s=open(S+n).read()
    s=s.replace('extern __shared__ uint8_t raw[];','uint8_t* raw = ::raw_;').replace('asm volatile("" : "+f"(c[i])::"memory");','{}').replace('__shared__ alignas(8) uint64_t','static uint64_t')
    s=re.sub(r'static_assert\(sizeof\(\w+Args\).*?\n','',s)
    s=re.sub(r'#if defined\(__CUDA_ARCH__\) && __CUDA_ARCH__ < 900.*?#undef LINEAR_SKINNY_PAIR\n','#undef LINEAR_SKINNY\n',s,flags=re.S)
    open('emulation/'+n,'w').write(s)
P
I="-Iemulation -I$(echo $PWD/.venv/cuda/lib/python3*/site-packages/nvidia/cu13/include)"
g++ -O2 -std=c++20 -w $I -pthread lora.cpp -o lemu 2>&1 | grep error
