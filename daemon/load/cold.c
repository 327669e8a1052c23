#include "daemon/load/cold.h"

#include "daemon/base/closer.h"
#include "daemon/base/worker.h"
#include "proto/min.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* Linux 6.5, the same number for all processors */
#endif

/* The size of the regions in which the file is looked at. A region counts as cached if all of it is. Where only one
 * page of a region can be looked at, regions are larger, since some kernels read that page. */
#define REGION_BYTES ((uint64_t)256 << 10)
#define PROBE_BYTES  ((uint64_t)4 << 20)

/* The number of places of a file that are looked at first. If all are cached, or none is, that is taken to be so
 * everywhere. */
#define SAMPLES 64u

/* What the page cache had of a file when the first worker wanted a part of it. Later it is not asked again: when a
 * cached part is read, the kernel also reads what follows it into the cache. If the cache were asked about each part
 * just before it is read, every part would seem cached. */
enum found {
    FOUND_UNKNOWN,
    FOUND_ALL,  /* or the file cannot be read past the cache */
    FOUND_SOME, /* `regions` says what */
    FOUND_NONE,
};

struct cold_file {
    _Atomic(enum found) found; /* set last, under the lock */
    int direct;                /* open with O_DIRECT; -1: it is not */
    uint64_t region_bytes;
    uint8_t *regions; /* a bit for each region, set if it is cached */
};

struct cold {
    struct direct *direct;
    struct source *source;
    pthread_mutex_t lock; /* workers only; while a file is looked at */
    struct cold_file files[];
};

int cold_new(struct direct *direct, struct source *source, struct cold **ret)
{
    struct cold *cold = calloc(1, sizeof(*cold) + source->n_files * sizeof(cold->files[0]));
    if (!cold)
        return -ENOMEM;
    cold->direct = direct;
    cold->source = source_ref(source);
    pthread_mutex_init(&cold->lock, NULL);
    for (size_t i = 0; i < source->n_files; i++)
        cold->files[i] = (struct cold_file){.found = FOUND_UNKNOWN, .direct = -1};
    *ret = cold;
    return 0;
}

void cold_free(struct cold *cold)
{
    if (!cold)
        return;
    for (size_t i = 0; i < cold->source->n_files; i++) {
        if (cold->files[i].direct >= 0)
            closer_close(cold->source->closer, cold->source->uid, cold->files[i].direct);
        free(cold->files[i].regions);
    }
    source_free(cold->source);
    pthread_mutex_destroy(&cold->lock);
    free(cold);
}

struct cachestat_range {
    uint64_t offset;
    uint64_t bytes;
};

struct cachestat {
    uint64_t cached; /* pages; the others are not used here */
    uint64_t dirty;
    uint64_t writeback;
    uint64_t evicted;
    uint64_t recently_evicted;
};

/* How many pages of the range are in the cache. Negative errno: the kernel does not tell. */
static int64_t pages_cached(int fd, uint64_t offset, uint64_t bytes)
{
    struct cachestat_range range = {.offset = offset, .bytes = bytes};
    struct cachestat result;
    return syscall(SYS_cachestat, fd, &range, &result, 0) < 0 ? -errno : (int64_t)result.cached;
}

/* Whether the byte is in the page cache: reads it without waiting. False also if the file cannot be read so. Some
 * kernels then begin to read this page, which is why only one is looked at. */
static bool byte_cached(int fd, uint64_t offset)
{
    uint8_t byte;
    return preadv2(fd, &(struct iovec){.iov_base = &byte, .iov_len = 1}, 1, (off_t)offset, RWF_NOWAIT) == 1;
}

/* Opens the file once more, as a description of its own, and of no other file: 'self' leads to the open file itself. */
static int open_again(const struct source_file *file, int flags)
{
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", file->fd);
    const int fd = open(link, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | flags);
    struct stat status;
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) == 0 && status.st_dev == file->identity.dev && status.st_ino == file->identity.ino)
        return fd;
    close(fd);
    return -1;
}

/* How it is found out what the page cache has of a file. */
struct look {
    int fd;
    bool pages; /* cachestat() tells of each page; else only reading a byte tells, of its page */
    uint64_t size;
};

/* Whether all pages of a region are cached, or, where that is not to be had, the one in its middle. */
static bool region_cached(const struct look *look, uint64_t begin, uint64_t bytes)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t end = min_u64(begin + bytes, look->size);
    if (!look->pages)
        return byte_cached(look->fd, begin + (end - begin) / 2);
    return pages_cached(look->fd, begin, end - begin) == (int64_t)((end + page - 1) / page - begin / page);
}

static enum found look_at_samples(const struct look *look)
{
    unsigned cached = 0;
    for (unsigned i = 0; i < SAMPLES; i++) {
        const uint64_t at = look->size / SAMPLES * i + look->size / SAMPLES / 2;
        cached += region_cached(look, at & ~(uint64_t)(DIRECT_ALIGNMENT - 1), 1);
    }
    return cached == SAMPLES ? FOUND_ALL : cached == 0 ? FOUND_NONE : FOUND_SOME;
}

