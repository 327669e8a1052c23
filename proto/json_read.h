/* Reads a JSON text value by value, without making a tree of it: for texts of files, which may have 100 MB.
 *
 * Strict by RFC 8259: UTF-8, no control bytes in strings, surrogates in pairs. A string must not hold NUL, because
 * names are C strings. Keys that stand twice are for the caller to find: it knows how many keys there may be.
 *
 * Allocates nothing and does not recurse. Any thread, one at a time for each reader. Functions return 0, or -EPROTO
 * with `reason` set and `at` where the text is wrong; after that the reader may not be used again. */
#pragma once

#include "proto/json_lex.h"

#define JSON_DEPTH      127u /* objects and arrays one in another, at most: of what is skipped, and around it */
#define JSON_NUMBER_MAX 64u  /* characters of a number that is skipped */

/* A string as it stands in the text, without its quotes, and how many bytes it has when decoded. */
struct json_span {
    size_t begin, end;
    size_t decoded;
};

/* Steps into an object or an array: `bracket` is '{' or '['. */
int json_enter(struct json_reader *r, char bracket);

/* The next key of an object, and the colon after it: returns 1, and the caller reads the value. 0: the object has
 * ended. *first: true before the first call; the function sets it. */
int json_next_key(struct json_reader *r, bool *first, struct json_span *ret);

/* Whether an array has another value, which the caller then reads: 1 or 0. *first as above. */
int json_next_value(struct json_reader *r, bool *first);

int json_read_string(struct json_reader *r, struct json_span *ret);

/* An integer from 0 to 2^64 - 1, written without sign, point and exponent. */
int json_read_u64(struct json_reader *r, uint64_t *ret);

/* Whether the next value is null, which is then read: 1 or 0. */
int json_read_null(struct json_reader *r);

/* Reads any value. Numbers must be in the range of a double, and have at most JSON_NUMBER_MAX characters. */
int json_skip(struct json_reader *r);

/* Only white space follows. */
int json_end(struct json_reader *r);

/* Writes a string that was read, decoded: span->decoded bytes, without a NUL. */
void json_decode(const struct json_reader *r, const struct json_span *span, char *dst);

/* Whether a string that was read is this text when decoded. */
bool json_equals(const struct json_reader *r, const struct json_span *span, const char *text);
