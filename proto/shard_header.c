#include "proto/shard_header.h"

#include "proto/array.h"
#include "proto/gguf_value.h"
#include "proto/min.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Read at once; the first time less, because most files of a folder tell in their first bytes that they are none. */
#define WINDOW       (64u << 10)
#define WINDOW_FIRST (4u << 10)

#define KEY_MAX      64u /* of those that are looked for */
#define DIMS_MAX     64u /* more than any file has */

struct peek {
    int fd;
    uint64_t size, pos;
    uint64_t window; /* position of the bytes below */
    size_t filled;
    int error; /* of pread() */
    uint8_t bytes[WINDOW];
};

static int peek_begin(int fd, struct peek **ret)
{
    struct stat status;
    struct peek *peek = calloc(1, sizeof(*peek));
    if (!peek)
        return -ENOMEM;
    if (fstat(fd, &status) < 0) {
        const int error = -errno;
        free(peek);
        return error;
    }
    peek->fd = fd;
    peek->size = status.st_size > 0 ? min_u64((uint64_t)status.st_size, HEADER_BYTES_MAX) : 0;
    *ret = peek;
    return 0;
}

/* The next bytes, at most a page, and steps over them. NULL: the file has no more, or reading failed. */
static const uint8_t *take(struct peek *peek, size_t n)
{
    if (n > peek->size - peek->pos || peek->error)
        return NULL;
    if (peek->pos < peek->window || peek->pos + n > peek->window + peek->filled) {
        ssize_t got;
        do
            got = pread(peek->fd, peek->bytes, peek->pos == 0 ? WINDOW_FIRST : WINDOW, (off_t)peek->pos);
        while (got < 0 && errno == EINTR);
        peek->error = got < 0 ? -errno : 0;
        peek->window = peek->pos;
        peek->filled = got < 0 ? 0 : (size_t)got;
        if (n > peek->filled)
            return NULL;
    }
    const uint8_t *at = peek->bytes + (peek->pos - peek->window);
    peek->pos += n;
    return at;
}

static bool take_number(struct peek *peek, size_t size, uint64_t *ret)
{
    const uint8_t *at = take(peek, size);
    uint64_t value = 0;
    if (!at)
        return false;
    memcpy(&value, at, size);
    *ret = le64toh(value);
    return true;
}

static bool skip(struct peek *peek, uint64_t n)
{
    if (n > peek->size - peek->pos)
        return false;
    peek->pos += n;
    return true;
}

static bool skip_value(struct peek *peek, uint64_t type, unsigned depth)
{
    uint64_t size = gguf_scalar_bytes(type), element, count;
    if (size > 0)
        return skip(peek, size);
    if (type == GGUF_STRING)
        return take_number(peek, 8, &size) && skip(peek, size);
    if (type != GGUF_ARRAY || depth == GGUF_NESTING_MAX || !take_number(peek, 4, &element) ||
        !take_number(peek, 8, &count))
        return false;
    const size_t each = gguf_scalar_bytes(element);
    if (each > 0)
        return count <= (peek->size - peek->pos) / each && skip(peek, count * each);
    bool good = element == GGUF_STRING || element == GGUF_ARRAY;
    for (uint64_t i = 0; i < count && good; i++)
        good = skip_value(peek, element, depth + 1);
    return good;
}

/* A number that is not negative, of any integer type. */
static bool take_integer(struct peek *peek, uint64_t type, uint64_t *ret)
{
    const size_t size = gguf_scalar_bytes(type);
    uint64_t value;
    if (size == 0 || type == GGUF_F32 || type == GGUF_F64 || !take_number(peek, size, &value))
        return false;
    const bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    if (is_signed && value >> (8 * size - 1) != 0)
        return false;
    *ret = value;
    return true;
}

/* Hashes the next bytes, and steps over them. */
static bool hash_bytes(struct peek *peek, uint64_t n, uint64_t *hash)
{
    uint64_t h = *hash ^ n;
    if (n > peek->size - peek->pos)
        return false;
    while (n > 0) {
        const size_t some = (size_t)min_u64(n, WINDOW_FIRST);
        const uint8_t *at = take(peek, some);
        if (!at)
            return false;
        for (size_t i = 0; i < some; i += 8) {
            uint64_t word = 0;
            memcpy(&word, at + i, some - i < 8 ? some - i : 8);
            h = (h ^ word) * 0x9e3779b97f4a7c15u;
            h ^= h >> 29;
        }
        n -= some;
    }
    *hash = h;
    return true;
}

/* The fixed part of the header. False: it is no GGUF file of a version that we know, or has too many keys. */
static bool read_start(struct peek *peek, bool *ret_gguf, uint64_t *ret_tensors, uint64_t *ret_keys)
{
    uint64_t version;
    const uint8_t *magic = take(peek, 4);
    *ret_gguf = magic && memcmp(magic, "GGUF", 4) == 0;
    return *ret_gguf && take_number(peek, 4, &version) && (version == 2 || version == 3) &&
           take_number(peek, 8, ret_tensors) && take_number(peek, 8, ret_keys) && *ret_keys <= HEADER_KV_MAX;
}

