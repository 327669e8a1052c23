/* The files of a model, open to be passed to the daemon. */
#pragma once

#include "client/rocmforge.h"
#include "proto/frame.h"

#include <stddef.h>

struct files {
    int fds[FRAME_FDS_MAX];
    size_t n;
};

/* Opens the regular file at `path`; of a split model, whose first file is called "...-00001-of-00003.gguf", all of them
 * in order. `files` is empty before; files_close() in any case. Returns 0, or a negative errno after client_fail(). */
int files_open(struct files *files, rf_client *client, const char *path);

void files_close(struct files *files);

/* The daemon names a model after the file that it was given. Where the path is a link, as in caches of downloads, that
 * file has a name that says nothing, and the link's is the one to take. Otherwise `name` becomes empty. */
void files_link_name(const char *path, char name[static RF_NAME_SIZE]);
