/* Files in memory that other processes get a descriptor of: filled by this process, then sealed, so that nobody can
 * change them.
 *
 * Their mode is 0444 from the beginning. So other users cannot open them for writing through /proc, nor leave extended
 * attributes on them, which would take kernel memory that nobody is charged for (Linux 6.6 and later have user.*
 * attributes on such files; see xattr(7)).
 *
 * Any thread. Errors are negative errnos. */
#pragma once

/* An empty file, which the caller closes. `name` is for /proc. Errors of memfd_create() and fchmod(). */
int memory_file_new(const char *name);

/* From now on nobody can write to it, change its size, or change the seals. Errors of fcntl(). */
int memory_file_seal(int fd);
