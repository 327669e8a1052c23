/* The import module of devices of the kind "fake": a handle is their memory's only byte. */
#include "client/import.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct mapping {
    struct import_mapping base;
    char memory[];
};

static int fake_open(const struct import_source *source, struct import_mapping **ret, struct import_fault *ret_fault)
{
    if (source->handle_size != 1)
        return import_fail(ret_fault, -EPROTO, "fakeOpen: a handle of %zu bytes", source->handle_size);
    if (!source->uuid)
        return import_fail(ret_fault, -ENODEV, "fakeOpen: no device");
    struct mapping *mapping = malloc(sizeof(*mapping) + source->bytes);
    if (!mapping)
        return import_fail(ret_fault, -ENOMEM, "malloc");
    memset(mapping->memory, source->handle[0], source->bytes);
    mapping->base.data = mapping->memory;
    *ret = &mapping->base;
    return 0;
}

static void fake_close(struct import_mapping *mapping)
{
    free(mapping);
}

static int fake_read(struct import_mapping *mapping, uint64_t offset, void *dst, size_t size,
                     struct import_fault *ret_fault)
{
    if (offset == 1)
        return import_fail(ret_fault, -EIO, "fakeMemcpy: no (1)");
    memcpy(dst, (const char *)mapping->data + offset, size);
    return 0;
}

__attribute__((visibility("default"))) extern const struct import_module rocmforge_import_module;

const struct import_module rocmforge_import_module = {
    .abi = IMPORT_ABI,
    .kind = "fake",
    .open = fake_open,
    .close = fake_close,
    .read = fake_read,
};
