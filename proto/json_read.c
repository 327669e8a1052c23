#include "proto/json_read.h"

#include "proto/utf8.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_MAX 64u /* characters of a number that is skipped */

static int fail(struct json_reader *r, const char *reason)
{
    r->reason = reason;
    return -EPROTO;
}

/* The byte at the current position; -1 at the end. */
static int peek(const struct json_reader *r)
{
    return r->at < r->size ? (unsigned char)r->bytes[r->at] : -1;
}

static int peek_value(struct json_reader *r)
{
    int byte;
    while ((byte = peek(r)) == ' ' || byte == '\t' || byte == '\n' || byte == '\r')
        r->at++;
    return byte;
}

/* --- strings --- */

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
        const int digit = hex_digit(peek(r));
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
        return fail(r, "\\u without four hexadecimal digits");
    if (value == 0)
        return fail(r, "a string holds NUL");
    if (value < 0xd800 || value >= 0xe000)
        return value;
    if (value >= 0xdc00 || r->size - r->at < 2 || memcmp(r->bytes + r->at, "\\u", 2) != 0)
        return fail(r, "a surrogate without its pair");
    r->at += 2;
    const int32_t low = read_hex4(r);
    if (low < 0xdc00 || low >= 0xe000)
        return fail(r, "a surrogate without its pair");
    return 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
}

static int32_t read_escape(struct json_reader *r)
{
    r->at++;
    const int escape = peek(r);
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
        return fail(r, "an unknown escape in a string");
    }
}

/* One character of a string, escaped or not; or -EPROTO. */
static int32_t read_character(struct json_reader *r)
{
    const int byte = peek(r);
    if (byte < 0)
        return fail(r, "a string does not end");
    if (byte < 0x20)
        return fail(r, "a control byte in a string");
    if (byte == '\\')
        return read_escape(r);
    uint32_t character;
    const size_t length = utf8_decode(r->bytes + r->at, r->size - r->at, &character);
    if (length == 0)
        return fail(r, "a string is not UTF-8");
    r->at += length;
    return (int32_t)character;
}

static size_t utf8_length(int32_t character)
{
    return character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
}

static char *utf8_write(int32_t character, char *dst)
{
    const size_t length = utf8_length(character);
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length; i-- > 1; character >>= 6)
        dst[i] = (char)(0x80 | (character & 0x3f));
    dst[0] = (char)(lead[length] | character);
    return dst + length;
}

int json_read_string(struct json_reader *r, struct json_span *ret)
{
    if (peek_value(r) != '"')
        return fail(r, "not a string");
    struct json_span span = {.begin = ++r->at};
    for (int byte; (byte = peek(r)) != '"';) {
        if (byte >= 0x20 && byte < 0x80 && byte != '\\') {
            r->at++;
            span.decoded++;
            continue;
        }
        const int32_t character = read_character(r);
        if (character < 0)
            return character;
        span.decoded += utf8_length(character);
    }
    span.end = r->at++;
    *ret = span;
    return 0;
}

void json_decode(const struct json_reader *r, const struct json_span *span, char *dst)
{
    if (span->decoded == span->end - span->begin) { /* every escape is longer than its character */
        memcpy(dst, r->bytes + span->begin, span->decoded);
        return;
    }
    struct json_reader in = {.bytes = r->bytes, .at = span->begin, .size = span->end};
    while (in.at < in.size)
        dst = utf8_write(read_character(&in), dst);
}

bool json_equals(const struct json_reader *r, const struct json_span *span, const char *text)
{
    if (span->decoded != strlen(text))
        return false;
    struct json_reader in = {.bytes = r->bytes, .at = span->begin, .size = span->end};
    char one[4];
    while (in.at < in.size) {
        const char *end = utf8_write(read_character(&in), one);
        if (memcmp(one, text, (size_t)(end - one)) != 0)
            return false;
        text += end - one;
    }
    return true;
}

/* --- other values --- */

int json_enter(struct json_reader *r, char bracket)
{
    if (peek_value(r) != bracket)
        return fail(r, bracket == '{' ? "not an object" : "not an array");
    r->at++;
    return 0;
}

