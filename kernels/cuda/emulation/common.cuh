#pragma once
#include "emu.h"
inline void mma(float* c, const uint32_t* a, const uint32_t* b) { mma_emu(c, a, b); }
inline uint32_t pack(float lo, float hi) { return pack2(lo, hi); }
struct Adapter { const void* block; ll rank; };
struct B { const Adapter* table; ll offset; };
inline void wait_predecessor() {}
inline void allow_successor() {}
