/* Runs a fuzz target, without a fuzzer, on inputs that are the same every time: so that a target whose own assertions
 * no longer hold is noticed by whoever runs the tests, with any compiler.
 *
 *     fuzz_NAME_replay [FILE...]    the files instead, what a fuzzer found for example */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RANDOM_INPUTS  2000
#define PATTERN_REPEAT 300

static uint8_t input[1u << 16];

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Two bytes, again and again: what counts something meets its bound. */
static void run_patterns(void)
{
    static const uint8_t seconds[] = {0, 1, 'x', 0xff};
    for (unsigned first = 0; first < 256; first++)
        for (size_t i = 0; i < sizeof(seconds); i++) {
            for (size_t at = 0; at < PATTERN_REPEAT; at++) {
                input[2 * at] = (uint8_t)first;
                input[2 * at + 1] = seconds[i];
            }
            LLVMFuzzerTestOneInput(input, 2 * PATTERN_REPEAT);
        }
}

static void run_random(void)
{
    uint64_t state = 88172645463325252u;
    for (unsigned i = 0; i < RANDOM_INPUTS; i++) {
        size_t size = next(&state) % 1024;
        for (size_t at = 0; at < size; at++)
            input[at] = (uint8_t)next(&state);
        LLVMFuzzerTestOneInput(input, size);
    }
}

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        return 1;
    }
    size_t size = fread(input, 1, sizeof(input), file);
    fclose(file);
    LLVMFuzzerTestOneInput(input, size);
    return 0;
}

int main(int argc, char **argv)
{
    LLVMFuzzerTestOneInput(input, 0);
    for (int i = 1; i < argc; i++)
        if (run_file(argv[i]) != 0)
            return EXIT_FAILURE;
    if (argc == 1) {
        run_patterns();
        run_random();
    }
    return EXIT_SUCCESS;
}
