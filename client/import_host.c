/* Memory of the host: a sealed memfd, mapped in place. */
#include "client/import_host.h"

#include "client/sealed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct host_mapping {
    struct import_mapping base;
    size_t bytes;
};

/* Its size cannot change: the daemon sealed that before it gave the memory away. */
static int map_to_write(int fd, uint64_t size, const void **ret)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (status.st_size < 0 || (uint64_t)status.st_size < size || size > SIZE_MAX)
        return -EMSGSIZE;
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        return -errno;
    (void)madvise(data, size, MADV_DONTDUMP);
    *ret = data;
    return 0;
}

static int host_open(const struct import_source *source, struct import_mapping **ret, struct import_fault *ret_fault)
{
    if (source->fd < 0)
        return import_fail(ret_fault, -EPROTO, "host memory comes as a descriptor, and there is none");
    struct host_mapping *mapping = malloc(sizeof(*mapping));
    if (!mapping)
        return import_fail(ret_fault, -ENOMEM, "no memory for a mapping");
    int r = source->writable ? map_to_write(source->fd, source->bytes, &mapping->base.data)
                             : sealed_map(source->fd, source->bytes, &mapping->base.data);
    if (r < 0) {
        free(mapping);
        if (r == -EPERM)
            return import_fail(ret_fault, -EPROTO, "the model's memory is not sealed");
        if (r == -EMSGSIZE)
            return import_fail(ret_fault, -EPROTO, "the model's memory is smaller than the daemon says");
        return import_fail(ret_fault, r, "mapping the model's memory failed: %s", strerror(-r));
    }
    mapping->bytes = source->bytes;
    *ret = &mapping->base;
    return 0;
}

static void host_close(struct import_mapping *base)
{
    struct host_mapping *mapping = (struct host_mapping *)base;
    if (!mapping)
        return;
    munmap((void *)mapping->base.data, mapping->bytes);
    free(mapping);
}

static int host_read(struct import_mapping *mapping, uint64_t offset, void *dst, size_t size,
                     struct import_fault *ret_fault)
{
    (void)ret_fault;
    memcpy(dst, (const char *)mapping->data + offset, size);
    return 0;
}

const struct import_module import_host_module = {
    .abi = IMPORT_ABI,
    .kind = "host",
    .open = host_open,
    .close = host_close,
    .read = host_read,
};
