/* The reader of JSON that makes no tree: what it takes, what it refuses and where. */
#include "proto/json_read.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static struct json_reader over(const char *text)
{
    return (struct json_reader){.bytes = text, .size = strlen(text)};
}

static int skip_all(const char *text, size_t *ret_at)
{
    struct json_reader r = over(text);
    int error = json_skip(&r);
    error = error ? error : json_end(&r);
    *ret_at = r.at;
    return error;
}

static void values_are_skipped(void **state)
{
    static const char *const good[] = {
        "{}",
        "[]",
        " [ ] ",
        "0",
        "-0",
        "-1.5e+3",
        "\"\"",
        "true",
        "false",
        "null",
        "[1,2]",
        "{\"a\":[{}]}",
        "[[],{}]",
        "1e308",
        "\"\\u00e9\\n\\\\\"",
        "\"\\ud83d\\ude00\"",
        "\"\xc3\xa9\"",
    };
    size_t at;
    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        if (skip_all(good[i], &at) != 0)
            fail_msg("%s was refused", good[i]);
}

static void wrong_texts_are_refused_at_their_place(void **state)
{
    static const struct {
        const char *text;
        size_t at;
    } wrong[] = {
        {"", 0},      {"[1,]", 3},        {"[1 2]", 3},       {"{\"a\"}", 4},     {"{\"a\":1,}", 7},
        {"{a:1}", 1}, {"01", 1},          {"1.", 2},          {"1e", 2},          {"+1", 0},
        {"tru", 3},   {"\"a", 2},         {"\"\x01\"", 1},    {"\"\xff\"", 1},    {"\"\\x\"", 3},
        {"[1]]", 3},  {"\"\\u0000\"", 7}, {"\"\\ud800\"", 7}, {"\"\\udc00\"", 7}, {"NaN", 0},
        {"1e999", 5}, {"[", 1},           {"{", 1},           {"]", 0},           {"\"\xc3", 1},
    };
    size_t at;
    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        if (skip_all(wrong[i].text, &at) != -EPROTO)
            fail_msg("%s was taken", wrong[i].text);
        if (at != wrong[i].at)
            fail_msg("%s is wrong at %zu, not at %zu", wrong[i].text, wrong[i].at, at);
    }
}

static void depth_has_a_bound(void **state)
{
    char text[2 * JSON_DEPTH + 3] = "";
    size_t at;
    (void)state;
    memset(text, '[', JSON_DEPTH);
    memset(text + JSON_DEPTH, ']', JSON_DEPTH);
    assert_int_equal(skip_all(text, &at), 0);
    memset(text, '[', JSON_DEPTH + 1);
    memset(text + JSON_DEPTH + 1, ']', JSON_DEPTH + 1);
    assert_int_equal(skip_all(text, &at), -EPROTO);
}

static void strings_are_decoded(void **state)
{
    static const struct {
        const char *text, *decoded;
    } strings[] = {
        {"\"plain\"", "plain"},
        {"\"\"", ""},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t"},
        {"\"\\u0041\\u00e9\\u20ac\"", "A\xc3\xa9\xe2\x82\xac"},
        {"\"x\\ud83d\\ude00y\"", "x\xf0\x9f\x98\x80y"},
        {"\"\xe2\x82\xac\\n\"", "\xe2\x82\xac\n"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
        struct json_reader r = over(strings[i].text);
        struct json_span span;
        char decoded[32] = "";
        assert_int_equal(json_read_string(&r, &span), 0);
        assert_int_equal(json_end(&r), 0);
        assert_int_equal(span.decoded, strlen(strings[i].decoded));
        json_decode(&r, &span, decoded);
        assert_string_equal(decoded, strings[i].decoded);
        assert_true(json_equals(&r, &span, strings[i].decoded));
        assert_false(json_equals(&r, &span, "plaiN"));
    }
}

static void numbers_are_whole_and_bounded(void **state)
{
    static const char *const wrong[] = {"18446744073709551616", "-1", "1.0", "1e2", "00", "01", "\"1\"", "null", ""};
    uint64_t value;
    (void)state;
    struct json_reader r = over("18446744073709551615");
    assert_int_equal(json_read_u64(&r, &value), 0);
    assert_true(value == UINT64_MAX);
    r = over("0");
    assert_int_equal(json_read_u64(&r, &value), 0);
    assert_true(value == 0);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        r = over(wrong[i]);
        if (json_read_u64(&r, &value) != -EPROTO)
            fail_msg("%s was taken", wrong[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_skipped),
        cmocka_unit_test(wrong_texts_are_refused_at_their_place),
        cmocka_unit_test(depth_has_a_bound),
        cmocka_unit_test(strings_are_decoded),
        cmocka_unit_test(numbers_are_whole_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
