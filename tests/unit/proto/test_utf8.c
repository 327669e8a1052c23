#include "proto/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Writes a character in the form with `length` bytes, which may be longer than it needs. */
static void encode(char *bytes, size_t length, uint32_t character)
{
    static const unsigned char marks[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = length; i-- > 1; character >>= 6)
        bytes[i] = (char)(0x80 | (character & 0x3f));
    bytes[0] = (char)(marks[length] | character);
}

static size_t length_of(uint32_t character)
{
    return character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
}

/* What utf8_decode() says of these bytes and no others: they stand in memory of just their size, so that a sanitizer
 * sees one byte too many. */
static size_t decode(const char *bytes, size_t size, uint32_t *ret)
{
    char *copy = malloc(size > 0 ? size : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, size);
    size_t length = utf8_decode(copy, size, ret);
    assert_int_equal(utf8_character(copy, size), length);
    free(copy);
    return length;
}

/* Every value that four bytes have room for, in every length that has room for it. */
static void test_every_value(void **state)
{
    (void)state;
    static const uint32_t room[] = {0, 0x80, 0x800, 0x10000, 0x200000};
    for (uint32_t character = 0; character < room[4]; character++) {
        bool is_one = character <= 0x10ffff && (character < 0xd800 || character >= 0xe000);
        for (size_t length = 1; length <= 4; length++) {
            if (character >= room[length])
                continue;
            char bytes[4];
            uint32_t found = UINT32_MAX;
            encode(bytes, length, character);
            size_t got = utf8_decode(bytes, length, &found);
            bool good = is_one && length == length_of(character);
            if (got != (good ? length : 0) || found != (good ? character : UINT32_MAX))
                fail_msg("U+%X in %zu bytes: %zu, U+%X", character, length, got, found);
        }
    }
}

static void test_cut_and_stray_bytes(void **state)
{
    (void)state;
    static const uint32_t characters[] = {0x80, 0x7ff, 0x800, 0xffff, 0x10000, 0x10ffff};
    uint32_t found = 7;
    assert_int_equal(decode("", 0, &found), 0);
    for (size_t i = 0; i < sizeof(characters) / sizeof(characters[0]); i++) {
        char bytes[4];
        size_t length = length_of(characters[i]);
        encode(bytes, length, characters[i]);
        for (size_t size = 0; size < length; size++)
            assert_int_equal(decode(bytes, size, &found), 0);
        for (size_t at = 1; at < length; at++) {
            char good = bytes[at];
            static const char wrong[] = {'a', '\x7f', '\xc0', '\xff', '\0'};
            for (size_t k = 0; k < sizeof(wrong); k++) {
                bytes[at] = wrong[k];
                assert_int_equal(decode(bytes, length, &found), 0);
            }
            bytes[at] = good;
        }
    }
    for (int byte = 0x80; byte < 0xc0; byte++)
        assert_int_equal(decode((char[]){(char)byte, (char)0x80}, 2, &found), 0);
    for (int byte = 0xf8; byte < 0x100; byte++)
        assert_int_equal(decode((char[]){(char)byte, '\x80', '\x80', '\x80', '\x80', '\x80'}, 6, &found), 0);
    assert_int_equal(found, 7);
}

static void test_only_the_first(void **state)
{
    (void)state;
    static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80";
    static const uint32_t characters[] = {'a', 0xe9, 0x20ac, 0x1f600};
    size_t at = 0;
    for (size_t i = 0; i < 4; i++) {
        uint32_t found;
        size_t length = decode(text + at, sizeof(text) - 1 - at, &found);
        assert_int_equal(length, i + 1);
        assert_int_equal(found, characters[i]);
        at += length;
    }
    assert_int_equal(at, sizeof(text) - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_cut_and_stray_bytes),
        cmocka_unit_test(test_only_the_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
