#include "proto/json_check.h"

#include "proto/json_lex.h"

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

struct checker {
    struct json_reader text;
    unsigned depth;
    unsigned n_values;
    struct level levels[JSON_DEPTH_MAX];
};

/* Reads a string with both of its quotes. */
static int read_string(struct json_reader *text, struct key *ret)
{
    uint32_t hash = 2166136261u; /* FNV-1a over characters instead of bytes */
    text->at++;
    ret->start = text->at;
    while (json_peek(text) != '"') {
        int32_t character = json_character(text);
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
    struct json_reader in_a = {.bytes = bytes, .at = a->start, .size = a->end};
    struct json_reader in_b = {.bytes = bytes, .at = b->start, .size = b->end};
    while (in_a.at < in_a.size && in_b.at < in_b.size)
        if (json_character(&in_a) != json_character(&in_b))
            return false;
    return in_a.at == in_a.size && in_b.at == in_b.size;
}

/* --- other values --- */

static int too_much(struct json_reader *text, const char *reason)
{
    text->reason = reason;
    return -E2BIG;
}

static int open_level(struct checker *c, bool is_array)
{
    if (c->depth == JSON_DEPTH_MAX)
        return too_much(&c->text, "nested too deep");
    struct level *level = &c->levels[c->depth++];
    level->is_array = is_array;
    level->is_empty = true;
    level->n_keys = 0;
    c->text.at++;
    return 0;
}

/* Reads a key of the innermost open object, and the colon after it. */
static int read_key(struct json_reader *text, struct level *level)
{
    if (json_peek(text) != '"')
        return json_fail(text, "a key is missing");
    if (level->n_keys == JSON_KEYS_MAX)
        return too_much(text, "too many keys in an object");
    size_t start = text->at;
    struct key *key = &level->keys[level->n_keys];
    int r = read_string(text, key);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < level->n_keys; i++) {
        if (keys_equal(text->bytes, &level->keys[i], key)) {
            text->at = start;
            return json_fail(text, "a key is twice in an object");
        }
    }
    level->n_keys++;
    json_peek_value(text);
    if (json_peek(text) != ':')
        return json_fail(text, "a colon is missing");
    text->at++;
    return 0;
}

/* Reads a scalar, or only the opening bracket of an array or object. */
static int read_value(struct checker *c)
{
    struct json_reader *text = &c->text;
    struct key string;
    json_peek_value(text);
    if (c->n_values++ == JSON_VALUES_MAX)
        return too_much(text, "too many values");
    switch (json_peek(text)) {
    case '{':
        return open_level(c, false);
    case '[':
        return open_level(c, true);
    case '"':
        return read_string(text, &string);
    case 't':
        return json_word(text, "true");
    case 'f':
        return json_word(text, "false");
    case 'n':
        return json_word(text, "null");
    default:
        return json_number(text);
    }
}

/* Reads the next part of the innermost open array or object: its end, or one more value as read_value() does. */
static int read_next(struct checker *c)
{
    struct json_reader *text = &c->text;
    struct level *level = &c->levels[c->depth - 1];
    json_peek_value(text);
    if (json_peek(text) == (level->is_array ? ']' : '}')) {
        text->at++;
        c->depth--;
        return 0;
    }
    if (!level->is_empty) {
        if (json_peek(text) != ',')
            return json_fail(text, "a comma or a closing bracket is missing");
        text->at++;
        json_peek_value(text);
    }
    level->is_empty = false;
    int r = level->is_array ? 0 : read_key(text, level);
    return r < 0 ? r : read_value(c);
}

static int read_message(struct checker *c)
{
    json_peek_value(&c->text);
    if (json_peek(&c->text) != '{')
        return json_fail(&c->text, "not an object");
    int r = read_value(c);
    while (r == 0 && c->depth > 0)
        r = read_next(c);
    if (r < 0)
        return r;
    json_peek_value(&c->text);
    return c->text.at == c->text.size ? 0 : json_fail(&c->text, "something follows the object");
}

int json_check(const char *text, size_t size, const char **ret_reason, size_t *ret_offset)
{
    struct checker checker; /* open_level() sets `levels` before they are used */
    checker.text = (struct json_reader){.bytes = text, .size = size};
    checker.depth = 0;
    checker.n_values = 0;
    int r = read_message(&checker);
    if (r < 0 && ret_reason)
        *ret_reason = checker.text.reason;
    if (r < 0 && ret_offset)
        *ret_offset = checker.text.at;
    return r;
}
