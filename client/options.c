#include "client/options.h"

#include "client/error.h"
#include "proto/min.h"

#include <errno.h>
#include <string.h>

int client_options(rf_client *client, const void *options, void *ret, size_t size)
{
    size_t given;
    memset(ret, 0, size);
    if (!options)
        return 0;
    memcpy(&given, options, sizeof(given));
    if (given == 0)
        return client_fail(client, -EINVAL, "the size of the options is not set");
    memcpy(ret, options, min_u64(given, size));
    return 0;
}
