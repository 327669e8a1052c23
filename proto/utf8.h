/* UTF-8, one character at a time. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Decodes the first character of `bytes`. Returns how many bytes it has, 1 to 4. Returns 0 if there is no valid one:
 * `size` is 0, a continuation byte is missing or out of place, the form is longer than necessary, or the value is a
 * surrogate or above U+10FFFF. */
static inline size_t utf8_decode(const char *bytes, size_t size, uint32_t *ret)
{
    const uint8_t *b = (const uint8_t *)bytes;
    size_t length;
    uint32_t lowest, c;

    if (size == 0)
        return 0;
    if (b[0] < 0x80) {
        *ret = b[0];
        return 1;
    }
    if (b[0] >= 0xc0 && b[0] < 0xe0)
        length = 2, lowest = 0x80, c = b[0] & 0x1f;
    else if (b[0] >= 0xe0 && b[0] < 0xf0)
        length = 3, lowest = 0x800, c = b[0] & 0x0f;
    else if (b[0] >= 0xf0 && b[0] < 0xf8)
        length = 4, lowest = 0x10000, c = b[0] & 0x07;
    else
        return 0;
    if (size < length)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((b[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (b[i] & 0x3f);
    }
    if (c < lowest || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return 0;
    *ret = c;
    return length;
}

/* The number of bytes only. */
static inline size_t utf8_character(const char *bytes, size_t size)
{
    uint32_t character;
    return utf8_decode(bytes, size, &character);
}
