/* The files of a split model, as a file's path and what stands in the files say. The daemon goes by this, and so do the
 * library and rfctl, which open files themselves.
 *
 * A file of a split model says in its metadata which one it is (split.no) and of how many (split.count). Names only
 * help to find the others. Blocking; any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Files of one model. */
#define SHARDS_MAX 4096u

/* What a file says of its place. */
struct shard_place {
    bool gguf;        /* it begins with GGUF's magic */
    bool split;       /* it says which one of several it is: number and count are set */
    uint64_t number;  /* from 0 on */
    uint64_t count;   /* 0: not told */
    uint64_t tensors; /* of the whole model; UINT64_MAX: not told */
};

/* Reads that from the metadata of an open file; its position is neither used nor moved. Trusts nothing in the file, and
 * takes no memory for it. A file that is damaged says nothing; nor does what stands behind GGUF_HEADER_MAX bytes, so
 * that no file takes long. Returns 0 or the negative errno of pread() or fstat(). */
int shard_peek(int fd, struct shard_place *ret);

/* Opens a regular file for reading: the descriptor, or a negative errno. */
typedef int shard_open_fn(const char *path);

/* A shard_open_fn for programs that open files for their own user. -EINVAL: there is something else than a file. */
int shard_open_regular(const char *path);

struct shard_paths {
    char **paths; /* in the order of their numbers */
    size_t n;
};

/* Finds the files of the model that `path` is a folder of (proto/folder.h), or that it is one of: the first, or, with
 * `any`, whichever. They are looked for by the names "...-00001-of-00003..." beside the path, then beside the file that
 * a link leads to, and then among all files of that folder by what they say. A file that is not one of several is the
 * only one; so is a later one without `any`. Returns 0 and what the caller ends with shard_paths_free(); the error of
 * opening `path`; -ENOENT: others are not there, and ret->paths[0], if there is one, is the first of those missing that
 * a name is known of; -ENOTUNIQ: several files say that they are the same one; -E2BIG: more than SHARDS_MAX; -EBADMSG:
 * the folder's index is not valid; -ENOMEM. */
int shards_find(const char *path, bool any, shard_open_fn *open, struct shard_paths *ret);

/* None is fine. */
void shard_paths_free(struct shard_paths *paths);
