/* Base64 (RFC 4648, with padding) for bytes in JSON. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Characters that base64_encode() writes for `size` bytes, with the NUL. */
#define BASE64_SIZE(size) (((size) + 2) / 3 * 4 + 1)

/* Writes BASE64_SIZE(size) characters to `dst`, the NUL included. */
void base64_encode(char *dst, const void *src, size_t size);

/* Decodes a whole NUL-terminated string into at most `capacity` bytes. Returns their number, or -EINVAL for any other
 * character, wrong padding or non-zero trailing bits, -ENOBUFS if `capacity` is too small. */
int64_t base64_decode(void *dst, size_t capacity, const char *src);
