// The decoders for GPUs: a kernel for each type of kernels/types.def into each form. They call the same functions as
// the CPU's decoders, so both give the same bits. kernels/dequant_gpu.h says how they are called.
//
// One source for hipcc and nvcc. Compile without contraction, and without flushing subnormals to zero.
//
// Blocks are 17 to 210 bytes long and begin at any alignment. A thread block copies a tile of them to shared memory,
// with neighbouring 16-byte loads whatever the size of a block, and reads single bytes or words there. Each thread
// decodes eight elements at a time and writes them with 16-byte stores.

#if defined(__HIP__)
#include <hip/hip_runtime.h>
#endif

#include "kernels/dequant_gpu.h"
#include "kernels/narrow.h"

// NVIDIA has one exact instruction to widen an f16, but it loses the payload of a NaN. That is allowed for the scale of
// a block. The plain type f16 must keep the payload, and has its own decoder below.
#if defined(__CUDACC__)
static __device__ __forceinline__ float scale_to_f32(uint16_t h)
{
#if defined(__CUDA_ARCH__)
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
#else
    return f16_to_f32(h);
#endif
}
#define f16_to_f32 scale_to_f32
#endif
#include "kernels/blocks.h"
#undef f16_to_f32
#if defined(__CUDACC__)
#include "kernels/dequant_words.h"
#endif

namespace
{

constexpr unsigned tile_groups = DEQUANT_TILE / 8;

#if defined(__CUDACC__)
#define PAIRS true
__device__ __forceinline__ uint32_t pair_exchange(uint32_t value)
{
    return __shfl_xor_sync(3u << (threadIdx.x & 30u), value, 1);
}
#else
// AMD: not worth it, because the cache joins the two halves of a line.
#define PAIRS false
__device__ __forceinline__ uint32_t pair_exchange(uint32_t value)
{
    return value;
}
#endif

// The forms. `put` writes eight values at a multiple of 16 bytes. `pairs` means that threads 2n and 2n + 1 both call
// it, with neighbouring groups. `put_one` writes one value at a multiple of its size. Both return how many values
// overflowed.

struct form_f32 {
    static constexpr unsigned bytes = 4;

    template <bool pairs> static __device__ __forceinline__ unsigned put(uint8_t *dst, const float y[8])
    {
        uint4 low = {f32_bits(y[0]), f32_bits(y[1]), f32_bits(y[2]), f32_bits(y[3])};
        uint4 high = {f32_bits(y[4]), f32_bits(y[5]), f32_bits(y[6]), f32_bits(y[7])};
        if (!pairs) {
            reinterpret_cast<uint4 *>(dst)[0] = low;
            reinterpret_cast<uint4 *>(dst)[1] = high;
            return 0;
        }
        // A thread has 32 bytes. Two stores of 16 would leave gaps between the threads. So two neighbours exchange
        // halves: the pair's first store writes the even thread's group, the second store the odd thread's.
        const bool odd = threadIdx.x & 1;
        const uint4 give = odd ? low : high;
        const uint4 got = {pair_exchange(give.x), pair_exchange(give.y), pair_exchange(give.z), pair_exchange(give.w)};
        uint8_t *even_dst = dst - (odd ? 32 : 0) + (odd ? 16 : 0);
        *reinterpret_cast<uint4 *>(even_dst) = odd ? got : low;
        *reinterpret_cast<uint4 *>(even_dst + 32) = odd ? high : got;
        return 0;
    }

