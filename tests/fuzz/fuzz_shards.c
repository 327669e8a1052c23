/* Fuzzes what a file says of its place among the files of a split model: nothing in it is trusted. */
#include "proto/shards.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct shard_place place;

    if (fd < 0)
        fd = memfd_create("fuzz.gguf", MFD_CLOEXEC);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();
    assert(shard_peek(fd, &place) == 0);
    assert(place.gguf || (!place.split && place.count == 0 && place.tensors == UINT64_MAX));
    assert(!place.split || place.count != 1);
    struct shard_header header;
    if (shard_header_read(fd, UINT64_MAX, &header) == 0) {
        assert(header.place.split == place.split && header.place.count == place.count);
        assert(header.bytes <= size && header.n_names <= size && header.n_keys <= size);
        shard_header_free(&header);
    }
    return 0;
}
