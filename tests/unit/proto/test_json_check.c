#include "proto/json_check.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Checks a copy of exactly this size, so that a sanitizer sees a byte read too far. */
static int check(const char *text, size_t size, const char **ret_reason, size_t *ret_offset)
{
    char *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, text, size);
    int r = json_check(copy, size, ret_reason, ret_offset);
    free(copy);
    return r;
}

static void test_taken(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{}",
        " \t\r\n{ \t\r\n} \t\r\n",
        "{\"a\":1}",
        "{ \"a\" : [ ] , \"b\" : { } , \"c\" : [ 1 , [ 2 ] , { \"a\" : 3 } ] }",
        "{\"a\":true,\"b\":false,\"c\":null}",
        "{\"\":0}",
        "{\"n\":[0,-0,1,-1,10,1.5,0.0,1e5,1E+5,1e-05,-0.5e10,123456789012345678901234567890]}",
        "{\"s\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\uD834\\uDD1E\"}",
        "{\"\xc3\xa9\":\"\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"}",
        "{\"\xc2\x80\":\"\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\"}",
        "{\"a\":\"\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"}",
        "{\"a\":{\"a\":{\"a\":1}},\"b\":{\"a\":1}}",
        "{\"a\":1,\"A\":2,\"a \":3,\"\\u0061\\u0061\":4}",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        const char *reason = "untouched";
        size_t offset = 77;
        if (check(texts[i], strlen(texts[i]), &reason, &offset) != 0)
            fail_msg("%s: refused at %zu: %s", texts[i], offset, reason);
        assert_string_equal(reason, "untouched");
        assert_int_equal(offset, 77);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t offset;
    } cases[] = {
        {"", 0},
        {"  ", 2},
        {"1", 0},
        {"[]", 0},
        {"\"a\"", 0},
        {"null", 0},
        {"\xef\xbb\xbf{}", 0}, /* a byte order mark */
        {"{", 1},
        {"{}}", 2},
        {"{}{}", 2},
        {"{} x", 3},
        {"{\"a\"}", 4},
        {"{\"a\":}", 5},
        {"{\"a\":1,}", 7},
        {"{,}", 1},
        {"{a:1}", 1},
        {"{'a':1}", 1},
        {"{1:1}", 1},
        {"{\"a\" 1}", 5},
        {"{\"a\":1 \"b\":2}", 7},
        {"{\"a\":[1,]}", 8},
        {"{\"a\":[,1]}", 6},
        {"{\"a\":[1 2]}", 8},
        {"{\"a\":[1}", 7},
        {"{\"a\":{]}", 6},
        {"{\"a\":tru}", 8},
        {"{\"a\":True}", 5},
        {"{\"a\":nul", 8},
        {"{\"a\":NaN}", 5},
        {"{\"a\":Infinity}", 5},
        {"{\"a\":+1}", 5},
        {"{\"a\":01}", 6},
        {"{\"a\":-}", 6},
        {"{\"a\":.5}", 5},
        {"{\"a\":1.}", 7},
        {"{\"a\":1.e5}", 7},
        {"{\"a\":1e}", 7},
        {"{\"a\":1e+}", 8},
        {"{\"a\":0x10}", 6},
        {"{\"a\":1//\n}", 6},
        {"{\"a\":\"", 6},
        {"{\"a\":\"\\", 7},
        {"{\"a\":\"\\q\"}", 8},
        {"{\"a\":\"\\u12g4\"}", 10},
        {"{\"a\":\"\\u0000\"}", 12},
        {"{\"a\":\"\\ud800\"}", 12},
        {"{\"a\":\"\\udc00\"}", 12},
        {"{\"a\":\"\\ud800\\n\"}", 12},
        {"{\"a\":\"\\ud800\\u0041\"}", 18},
        {"{\"a\":\"\\ud800\\ud800\"}", 18},
        {"{\"a\":\"\n\"}", 6},
        {"{\"a\":\"\x1f\"}", 6},
        {"{\"\t\":1}", 2},
        {"{\"a\":\"\x80\"}", 6},
        {"{\"a\":\"\xc0\x80\"}", 6},         /* overlong */
        {"{\"a\":\"\xc1\xbf\"}", 6},         /* overlong */
        {"{\"a\":\"\xe0\x9f\xbf\"}", 6},     /* overlong */
        {"{\"a\":\"\xf0\x8f\xbf\xbf\"}", 6}, /* overlong */
        {"{\"a\":\"\xed\xa0\x80\"}", 6},     /* a surrogate */
        {"{\"a\":\"\xf4\x90\x80\x80\"}", 6}, /* above U+10FFFF */
        {"{\"a\":\"\xf5\x80\x80\x80\"}", 6},
        {"{\"a\":\"\xff\"}", 6},
        {"{\"a\":\"\xe2\x82\"}", 6},
        {"{\"a\":\"\xe2\x82", 6},
        {"{\"a\":1,\"a\":2}", 7},
        {"{\"a\":1,\"b\":2,\"\\u0061\":3}", 13}, /* "a", written another way */
        {"{\"\\ud834\\udd1e\":1,\"\xf0\x9d\x84\x9e\":2}", 18},
        {"{\"x\":{\"a\":1,\"a\":2}}", 12},
        {"{\"x\":[{\"k\":1},{\"k\":1,\"k\":1}]}", 21},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *reason = NULL;
        size_t offset = 0;
        int r = check(cases[i].text, strlen(cases[i].text), &reason, &offset);
        if (r != -EPROTO || !reason || offset != cases[i].offset)
            fail_msg("%s: %d at %zu: %s", cases[i].text, r, offset, reason);
        assert_int_equal(check(cases[i].text, strlen(cases[i].text), NULL, NULL), -EPROTO);
    }
}

