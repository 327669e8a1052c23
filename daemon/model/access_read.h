/* Gathers the facts that access.h decides from.
 *
 * Blocks for as long as a file system does not answer; meant for a worker thread. */
#pragma once

#include "daemon/model/access.h"
#include "daemon/model/source.h"

/* Reads who may do what with an open file or folder; it may be open with O_PATH. Returns 0, or the errno of fstat(). */
int access_read_entry(int fd, struct access_entry *ret);

/* Reads the current facts of a source's files and of all folders above them. If this process cannot look at one of the
 * folders, the folders count as not known. before: earlier facts of the same files, or NULL. If a file has no name any
 * more, for example because another file replaced it, its folders are those that it was in, as they are now; if there
 * are none any more, or others than in `before`, they count as not known.
 *
 * Returns 0 and facts with one reference; -ENOMEM; or the errno of fstat(). */
int access_read(const struct source *source, const struct access_facts *before, struct access_facts **ret,
                struct device_fault *ret_fault);
