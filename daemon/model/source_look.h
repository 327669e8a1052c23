/* What became of a source's files since they were opened.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/model/source.h"

#include <stdbool.h>

/* What the paths of a source's files, and the link, lead to now. Of a file that was not seen at its path (source.h),
 * only the open file itself is looked at. */
enum source_look {
    SOURCE_THERE,   /* to these files, not touched; or to nothing, or this is not known */
    SOURCE_TOUCHED, /* to these files, with the same sizes, but they were touched: their contents may have changed */
    SOURCE_OTHER,   /* to other files, or the sizes have changed */
};

enum source_look source_look(const struct source *source);

/* Whether the path that one of the files was seen at, or the link, leads to another file now. */
bool source_replaced(const struct source *source);

/* Whether one of the files was deleted: it has no name in the file system any more, and nothing is found at its path.
 * A file that never had a name does not count. */
bool source_deleted(const struct source *source);

/* 0 if all files have the same size and modification time as when they were opened; -ESTALE if not; or the errno of
 * fstat(). */
int source_check(const struct source *source, struct device_fault *ret_fault);

/* Like source_check(), and compares the inodes' change times (ctime) as well: a program can set a modification time
 * back, but not a ctime. A file that got or lost a name gets another ctime although no byte of it was written: whoever
 * replaces a file by renaming another one takes its name. So the ctime does not count if the number of names is another
 * one. Moving a file, or changing its mode, changes its ctime too. A write through a mapping of a file in a tmpfs
 * changes no time; only Verify finds such a change. */
int source_check_untouched(const struct source *source, struct device_fault *ret_fault);
