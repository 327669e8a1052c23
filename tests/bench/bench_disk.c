/* What a disk gives when a file is read from its beginning to its end past the page cache, by one thread with io_uring.
 *
 *     bench_disk FILE DEPTH BLOCK
 *
 * DEPTH reads of BLOCK bytes are under way at a time. Prints the bytes per second. Exits with 77 where there is no
 * io_uring, or the file cannot be read past the page cache. */
#include "tests/bench/seconds.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE      4096u
#define DEPTH_MAX 256u

static void begin(struct io_uring *ring, int fd, uint8_t *at, size_t block, uint64_t offset)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    io_uring_prep_read(entry, fd, at, (unsigned)block, offset);
    io_uring_sqe_set_data(entry, at);
}

/* Returns 0 or a negative errno. */
static int read_all(struct io_uring *ring, int fd, uint8_t *memory, size_t block, unsigned depth, uint64_t size)
{
    uint64_t next = 0;
    unsigned under_way = 0;
    for (; under_way < depth && next < size; under_way++, next += block)
        begin(ring, fd, memory + under_way * block, block, next);
    while (under_way > 0) {
        struct io_uring_cqe *entry;
        int r = io_uring_submit_and_wait(ring, 1);
        if (r < 0 && r != -EINTR)
            return r;
        while (io_uring_peek_cqe(ring, &entry) == 0) {
            uint8_t *at = io_uring_cqe_get_data(entry);
            r = entry->res;
            io_uring_cqe_seen(ring, entry);
            if (r < 0)
                return r;
            under_way--;
            if (next < size) {
                begin(ring, fd, at, block, next);
                next += block;
                under_way++;
            }
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    const unsigned depth = argc == 4 ? (unsigned)strtoul(argv[2], NULL, 10) : 0;
    const size_t block = argc == 4 ? strtoull(argv[3], NULL, 10) : 0;
    if (depth < 1 || depth > DEPTH_MAX || block == 0 || block % PAGE != 0) {
        fprintf(stderr, "usage: bench_disk FILE DEPTH BLOCK\n");
        return 2;
    }
    struct stat status;
    struct io_uring ring;
    const int fd = open(argv[1], O_RDONLY | O_CLOEXEC | O_DIRECT);
    int r = fd < 0 || fstat(fd, &status) < 0 ? -errno : io_uring_queue_init(depth, &ring, 0);
    if (r < 0) {
        fprintf(stderr, "bench_disk: %s: %s\n", argv[1], strerror(-r));
        return 77;
    }
    uint8_t *memory = aligned_alloc(PAGE, depth * block);
    if (!memory)
        return 1;
    memset(memory, 1, depth * block);
    const double began = seconds();
    r = read_all(&ring, fd, memory, block, depth, (uint64_t)status.st_size);
    if (r < 0) {
        fprintf(stderr, "bench_disk: %s: %s\n", argv[1], strerror(-r));
        return 1;
    }
    printf("%.0f\n", (double)status.st_size / (seconds() - began));
    io_uring_queue_exit(&ring);
    free(memory);
    close(fd);
    return 0;
}
