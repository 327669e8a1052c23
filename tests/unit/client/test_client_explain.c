/* What is made of the daemon's errors. */
#include "client_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *name, *parameters, *message;
        int error;
    } cases[] = {
        {"io.rocmforge.ModelNotFound", "{\"name\":\"llama\"}", "no model of this name: 'llama'", -ENOENT},
        {"io.rocmforge.ModelBusy",
         "{\"name\":\"llama\",\"state\":\"resident\",\"leases\":[{\"pid\":12},{\"pid\":\"x\"},7,{\"pid\":345}]}",
         "the model is in use: 'llama' is resident, held by process 12, 345", -EBUSY},
        {"io.rocmforge.ModelBusy",
         "{\"name\":\"m\",\"state\":\"resident\",\"leases\":[{\"pid\":12,\"uid\":1000,\"age\":34.5},"
         "{\"pid\":3,\"uid\":0,\"age\":7300},{\"pid\":4,\"uid\":0,\"age\":-1},{\"pid\":5,\"uid\":0,\"age\":1e300}]}",
         "held by process 12 (user 1000, for 34 s), 3 (user 0, for 2 h), 4, 5 (user 0, for ", -EBUSY},
        {"io.rocmforge.ModelBusy", "{\"name\":\"m\",\"state\":\"filling\",\"leases\":[]}",
         "the model is in a state that does not allow this: 'm' is filling", -EBUSY},
        {"io.rocmforge.ModelBusy", "{\"name\":\"m\",\"state\":\"draining\",\"leases\":[{\"pid\":12}]}",
         "the model is in use: 'm' is draining, held by process 12", -EBUSY},
        {"io.rocmforge.DeadlineExceeded", "{}", "the deadline has passed", -ETIMEDOUT},
        {"io.rocmforge.InvalidModel", "{\"reason\":\"it ends too soon\",\"offset\":77}",
         "the file is not a valid model: it ends too soon, at byte 77", -EBADMSG},
        {"io.rocmforge.InvalidModel", "{\"reason\":\"\\u001b[31m\\u0007\",\"offset\":-1}",
         "the file is not a valid model: ?[31m?", -EBADMSG},
        {"io.rocmforge.DeviceNotFound", "{\"device\":\"gpu\",\"reason\":\"host memory has no GPU to decode with\"}",
         "no such device: 'gpu', host memory has no GPU to decode with", -ENODEV},
        {"io.rocmforge.OutOfDeviceMemory",
         "{\"device\":\"hip:0\",\"needed\":14200000000,\"available\":3140000000,\"evictable\":1000000}",
         "not enough device memory: 14.2 GB needed, 3.1 GB available, 1.0 MB evictable, on 'hip:0'", -ENOMEM},
        {"io.rocmforge.OutOfDeviceMemory", "{\"needed\":629145600,\"available\":0,\"evictable\":999}",
         "not enough device memory: 629 MB needed, 0 B available, 999 B evictable", -ENOMEM},
        {"io.rocmforge.DeviceError", "{\"call\":\"hipMalloc\",\"code\":2,\"text\":\"out of memory\"}",
         "a call to the device failed: hipMalloc: out of memory (2)", -EIO},
        {"io.rocmforge.UnsupportedType", "{\"tensor\":\"t\",\"type\":\"iq1_s\"}", "'t' is iq1_s", -ENOTSUP},
        {"io.rocmforge.LimitExceeded", "{\"limit\":\"leases\",\"value\":4096}", "a limit was reached: leases: 4096",
         -EDQUOT},
        {"io.rocmforge.LimitExceeded", "{\"limit\":\"user-bytes\",\"value\":629145600}",
         "a limit was reached: user-bytes: 629 MB", -EDQUOT},
        {"io.rocmforge.PermissionDenied", "{\"reason\":\"no\"}", "not allowed: no", -EACCES},
        {"io.rocmforge.LeaseNotFound", "{\"lease\":5}", ": 5", -ENOENT},
        {"io.rocmforge.Cancelled", "{}", "cancelled", -ECANCELED},
        {"io.rocmforge.ShuttingDown", "{}", "the daemon is going away", -ESHUTDOWN},
        {"org.varlink.service.MethodNotFound", "{\"method\":\"a.B\"}", "no such method: 'a.B'", -EOPNOTSUPP},
        {"org.varlink.service.InvalidParameter", "{\"parameter\":\"form\"}", "'form'", -EINVAL},
        {"org.varlink.service.InvalidParameter", "{\"parameter\":\"name\"}",
         "'name', which has letters, digits and . _ - : @ +, at most 127, not beginning with -", -EINVAL},
        {"org.varlink.service.InvalidParameter", "{\"parameter\":[]}", "a parameter is missing or wrong", -EINVAL},
        {"io.rocmforge.Unheard", "{\"a\":1}", "io.rocmforge.Unheard", -EPROTO},
        /* parameters of other types are left out */
        {"io.rocmforge.ModelBusy", "{\"name\":1,\"state\":[],\"leases\":\"x\"}", "the model is in use", -EBUSY},
        {"io.rocmforge.OutOfDeviceMemory", "{\"needed\":1e300,\"available\":-1,\"evictable\":0.5}",
         "not enough device memory", -ENOMEM},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char reply[512];
        snprintf(reply, sizeof(reply), "{\"error\":\"%s\",\"parameters\":%s}", cases[i].name, cases[i].parameters);
        struct fake *fake;
        rf_client *client = rig_start(&fake, serve_text, reply);
        for (int k = 0; k < 2; k++) { /* an error is an answer like others: the connection goes on */
            assert_int_equal(rig_call(client), cases[i].error);
            assert_says(client, cases[i].message);
            assert_string_equal(rf_error_name(client), cases[i].name);
            assert_non_null(rf_error_parameters(client));
        }
        rig_stop(fake, client);
    }
}

static void test_error_alone(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_text, "{\"error\":\"io.rocmforge.ModelBusy\"}");
    assert_int_equal(rf_unload(client, "x"), -EBUSY);
    assert_string_equal(rf_error_message(client), "the model is in use");
    assert_null(rf_error_parameters(client));
    rig_stop(fake, client);
}

/* A message does not grow with what a file, or a daemon, has to say. */
static void test_error_long(void **state)
{
    (void)state;
    size_t size = 100000;
    char *reply = malloc(size + 200), *reason = malloc(size + 1);
    assert_non_null(reply);
    assert_non_null(reason);
    memset(reason, 'x', size);
    reason[size] = '\0';
    sprintf(reply, "{\"error\":\"io.rocmforge.InvalidModel\",\"parameters\":{\"reason\":\"%s\",\"offset\":1}}", reason);
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_text, reply);
    assert_int_equal(rig_call(client), -EBADMSG);
    assert_in_range(strlen(rf_error_message(client)), 100, 2000);
    assert_true(strlen(rf_error_parameters(client)) > size);
    rig_stop(fake, client);
    free(reply);
    free(reason);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_errors),
        RIG_TEST(test_error_alone),
        RIG_TEST(test_error_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
