/* The files of a model that is a folder, as Hugging Face lays them out: model.safetensors.index.json, which names a
 * file for each tensor, and those files; or one model.safetensors. A file that the index does not name is none of the
 * model. Entries may be links, into a cache for instance.
 *
 * Trusts nothing in the index. Blocking; any thread. */
#pragma once

#include <stddef.h>

#define FOLDER_INDEX     "model.safetensors.index.json"
#define FOLDER_FILE      "model.safetensors"
#define FOLDER_INDEX_MAX (64u << 20) /* bytes of an index */

/* Finds the files of the folder, in the order of their names. open: opens a regular file for reading, or returns a
 * negative errno. most: files of a model. Returns 0, and paths that the caller frees one by one and together; -ENOTDIR:
 * `path` is no folder, or has neither an index nor that one file; -EBADMSG: the index is not valid; -E2BIG: more than
 * `most` files, or too large an index; -ENOMEM; or the error of opening or reading the index. Whether the files of an
 * index are there is not looked at. */
int folder_files(const char *path, int (*open)(const char *path), size_t most, char ***ret, size_t *ret_n);

/* The same of the folder that the file `path` is in, if its index names this file together with others: *ret_number is
 * which of them it is, from 1 on. -ENODATA: there is no such index, or it is not valid or cannot be read; -ENOMEM. */
int folder_files_with(const char *path, int (*open)(const char *path), size_t most, char ***ret, size_t *ret_n,
                      size_t *ret_number);
