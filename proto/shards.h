/* The files of a split model, as a file's path and what stands in the files say. The daemon goes by this, and so do the
 * library and rfctl, which open files themselves.
 *
 * A file of a split model says in its metadata which one it is (split.no) and of how many (split.count). Names only
 * help to find the others: a file that has the right name and says something else is none of the model. Blocking; any
 * thread. */
#pragma once

#include "proto/shard_header.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Files of one model. */
#define SHARDS_MAX 4096u

/* Opens a regular file for reading: the descriptor, or a negative errno. */
typedef int shard_open_fn(const char *path);

/* A shard_open_fn for programs that open files for their own user. -EINVAL: there is something else than a file. */
int shard_open_regular(const char *path);

/* Whether the file's name tells that it is a later one of several, "...-00002-of-00003...", and the first is beside it.
 */
bool shard_follows(const char *path);

struct shard_paths {
    char **paths; /* in the order of their numbers */
    size_t n;
    /* Which one the file is that was asked for, from 1 on, and of how many, if an index or names tell it; also if
     * others are missing. Else 0. */
    size_t number, count;
};

/* Finds the files of the model that `path` is a folder of (proto/folder.h), or that it is one of: the first, or, with
 * `any`, whichever. They are looked for by the names "...-00001-of-00003..." beside the path, then beside what each
 * link on the way leads to. If files of these names are not there, or are not those of one model, all files of these
 * folders are looked at: shard_choose() decides which of them belong together. A file that is not one of several is the
 * only one; so is a later GGUF file without `any`.
 *
 * A safetensors file does not say that it is one of several. Whichever it is, its others are those that the index
 * beside it names together with it, or, if no index there names it, those of its name's numbers.
 *
 * Returns 0 and what the caller ends with shard_paths_free(); the error of opening `path`; -ENOENT: others are not
 * there, and ret->paths are those missing that a name is known of, if there are any; -ENOTUNIQ: it
 * cannot be told which files belong together, and ret->paths are those that say that they are the same one; -E2BIG:
 * more than SHARDS_MAX; -EBADMSG: the folder's index is not valid; -ENOMEM. */
int shards_find(const char *path, bool any, shard_open_fn *open, struct shard_paths *ret);

/* None is fine. */
void shard_paths_free(struct shard_paths *paths);
