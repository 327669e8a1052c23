#include "proto/json_lex.h"

#include "proto/utf8.h"

#include <errno.h>
#include <string.h>

int json_fail(struct json_reader *r, const char *reason)
{
    r->reason = reason;
    return -EPROTO;
}

int json_peek(const struct json_reader *r)
{
    return r->at < r->size ? (unsigned char)r->bytes[r->at] : -1;
}

int json_peek_value(struct json_reader *r)
{
    int byte;
    while ((byte = json_peek(r)) == ' ' || byte == '\t' || byte == '\n' || byte == '\r')
        r->at++;
    return byte;
}

static int hex_digit(int byte)
{
    return byte >= '0' && byte <= '9'   ? byte - '0'
           : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
           : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10
                                        : -1;
}

/* Four hexadecimal digits; -1: there are no four. */
static int32_t read_hex4(struct json_reader *r)
{
    int32_t value = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        const int digit = hex_digit(json_peek(r));
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* What follows "\u", with the second half of a surrogate pair. Returns the character, or -EPROTO. */
static int32_t read_unicode(struct json_reader *r)
{
    const int32_t value = read_hex4(r);
    if (value < 0)
        return json_fail(r, "\\u without four hexadecimal digits");
    if (value == 0)
        return json_fail(r, "a string holds NUL");
    if (value < 0xd800 || value >= 0xe000)
        return value;
    if (value >= 0xdc00 || r->size - r->at < 2 || memcmp(r->bytes + r->at, "\\u", 2) != 0)
        return json_fail(r, "a surrogate without its pair");
    r->at += 2;
    const int32_t low = read_hex4(r);
    if (low < 0xdc00 || low >= 0xe000)
        return json_fail(r, "a surrogate without its pair");
    return 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
}

static int32_t read_escape(struct json_reader *r)
{
    r->at++;
    const int escape = json_peek(r);
    r->at += escape >= 0;
    switch (escape) {
    case '"':
    case '\\':
    case '/':
        return escape;
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'u':
        return read_unicode(r);
    default:
        return json_fail(r, "an unknown escape in a string");
    }
}

int32_t json_character(struct json_reader *r)
{
    const int byte = json_peek(r);
    if (byte < 0)
        return json_fail(r, "a string does not end");
    if (byte < 0x20)
        return json_fail(r, "a control byte in a string");
    if (byte == '\\')
        return read_escape(r);
    uint32_t character;
    const size_t length = utf8_decode(r->bytes + r->at, r->size - r->at, &character);
    if (length == 0)
        return json_fail(r, "a string is not UTF-8");
    r->at += length;
    return (int32_t)character;
}

static bool read_digits(struct json_reader *r)
{
    const size_t start = r->at;
    while (json_is_digit(json_peek(r)))
        r->at++;
    return r->at > start;
}

int json_number(struct json_reader *r)
{
    r->at += json_peek(r) == '-';
    if (json_peek(r) == '0')
        r->at++;
    else if (!read_digits(r))
        return json_fail(r, "not a value");
    if (json_peek(r) == '.') {
        r->at++;
        if (!read_digits(r))
            return json_fail(r, "a number without digits after its point");
    }
    if (json_peek(r) == 'e' || json_peek(r) == 'E') {
        r->at++;
        r->at += json_peek(r) == '+' || json_peek(r) == '-';
        if (!read_digits(r))
            return json_fail(r, "a number without digits in its exponent");
    }
    return 0;
}

int json_word(struct json_reader *r, const char *word)
{
    for (; *word; word++, r->at++)
        if (json_peek(r) != *word)
            return json_fail(r, "not a value");
    return 0;
}
