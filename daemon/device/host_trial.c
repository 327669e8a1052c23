#include "daemon/device/host_trial.h"

#include "daemon/base/memory_file.h"
#include "daemon/device/device.h"
#include "proto/min.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* With fewer workers the kernel's single writer keeps up. */
#define WORKERS_LEAST 4u

/* More threads than this tell nothing more. */
#define THREADS_MOST 16u

#define TRIAL_BYTES  ((uint64_t)48 << 20)
#define PART_BYTES   ((size_t)1 << 20)
#define WRITE_BYTES  ((size_t)64 << 10)

int host_map_fill(uint8_t *mapping, uint64_t offset, const void *data, size_t size)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t begin = offset / page * page, end = (offset + size + page - 1) / page * page;
    /* Without memory this returns an error, where a write to the mapping would end the process. */
    while (madvise(mapping + begin, end - begin, MADV_POPULATE_WRITE) < 0)
        if (errno != EINTR && errno != EAGAIN)
            return errno == EFAULT ? -ENOMEM : -errno;
    memcpy(mapping + offset, data, size);
    return 0;
}

struct trial {
    int fd;
    uint8_t *mapping; /* NULL: threads write by turns */
    const void *data; /* PART_BYTES */
    pthread_mutex_t writing;
    atomic_uint_least64_t next;
    atomic_bool failed;
};

static bool fill_part(struct trial *trial, uint64_t at)
{
    if (trial->mapping)
        return host_map_fill(trial->mapping, at, trial->data, PART_BYTES) == 0;
    bool fine = true;
    pthread_mutex_lock(&trial->writing);
    for (size_t i = 0; i < PART_BYTES && fine; i += WRITE_BYTES)
        fine = pwrite(trial->fd, (const uint8_t *)trial->data + i, WRITE_BYTES, (off_t)(at + i)) > 0;
    pthread_mutex_unlock(&trial->writing);
    return fine;
}

static void *fill(void *context)
{
    struct trial *trial = context;
    uint64_t at;
    while ((at = atomic_fetch_add(&trial->next, PART_BYTES)) < TRIAL_BYTES)
        if (!fill_part(trial, at))
            atomic_store(&trial->failed, true);
    return NULL;
}

/* Nanoseconds, with the unmapping; 0: it cannot be done. */
static uint64_t try_way(bool maps, unsigned n, const void *data)
{
    pthread_t threads[THREADS_MOST];
    struct trial trial = {.data = data, .writing = PTHREAD_MUTEX_INITIALIZER};
    trial.fd = memory_file_new("rocmforge-trial");
    bool fine = trial.fd >= 0 && ftruncate(trial.fd, (off_t)TRIAL_BYTES) == 0;
    void *mapping = MAP_FAILED;
    if (fine && maps)
        mapping = mmap(NULL, TRIAL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, trial.fd, 0);
    fine = fine && (!maps || mapping != MAP_FAILED);
    trial.mapping = maps && fine ? mapping : NULL;
    const uint64_t begin = device_clock_ns();
    unsigned begun = 0;
    while (fine && begun < n && pthread_create(&threads[begun], NULL, fill, &trial) == 0)
        begun++;
    for (unsigned i = 0; i < begun; i++)
        pthread_join(threads[i], NULL);
    if (mapping != MAP_FAILED)
        munmap(mapping, TRIAL_BYTES);
    const uint64_t took = device_clock_ns() - begin;
    if (trial.fd >= 0)
        close(trial.fd);
    return begun < n || atomic_load(&trial.failed) ? 0 : took;
}

bool host_map_is_quicker(unsigned workers)
{
    if (workers < WORKERS_LEAST)
        return false;
    const unsigned n = (unsigned)min_u64(workers, THREADS_MOST);
    void *data = malloc(PART_BYTES);
    if (!data)
        return false;
    memset(data, 1, PART_BYTES);
    uint64_t written = UINT64_MAX, mapped = UINT64_MAX;
    for (unsigned i = 0; i < 2; i++) {                           /* in turns; the better one of each counts */
        written = min_u64(written, try_way(false, n, data) - 1); /* what cannot be done becomes the longest time */
        mapped = min_u64(mapped, try_way(true, n, data) - 1);
    }
    free(data);
    return mapped < written - written / 5;
}