static void test_raw_nul(void **state)
{
    (void)state;
    static const char in_string[] = "{\"a\":\"b\0c\"}";
    static const char between[] = "{\"a\":\0 1}";
    static const char behind[] = "{}\0";
    assert_int_equal(check(in_string, sizeof(in_string) - 1, NULL, NULL), -EPROTO);
    assert_int_equal(check(between, sizeof(between) - 1, NULL, NULL), -EPROTO);
    assert_int_equal(check(behind, sizeof(behind) - 1, NULL, NULL), -EPROTO);
}

/* No proper beginning of a message is one. */
static void test_cut(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\":[1,-2.5e+3,true,null,\"x\\n\\u00e9\\ud834\\udd1e\xe2\x82\xac\"],\"b\":{\"c\":[{}]}}";
    size_t size = sizeof(text) - 1;
    for (size_t n = 0; n < size; n++)
        if (check(text, n, NULL, NULL) != -EPROTO)
            fail_msg("the first %zu bytes were taken", n);
    assert_int_equal(check(text, size, NULL, NULL), 0);
}

static int check_repeated(const char *begin, const char *first, const char *next, unsigned n, const char *end)
{
    size_t size = strlen(begin) + strlen(first) + n * strlen(next) + strlen(end) + 1;
    char *text = malloc(size), *at = text;
    assert_non_null(text);
    at = stpcpy(stpcpy(at, begin), n > 0 ? first : "");
    for (unsigned i = 1; i < n; i++)
        at = stpcpy(at, next);
    at = stpcpy(at, end);
    int r = check(text, (size_t)(at - text), NULL, NULL);
    free(text);
    return r;
}

static int check_depth(unsigned depth)
{
    char text[256] = "{\"a\":";
    char *at = text + strlen(text);
    for (unsigned i = 1; i < depth; i++)
        *at++ = '[';
    at = stpcpy(at, "1");
    for (unsigned i = 1; i < depth; i++)
        *at++ = ']';
    *at++ = '}';
    return check(text, (size_t)(at - text), NULL, NULL);
}

static int check_keys(unsigned n)
{
    char text[4096] = "{";
    size_t used = 1;
    for (unsigned i = 0; i < n; i++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\"k%u\":%u", i ? "," : "", i, i);
    text[used++] = '}';
    return check(text, used, NULL, NULL);
}

static void test_limits(void **state)
{
    (void)state;
    assert_int_equal(check_depth(JSON_DEPTH_MAX), 0);
    assert_int_equal(check_depth(JSON_DEPTH_MAX + 1), -E2BIG);
    assert_int_equal(check_keys(JSON_KEYS_MAX), 0);
    assert_int_equal(check_keys(JSON_KEYS_MAX + 1), -E2BIG);
    /* The object and the array count too. */
    assert_int_equal(check_repeated("{\"a\":[", "1", ",1", JSON_VALUES_MAX - 2, "]}"), 0);
    assert_int_equal(check_repeated("{\"a\":[", "1", ",1", JSON_VALUES_MAX - 1, "]}"), -E2BIG);
}

/* Depth is what is open, not what has been. */
static void test_siblings(void **state)
{
    (void)state;
    assert_int_equal(check_repeated("{\"a\":[", "{\"k\":[[]]}", ",{\"k\":[[]]}", 1000, "]}"), 0);
}

static void test_flood(void **state)
{
    (void)state;
    assert_int_equal(check_repeated("{\"a\":", "[", "[", 1u << 20, ""), -E2BIG);
    assert_int_equal(check_repeated("", "{\"a\":", "{\"a\":", 1u << 20, ""), -E2BIG);
    assert_int_equal(check_repeated("{\"a\":\"", "x", "x", 1u << 20, "\"}"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken), cmocka_unit_test(test_refused), cmocka_unit_test(test_raw_nul),
        cmocka_unit_test(test_cut),   cmocka_unit_test(test_limits),  cmocka_unit_test(test_siblings),
        cmocka_unit_test(test_flood),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
