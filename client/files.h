/* Opens the files of a model, so that their descriptors can be passed to the daemon. */
#pragma once

#include "client/rocmforge.h"
#include "proto/frame.h"
#include "proto/shards.h"

#include <stddef.h>

struct files {
    struct shard_paths shards;
    size_t next; /* the first of them that is not open yet, and was not either */
    int fds[FRAME_FDS_MAX];
    size_t n;       /* of fds */
    size_t n_added; /* that the daemon was given already */
};

/* Finds the files of a model: with one path, that of a file, of the first of a split model, whose others are found, or
 * of a folder; else all that the paths name. `files` must be zero. Returns 0, or a negative errno, which client_fail()
 * recorded. The caller calls files_close() in both cases. */
int files_find(struct files *files, rf_client *client, const char *const *paths, size_t n);

/* Closes what is open and opens the next regular files, as many as a message carries at most. Returns whether there are
 * more after them, 1 or 0; or a negative errno, which client_fail() recorded. */
int files_open(struct files *files, rf_client *client);

void files_close(struct files *files);

/* If `path` is a folder, derives a model name from the folder's. If it is a symbolic link, derives a model name from
 * the name of the link. Otherwise `name` becomes "". The daemon sees only the file behind the link, and would name the
 * model after it. In caches of downloads that name is a hash, for instance. */
void files_link_name(const char *path, char name[static RF_NAME_SIZE]);
