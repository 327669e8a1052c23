/* Which models' GGUF files this process has open and mapped: what an engine that loads a model has at that moment.
 * Adapters (LoRA) are none. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define OPEN_FILES_MAX  64u  /* more are not looked at */
#define OPEN_RANGES_MAX 256u /* of memory, in all */

/* A GGUF file that is open. */
struct open_file {
    int fd; /* the engine's: not ours to close */
    dev_t dev;
    ino_t ino;
    off_t size;
    bool mapped;         /* whole or in part */
    char path[PATH_MAX]; /* as the kernel names it; empty: that path leads elsewhere by now */
};

/* Memory that is mapped from one of them. */
struct open_range {
    uintptr_t start, end;
    size_t file; /* index into the files */
};

struct open_files {
    struct open_file files[OPEN_FILES_MAX];
    size_t n_files;
    struct open_range ranges[OPEN_RANGES_MAX];
    size_t n_ranges;
};

/* Fills *files. 0; a negative errno if /proc cannot be read. */
int open_files_read(struct open_files *files);

/* Index of the file that `size` bytes at `data` are mapped from; -1: none. */
int open_files_at(const struct open_files *files, const void *data, size_t size);

/* Index of the open file that `path` leads to; -1: none. */
int open_files_find(const struct open_files *files, const char *path);

/* Tells the kernel that the mappings of the file are read in the ordinary way, and soon if `soon`. */
void open_files_advise(const struct open_files *files, size_t file, bool soon);

/* Whether the byte at `address` is memory that this process may write to. */
bool open_files_writable(const void *address);