/* Moves to the next member of an object or array. 0: `close` was there instead. */
static int next(struct json_reader *r, bool *first, char close)
{
    const int byte = peek_value(r);
    const bool was_first = *first;
    *first = false;
    if (byte == close) {
        r->at++;
        return 0;
    }
    if (was_first)
        return 1;
    if (byte != ',')
        return fail(r, "a comma or a closing bracket is missing");
    r->at++;
    return 1;
}

int json_next_key(struct json_reader *r, bool *first, struct json_span *ret)
{
    int more = next(r, first, '}');
    if (more <= 0)
        return more;
    const int error = json_read_string(r, ret);
    if (error)
        return error;
    if (peek_value(r) != ':')
        return fail(r, "a colon is missing");
    r->at++;
    return 1;
}

int json_next_value(struct json_reader *r, bool *first)
{
    return next(r, first, ']');
}

static bool is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

static bool read_digits(struct json_reader *r)
{
    const size_t start = r->at;
    while (is_digit(peek(r)))
        r->at++;
    return r->at > start;
}

int json_read_u64(struct json_reader *r, uint64_t *ret)
{
    uint64_t value = 0;
    if (!is_digit(peek_value(r)))
        return fail(r, "not a number from 0 on");
    const size_t start = r->at;
    for (int byte; is_digit(byte = peek(r)); r->at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(byte - '0'), &value))
            return fail(r, "a number is larger than 2^64 - 1");
    if (r->bytes[start] == '0' && r->at > start + 1)
        return fail(r, "a number begins with 0");
    const int byte = peek(r);
    if (byte == '.' || byte == 'e' || byte == 'E')
        return fail(r, "a number is not an integer");
    *ret = value;
    return 0;
}

static int read_word(struct json_reader *r, const char *word)
{
    for (; *word; word++, r->at++)
        if (peek(r) != *word)
            return fail(r, "not a value");
    return 0;
}

int json_read_null(struct json_reader *r)
{
    if (peek_value(r) != 'n')
        return 0;
    const int error = read_word(r, "null");
    return error ? error : 1;
}

static int skip_number(struct json_reader *r)
{
    const size_t start = r->at;
    char text[NUMBER_MAX + 1] = "";
    r->at += peek(r) == '-';
    if (peek(r) == '0')
        r->at++;
    else if (!read_digits(r))
        return fail(r, "not a value");
    if (peek(r) == '.') {
        r->at++;
        if (!read_digits(r))
            return fail(r, "a number without digits after its point");
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        r->at++;
        r->at += peek(r) == '+' || peek(r) == '-';
        if (!read_digits(r))
            return fail(r, "a number without digits in its exponent");
    }
    if (r->at - start > NUMBER_MAX)
        return fail(r, "a number is too long");
    memcpy(text, r->bytes + start, r->at - start);
    return isinf(strtod(text, NULL)) ? fail(r, "a number is too large") : 0;
}

/* Reads a scalar, or only the opening bracket of an array or object: *ret_open is then the bracket. */
static int skip_one(struct json_reader *r, char *ret_open)
{
    struct json_span unused;
    const int byte = peek_value(r);
    switch (byte) {
    case '{':
    case '[':
        r->at++;
        *ret_open = (char)byte;
        return 0;
    case '"':
        return json_read_string(r, &unused);
    case 't':
        return read_word(r, "true");
    case 'f':
        return read_word(r, "false");
    case 'n':
        return read_word(r, "null");
    default:
        return skip_number(r);
    }
}

int json_skip(struct json_reader *r)
{
    struct {
        bool object, first;
    } levels[JSON_SKIP_DEPTH];
    unsigned depth = 0;
    do {
        char open = 0;
        int more = 1;
        struct json_span key;
        if (depth > 0 && levels[depth - 1].object)
            more = json_next_key(r, &levels[depth - 1].first, &key);
        else if (depth > 0)
            more = json_next_value(r, &levels[depth - 1].first);
        if (more < 0)
            return more;
        if (more == 0) {
            depth--;
            continue;
        }
        const int error = skip_one(r, &open);
        if (error)
            return error;
        if (open && depth == JSON_SKIP_DEPTH)
            return fail(r, "nested too deep");
        if (open) {
            levels[depth].object = open == '{';
            levels[depth++].first = true;
        }
    } while (depth > 0);
    return 0;
}

int json_end(struct json_reader *r)
{
    return peek_value(r) < 0 ? 0 : fail(r, "something follows the value");
}
