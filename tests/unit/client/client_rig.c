#include "client_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static unsigned count_open(void)
{
    unsigned n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

int rig_setup(void **state)
{
    unsigned *n = malloc(sizeof(*n));
    assert_non_null(n);
    *n = count_open();
    *state = n;
    return 0;
}

int rig_teardown(void **state)
{
    assert_int_equal(count_open(), *(unsigned *)*state);
    free(*state);
    return 0;
}

rf_client *rig_start(struct fake **fake, fake_serve_fn *serve, const void *context)
{
    rf_client *client;
    *fake = fake_start(serve, (void *)context);
    assert_int_equal(rf_connect(fake_path(*fake), &client), 0);
    return client;
}

void rig_stop(struct fake *fake, rf_client *client)
{
    rf_close(client);
    fake_stop(fake);
}

int rig_call(rf_client *client)
{
    return rf_call(client, "Test", NULL, 0, NULL, 0, NULL, NULL);
}

void assert_says(const rf_client *client, const char *text)
{
    if (!strstr(rf_error_message(client), text))
        fail_msg("'%s' is not in '%s'", text, rf_error_message(client));
}

void assert_gone(rf_client *client)
{
    for (int i = 0; i < 2; i++) {
        assert_int_equal(rig_call(client), -ECONNRESET);
        assert_null(rf_error_name(client));
    }
}

void serve_text(struct fake *fake, int socket)
{
    while (fake_request(fake, socket, NULL, NULL))
        fake_send(socket, fake_context(fake), NULL, 0);
}

int step(void *context, const rf_progress *progress)
{
    struct steps *steps = context;
    steps->n++;
    steps->done = progress->done;
    steps->left = progress->seconds_left;
    assert_string_equal(progress->state, "filling");
    assert_int_equal(progress->total, 10);
    assert_int_equal(progress->rate, 5);
    return steps->result;
}
