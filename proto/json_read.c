#include "proto/json_read.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    if (json_peek_value(r) != '"')
        return json_fail(r, "not a string");
    struct json_span span = {.begin = ++r->at};
    for (int byte; (byte = json_peek(r)) != '"';) {
        if (byte >= 0x20 && byte < 0x80 && byte != '\\') {
            r->at++;
            span.decoded++;
            continue;
        }
        const int32_t character = json_character(r);
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
        dst = utf8_write(json_character(&in), dst);
}

bool json_equals(const struct json_reader *r, const struct json_span *span, const char *text)
{
    if (span->decoded != strlen(text))
        return false;
    struct json_reader in = {.bytes = r->bytes, .at = span->begin, .size = span->end};
    char one[4];
    while (in.at < in.size) {
        const char *end = utf8_write(json_character(&in), one);
        if (memcmp(one, text, (size_t)(end - one)) != 0)
            return false;
        text += end - one;
    }
    return true;
}

/* --- other values --- */

int json_enter(struct json_reader *r, char bracket)
{
    if (json_peek_value(r) != bracket)
        return json_fail(r, bracket == '{' ? "not an object" : "not an array");
    if (r->depth == JSON_DEPTH)
        return json_fail(r, "nested too deep");
    r->at++;
    r->depth++;
    return 0;
}

/* Moves to the next member of an object or array. 0: `close` was there instead. */
static int next(struct json_reader *r, bool *first, char close)
{
    const int byte = json_peek_value(r);
    const bool was_first = *first;
    *first = false;
    if (byte == close) {
        r->at++;
        r->depth--;
        return 0;
    }
    if (was_first)
        return 1;
    if (byte != ',')
        return json_fail(r, "a comma or a closing bracket is missing");
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
    if (json_peek_value(r) != ':')
        return json_fail(r, "a colon is missing");
    r->at++;
    return 1;
}

int json_next_value(struct json_reader *r, bool *first)
{
    return next(r, first, ']');
}

int json_read_u64(struct json_reader *r, uint64_t *ret)
{
    uint64_t value = 0;
    if (!json_is_digit(json_peek_value(r)))
        return json_fail(r, "not a number from 0 on");
    const size_t start = r->at;
    for (int byte; json_is_digit(byte = json_peek(r)); r->at++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(byte - '0'), &value))
            return json_fail(r, "a number is larger than 2^64 - 1");
    if (r->bytes[start] == '0' && r->at > start + 1)
        return json_fail(r, "a number begins with 0");
    const int byte = json_peek(r);
    if (byte == '.' || byte == 'e' || byte == 'E')
        return json_fail(r, "a number is not an integer");
    *ret = value;
    return 0;
}

int json_read_null(struct json_reader *r)
{
    if (json_peek_value(r) != 'n')
        return 0;
    const int error = json_word(r, "null");
    return error ? error : 1;
}

static int skip_number(struct json_reader *r)
{
    const size_t start = r->at;
    char text[JSON_NUMBER_MAX + 1] = "";
    const int error = json_number(r);
    if (error)
        return error;
    if (r->at - start > JSON_NUMBER_MAX)
        return json_fail(r, "a number is too long");
    memcpy(text, r->bytes + start, r->at - start);
    return isinf(strtod(text, NULL)) ? json_fail(r, "a number is too large") : 0;
}

/* Reads a scalar, or only the opening bracket of an array or object: *ret_open is then the bracket. */
static int skip_one(struct json_reader *r, char *ret_open)
{
    struct json_span unused;
    const int byte = json_peek_value(r);
    switch (byte) {
    case '{':
    case '[':
        *ret_open = (char)byte;
        return json_enter(r, *ret_open);
    case '"':
        return json_read_string(r, &unused);
    case 't':
        return json_word(r, "true");
    case 'f':
        return json_word(r, "false");
    case 'n':
        return json_word(r, "null");
    default:
        return skip_number(r);
    }
}

int json_skip(struct json_reader *r)
{
    struct {
        bool object, first;
    } levels[JSON_DEPTH];
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
        if (open) {
            levels[depth].object = open == '{';
            levels[depth++].first = true;
        }
    } while (depth > 0);
    return 0;
}

int json_end(struct json_reader *r)
{
    return json_peek_value(r) < 0 ? 0 : json_fail(r, "something follows the value");
}
