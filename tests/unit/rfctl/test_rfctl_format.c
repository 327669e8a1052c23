#include "client/rfctl/duration.h"
#include "client/rfctl/format.h"
#include "client/rfctl/progress.h"
#include "client/rfctl/table.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

struct number {
    double value;
    const char *text;
};

static void check(const char *(*format)(char *, double), const struct number *numbers)
{
    char text[FORMAT_SIZE];
    for (; numbers->text; numbers++)
        assert_string_equal(format(text, numbers->value), numbers->text);
}

static void test_bytes(void **state)
{
    (void)state;
    static const struct number bytes[] = {
        {0, "0 B"},         {1, "1 B"},          {999, "999 B"},     {1000, "1.0 kB"},   {9949, "9.9 kB"},
        {99949, "99.9 kB"}, {99951, "100 kB"},   {999499, "999 kB"}, {999500, "1.0 MB"}, {3.8e9, "3.8 GB"},
        {512e6, "512 MB"},  {999.9e6, "1.0 GB"}, {1e12, "1.0 TB"},   {2e15, "2.0 PB"},   {5e18, "5000 PB"},
        {-1, "0 B"},        {NAN, "0 B"},        {0, NULL},
    };
    check(format_bytes, bytes);
    static const struct number rates[] = {{3.14e9, "3.1 GB/s"}, {0, "0 B/s"}, {123456, "123 kB/s"}, {0, NULL}};
    check(format_rate, rates);
    static const struct number counts[] = {
        {0, "0"}, {820, "820"}, {905216, "905 thousand"}, {22.6e6, "22.6 million"}, {6.74e9, "6.7 billion"}, {0, NULL},
    };
    check(format_count, counts);
}

static void test_times(void **state)
{
    (void)state;
    static const struct number seconds[] = {
        {0, "0 s"},
        {0.000123, "0.12 ms"},
        {0.00994, "9.94 ms"},
        {0.00996, "10 ms"},
        {0.045, "45 ms"},
        {0.9994, "999 ms"},
        {0.9996, "1.00 s"},
        {1.234, "1.23 s"},
        {59.99, "59.99 s"},
        {59.996, "1 min 0 s"},
        {123, "2 min 3 s"},
        {3599.4, "59 min 59 s"},
        {3599.6, "1 h 0 min"},
        {7500, "2 h 5 min"},
        {-3, "0 s"},
        {NAN, "0 s"},
        {0, NULL},
    };
    check(format_seconds, seconds);
    static const struct number ages[] = {
        {0, "0s"},     {5.9, "5s"},  {59.9, "59s"}, {60, "1m"},  {3599, "59m"}, {7200, "2h"},
        {86400, "1d"}, {4e6, "46d"}, {-1, "0s"},    {NAN, "0s"}, {0, NULL},
    };
    check(format_age, ages);
}

static void test_durations(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t seconds;
        const char *written;
    } good[] = {
        {"0", 0, "0s"},
        {"90", 90, "90s"},
        {"90s", 90, "90s"},
        {"10m", 600, "10m"},
        {"600", 600, "10m"},
        {"2h", 7200, "2h"},
        {"48h", 172800, "2d"},
        {"1d", 86400, "1d"},
        {"61m", 3660, "61m"},
        {"007", 7, "7s"},
        {"36525d", 3155760000, "36525d"},
    };
    char text[DURATION_SIZE];
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        uint64_t seconds = 12345;
        assert_int_equal(duration_parse(good[i].text, &seconds), 0);
        assert_int_equal(seconds, good[i].seconds);
        assert_string_equal(duration_format(text, (double)seconds), good[i].written);
    }
    static const char *const bad[] = {"",   " 1", "-1",  "+1",     "1.5", "s",   "10 m",  "10mm",
                                      "1w", "1M", "0x1", "36526d", "1s ", "1e3", "never", "99999999999999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint64_t seconds = 12345;
        assert_int_equal(duration_parse(bad[i], &seconds), -EINVAL);
        assert_int_equal(seconds, 12345);
    }
    static const double odd[] = {-1, 0.5, NAN, INFINITY, -INFINITY, 1e300, 9007199254740992.0};
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
        assert_in_range(strlen(duration_format(text, odd[i])), 2, DURATION_SIZE - 2);
}

