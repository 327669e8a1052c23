#include "daemon/header/header_reader.h"

#include "proto/array.h"
#include "proto/gguf_value.h"
#include "proto/min.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Bytes of the first buffer. Most headers fit into it; each time it is too small it doubles. The unused part of a
 * buffer takes no memory, but growing may copy all bytes. So the first buffer is rather too large than too small. */
#define BUFFER_FIRST ((size_t)1 << 20)

/* Bytes of one pread(). Larger reads would save calls, but reading pages that are not needed costs more than a call. */
#define READ_BYTES ((size_t)64 << 10)

/* A buffer of BUFFER_FIRST bytes whose pages the kernel has provided already; or NULL. */
static _Atomic(uint8_t *) prepared;

void header_prepare(void)
{
    if (atomic_load(&prepared))
        return;
    uint8_t *bytes = malloc(BUFFER_FIRST);
    if (!bytes)
        return;
    explicit_bzero(bytes, BUFFER_FIRST); /* touches the pages; a compiler might remove a memset(), because the header
                                            overwrites the bytes */
    free(atomic_exchange(&prepared, bytes));
}

/* Makes the buffer larger, up to `limit` bytes. */
static int buffer_grow(struct header_reader *r, size_t limit)
{
    if (!r->bytes && (r->bytes = atomic_exchange(&prepared, NULL))) {
        r->capacity = min_u64(BUFFER_FIRST, limit);
        return 0;
    }
    return array_grow(&r->bytes, &r->capacity, r->filled + 1, 1, BUFFER_FIRST, limit);
}

int header_refuse(struct header_reader *r, uint64_t offset, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(r->fault->reason, sizeof r->fault->reason, format, args);
    va_end(args);
    r->fault->offset = offset;
    return -EBADMSG;
}

int header_ensure(struct header_reader *r, uint64_t size, uint64_t field)
{
    size_t limit = min_u64(r->file_size, r->most);

    if (size > r->file_size - r->pos)
        return header_refuse(r, field, "the file ends inside its header");
    if (size > limit - r->pos)
        return header_refuse(r, field,
                             r->most == HEADER_BYTES_MAX
                                 ? "the header is larger than 128 MiB"
                                 : "with those of the files before it, the header takes more than 128 MiB");
    while (r->filled - r->pos < size) {
        if (r->filled == r->capacity) {
            int error = buffer_grow(r, limit);
            if (error)
                return error;
        }
        ssize_t n = pread(r->fd, r->bytes + r->filled, min_u64(READ_BYTES, r->capacity - r->filled), (off_t)r->filled);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENODATA;
        r->filled += (size_t)n;
    }
    return 0;
}

int header_take_u32(struct header_reader *r, uint32_t *ret)
{
    int error = header_ensure(r, sizeof *ret, r->pos);

    if (error)
        return error;
    *ret = header_load_u32(r->bytes + r->pos);
    r->pos += sizeof *ret;
    return 0;
}

int header_take_u64(struct header_reader *r, uint64_t *ret)
{
    int error = header_ensure(r, sizeof *ret, r->pos);

    if (error)
        return error;
    *ret = header_load_u64(r->bytes + r->pos);
    r->pos += sizeof *ret;
    return 0;
}

int header_take_string(struct header_reader *r, const char *what, uint64_t most, size_t *ret_size)
{
    uint64_t field = r->pos, size;
    int error = header_take_u64(r, &size);

    if (error)
        return error;
    if (size > most)
        return header_refuse(r, field, "%s is longer than %" PRIu64 " bytes", what, most);
    if (size > r->file_size - r->pos)
        return header_refuse(r, field, "%s of %" PRIu64 " bytes reaches past the end of the file", what, size);
    error = header_ensure(r, size, field);
    if (error)
        return error;
    r->pos += (size_t)size;
    *ret_size = (size_t)size;
    return 0;
}

/* Skips the strings that are completely in the buffer; returns how many. */
static uint64_t skip_buffered(struct header_reader *r, uint64_t count)
{
    size_t pos = r->pos;
    uint64_t n = 0;

    while (n < count && r->filled - pos >= 8) {
        uint64_t size = header_load_u64(r->bytes + pos);
        if (size > r->filled - pos - 8)
            break;
        pos += 8 + (size_t)size;
        n++;
    }
    r->pos = pos;
    return n;
}

/* A vocabulary has 32,000 strings or more, so strings in the buffer are skipped without a call for each. */
int header_skip_strings(struct header_reader *r, const char *what, uint64_t count)
{
    while (count > 0) {
        uint64_t n = skip_buffered(r, count);
        size_t size;

        if (n == 0) {
            int error = header_take_string(r, what, UINT64_MAX, &size);
            if (error)
                return error;
            n = 1;
        }
        count -= n;
    }
    return 0;
}

void header_trim(struct header_reader *r)
{
    array_trim(&r->bytes, &r->capacity, r->pos, 1);
}
