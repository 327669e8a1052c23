/* Formats numbers and text for people: sizes, times, and names out of files, which are made safe for a terminal. */
#pragma once

#include "proto/bytes.h"

#include <stddef.h>

/* Bytes that any of the formatting functions below writes at most. */
#define FORMAT_SIZE BYTES_TEXT_SIZE

/* A size as bytes.h has it: "0 B", "999 B", "3.8 GB", "512 MB". Returns `text`. */
const char *format_bytes(char text[FORMAT_SIZE], double bytes);

/* "3.1 GB/s". Returns `text`. */
const char *format_rate(char text[FORMAT_SIZE], double bytes_per_second);

/* A number of things: "820", "6.7 billion". Returns `text`. */
const char *format_count(char text[FORMAT_SIZE], double count);

/* A measured time: "0.12 ms", "45 ms", "1.23 s", "2 min 3 s". Returns `text`. */
const char *format_seconds(char text[FORMAT_SIZE], double seconds);

/* A time in one unit, rounded down: "5s", "3m", "2h", "4d". Returns `text`. */
const char *format_age(char text[FORMAT_SIZE], double seconds);

/* Call it once, at the start, before the functions below. Looks which characters the user's terminal can show: if the
 * locale (LC_ALL, LC_CTYPE, LANG) is not a UTF-8 one, the ellipsis of text_cut() is "...", else "…". */
void text_begin(void);

/* A copy of `size` bytes of text in which nothing can control a terminal. These stand as escapes, "\n", "\x1b",
 * "\u{202e}": control characters, characters that change the direction of writing, line separators, and bytes that are
 * not UTF-8. The caller frees it. Ends the program if there is no memory. */
char *text_escape(const char *text, size_t size);

/* The terminal columns that a text takes, which went through text_escape(). */
size_t text_width(const char *text);

/* Shortens such a text in place to at most `width` columns; if anything was cut, it ends with an ellipsis. Needs a few
 * spare bytes behind the NUL, which text_escape() leaves. */
void text_cut(char *text, size_t width);