/* Whatever is given, it has to fit. */
static void test_extremes(void **state)
{
    (void)state;
    static const double values[] = {1e300, INFINITY, -INFINITY, 1e-300, 18446744073709551615.0, 9.007e15};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        char text[FORMAT_SIZE];
        assert_in_range(strlen(format_bytes(text, values[i])), 1, FORMAT_SIZE - 2);
        assert_in_range(strlen(format_rate(text, values[i])), 1, FORMAT_SIZE - 2);
        assert_in_range(strlen(format_count(text, values[i])), 1, FORMAT_SIZE - 2);
        assert_in_range(strlen(format_seconds(text, values[i])), 1, FORMAT_SIZE - 2);
        assert_in_range(strlen(format_age(text, values[i])), 1, FORMAT_SIZE - 2);
    }
}

static void check_escape(const char *text, size_t size, const char *expected)
{
    char *escaped = text_escape(text, size);
    assert_string_equal(escaped, expected);
    char *again = text_escape(escaped, strlen(escaped));
    assert_string_equal(again, expected);
    free(again);
    free(escaped);
}

static void test_escape(void **state)
{
    (void)state;
#define CHECK(text, expected) check_escape(text, sizeof(text) - 1, expected)
    CHECK("", "");
    CHECK("plain text", "plain text");
    CHECK("Gr\xc3\xbc\xc3\x9f"
          "e \xe4\xb8\xad\xe6\x96\x87 \xf0\x9f\xa6\x99",
          "Gr\xc3\xbc\xc3\x9f"
          "e \xe4\xb8\xad\xe6\x96\x87 \xf0\x9f\xa6\x99");
    CHECK("\x1b[31mred\x1b]0;title\a", "\\x1b[31mred\\x1b]0;title\\x07");
    CHECK("a\nb\rc\td\x7f", "a\\nb\\rc\\td\\x7f");
    CHECK("nul\0inside", "nul\\x00inside");
    CHECK("\xc2\x9b"
          "31m",
          "\\u{9b}31m"); /* C1: CSI in one character */
    CHECK("\x9b"
          "31m",
          "\\x9b"
          "31m"); /* and as a byte */
    CHECK("a\xe2\x80\xae"
          "b",
          "a\\u{202e}b");                                    /* right to left override */
    CHECK("\xe2\x81\xa6\xe2\x81\xa9", "\\u{2066}\\u{2069}"); /* isolates */
    CHECK("\xe2\x80\xa8", "\\u{2028}");                      /* line separator */
    CHECK("\xf3\xa0\x81\x81", "\\u{e0041}");                 /* a tag */
    CHECK("\xff\xc3", "\\xff\\xc3");                         /* no UTF-8, and cut short */
    CHECK("\xed\xa0\x80", "\\xed\\xa0\\x80");                /* a surrogate */
    CHECK("\xc0\xaf", "\\xc0\\xaf");                         /* overlong */
#undef CHECK
}

static void check_cut(const char *text, size_t width, const char *expected)
{
    char *copy = text_escape(text, strlen(text));
    text_cut(copy, width);
    assert_string_equal(copy, expected);
    assert_true(text_width(copy) <= width);
    free(copy);
}

static void test_width(void **state)
{
    (void)state;
    setenv("LC_ALL", "C", 1);
    text_begin();
    check_cut("abcdef", 6, "abcdef");
    check_cut("abcdef", 5, "ab...");
    check_cut("abcdef", 3, "...");
    check_cut("abcdef", 2, "..");
    check_cut("abcdef", 0, "");
    check_cut("\xe4\xb8\xad\xe6\x96\x87", 3, "...");
    setenv("LC_ALL", "C.UTF-8", 1);
    text_begin();
    assert_int_equal(text_width(""), 0);
    assert_int_equal(text_width("abc"), 3);
    assert_int_equal(text_width("Gr\xc3\xbc\xc3\x9f"), 4);
    assert_int_equal(text_width("\xe4\xb8\xad\xe6\x96\x87"), 4); /* two wide ones */
    check_cut("abcdef", 6, "abcdef");
    check_cut("abcdef", 5, "abcd\xe2\x80\xa6");
    check_cut("abcdef", 1, "\xe2\x80\xa6");
    check_cut("abcdef", 0, "");
    check_cut("ab", 1, "\xe2\x80\xa6");
    check_cut("\xe4\xb8\xad\xe6\x96\x87", 3, "\xe4\xb8\xad\xe2\x80\xa6");
    check_cut("\xe4\xb8\xad\xe6\x96\x87", 2, "\xe2\x80\xa6");
}

