#include "proto/base64.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* The test vectors of RFC 4648, section 10, and one with every kind of digit. */
static const struct {
    const char *bytes;
    const char *text;
} vectors[] = {
    {"", ""},
    {"f", "Zg=="},
    {"fo", "Zm8="},
    {"foo", "Zm9v"},
    {"foob", "Zm9vYg=="},
    {"fooba", "Zm9vYmE="},
    {"foobar", "Zm9vYmFy"},
    {"\xfb\xff\xbe\x01", "+/++AQ=="},
};

static void test_vectors(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        size_t size = strlen(vectors[i].bytes);
        char text[16];
        uint8_t bytes[16];
        base64_encode(text, vectors[i].bytes, size);
        assert_string_equal(text, vectors[i].text);
        assert_int_equal(base64_decode(bytes, sizeof(bytes), vectors[i].text), size);
        assert_memory_equal(bytes, vectors[i].bytes, size);
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    uint8_t bytes[256], back[256];
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i * 151 + 7);
    for (size_t size = 0; size <= sizeof(bytes); size++) {
        /* Exactly as long as promised, so that a sanitizer sees one byte too many. */
        char *text = malloc(BASE64_SIZE(size));
        assert_non_null(text);
        base64_encode(text, bytes, size);
        assert_int_equal(strlen(text) + 1, BASE64_SIZE(size));
        assert_int_equal(base64_decode(back, size, text), size);
        assert_memory_equal(back, bytes, size);
        free(text);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "Z",    "Zg",         "Zg=",      "=",    "==",   "===",  "====", "Zg==Zg==", "Zm=v",
        "Z===", "Zm9vYg=a",   "Zm9v\n",   "Zm 9", "Zm9-", "Zm9_", "Zm9.", "Zm9\xc3",  "Zh==" /* bits behind the end */,
        "Zm9=", "Zm9vYg==\n", "Zm9v====",
    };
    uint8_t bytes[16];
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (base64_decode(bytes, sizeof(bytes), texts[i]) != -EINVAL)
            fail_msg("'%s' was taken", texts[i]);
}

static void test_capacity(void **state)
{
    (void)state;
    uint8_t bytes[4] = {1, 2, 3, 4};
    assert_int_equal(base64_decode(bytes, 3, "Zm9vYg=="), -ENOBUFS);
    assert_int_equal(bytes[3], 4);
    assert_int_equal(base64_decode(bytes, 4, "Zm9vYg=="), 4);
    assert_int_equal(base64_decode(bytes, 0, ""), 0);
    assert_int_equal(base64_decode(bytes, 0, "Zg=="), -ENOBUFS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_capacity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
