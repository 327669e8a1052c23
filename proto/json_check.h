/* Checks a message before a JSON parser sees it: what the parser would take and we do not, or would choke on.
 *
 * Accepts exactly RFC 8259 texts that are one object, in UTF-8, at most JSON_DEPTH_MAX deep and JSON_VALUES_MAX values,
 * with no NUL (raw or as \u0000), no raw control byte in a string, no lone surrogate, no key twice in one object (keys
 * are compared as decoded: "a" is "\u0061"), and nothing but white space after it. Never allocates, never recurses;
 * time is linear in the text but for the search for double keys, which is bounded by JSON_KEYS_MAX an object. */
#pragma once

#include <stddef.h>

#define JSON_DEPTH_MAX  16   /* levels of objects and arrays */
#define JSON_VALUES_MAX 8192 /* cJSON spends about 64 bytes on each */
#define JSON_KEYS_MAX   64   /* keys in one object */

/* Returns 0, or a negative errno and why: -EPROTO, not such a text; -E2BIG, over a limit. *ret_reason is a static
 * sentence, *ret_offset where in the text; both are set only on failure, and may be NULL. */
int json_check(const char *text, size_t size, const char **ret_reason, size_t *ret_offset);