    static __device__ __forceinline__ unsigned put_one(uint8_t *dst, float y)
    {
        *reinterpret_cast<uint32_t *>(dst) = f32_bits(y);
        return 0;
    }
};

// NVIDIA has one instruction that rounds two values in the same way. It differs for NaN and does not report overflow.
// Both leave an exponent of all ones; such a group is converted again, with the exact functions. AMD always uses the
// exact functions.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define NARROW_PAIR(to, low, high) asm("cvt.rn." #to "x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low))
#else
#define NARROW_PAIR(to, low, high) (u = (uint32_t)f32_to_##to(low) | (uint32_t)f32_to_##to(high) << 16)
#endif

#define NARROW_FORM(to, exponent, lowest)                                                                              \
    struct form_##to {                                                                                                 \
        static constexpr unsigned bytes = 2;                                                                           \
                                                                                                                       \
        template <bool pairs> static __device__ __forceinline__ unsigned put(uint8_t *dst, const float y[8])           \
        {                                                                                                              \
            uint32_t words[4];                                                                                         \
            uint32_t special = 0;                                                                                      \
            unsigned overflows = 0;                                                                                    \
            BLOCK_UNROLL                                                                                               \
            for (unsigned i = 0; i < 4; i++) {                                                                         \
                uint32_t u;                                                                                            \
                NARROW_PAIR(to, y[2 * i], y[2 * i + 1]);                                                               \
                words[i] = u;                                                                                          \
                special |= (u & exponent##u * 0x10001u) + lowest##u * 0x10001u;                                        \
            }                                                                                                          \
            if (special & 0x80008000u) {                                                                               \
                BLOCK_UNROLL                                                                                           \
                for (unsigned i = 0; i < 4; i++) {                                                                     \
                    words[i] = (uint32_t)f32_to_##to(y[2 * i]) | (uint32_t)f32_to_##to(y[2 * i + 1]) << 16;            \
                    overflows += to##_overflows(y[2 * i]) + to##_overflows(y[2 * i + 1]);                              \
                }                                                                                                      \
            }                                                                                                          \
            *reinterpret_cast<uint4 *>(dst) = uint4{words[0], words[1], words[2], words[3]};                           \
            return overflows;                                                                                          \
        }                                                                                                              \
                                                                                                                       \
        static __device__ __forceinline__ unsigned put_one(uint8_t *dst, float y)                                      \
        {                                                                                                              \
            *reinterpret_cast<uint16_t *>(dst) = f32_to_##to(y);                                                       \
            return to##_overflows(y);                                                                                  \
        }                                                                                                              \
    };

NARROW_FORM(f16, 0x7c00, 0x0400)
NARROW_FORM(bf16, 0x7f80, 0x0080)

// The types, as classes that a template can take.

#define TYPE_PLAIN_DEF(id, ident, name, bytes_)                                                                        \
    struct type_##ident {                                                                                              \
        static constexpr unsigned bytes = bytes_;                                                                      \
        static __device__ __forceinline__ float decode(const uint8_t *p)                                               \
        {                                                                                                              \
            return ident##_decode(p);                                                                                  \
        }                                                                                                              \
    };
#define TYPE_QUANTISED_DEF(id, ident, name, elements_, bytes_)                                                         \
    struct type_##ident {                                                                                              \
        static constexpr unsigned elements = elements_;                                                                \
        static constexpr unsigned bytes = bytes_;                                                                      \
        static __device__ __forceinline__ void decode8(const uint8_t *block, unsigned group, float y[8])               \
        {                                                                                                              \
            ident##_decode8(block, group, y);                                                                          \
        }                                                                                                              \
    };
#define f16_decode(p) f16_to_f32(block_u16(p))
#include "kernels/types.def"
#undef f16_decode

struct parameters {
    const uint8_t *src;
    uint8_t *dst;
    uint64_t blocks;
    unsigned long long *overflows;
    unsigned long long counted;
    uint32_t *overflowed;
};

// All threads of a thread block call it.
__device__ __forceinline__ void count(const parameters &p, unsigned overflows)
{
#if defined(__CUDACC__)
    const unsigned lane = threadIdx.x % 32;
    for (unsigned i = 16; i > 0; i /= 2)
        overflows += __shfl_xor_sync(~0u, overflows, i);
#else
    const unsigned lane = threadIdx.x % warpSize;
    for (unsigned i = warpSize / 2; i > 0; i /= 2)
        overflows += __shfl_xor(overflows, i);
#endif
    // Only the first one to count sets the flag: each further write would cross the bus for nothing.
    if (lane == 0 && overflows > 0 && atomicAdd(p.overflows, (unsigned long long)overflows) == p.counted)
        *p.overflowed = 1;
}

template <typename type, typename form> __device__ __forceinline__ void quantised(const parameters &p)
{
    constexpr unsigned groups = type::elements / 8;
    constexpr unsigned tile_blocks = tile_groups / groups;
    // In shared memory the first block is aligned. So the compiler knows the alignment of each field and reads
    // neighbouring bytes with one load. There is one vector more than needed, because decoders may read a whole word
    // where a block has only its beginning.
    __shared__ uint4 tile[(tile_blocks * type::bytes + 15) / 16 + 1];

    const uint64_t first = (uint64_t)blockIdx.x * tile_blocks;
    const unsigned blocks = (unsigned)(p.blocks - first < tile_blocks ? p.blocks - first : tile_blocks);
    const uint8_t *src = p.src + first * type::bytes;
    if ((uintptr_t)src % 16 == 0) {
        const uint4 *vectors = reinterpret_cast<const uint4 *>(src);
        for (unsigned i = threadIdx.x; i < (blocks * type::bytes + 15) / 16; i += DEQUANT_THREADS)
            tile[i] = vectors[i];
    } else {
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < blocks * type::bytes; i += DEQUANT_THREADS)
            reinterpret_cast<uint8_t *>(tile)[i] = src[i];
    }
    __syncthreads();

    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(tile);
    uint8_t *dst = p.dst + first * type::elements * form::bytes;
    unsigned overflows = 0;
    // A block has an even number of groups. So either both threads of a pair enter this loop, or neither.
