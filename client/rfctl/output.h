/* Prints lines to standard output and standard error. All text goes through text_escape(), so that a name out of a
 * file, or from a daemon, cannot control the terminal or look like a line of rfctl. */
#pragma once

/* Prints a line to standard output. */
void out_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Prints JSON text as one line to standard output. Characters that could control a terminal are written as \u escapes.
 */
void out_json(const char *text);

/* Erases the progress bar, if there is one, and prints a line, "rfctl: ...", to standard error. */
void err_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Flushes standard output. Returns 0; or a negative errno if any output was lost, now or earlier. */
int out_flush(void);
