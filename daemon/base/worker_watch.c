#include "daemon/base/worker_watch.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

/* The job of this thread, and how many worker_file_begin() and worker_device_begin() it is in. */
static __thread struct worker_watch *current;
static __thread unsigned file_depth, device_depth;

void worker_watch_init(struct worker_watch *watch, bool files)
{
    watch->files = files;
    atomic_init(&watch->in_file, 0);
    atomic_init(&watch->in_device, 0);
    atomic_init(&watch->thread, 0);
}

void worker_watch_set(struct worker_watch *watch)
{
    assert(file_depth == 0 && device_depth == 0); /* each that began has ended */
    current = watch;
}

void worker_file_begin(void)
{
    if (!current || !current->files || file_depth++ > 0)
        return;
    atomic_store(&current->thread, gettid());
    atomic_store(&current->in_file, uv_hrtime());
}

void worker_file_end(void)
{
    if (current && current->files && --file_depth == 0)
        atomic_store(&current->in_file, 0);
}

void worker_device_begin(void)
{
    if (current && device_depth++ == 0)
        atomic_store(&current->in_device, uv_hrtime());
}

void worker_device_end(void)
{
    if (current && --device_depth == 0)
        atomic_store(&current->in_device, 0);
}

/* Whether the thread waits for something else than a processor. On a busy machine it may be without one for long. */
static bool sleeps(int thread)
{
    char path[64], text[256];
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char *name_ends = strrchr(text, ')'); /* then a blank and the state */
    return !name_ends || strlen(name_ends) < 3 || name_ends[2] != 'R';
}

static bool is_over(uint64_t since, uint64_t now, uint64_t patience)
{
    return since > 0 && now > since && now - since > patience;
}

unsigned worker_watch_hangs(const struct worker_watch *watch, uint64_t now, uint64_t device_patience)
{
    unsigned hangs = 0;
    if (is_over(atomic_load(&watch->in_file), now, WORKER_HANG_NS) && sleeps(atomic_load(&watch->thread)))
        hangs |= WORKER_HANGS_FILE;
    if (device_patience > 0 && is_over(atomic_load(&watch->in_device), now, device_patience))
        hangs |= WORKER_HANGS_DEVICE;
    return hangs;
}
