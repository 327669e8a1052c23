#include "proto/errors.h"
#include "proto/interface.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void test_table(void **state)
{
    (void)state;
    for (enum wire_error error = WIRE_OK + 1; error < WIRE_ERROR_COUNT; error++) {
        assert_non_null(wire_error_name(error));
        assert_true(strlen(wire_error_sentence(error)) > 0);
        assert_true(wire_error_errno(error) < 0);
        assert_int_equal(wire_error_find(wire_error_name(error)), error);
    }
    assert_string_equal(wire_error_name(WIRE_ModelNotFound), "io.rocmforge.ModelNotFound");
    assert_int_equal(wire_error_errno(WIRE_ModelNotFound), -ENOENT);
    assert_string_equal(wire_error_name(WIRE_InvalidParameter), "org.varlink.service.InvalidParameter");
    assert_int_equal(wire_error_errno(WIRE_InvalidParameter), -EINVAL);
}

static void test_outside(void **state)
{
    (void)state;
    assert_null(wire_error_name(WIRE_OK));
    assert_null(wire_error_sentence(WIRE_OK));
    assert_int_equal(wire_error_errno(WIRE_OK), 0);
    assert_null(wire_error_name(WIRE_ERROR_COUNT));
    assert_null(wire_error_sentence((enum wire_error)1000));
    assert_int_equal(wire_error_errno((enum wire_error) - 1), -EPROTO);
    static const char *const unknown[] = {"", "ModelNotFound", "io.rocmforge.modelnotfound",
                                          "io.rocmforge.ModelNotFoundX", "org.varlink.ModelNotFound"};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        assert_int_equal(wire_error_find(unknown[i]), WIRE_ERROR_COUNT);
}

/* Every error is declared in the interface, and every declared one is in the table. */
static void check_declared(const char *interface, const char *prefix, const char *const not_ours)
{
    unsigned declared = 0, listed = 0;
    for (const char *line = interface; (line = strstr(line, "\nerror ")); line++) {
        char name[128], full[256];
        assert_int_equal(sscanf(line, "\nerror %127[A-Za-z]", name), 1);
        if (not_ours && strcmp(name, not_ours) == 0)
            continue;
        snprintf(full, sizeof(full), "%s.%s", prefix, name);
        if (wire_error_find(full) == WIRE_ERROR_COUNT)
            fail_msg("%s is declared, and not in the table", full);
        declared++;
    }
    for (enum wire_error error = WIRE_OK + 1; error < WIRE_ERROR_COUNT; error++)
        listed += strncmp(wire_error_name(error), prefix, strlen(prefix)) == 0;
    assert_int_equal(declared, listed);
    assert_true(declared > 0);
}

static void test_declared(void **state)
{
    (void)state;
    check_declared(interface_rocmforge, "io.rocmforge", NULL);
    /* PermissionDenied is ours, with a reason, rather than Varlink's. */
    check_declared(interface_service, "org.varlink.service", "PermissionDenied");
}

static void test_interface(void **state)
{
    (void)state;
    assert_non_null(strstr(interface_rocmforge, "\ninterface io.rocmforge\n"));
    assert_non_null(strstr(interface_service, "\ninterface org.varlink.service\n"));
    assert_int_equal(interface_rocmforge[strlen(interface_rocmforge) - 1], '\n');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_outside),
        cmocka_unit_test(test_declared),
        cmocka_unit_test(test_interface),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
