/* What a disk gives when a file is read from its beginning to its end past the page cache, by one thread with io_uring.
 *
 *     bench_disk FILE DEPTH BLOCK [memory]
 *
 * DEPTH reads of BLOCK bytes are under way at a time. With `memory` the thread also writes all that was read to a new
 * memory file, as a load into host memory has to. Prints the bytes per second. Exits with 77 where there is no
 * io_uring, or the file cannot be read past the page cache. */
#include "tests/bench/seconds.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE      4096u
#define DEPTH_MAX 256u

struct block {
    uint8_t *memory;
    uint64_t offset;
};

struct bench {
    struct io_uring ring;
    int from, to; /* to: -1: nowhere */
    size_t block;
    uint64_t size, next;
    unsigned under_way;
};

static void begin(struct bench *bench, struct block *block)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&bench->ring);
    block->offset = bench->next;
    io_uring_prep_read(entry, bench->from, block->memory, (unsigned)bench->block, block->offset);
    io_uring_sqe_set_data(entry, block);
    bench->next += bench->block;
    bench->under_way++;
}

/* `got`: how many bytes, or a negative errno. */
static int ended(struct bench *bench, struct block *block, int got)
{
    bench->under_way--;
    if (got < 0)
        return got;
    if (bench->to >= 0 && pwrite(bench->to, block->memory, (size_t)got, (off_t)block->offset) != got)
        return -EIO;
    if (bench->next < bench->size)
        begin(bench, block);
    return 0;
}

/* Returns 0 or a negative errno. */
static int read_all(struct bench *bench, struct block *blocks, unsigned depth)
{
    for (unsigned i = 0; i < depth && bench->next < bench->size; i++)
        begin(bench, &blocks[i]);
    while (bench->under_way > 0) {
        struct io_uring_cqe *entry;
        int r = io_uring_submit_and_wait(&bench->ring, 1);
        if (r < 0 && r != -EINTR)
            return r;
        while (io_uring_peek_cqe(&bench->ring, &entry) == 0) {
            struct block *block = io_uring_cqe_get_data(entry);
            const int got = entry->res;
            io_uring_cqe_seen(&bench->ring, entry);
            r = ended(bench, block, got);
            if (r < 0)
                return r;
            (void)io_uring_submit(&bench->ring);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    const bool memory = argc == 5 && strcmp(argv[4], "memory") == 0;
    const unsigned depth = argc - memory == 4 ? (unsigned)strtoul(argv[2], NULL, 10) : 0;
    struct bench bench = {.to = -1, .block = depth > 0 ? strtoull(argv[3], NULL, 10) : 0};
    struct block blocks[DEPTH_MAX];
    struct stat status;
    if (depth < 1 || depth > DEPTH_MAX || bench.block == 0 || bench.block % PAGE != 0) {
        fprintf(stderr, "usage: bench_disk FILE DEPTH BLOCK [memory]\n");
        return 2;
    }
    bench.from = open(argv[1], O_RDONLY | O_CLOEXEC | O_DIRECT);
    int r = bench.from < 0 || fstat(bench.from, &status) < 0 ? -errno : io_uring_queue_init(depth, &bench.ring, 0);
    if (r < 0) {
        fprintf(stderr, "bench_disk: %s: %s\n", argv[1], strerror(-r));
        return 77;
    }
    uint8_t *all = aligned_alloc(PAGE, depth * bench.block);
    bench.to = memory ? memfd_create("bench_disk", MFD_CLOEXEC) : -1;
    bench.size = (uint64_t)status.st_size;
    if (!all || (memory && (bench.to < 0 || ftruncate(bench.to, status.st_size) < 0)))
        return 1;
    memset(all, 1, depth * bench.block);
    for (unsigned i = 0; i < depth; i++)
        blocks[i].memory = all + i * bench.block;
    const double began = seconds();
    r = read_all(&bench, blocks, depth);
    if (r < 0) {
        fprintf(stderr, "bench_disk: %s: %s\n", argv[1], strerror(-r));
        return 1;
    }
    printf("%.0f\n", (double)bench.size / (seconds() - began));
    io_uring_queue_exit(&bench.ring);
    free(all);
    return 0;
}
