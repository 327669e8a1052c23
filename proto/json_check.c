#include "proto/json_check.h"

#include "proto/utf8.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

/* A key of an object that is being read. The same key can be written in several ways, so comparing two keys means to
 * decode both. The hash is computed from the decoded characters; keys with different hashes need no comparison. */
struct key {
    size_t start, end; /* offsets in the text, without the quotes */
    uint32_t hash;
};

/* An array or object whose end was not read yet. */
struct level {
    bool is_array;
    bool is_empty; /* nothing was read in it yet */
    unsigned n_keys;
    struct key keys[JSON_KEYS_MAX];
};

/* The text, the current position, and the reason of a failure. */
struct text {
    const char *bytes;
    size_t size;
    size_t at;
    const char *reason;
};

struct checker {
    struct text text;
    unsigned depth;
    unsigned n_values;
    struct level levels[JSON_DEPTH_MAX];
};

static int text_fail(struct text *text, int error, const char *reason)
{
    text->reason = reason;
    return error;
}

/* The byte at the current position; -1 at the end. */
static int peek(const struct text *text)
{
    return text->at < text->size ? (unsigned char)text->bytes[text->at] : -1;
}

static void skip_space(struct text *text)
{
    int byte;
    while ((byte = peek(text)) == ' ' || byte == '\t' || byte == '\n' || byte == '\r')
        text->at++;
}

/* --- strings --- */

/* Reads four hexadecimal digits and returns their value. -1: there are no four. */
static int32_t read_hex4(struct text *text)
{
    int32_t value = 0;
    for (int i = 0; i < 4; i++, text->at++) {
        int byte = peek(text);
        int digit = byte >= '0' && byte <= '9'   ? byte - '0'
                    : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
                    : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10
                                                 : -1;
        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Reads what follows "\u", and the second half of a surrogate pair. Returns the character, or a negative errno. */
static int32_t read_unicode(struct text *text)
{
    int32_t value = read_hex4(text);
    if (value < 0)
        return text_fail(text, -EPROTO, "\\u without four hexadecimal digits");
    if (value == 0)
        return text_fail(text, -EPROTO, "a string holds NUL");
    if (value >= 0xdc00 && value < 0xe000)
        return text_fail(text, -EPROTO, "a surrogate without its pair");
    if (value < 0xd800 || value >= 0xe000)
        return value;
    if (text->size - text->at < 2 || text->bytes[text->at] != '\\' || text->bytes[text->at + 1] != 'u')
        return text_fail(text, -EPROTO, "a surrogate without its pair");
    text->at += 2;
    int32_t low = read_hex4(text);
    if (low < 0xdc00 || low >= 0xe000)
        return text_fail(text, -EPROTO, "a surrogate without its pair");
    return 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
}

/* Reads one character of a string, escaped or not. Returns it, or a negative errno. */
static int32_t read_character(struct text *text)
{
    int byte = peek(text);
    if (byte < 0)
        return text_fail(text, -EPROTO, "a string does not end");
    if (byte < 0x20)
        return text_fail(text, -EPROTO, "a control byte in a string");
    if (byte != '\\') {
        uint32_t character;
        size_t length = utf8_decode(text->bytes + text->at, text->size - text->at, &character);
        text->at += length;
        return length > 0 ? (int32_t)character : text_fail(text, -EPROTO, "not UTF-8");
    }
    text->at++;
    int escape = peek(text);
    text->at += escape >= 0;
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
        return read_unicode(text);
    default:
        return text_fail(text, -EPROTO, "an unknown escape in a string");
    }
}

/* Reads a string with both of its quotes. */
static int read_string(struct text *text, struct key *ret)
{
    uint32_t hash = 2166136261u; /* FNV-1a over characters instead of bytes */
    text->at++;
    ret->start = text->at;
    while (peek(text) != '"') {
        int32_t character = read_character(text);
        if (character < 0)
            return character;
        hash = (hash ^ (uint32_t)character) * 16777619u;
    }
    ret->end = text->at++;
    ret->hash = hash;
    return 0;
}

static bool keys_equal(const char *bytes, const struct key *a, const struct key *b)
{
    if (a->hash != b->hash)
        return false;
    struct text in_a = {.bytes = bytes, .at = a->start, .size = a->end};
    struct text in_b = {.bytes = bytes, .at = b->start, .size = b->end};
    while (in_a.at < in_a.size && in_b.at < in_b.size)
        if (read_character(&in_a) != read_character(&in_b))
            return false;
    return in_a.at == in_a.size && in_b.at == in_b.size;
}

/* --- other values --- */

static bool read_digits(struct text *text)
{
    size_t start = text->at;
    while (peek(text) >= '0' && peek(text) <= '9')
        text->at++;
    return text->at > start;
}

static int read_number(struct text *text)
{
    if (peek(text) == '-')
        text->at++;
    if (peek(text) == '0')
        text->at++;
    else if (!read_digits(text))
        return text_fail(text, -EPROTO, "not a number");
    if (peek(text) == '.') {
        text->at++;
        if (!read_digits(text))
            return text_fail(text, -EPROTO, "a number without digits after its point");
    }
    if (peek(text) == 'e' || peek(text) == 'E') {
        text->at++;
        if (peek(text) == '+' || peek(text) == '-')
            text->at++;
        if (!read_digits(text))
            return text_fail(text, -EPROTO, "a number without digits in its exponent");
    }
    return 0;
}

static int read_word(struct text *text, const char *word)
{
    for (; *word; word++, text->at++)
        if (peek(text) != *word)
            return text_fail(text, -EPROTO, "not a value");
    return 0;
}

static int open_level(struct checker *c, bool is_array)
{
    if (c->depth == JSON_DEPTH_MAX)
        return text_fail(&c->text, -E2BIG, "nested too deep");
    struct level *level = &c->levels[c->depth++];
    level->is_array = is_array;
    level->is_empty = true;
    level->n_keys = 0;
    c->text.at++;
    return 0;
}

/* Reads a key of the innermost open object, and the colon after it. */
static int read_key(struct text *text, struct level *level)
{
    if (peek(text) != '"')
        return text_fail(text, -EPROTO, "a key is missing");
    if (level->n_keys == JSON_KEYS_MAX)
        return text_fail(text, -E2BIG, "too many keys in an object");
    size_t start = text->at;
    struct key *key = &level->keys[level->n_keys];
    int r = read_string(text, key);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < level->n_keys; i++) {
        if (keys_equal(text->bytes, &level->keys[i], key)) {
            text->at = start;
            return text_fail(text, -EPROTO, "a key is twice in an object");
        }
    }
    level->n_keys++;
    skip_space(text);
    if (peek(text) != ':')
        return text_fail(text, -EPROTO, "a colon is missing");
    text->at++;
    return 0;
}

