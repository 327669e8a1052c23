/* Paths that every user can follow.
 *
 * The daemon opens a path with its own rights. Whoever names a path must not learn by this what is in a folder that
 * only the daemon may search, nor reach what the daemon has open.
 *
 * Blocks for as long as a file system does not answer; meant for a worker thread. */
#pragma once

/* Whether every user may search all folders that the absolute path leads through, those of links too, and none of them
 * is in /proc, where links lead to what a process has open. Says nothing of the file at the end. Returns 0; -EACCES; or
 * the errno of a call: the path leads nowhere. */
int common_path_check(const char *path);
