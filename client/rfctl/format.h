/* Numbers and text for people: sizes, times, and names that came from files, made safe for a terminal. */
#pragma once

#include <stddef.h>

/* Room for what any of the functions below writes. */
#define FORMAT_SIZE 32

/* "0 B", "999 B", "3.8 GB", "512 MB": powers of 1000, at most one decimal. Returns `text`. */
const char *format_bytes(char text[FORMAT_SIZE], double bytes);

/* "3.1 GB/s". Returns `text`. */
const char *format_rate(char text[FORMAT_SIZE], double bytes_per_second);

/* How many there are, "820", "6.7 billion". Returns `text`. */
const char *format_count(char text[FORMAT_SIZE], double count);

/* What was measured: "0.12 ms", "45 ms", "1.23 s", "2 min 3 s". Returns `text`. */
const char *format_seconds(char text[FORMAT_SIZE], double seconds);

/* What is only roughly of interest, as durations are typed: "5s", "3m", "2h", "4d". Returns `text`. */
const char *format_age(char text[FORMAT_SIZE], double seconds);

/* A copy of `size` bytes of text in which nothing can steer a terminal: control characters, those that change the
 * direction of writing, line separators and bytes that are not UTF-8 stand as escapes, "\n", "\x1b", "\u{202e}". The
 * caller frees it. Ends the program if there is no memory. */
char *text_escape(const char *text, size_t size);

/* Columns of a terminal that a text takes, which went through text_escape(). */
size_t text_width(const char *text);

/* Cuts such a text in place to at most `width` columns, the last being "…" if anything was cut. Needs two spare bytes
 * behind the NUL, which text_escape() leaves. */
void text_cut(char *text, size_t width);
