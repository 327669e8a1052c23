/* daemon/options.c: the command line. */
#include "daemon/options.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Parses a command line, its words separated by spaces. What it prints goes to the test's log. */
static int parse(const char *line, struct options *ret)
{
    static char words[1024]; /* the options borrow from it */
    static char program[] = "rocmforged";
    char *argv[48] = {program};
    int argc = 1;
    snprintf(words, sizeof(words), "%s", line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    optind = 0; /* getopt begins anew */
    return options_parse(argc, argv, ret);
}

static void defaults(void **state)
{
    (void)state;
    struct options options;
    assert_int_equal(parse("", &options), 1);
    assert_null(options.socket);
    assert_string_equal(options.device, "auto");
    assert_false(options.budget.set);
    assert_int_equal(options.workers, 0);
    assert_int_equal(options.staging, 0);
    assert_int_equal(options.export_wish, EXPORT_WISH_AUTO);
    assert_null(options.preload);
    assert_null(options.preload_layout);
    assert_int_equal(options.host_cache, 0);
    assert_false(options.host_cache_pinned);
    assert_int_equal(options.keep_freed, 1);
    assert_int_equal(options.page_cache, PAGE_CACHE_AUTO);
    assert_false(options.lock_memory);
    assert_int_equal(options.limits.most[QUOTA_CONNECTIONS], QUOTA_DEFAULTS.most[QUOTA_CONNECTIONS]);
    assert_int_equal(options.limits.most[QUOTA_LOADS], QUOTA_DEFAULTS.most[QUOTA_LOADS]);
    assert_int_equal(options.limits.most[QUOTA_LEASES], QUOTA_DEFAULTS.most[QUOTA_LEASES]);
    assert_true(options.limits.most[QUOTA_BYTES] == QUOTA_DEFAULTS.most[QUOTA_BYTES]);
    assert_int_equal(options.log_level, LOG_LEVEL_INFO);
}

static void all_of_them(void **state)
{
    (void)state;
    struct options options;
    assert_int_equal(parse("--socket /s --device hip --budget 40% --workers 3 --staging 1G --streams 4 --export fd "
                           "--preload /p --preload-layout vllm --host-cache 2Gi --host-cache-pinned --keep-freed 0 "
                           "--user-connections 1 --user-loads 2 --user-leases 3 --user-models 5 "
                           "--user-bytes 4K --device-timeout 7 --log-level debug --page-cache drop --lock-memory",
                           &options),
                     1);
    assert_string_equal(options.socket, "/s");
    assert_string_equal(options.device, "hip");
    assert_true(options.budget.set);
    assert_int_equal(options.budget.percent, 40);
    assert_int_equal(options.budget.bytes, 0);
    assert_int_equal(options.workers, 3);
    assert_int_equal(options.staging, 1000000000);
    assert_int_equal(options.streams, 4);
    assert_int_equal(options.export_wish, EXPORT_WISH_FD);
    assert_string_equal(options.preload, "/p");
    assert_string_equal(options.preload_layout, "vllm");
    assert_true(options.host_cache == 2ull << 30); /* 2Gi */
    assert_true(options.host_cache_pinned);
    assert_int_equal(options.keep_freed, 0);
    assert_int_equal(options.page_cache, PAGE_CACHE_DROP);
    assert_true(options.lock_memory);
    assert_int_equal(options.limits.most[QUOTA_CONNECTIONS], 1);
    assert_int_equal(options.limits.most[QUOTA_LOADS], 2);
    assert_int_equal(options.limits.most[QUOTA_LEASES], 3);
    assert_int_equal(options.limits.most[QUOTA_MODELS], 5);
    assert_int_equal(options.device_timeout, 7);
    assert_int_equal(options.limits.most[QUOTA_BYTES], 4000);
    assert_int_equal(options.log_level, LOG_LEVEL_DEBUG);
}

static void the_last_one_counts(void **state)
{
    (void)state;
    struct options options;
    assert_int_equal(parse("--budget 40% --budget 7  --device host --device auto --export ipc", &options), 1);
    assert_int_equal(options.export_wish, EXPORT_WISH_IPC);
    assert_int_equal(options.budget.bytes, 7);
    assert_int_equal(options.budget.percent, 0);
    assert_string_equal(options.device, "auto");
}

/* What is printed for a size can be typed for it. */
static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"1", 1},
        {"007", 7},
        {"4096", 4096},
        {"18446744073709551615", UINT64_MAX},
        {"999B", 999},
        {"5k", 5000},
        {"5K", 5000},
        {"5kB", 5000},
        {"5Ki", 5120},
        {"5KiB", 5120},
        {"600M", 600000000},
        {"600MB", 600000000},
        {"600Mi", 629145600},
        {"600MiB", 629145600},
        {"16G", 16000000000},
        {"2Ti", 2ull << 40},
        {"16777215Ti", 16777215ull << 40},
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        uint64_t bytes = 1;
        assert_int_equal(options_size_parse(good[i].text, &bytes), 0);
        assert_true(bytes == good[i].bytes);
    }
    static const char *const bad[] = {"",
                                      " 1",
                                      "+1",
                                      "K",
                                      "1P",
                                      "1 K",
                                      "1x",
                                      "0x10",
                                      "-1",
                                      "x",
                                      "1.5G",
                                      "5X",
                                      "1KK",
                                      "5i",
                                      "5iB",
                                      "5Bi",
                                      "5 M",
                                      "5MBs",
                                      "5b",
                                      "5KIB",
                                      "5Mb",
                                      "5m",
                                      "18446744073709551616",
                                      "16777216Ti",
                                      "99999999999T"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint64_t bytes = 1;
        if (options_size_parse(bad[i], &bytes) != -EINVAL || bytes != 1)
            fail_msg("'%s' was taken", bad[i]);
    }
}

