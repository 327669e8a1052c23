/* A libcuda.so.1 that says it is of CUDA 12.4, and has no more. CUDA's runtime looks all functions up by name. */
#include <stddef.h>
#include <string.h>

#define EXPORT        __attribute__((visibility("default")))

#define NOT_SUPPORTED 801
#define INVALID_VALUE 1

typedef void driver_fn(void);

static int driver_version(int *ret)
{
    *ret = 12040;
    return 0;
}

static int init(unsigned flags)
{
    (void)flags;
    return 0;
}

static int not_supported(void)
{
    return NOT_SUPPORTED;
}

EXPORT int cuGetProcAddress_v2(const char *name, driver_fn **ret, int version, unsigned long flags, int *ret_found);

static const struct {
    const char *name;
    driver_fn *function;
} functions[] = {
    {"cuDriverGetVersion", (driver_fn *)driver_version},
    {"cuInit", (driver_fn *)init},
    {"cuGetProcAddress", (driver_fn *)cuGetProcAddress_v2},
};

int cuGetProcAddress_v2(const char *name, driver_fn **ret, int version, unsigned long flags, int *ret_found)
{
    (void)version;
    (void)flags;
    if (!*name)
        return INVALID_VALUE;
    *ret = (driver_fn *)not_supported;
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
        if (strcmp(functions[i].name, name) == 0)
            *ret = functions[i].function;
    if (ret_found)
        *ret_found = 0;
    return 0;
}
