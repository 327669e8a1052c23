/* What is said when the process has to end at once. libuv aborts when the loop's own system calls fail (epoll_ctl(),
 * read() or write() of its event descriptor): it has no way to report that. Without this, an administrator would see
 * nothing but 'Aborted'. */
#pragma once

/* From now on, an abort first writes one line to standard error, with the error of the system call that failed last in
 * the thread that aborts. The process then ends by SIGABRT, as without it. */
void last_words_begin(void);