static void refused(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "--no-such-option",
        "extra",
        "--socket",
        "--device tpu",
        "--preload-layout file",
        "--device ",
        "--budget 0",
        "--budget 0%",
        "--budget 101%",
        "--budget %",
        "--budget 5%%",
        "--budget -5",
        "--budget -5%",
        "--budget 1.5G",
        "--workers 0",
        "--workers 1025",
        "--workers x",
        "--workers -1",
        "--streams 0",
        "--streams 17",
        "--streams 65",
        "--streams 2x",
        "--streams -1",
        "--streams 99999999999999999999",
        "--export memfd",
        "--export ",
        "--host-cache lots",
        "--keep-freed 61",
        "--keep-freed -1",
        "--keep-freed 1s",
        "--page-cache",
        "--page-cache never",
        "--lock-memory=yes",
        "--staging 5X",
        "--user-connections 0",
        "--user-connections 4294967296",
        "--user-loads -1",
        "--user-bytes 1KK",
        "--log-level loud",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct options options;
        if (parse(lines[i], &options) != -EINVAL)
            fail_msg("'%s' was taken", lines[i]);
    }
}

static void said_and_done(void **state)
{
    (void)state;
    struct options options;
    assert_int_equal(parse("--help", &options), 0);
    assert_int_equal(parse("-h", &options), 0);
    assert_int_equal(parse("--version", &options), 0);
}

static void budgets(void **state)
{
    (void)state;
    struct budget budget;
    assert_int_equal(options_budget_parse("100%", &budget), 0);
    assert_true(budget.set && budget.percent == 100 && budget.bytes == 0);
    assert_int_equal(options_budget_parse("1%", &budget), 0);
    assert_int_equal(options_budget_parse("80G", &budget), 0);
    assert_true(budget.set && budget.percent == 0 && budget.bytes == 80000000000ull);
    static const char *const bad[] = {"", "0", "0K", "0%", "101%", "+5%", " 5%", "5 %", "5K%", "99999999999999999999%"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(options_budget_parse(bad[i], &budget), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults), cmocka_unit_test(all_of_them), cmocka_unit_test(the_last_one_counts),
        cmocka_unit_test(sizes),    cmocka_unit_test(refused),     cmocka_unit_test(said_and_done),
        cmocka_unit_test(sizes),    cmocka_unit_test(budgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
