/* Base64 (RFC 4648, with padding) for bytes in JSON. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* How many characters base64_encode() writes for `size` bytes, with the NUL. */
#define BASE64_SIZE(size) (((size) + 2) / 3 * 4 + 1)

/* Writes BASE64_SIZE(size) characters to `dst`, the NUL included. */
void base64_encode(char *dst, const void *src, size_t size);

/* Decodes a NUL-terminated string into at most `capacity` bytes. Returns the number of bytes. -EINVAL: the string has a
 * character that is not a base64 digit, wrong padding, or bits that are not zero behind the last byte. -ENOBUFS:
 * `capacity` is too small. */
int64_t base64_decode(void *dst, size_t capacity, const char *src);
