// Enough of CUDA or HIP to compile kernels/dequant.hip for the CPU and run it, one thread block after another. The
// threads of a block are coroutines. They switch only at barriers and shuffles.
//
// With EMULATE_CUDA the source is compiled as nvcc compiles it, otherwise as hipcc does. Inline assembly is left out.
#pragma once

#include <cstdint>
#include <cstring>
#include <ucontext.h>

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(n)
#define __shared__ static

#if defined(EMULATE_CUDA)
#define __CUDACC__
#define EMULATE_WARP 32u
#else
#define __HIPCC__
#define EMULATE_WARP 64u
#endif

struct uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct emulate_index {
    unsigned x;
};

namespace emulate
{

constexpr unsigned threads_max = 256;
// A kernel takes less than one KiB of it. AddressSanitizer clears its notes of the whole at every switch.
constexpr size_t stack_bytes = 64 << 10;

// Whom a thread waits for: the whole block, its warp, or its neighbour.
enum meeting { block, warp, pair, meetings };

struct thread {
    ucontext_t context;
    unsigned arrived[meetings];
    uint32_t value[meetings][2]; // of the last two meetings, because one thread may be one meeting ahead of a thread
                                 // that still reads
    bool ended;
};

extern thread all[threads_max];
extern unsigned current, count;

void yield();

// Waits until `n` threads from `first` on have called this as often as this thread.
inline unsigned meet(meeting what, unsigned first, unsigned n, uint32_t value)
{
    thread &self = all[current];
    const unsigned round = ++self.arrived[what];
    self.value[what][round % 2] = value;
    for (unsigned i = first; i < first + n; i++)
        while (all[i].arrived[what] < round)
            yield();
    return round;
}

inline uint32_t shuffle(meeting what, unsigned size, uint32_t value, unsigned flip)
{
    const unsigned self = current;
    const unsigned round = meet(what, self / size * size, size, value);
    return all[self ^ flip].value[what][round % 2];
}

} // namespace emulate

extern emulate_index blockIdx, threadIdx;

inline void __syncthreads()
{
    emulate::meet(emulate::block, 0, emulate::count, 0);
}

#if defined(EMULATE_CUDA)
inline uint32_t __shfl_xor_sync(unsigned mask, uint32_t value, unsigned flip)
{
    return mask == ~0u ? emulate::shuffle(emulate::warp, EMULATE_WARP, value, flip)
                       : emulate::shuffle(emulate::pair, 2, value, flip);
}
#else
constexpr unsigned warpSize = EMULATE_WARP;
inline uint32_t __shfl_xor(uint32_t value, unsigned flip)
{
    return emulate::shuffle(emulate::warp, EMULATE_WARP, value, flip);
}
#endif

inline unsigned long long atomicAdd(unsigned long long *to, unsigned long long value)
{
    const unsigned long long before = *to;
    *to += value;
    return before;
}

template <typename to, typename from> inline to emulate_bits(from value)
{
    to result;
    static_assert(sizeof(to) == sizeof(from), "");
    memcpy(&result, &value, sizeof(result));
    return result;
}

inline uint32_t __float_as_uint(float x)
{
    return emulate_bits<uint32_t>(x);
}

inline float __uint_as_float(uint32_t x)
{
    return emulate_bits<float>(x);
}

inline double __longlong_as_double(long long x)
{
    return emulate_bits<double>(x);
}

inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t choice)
{
    const uint64_t bytes = (uint64_t)y << 32 | x;
    uint32_t result = 0;
    for (unsigned i = 0; i < 4; i++)
        result |= (uint32_t)(bytes >> (8 * (choice >> (4 * i) & 7)) & 255) << (8 * i);
    return result;
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift)
{
    return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}
