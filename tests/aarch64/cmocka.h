/* As much of cmocka as tests/unit/test_dequant.c uses, for where only a C library has been built for the processor:
 * tests/aarch64/run.sh. The first failure ends the program. */
#pragma once

#include <stdio.h>
#include <stdlib.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(function)                                                                                     \
    {                                                                                                                  \
#function, function                                                                                            \
    }

#define cmocka_run_group_tests(tests, setup, teardown) run_group(tests, sizeof(tests) / sizeof(tests)[0])

#define print_message                                  printf

#define fail_msg(...)                                                                                                  \
    do {                                                                                                               \
        printf(__VA_ARGS__);                                                                                           \
        printf("\n%s:%d\n", __FILE__, __LINE__);                                                                       \
        exit(EXIT_FAILURE);                                                                                            \
    } while (0)

#define assert_true(condition)                                                                                         \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            fail_msg("%s", #condition);                                                                                \
    } while (0)

#define assert_null(pointer)      assert_true((pointer) == NULL)
#define assert_non_null(pointer)  assert_true((pointer) != NULL)
#define assert_int_equal(a, b)    assert_true((a) == (b))
#define assert_string_equal(a, b) assert_true(strcmp((a), (b)) == 0)

static inline int run_group(const struct CMUnitTest *tests, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        tests[i].run(NULL);
        printf("[       OK ] %s\n", tests[i].name);
        fflush(stdout);
    }
    return EXIT_SUCCESS;
}