static const struct table_column columns[] = {{"NAME", TABLE_CUT}, {"SIZE", TABLE_RIGHT}, {"NOTE", 0}, {0}};

static char *print(const struct table *table, size_t width)
{
    char *text;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    assert_non_null(stream);
    table_print(table, stream, width);
    assert_int_equal(fclose(stream), 0);
    return text;
}

static void check_table(const struct table *table, size_t width, const char *expected)
{
    char *text = print(table, width);
    assert_string_equal(text, expected);
    free(text);
}

static void test_table(void **state)
{
    (void)state;
    struct table *table = table_new(columns);
    check_table(table, 0, "\n");
    table_add(table, "%s", "llama");
    table_add(table, "%d MB", 5);
    table_add(table, NULL);
    check_table(table, 0, "NAME   SIZE\nllama  5 MB\n"); /* no notes: no such column */
    table_add(table, "%s", "a-rather-long-name");
    table_add(table, "%d MB", 1234);
    table_add(table, "%s", "evil\x1b[2J");
    check_table(table, 0,
                "NAME                   SIZE  NOTE\n"
                "llama                  5 MB\n"
                "a-rather-long-name  1234 MB  evil\\x1b[2J\n");
    check_table(table, 33,
                "NAME            SIZE  NOTE\n"
                "llama           5 MB\n"
                "a-rather-l\xe2\x80\xa6  1234 MB  evil\\x1b[2J\n");
    table_free(table);
    static const struct table_column dropping[] = {{"NAME", TABLE_CUT}, {"OFFSET", TABLE_DROP}, {"SIZE", 0}, {0}};
    table = table_new(dropping);
    table_add(table, "output.weight");
    table_add(table, "123456");
    table_add(table, "5 MB");
    check_table(table, 27, "NAME           OFFSET  SIZE\noutput.weight  123456  5 MB\n");
    check_table(table, 26, "NAME           SIZE\noutput.weight  5 MB\n");
    check_table(table, 18, "NAME          SIZE\noutput.weig\xe2\x80\xa6  5 MB\n");
    table_free(table);
    table_free(NULL);
}

static void test_progress(void **state)
{
    (void)state;
    static const struct progress_values filling = {"filling", 1.94e9, 3.8e9, 3.1e9, 0.6};
    static const struct progress_values opening = {"opening", 0, 0, 0, -1};
    char text[160];
    progress_line(text, sizeof(text), 79, true, &filling);
    assert_string_equal(text, "filling     [############.............]   51%  1.9 of 3.8 GB  3.1 GB/s  1s left");
    progress_line(text, sizeof(text), 159, false, &filling);
    assert_string_equal(text, "filling      51%  1.9 of 3.8 GB  3.1 GB/s  1s left");
    progress_line(text, sizeof(text), 36, true, &filling);
    assert_string_equal(text, "filling      51%  1.9 of 3.8 GB");
    progress_line(text, sizeof(text), 79, true, &opening);
    assert_string_equal(text, "opening");
    static const struct progress_values odd[] = {
        {"filling", 5, 3, 1e30, 1e30},
        {"filling", 999.4e6, 1e9, 1, -1},
        {"", 0, 0, 0, 0},
        {"a state that nobody knows of yet", 1, 1e18, INFINITY, INFINITY},
        {"x", NAN, NAN, NAN, NAN},
    };
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
        for (size_t width = 0; width < 300; width++) {
            progress_line(text, sizeof(text), width, width % 2, &odd[i]);
            assert_true(strlen(text) <= width);
            assert_true(strlen(text) < sizeof(text));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),    cmocka_unit_test(test_times),     cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_escape),   cmocka_unit_test(test_width),     cmocka_unit_test(test_table),
        cmocka_unit_test(test_progress), cmocka_unit_test(test_durations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
