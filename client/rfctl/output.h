/* What rfctl says: lines on standard output and standard error. Text passes through text_escape() here, so that no name
 * out of a file or a daemon can steer a terminal or forge a line. */
#pragma once

/* Writes a line to standard output. */
void out_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Writes JSON text to standard output as one line, in ASCII where other characters could steer a terminal. */
void out_json(const char *text);

/* Writes a line, "rfctl: ...", to standard error, after it erased a progress bar. */
void err_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Hands on what was written to standard output. Returns 0, or a negative errno once anything was lost. */
int out_flush(void);
