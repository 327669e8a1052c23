/* What bench_dequant reads with, where reading is all that is wanted: compiled, like the plain decoder, for this very
 * machine. */
#include <stddef.h>
#include <stdint.h>

uint64_t bench_read(void *restrict dst, const void *restrict src, size_t bytes);

/* In the shape of a decoder, with a byte for a block. The sum is there to be computed. */
uint64_t bench_read(void *restrict dst, const void *restrict src, size_t bytes)
{
    const uint64_t *words = src;
    uint64_t sums[16] = {0};
    (void)dst;
    for (size_t i = 0; i + 16 <= bytes / 8; i += 16)
        for (size_t k = 0; k < 16; k++)
            sums[k] += words[i + k];
    for (size_t k = 1; k < 16; k++)
        sums[0] += sums[k];
    return sums[0];
}