/* Reads a scalar, or only the opening bracket of an array or object. */
static int read_value(struct checker *c)
{
    struct text *text = &c->text;
    struct key string;
    skip_space(text);
    if (c->n_values++ == JSON_VALUES_MAX)
        return text_fail(text, -E2BIG, "too many values");
    switch (peek(text)) {
    case '{':
        return open_level(c, false);
    case '[':
        return open_level(c, true);
    case '"':
        return read_string(text, &string);
    case 't':
        return read_word(text, "true");
    case 'f':
        return read_word(text, "false");
    case 'n':
        return read_word(text, "null");
    default:
        return read_number(text);
    }
}

/* Reads the next part of the innermost open array or object: its end, or one more value as read_value() does. */
static int read_next(struct checker *c)
{
    struct text *text = &c->text;
    struct level *level = &c->levels[c->depth - 1];
    skip_space(text);
    if (peek(text) == (level->is_array ? ']' : '}')) {
        text->at++;
        c->depth--;
        return 0;
    }
    if (!level->is_empty) {
        if (peek(text) != ',')
            return text_fail(text, -EPROTO, "a comma or a closing bracket is missing");
        text->at++;
        skip_space(text);
    }
    level->is_empty = false;
    int r = level->is_array ? 0 : read_key(text, level);
    return r < 0 ? r : read_value(c);
}

static int read_message(struct checker *c)
{
    skip_space(&c->text);
    if (peek(&c->text) != '{')
        return text_fail(&c->text, -EPROTO, "not an object");
    int r = read_value(c);
    while (r == 0 && c->depth > 0)
        r = read_next(c);
    if (r < 0)
        return r;
    skip_space(&c->text);
    return c->text.at == c->text.size ? 0 : text_fail(&c->text, -EPROTO, "something follows the object");
}

int json_check(const char *text, size_t size, const char **ret_reason, size_t *ret_offset)
{
    struct checker checker; /* open_level() sets `levels` before they are used */
    checker.text = (struct text){.bytes = text, .size = size};
    checker.depth = 0;
    checker.n_values = 0;
    int r = read_message(&checker);
    if (r < 0 && ret_reason)
        *ret_reason = checker.text.reason;
    if (r < 0 && ret_offset)
        *ret_offset = checker.text.at;
    return r;
}
