/* What a program without the daemon does: reads a model's file and decodes it into memory of its own, with one thread.
 * Prints the seconds that it took.
 *
 *     bench_decode FILE
 */
#include "daemon/gguf/gguf.h"
#include "kernels/dequant.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Of the file that is read at once: stays in the cache until it is decoded. */
#define READ_BYTES (256u << 10)

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void decode(int fd, const struct header_tensor *tensor, char *out)
{
    static char bytes[READ_BYTES];
    const struct tensor_type *type = tensor->type;
    dequant_fn *function = dequant_find(type->id, FORM_F32);
    uint64_t blocks = tensor->bytes / type->block_bytes, at_once = READ_BYTES / type->block_bytes;
    for (uint64_t done = 0; done < blocks;) {
        uint64_t n = blocks - done < at_once ? blocks - done : at_once;
        size_t size = n * type->block_bytes;
        if (pread(fd, bytes, size, (off_t)(tensor->offset + done * type->block_bytes)) != (ssize_t)size)
            exit(EXIT_FAILURE);
        function(out, bytes, n);
        out += n * type->block_elements * sizeof(float);
        done += n;
    }
}

int main(int argc, char **argv)
{
    double begin = now();
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    struct stat st;
    struct model_header *model;
    struct header_fault fault;
    if (fd < 0 || fstat(fd, &st) < 0 || gguf_read(fd, (uint64_t)st.st_size, &model, &fault) < 0)
        return EXIT_FAILURE;
    for (size_t i = 0; i < model->n_tensors; i++) {
        char *out = malloc(model->tensors[i].elements * sizeof(float)); /* kept, as a program would */
        if (!out)
            return EXIT_FAILURE;
        decode(fd, &model->tensors[i], out);
    }
    printf("%.6f\n", now() - begin);
    model_header_free(model);
    close(fd);
    return EXIT_SUCCESS;
}
