/* Opens the files of a model, so that their descriptors can be passed to the daemon. */
#pragma once

#include "client/rocmforge.h"
#include "proto/frame.h"

#include <stddef.h>

struct files {
    int fds[FRAME_FDS_MAX];
    size_t n;
};

/* Opens the regular file at `path`. If that is the first file of a split model, "...-00001-of-00003.gguf", opens all
 * its files in order. `files` must be empty. Returns 0, or a negative errno, which client_fail() recorded. The caller
 * calls files_close() in both cases. */
int files_open(struct files *files, rf_client *client, const char *path);

void files_close(struct files *files);

/* If `path` is a symbolic link, derives a model name from the name of the link. Otherwise `name` becomes "". The daemon
 * sees only the file behind the link, and would name the model after it. In caches of downloads that name is a hash,
 * for instance. */
void files_link_name(const char *path, char name[static RF_NAME_SIZE]);
