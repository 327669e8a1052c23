/* Gathers the facts on which access.h decides.
 *
 * Blocking, as a file system that does not answer blocks; meant for a worker thread. */
#pragma once

#include "daemon/model/access.h"
#include "daemon/model/source.h"

/* The facts of a source's files and of all folders above them, as they are now. A folder that this process cannot look
 * at is one that is not known. before: facts of the same files from earlier, or NULL: a file that has lost its name
 * since, because another took its place, keeps the folders that it had.
 *
 * Returns 0 and facts with one reference; -ENOMEM; or the errno of fstat(). */
int access_read(const struct source *source, const struct access_facts *before, struct access_facts **ret,
                struct device_fault *ret_fault);