/* Looks at every region. Without memory all counts as cached. */
static enum found look_at_regions(const struct look *look, struct cold_file *file)
{
    file->region_bytes = look->pages ? REGION_BYTES : PROBE_BYTES;
    const uint64_t n = (look->size + file->region_bytes - 1) / file->region_bytes;
    file->regions = calloc(1, n / 8 + 1);
    if (!file->regions)
        return FOUND_ALL;
    for (uint64_t i = 0; i < n; i++)
        if (region_cached(look, i * file->region_bytes, file->region_bytes))
            file->regions[i / 8] |= (uint8_t)(1u << i % 8);
    return FOUND_SOME;
}

/* `probe` is open without readahead. */
static enum found look_at(const struct source_file *from, int probe, bool pages, struct cold_file *file)
{
    const struct look look = {.fd = pages ? from->fd : probe, .pages = pages, .size = from->identity.size};
    const enum found found = look_at_samples(&look);
    return found == FOUND_SOME ? look_at_regions(&look, file) : found;
}

/* Reads the first byte in the ordinary way, so the page cache has it then. If the file system says that the cache has
 * not, it cannot be asked. File systems that wait for another process or machine cannot be read without waiting. Called
 * under the lock. */
static enum found file_open(struct cold_file *file, const struct source_file *from)
{
    uint8_t byte;
    if (pread(from->fd, &byte, 1, 0) != 1 || !byte_cached(from->fd, 0))
        return FOUND_ALL;
    const bool pages = pages_cached(from->fd, 0, 1) == 1;
    const int probe = pages ? -1 : open_again(from, 0);
    enum found found = FOUND_ALL;
    if (probe >= 0)
        (void)posix_fadvise(probe, 0, 0, POSIX_FADV_RANDOM);
    if (pages || probe >= 0)
        found = look_at(from, probe, pages, file);
    if (probe >= 0)
        close(probe);
    if (found != FOUND_ALL)
        file->direct = open_again(from, O_DIRECT);
    return file->direct >= 0 ? found : FOUND_ALL;
}

static enum found file_found(struct cold *cold, size_t index)
{
    struct cold_file *file = &cold->files[index];
    enum found found = atomic_load(&file->found);
    if (found != FOUND_UNKNOWN)
        return found;
    worker_file_begin(); /* who waits for the lock waits for the file */
    pthread_mutex_lock(&cold->lock);
    if (atomic_load(&file->found) == FOUND_UNKNOWN)
        atomic_store(&file->found, file_open(file, &cold->source->files[index]));
    pthread_mutex_unlock(&cold->lock);
    worker_file_end();
    return atomic_load(&file->found);
}

static bool was_cached(const struct cold_file *file, uint64_t region)
{
    return file->regions[region / 8] >> region % 8 & 1;
}

/* Makes the range smaller at either end, by what is cached there. */
static struct span_bytes shrink(const struct cold_file *file, struct span_bytes range)
{
    uint64_t first = range.begin / file->region_bytes, last = (range.end - 1) / file->region_bytes;
    while (first <= last && was_cached(file, first))
        first++;
    if (first > last)
        return (struct span_bytes){range.begin, range.begin};
    while (was_cached(file, last))
        last--;
    if (first * file->region_bytes > range.begin)
        range.begin = first * file->region_bytes;
    range.end = min_u64(range.end, (last + 1) * file->region_bytes);
    return range;
}

struct span_bytes cold_missing(struct cold *cold, size_t file, struct span_bytes whole)
{
    const struct span_bytes none = {whole.begin, whole.begin};
    const struct span_bytes range = {.begin = whole.begin & ~(uint64_t)(DIRECT_ALIGNMENT - 1),
                                     .end = (whole.end + DIRECT_ALIGNMENT - 1) & ~(uint64_t)(DIRECT_ALIGNMENT - 1)};
    const enum found found = file_found(cold, file);
    if (found == FOUND_ALL || whole.begin >= whole.end || whole.end > cold->source->files[file].identity.size)
        return none;
    return found == FOUND_NONE ? range : shrink(&cold->files[file], range);
}

void cold_read(struct cold *cold, size_t file, struct direct_read *read)
{
    read->fd = cold->files[file].direct;
    direct_submit(cold->direct, read);
}

void cold_refuse(struct cold *cold, size_t file)
{
    atomic_store(&cold->files[file].found, FOUND_ALL); /* it stays open: other reads may be under way */
}

void cold_drop(const struct source *source)
{
    worker_file_begin();
    for (size_t i = 0; i < source->n_files; i++)
        (void)posix_fadvise(source->files[i].fd, 0, 0, POSIX_FADV_DONTNEED);
    worker_file_end();
}