#pragma unroll 2
    for (unsigned group = threadIdx.x; group < blocks * groups; group += DEQUANT_THREADS) {
        float y[8];
        type::decode8(bytes + group / groups * type::bytes, group % groups, y);
        overflows += form::template put<PAIRS>(dst + (size_t)group * 8 * form::bytes, y);
    }
    count(p, overflows);
}

// Loads eight elements with the widest loads that their alignment allows.
template <typename type> __device__ __forceinline__ void plain_load(const uint8_t *src, float y[8])
{
    constexpr unsigned words = 2 * type::bytes;
    uint32_t w[words];
    if constexpr (words == 2) {
        const uint2 v = *reinterpret_cast<const uint2 *>(src);
        w[0] = v.x;
        w[1] = v.y;
    } else {
        BLOCK_UNROLL
        for (unsigned i = 0; i < words; i += 4) {
            const uint4 v = reinterpret_cast<const uint4 *>(src)[i / 4];
            w[i] = v.x;
            w[i + 1] = v.y;
            w[i + 2] = v.z;
            w[i + 3] = v.w;
        }
    }
    BLOCK_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        uint8_t element[type::bytes];
        BLOCK_UNROLL
        for (unsigned k = 0; k < type::bytes; k++)
            element[k] = (uint8_t)(w[(j * type::bytes + k) / 4] >> (8 * ((j * type::bytes + k) % 4)));
        y[j] = type::decode(element);
    }
}

template <typename type, typename form> __device__ __forceinline__ void plain(const parameters &p)
{
    // A tensor may be cut anywhere, so neither end has to be aligned; usually both are.
    const bool aligned =
        ((uintptr_t)p.src & (8 * type::bytes < 16 ? 8 * type::bytes - 1 : 15)) == 0 && ((uintptr_t)p.dst & 15) == 0;
    const uint64_t first = (uint64_t)blockIdx.x * DEQUANT_TILE;
    unsigned overflows = 0;
#pragma unroll 2
    for (unsigned i = threadIdx.x; i < tile_groups; i += DEQUANT_THREADS) {
        const uint64_t element = first + 8 * i;
        if (element >= p.blocks)
            break;
        const uint8_t *src = p.src + element * type::bytes;
        uint8_t *dst = p.dst + element * form::bytes;
        // True for both threads of a pair, or for neither.
        if (aligned && p.blocks - first >= 8 * ((i | 1) + 1)) {
            float y[8];
            plain_load<type>(src, y);
            overflows += form::template put<PAIRS>(dst, y);
        } else {
            const unsigned n = (unsigned)(p.blocks - element < 8 ? p.blocks - element : 8);
#pragma unroll 1
            for (unsigned j = 0; j < n; j++)
                overflows += form::put_one(dst + j * form::bytes, type::decode(src + j * type::bytes));
        }
    }
    count(p, overflows);
}

} // namespace

#define KERNEL(shape, ident, form)                                                                                     \
    extern "C" __global__ void __launch_bounds__(DEQUANT_THREADS)                                                      \
        dequant_##ident##_##form(const uint8_t *src, uint8_t *dst, uint64_t blocks, unsigned long long *overflows,     \
                                 unsigned long long counted, uint32_t *overflowed)                                     \
    {                                                                                                                  \
        shape<type_##ident, form_##form>(parameters{src, dst, blocks, overflows, counted, overflowed});                \
    }

#define TYPE_PLAIN_DEF(id, ident, name, bytes)                                                                         \
    KERNEL(plain, ident, f32)                                                                                          \
    KERNEL(plain, ident, f16)                                                                                          \
    KERNEL(plain, ident, bf16)
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes)                                                           \
    KERNEL(quantised, ident, f32)                                                                                      \
    KERNEL(quantised, ident, f16)                                                                                      \
    KERNEL(quantised, ident, bf16)
#include "kernels/types.def"
