/* Finds the GGUF files of models that this process has open and mapped. An engine has them open while it loads a model.
 * Adapters (LoRA) do not count as models. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define OPEN_FILES_MAX  64u  /* more files are ignored */
#define OPEN_RANGES_MAX 256u /* of memory, of all files together */

/* A GGUF file that is open. */
struct open_file {
    int fd; /* belongs to the engine: we must not close it */
    dev_t dev;
    ino_t ino;
    off_t size;
    bool mapped;         /* whole or in part */
    char path[PATH_MAX]; /* the kernel's path; empty: this path no longer leads to the file */
};

/* Memory that is mapped from one of the files. */
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

/* Tells the kernel that the mappings of the file are not read at random (MADV_NORMAL), and if `soon`, that they will be
 * read soon. */
void open_files_advise(const struct open_files *files, size_t file, bool soon);

/* Whether the byte at `address` is memory that this process may write to. */
bool open_files_writable(const void *address);
