/* What the header of a GGUF file says of the file's place in a split model, and what tells it from files of other
 * models: its metadata and the names of its tensors.
 *
 * Trusts nothing in the file. Blocking; any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a file says of its place. */
struct shard_place {
    bool gguf;        /* it begins with GGUF's magic */
    bool split;       /* it says which one of several it is: number and count are set */
    uint64_t number;  /* from 0 on */
    uint64_t count;   /* 0: not told */
    uint64_t tensors; /* of the whole model; UINT64_MAX: not told */
};

/* Reads that from the metadata of an open file; its position is neither used nor moved. Takes little memory. A file
 * that is damaged says nothing; nor does what stands behind HEADER_BYTES_MAX bytes, so that no file takes long. Returns
 * 0 or the negative errno of pread() or fstat(). */
int shard_peek(int fd, struct shard_place *ret);

/* An entry of the metadata. Hashes of equal texts are equal; those of others most probably differ. */
struct shard_key {
    uint64_t key;   /* hash of the key */
    uint64_t value; /* hash of type and value */
};

struct shard_header {
    struct shard_place place;
    struct shard_key *keys; /* of all entries but those that begin with "split." */
    size_t n_keys;
    uint64_t *names; /* hashes of the names of its tensors */
    size_t n_names;
    uint64_t bytes; /* of the file that the header takes */
};

/* Reads the whole header. Returns 0 and what the caller ends with shard_header_free(); -EBADMSG: the header is not
 * valid, or longer than `most` bytes or HEADER_BYTES_MAX; -ENOMEM; or the errno of pread() or fstat(). */
int shard_header_read(int fd, uint64_t most, struct shard_header *ret);

/* Zeros are fine. */
void shard_header_free(struct shard_header *header);
