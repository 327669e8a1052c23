#include "daemon/format/format.h"

#include "daemon/safetensors/safetensors.h"

#include <errno.h>
#include <stdbool.h>
#include <unistd.h>

#define START_BYTES 16u /* of a file, which tell its format */

/* starts: whether a file that begins so is of the format. size: less than START_BYTES only if the file is shorter. */
static const struct format {
    bool (*starts)(const uint8_t *start, size_t size);
    int (*read)(const struct header_file *files, size_t n, struct model_header **ret, struct header_fault *ret_fault,
                size_t *ret_file);
} formats[] = {
    {safetensors_starts, safetensors_read},
};

int format_read(const struct header_file *files, size_t n, struct model_header **ret, struct header_fault *ret_fault,
                size_t *ret_file)
{
    uint8_t start[START_BYTES];
    ssize_t got;
    do
        got = pread(files[0].fd, start, sizeof(start), 0);
    while (got < 0 && errno == EINTR);
    *ret_file = 0;
    if (got < 0)
        return -errno;
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (formats[i].starts(start, (size_t)got))
            return formats[i].read(files, n, ret, ret_fault, ret_file);
    return split_read(files, n, ret, ret_fault, ret_file);
}