/* Reads a key; "" if it is longer than those that are looked for. hash: NULL, or it becomes the key's. */
static bool read_key(struct peek *peek, char key[KEY_MAX + 1], uint64_t *hash)
{
    uint64_t size;
    key[0] = '\0';
    if (!take_number(peek, 8, &size))
        return false;
    const uint64_t pos = peek->pos;
    if (size <= KEY_MAX) {
        const uint8_t *at = take(peek, (size_t)size);
        if (!at)
            return false;
        memcpy(key, at, (size_t)size);
        key[size] = '\0';
    } else if (!skip(peek, size))
        return false;
    if (!hash)
        return true;
    peek->pos = pos;
    *hash = 0;
    return hash_bytes(peek, size, hash);
}

enum told { TOLD_GOOD, TOLD_WRONG, TOLD_OTHER };

/* Reads the value if the key is one of those that tell the file's place. TOLD_OTHER: it is not, and nothing was read.
 */
static enum told read_place(struct peek *peek, const char *key, uint64_t type, struct shard_place *place,
                            bool *ret_number)
{
    if (strcmp(key, "split.no") == 0)
        return (*ret_number = take_integer(peek, type, &place->number)) ? TOLD_GOOD : TOLD_WRONG;
    if (strcmp(key, "split.count") == 0)
        return take_integer(peek, type, &place->count) ? TOLD_GOOD : TOLD_WRONG;
    if (strcmp(key, "split.tensors.count") == 0)
        return take_integer(peek, type, &place->tensors) ? TOLD_GOOD : TOLD_WRONG;
    return TOLD_OTHER;
}

int shard_peek(int fd, struct shard_place *ret)
{
    struct peek *peek = NULL;
    int error = peek_begin(fd, &peek);
    if (error < 0)
        return error;
    assert(peek);
    struct shard_place place = {.tensors = UINT64_MAX};
    uint64_t n_tensors, n, type;
    bool number = false;
    char key[KEY_MAX + 1];
    bool good = read_start(peek, &place.gguf, &n_tensors, &n);
    for (uint64_t i = 0; good && i < n && !(number && place.count > 0 && place.tensors != UINT64_MAX); i++) {
        good = read_key(peek, key, NULL) && take_number(peek, 4, &type);
        const enum told told = good ? read_place(peek, key, type, &place, &number) : TOLD_WRONG;
        good = told == TOLD_GOOD || (told == TOLD_OTHER && skip_value(peek, type, 0));
    }
    place.split = number && place.count != 1;
    error = peek->error;
    free(peek);
    if (error == 0)
        *ret = place;
    return error;
}

/* --- the whole header --- */

static int add_key(struct shard_header *header, size_t *capacity, struct shard_key key)
{
    const int r = array_reserve(&header->keys, capacity, header->n_keys, sizeof(*header->keys), 32);
    if (r == 0)
        header->keys[header->n_keys++] = key;
    return r;
}

/* Hashes type and value. */
static bool read_value(struct peek *peek, uint64_t type, uint64_t *ret)
{
    const uint64_t begin = peek->pos;
    if (!skip_value(peek, type, 0))
        return false;
    const uint64_t size = peek->pos - begin;
    peek->pos = begin;
    *ret = type;
    return hash_bytes(peek, size, ret);
}

static int read_keys(struct peek *peek, uint64_t n, struct shard_header *header)
{
    size_t capacity = 0;
    bool number = false;
    for (uint64_t i = 0; i < n; i++) {
        char key[KEY_MAX + 1];
        struct shard_key entry;
        uint64_t type;
        if (!read_key(peek, key, &entry.key) || !take_number(peek, 4, &type))
            return -EBADMSG;
        const enum told told = read_place(peek, key, type, &header->place, &number);
        if (told == TOLD_WRONG || (told == TOLD_OTHER && !read_value(peek, type, &entry.value)))
            return -EBADMSG;
        if (told == TOLD_OTHER && strncmp(key, "split.", 6) != 0 && add_key(header, &capacity, entry) < 0)
            return -ENOMEM;
    }
    header->place.split = number && header->place.count != 1;
    return 0;
}

static int read_names(struct peek *peek, uint64_t n, struct shard_header *header)
{
    size_t capacity = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t size, dims, name = 0;
        if (!take_number(peek, 8, &size) || !hash_bytes(peek, size, &name) || !take_number(peek, 4, &dims) ||
            dims > DIMS_MAX || !skip(peek, 8 * dims + 4 + 8))
            return -EBADMSG;
        const int r = array_reserve(&header->names, &capacity, header->n_names, sizeof(*header->names), 64);
        if (r < 0)
            return r;
        header->names[header->n_names++] = name;
    }
    return 0;
}

int shard_header_read(int fd, uint64_t most, struct shard_header *ret)
{
    struct peek *peek = NULL;
    int r = peek_begin(fd, &peek);
    if (r < 0)
        return r;
    assert(peek);
    struct shard_header header = {.place = {.tensors = UINT64_MAX}};
    uint64_t n_tensors = 0, n = 0;
    peek->size = min_u64(peek->size, most);
    r = read_start(peek, &header.place.gguf, &n_tensors, &n) ? read_keys(peek, n, &header) : -EBADMSG;
    if (r == 0)
        r = read_names(peek, n_tensors, &header);
    if (r == -EBADMSG && peek->error)
        r = peek->error;
    header.bytes = peek->pos;
    free(peek);
    if (r < 0)
        shard_header_free(&header);
    else
        *ret = header;
    return r;
}

void shard_header_free(struct shard_header *header)
{
    free(header->keys);
    free(header->names);
    *header = (struct shard_header){0};
}
