/* The files of a model, open to be passed to the daemon. */
#pragma once

#include <stddef.h>

/* As many descriptors as one message carries. */
#define FILES_MAX 253

struct files {
    int fds[FILES_MAX];
    size_t n;
};

/* Opens the regular file at `path`; of a split model, whose first file is called "...-00001-of-00003.gguf", all of them
 * in order. Returns 0; or a negative errno after it said "cannot `verb` PATH: " and why. files_close() in any case. */
int files_open(struct files *files, const char *path, const char *verb);

/* The same for this file alone. */
int files_open_one(struct files *files, const char *path, const char *verb);

void files_close(struct files *files);

/* What a model is to be called whose path is a symbolic link: the daemon sees the file behind it, and in the cache of a
 * download program that has a number for a name. The caller frees it. NULL: `path` is no link. */
char *files_link_name(const char *path);
