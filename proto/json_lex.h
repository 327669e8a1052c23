/* The smallest parts of a JSON text: characters of strings, numbers, words. For json_read.h and json_check.h alone.
 *
 * Strict by RFC 8259; a string must not hold NUL. Allocates nothing. Functions that fail return -EPROTO, with `reason`
 * set and `at` where the text is wrong. Any thread, one at a time for each text. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A text and the position in it. */
struct json_reader {
    const char *bytes; /* borrowed; not NUL-terminated */
    size_t size;
    size_t at;
    const char *reason; /* static */
    unsigned depth;     /* of json_read.h: objects and arrays around the position */
};

/* Sets the reason. Returns -EPROTO. */
int json_fail(struct json_reader *r, const char *reason);

/* The byte at the position; -1 at the end. The second skips white space first. */
int json_peek(const struct json_reader *r);
int json_peek_value(struct json_reader *r);

static inline bool json_is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

/* Reads one character of a string, escaped or not, with both halves of a surrogate pair. Returns it. */
int32_t json_character(struct json_reader *r);

/* Reads a number, of any range, or this word. Returns 0. */
int json_number(struct json_reader *r);
int json_word(struct json_reader *r, const char *word);
