/* Checks the text of a message before the JSON parser gets it. The parser accepts more than JSON allows, and some texts
 * make it use very much memory.
 *
 * A text passes if it is one object by RFC 8259 and nothing but white space follows, and if all of these hold:
 *
 *   - it is UTF-8, without NUL, whether as a byte or as \u0000;
 *   - strings have no control characters, except as escapes, and every \u surrogate is part of a pair;
 *   - no object has the same key twice; keys are compared after decoding: "a" is the same as "\u0061";
 *   - it is at most JSON_DEPTH_MAX levels deep, and has at most JSON_VALUES_MAX values.
 *
 * The check allocates nothing and does not recurse. Its time is linear in the size of the text, except for the
 * comparison of keys, of which an object has at most JSON_KEYS_MAX. */
#pragma once

#include <stddef.h>

#define JSON_DEPTH_MAX  16   /* levels of objects and arrays */
#define JSON_VALUES_MAX 8192 /* cJSON spends about 64 bytes on each */
#define JSON_KEYS_MAX   64   /* keys in one object */

/* Returns 0; -EPROTO if the text does not pass; -E2BIG if it is over a limit. On failure *ret_reason is set to the
 * reason, a static string, and *ret_offset to the place in the text, in bytes. Either pointer may be NULL. */
int json_check(const char *text, size_t size, const char **ret_reason, size_t *ret_offset);
