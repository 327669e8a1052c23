// Runs the kernels on the CPU (see emulate.h) and compares them with the CPU's decoders: each type and form, with sizes
// around that of a tile, at each alignment. It cannot test what only a GPU has: the hardware's own conversions.
#include "tests/gpu/emulate.h"

#define restrict __restrict
extern "C" {
#include "kernels/dequant.h"
}
#include "kernels/dequant.hip"

#include <cstdio>
#include <cstdlib>
#include <vector>

emulate_index blockIdx, threadIdx;

namespace emulate
{

thread all[threads_max];
unsigned current, count;
static ucontext_t scheduler;
static std::vector<char> stacks(threads_max *stack_bytes);

void yield()
{
    const unsigned self = current;
    swapcontext(&all[self].context, &scheduler);
    current = self;
    threadIdx.x = self;
}

} // namespace emulate

using kernel_fn = void(const uint8_t *, uint8_t *, uint64_t, unsigned long long *, unsigned long long, uint32_t *);

static struct call {
    kernel_fn *kernel;
    const uint8_t *src;
    uint8_t *dst;
    uint64_t blocks;
    unsigned long long overflows, counted;
    uint32_t overflowed;
} call;

static void thread_main()
{
    call.kernel(call.src, call.dst, call.blocks, &call.overflows, call.counted, &call.overflowed);
    emulate::all[emulate::current].ended = true;
    emulate::yield();
}

static void thread_make(emulate::thread &thread, char *stack)
{
    thread.ended = false;
    memset(thread.arrived, 0, sizeof(thread.arrived));
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stack;
    thread.context.uc_stack.ss_size = emulate::stack_bytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, thread_main, 0);
}

static void run_block()
{
    emulate::count = DEQUANT_THREADS;
    for (unsigned i = 0; i < emulate::count; i++)
        thread_make(emulate::all[i], &emulate::stacks[i * emulate::stack_bytes]);
    for (unsigned left = emulate::count; left > 0;)
        for (unsigned i = 0; i < emulate::count; i++) {
            if (emulate::all[i].ended)
                continue;
            emulate::current = threadIdx.x = i;
            swapcontext(&emulate::scheduler, &emulate::all[i].context);
            left -= emulate::all[i].ended;
        }
}

struct kernel {
    uint32_t id;
    enum form form;
    unsigned elements, bytes;
    bool plain;
    kernel_fn *function;
};

static const kernel kernels[] = {
#define KERNELS(id, ident, elements, bytes, plain)                                                                     \
    {id, FORM_F32, elements, bytes, plain, dequant_##ident##_f32},                                                     \
        {id, FORM_F16, elements, bytes, plain, dequant_##ident##_f16},                                                 \
        {id, FORM_BF16, elements, bytes, plain, dequant_##ident##_bf16},
#define TYPE_PLAIN_DEF(id, ident, name, bytes)               KERNELS(id, ident, 1, bytes, true)
#define TYPE_QUANTISED_DEF(id, ident, name, elements, bytes) KERNELS(id, ident, elements, bytes, false)
#include "kernels/types.def"
};

static uint64_t seed = 88172645463325252;

static uint8_t random_byte()
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint8_t)(seed >> 32);
}

// The sign and payload of a computed NaN depend on the processor.
static bool same(const uint8_t *got, const uint8_t *want, enum form form, bool computed)
{
    const size_t bytes = form_element_bytes(form);
    if (memcmp(got, want, bytes) == 0)
        return true;
    uint32_t g = 0, w = 0;
    memcpy(&g, got, bytes);
    memcpy(&w, want, bytes);
    const uint32_t infinity = form == FORM_F32 ? 0x7f800000 : form == FORM_F16 ? 0x7c00 : 0x7f80;
    const uint32_t magnitude = form == FORM_F32 ? 0x7fffffff : 0x7fff;
    return computed && (g & magnitude) > infinity && (w & magnitude) > infinity;
}

// Returns whether all of it was right.
static bool check(const kernel &kernel, uint64_t blocks, unsigned src_skew, unsigned dst_skew)
{
    const size_t element_bytes = form_element_bytes(kernel.form);
    const uint64_t elements = blocks * kernel.elements;
    // Bytes before and after must not change.
    constexpr size_t margin = 64;
    std::vector<uint8_t> src(blocks * kernel.bytes + 2 * margin), got(elements * element_bytes + 2 * margin, 0x5a);
    std::vector<uint8_t> want(got);
    uint8_t *from = &src[0] + (16 - (uintptr_t)&src[0] % 16) % 16 + src_skew;
    const size_t at = (16 - (uintptr_t)&got[0] % 16) % 16 + 16 + dst_skew;
    for (uint8_t &byte : src)
        byte = random_byte() % 32 ? random_byte() : random_byte() % 2 ? 0xff : 0;
    const uint64_t overflows = dequant_find_reference(kernel.id, kernel.form)(&want[at], from, blocks);
    call = {kernel.function, from, &got[at], blocks, 7, 7, 0};
    const unsigned grid = (unsigned)((elements + DEQUANT_TILE - 1) / DEQUANT_TILE);
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
        run_block();
    const char *name = tensor_type_find(kernel.id)->name;
    for (size_t i = 0; i < got.size(); i++) {
        const bool inside = i >= at && i < at + elements * element_bytes;
        const size_t first = inside ? i - (i - at) % element_bytes : i;
        if (inside ? same(&got[first], &want[first], kernel.form, !kernel.plain || kernel.id == 28) : got[i] == 0x5a)
            continue;
        printf("%s to %s, %llu blocks, skewed %u and %u: byte %zd is %02x, not %02x\n", name, form_name(kernel.form),
               (unsigned long long)blocks, src_skew, dst_skew, (ssize_t)(i - at), got[i], want[i]);
        return false;
    }
    if (call.overflows != 7 + overflows || call.overflowed != (overflows > 0)) {
        printf("%s to %s: %llu overflows, not %llu; said so: %u\n", name, form_name(kernel.form), call.overflows - 7,
               (unsigned long long)overflows, call.overflowed);
        return false;
    }
    return true;
}

int main()
{
    unsigned failures = 0, checks = 0;
    for (const kernel &kernel : kernels) {
        const uint64_t tile = DEQUANT_TILE / kernel.elements;
        std::vector<uint64_t> sizes = {1, 3, tile - 1, tile, tile + 1};
        if (kernel.plain)
            for (uint64_t n = 2; n < 20; n++)
                sizes.push_back(n);
        for (uint64_t blocks : sizes)
            for (unsigned skew = 0; skew < 16; skew += blocks >= tile - 1 ? 11 : 5) {
                const unsigned dst_skew = kernel.plain ? skew % 4 * form_element_bytes(kernel.form) : 0;
                failures += !check(kernel, blocks, skew, dst_skew);
                failures += kernel.plain && !check(kernel, blocks, skew, 0);
                checks++;
            }
    }
    printf("%zu kernels, %u calls, %u failures\n", sizeof(kernels) / sizeof(kernels[0]), checks, failures);
    return failures > 0;
}
