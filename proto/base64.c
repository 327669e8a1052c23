#include "proto/base64.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

static const char digits[65] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void base64_encode(char *dst, const void *src, size_t size)
{
    const uint8_t *bytes = src;
    for (; size >= 3; size -= 3, bytes += 3, dst += 4) {
        dst[0] = digits[bytes[0] >> 2];
        dst[1] = digits[(bytes[0] & 0x03) << 4 | bytes[1] >> 4];
        dst[2] = digits[(bytes[1] & 0x0f) << 2 | bytes[2] >> 6];
        dst[3] = digits[bytes[2] & 0x3f];
    }
    if (size > 0) {
        uint8_t second = size == 2 ? bytes[1] : 0;
        dst[0] = digits[bytes[0] >> 2];
        dst[1] = digits[(bytes[0] & 0x03) << 4 | second >> 4];
        dst[2] = size == 2 ? digits[(second & 0x0f) << 2] : '=';
        dst[3] = '=';
        dst += 4;
    }
    *dst = '\0';
}

/* The value of a base64 digit, 0 to 63; -1 for another character. */
static int digit_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    if (c == '+')
        return 62;
    return c == '/' ? 63 : -1;
}

int64_t base64_decode(void *dst, size_t capacity, const char *src)
{
    size_t length = strlen(src);
    if (length % 4 != 0)
        return -EINVAL;
    size_t padding = 0;
    while (padding < 2 && padding < length && src[length - 1 - padding] == '=')
        padding++;

    size_t size = length / 4 * 3 - padding;
    /* The whole string is checked even if it does not fit: -EINVAL goes before -ENOBUFS. */
    uint8_t *out = dst;
    size_t at = 0;
    for (size_t i = 0; i < length; i += 4) {
        size_t n = i + 4 == length ? 4 - padding : 4;
        uint32_t bits = 0;
        for (size_t k = 0; k < 4; k++) {
            int value = k < n ? digit_value(src[i + k]) : 0;
            if (value < 0)
                return -EINVAL;
            bits = bits << 6 | (uint32_t)value;
        }
        size_t n_bytes = n - 1;
        if (bits & ((1u << (24 - 8 * n_bytes)) - 1))
            return -EINVAL;
        for (size_t k = 0; k < n_bytes; k++, at++)
            if (at < capacity)
                out[at] = (uint8_t)(bits >> (16 - 8 * k));
    }
    return size <= capacity ? (int64_t)size : -ENOBUFS;
}
