/* What the bus gives: the rate of plain pinned copies to the first GPU, one after another on one stream, best of five.
 *
 * usage: bench_link
 *
 * Prints JSON: {"device": ..., "link": bytes a second at best, "sizes": {"4194304": ..., ...}}. Exits 77 without a
 * device. */

#include "tests/bench/hip_check.h"
#include "tests/bench/seconds.h"

#include <stdlib.h>
#include <string.h>

#define TOTAL ((size_t)2 << 30)
#define RUNS  5

int main(void)
{
    int devices = 0;
    char name[128];
    hipError_t e = hipGetDeviceCount(&devices);
    if (e != hipSuccess || devices == 0) {
        fprintf(stderr, "no device: %s\n", hipGetErrorString(e));
        return 77;
    }
    static const size_t sizes[] = {(size_t)1 << 20, (size_t)4 << 20, (size_t)16 << 20, (size_t)64 << 20};
    uint8_t *pinned, *memory;
    hipStream_t stream;
    CHECK(hipSetDevice(0));
    CHECK(hipDeviceGetName(name, sizeof(name), 0));
    CHECK(hipStreamCreateWithFlags(&stream, hipStreamNonBlocking));
    CHECK(hipHostMalloc((void **)&pinned, sizes[3], hipHostMallocDefault));
    CHECK(hipMalloc((void **)&memory, sizes[3]));
    memset(pinned, 1, sizes[3]);
    double best = 0;
    printf("{\"device\": \"%s\", \"sizes\": {", name);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        double rate = 0;
        for (int run = 0; run <= RUNS; run++) {
            const double begin = seconds();
            for (size_t done = 0; done < TOTAL; done += sizes[i])
                CHECK(hipMemcpyAsync(memory, pinned, sizes[i], hipMemcpyHostToDevice, stream));
            CHECK(hipStreamSynchronize(stream));
            const double now = (double)TOTAL / (seconds() - begin);
            rate = run > 0 && now > rate ? now : rate;
        }
        printf("%s\"%zu\": %.0f", i > 0 ? ", " : "", sizes[i], rate);
        best = rate > best ? rate : best;
    }
    printf("}, \"link\": %.0f}\n", best);
    return 0;
}
