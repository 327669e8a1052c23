/* Loading and planning, against a daemon that answers what it should not. */
#include "client_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* --- loading --- */

static void serve_load(struct fake *fake, int socket)
{
    const char *const *replies = fake_context(fake);
    if (!fake_request(fake, socket, NULL, NULL))
        return;
    for (; *replies; replies++)
        fake_send(socket, *replies, NULL, 0);
    (void)fake_request(fake, socket, NULL, NULL);
}

static void test_load(void **state)
{
    (void)state;
    static const char *const replies[] = {PROGRESS("1", "null"), PROGRESS("6", "0.8"),
                                          "{\"parameters\":{\"model\":{\"name\":\"m\"},\"progress\":null}}", NULL};
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_load, replies);
    struct steps steps = {0};
    const rf_load_options options = {.size = sizeof(options), .progress = step, .context = &steps};
    char name[RF_NAME_SIZE];
    assert_int_equal(rf_load(client, "/proc/self/exe", &options, name), 0);
    assert_string_equal(name, "m");
    assert_int_equal(steps.n, 2);
    assert_int_equal(steps.done, 6);
    assert_true(steps.left > 0.79 && steps.left < 0.81);
    rig_stop(fake, client);

    client = rig_start(&fake, serve_load, replies);
    assert_int_equal(rf_load(client, "/proc/self/exe", NULL, NULL), 0);
    rig_stop(fake, client);

    client = rig_start(&fake, serve_load, replies);
    steps.result = 7;
    assert_int_equal(rf_load(client, "/proc/self/exe", &options, NULL), 7);
    assert_gone(client);
    rig_stop(fake, client);
}

/* Each reply as it is, and the progress in it too. */
struct raw {
    struct steps steps; /* first: both callbacks have one context */
    unsigned n;
    char last[256];
    int result;
};

static int take_raw(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    struct raw *raw = context;
    (void)fds;
    assert_int_equal(n_fds, 0);
    assert_int_equal(continues, raw->n == 0);
    raw->n++;
    snprintf(raw->last, sizeof(raw->last), "%s", parameters);
    return raw->result;
}

static void test_load_raw(void **state)
{
    (void)state;
    static const char *const replies[] = {PROGRESS("1", "null"),
                                          "{\"parameters\":{\"model\":{\"name\":\"m\"},\"x\":1}}", NULL};
    struct raw raw = {.n = 0};
    const rf_load_options options = {.size = sizeof(options), .progress = step, .reply = take_raw, .context = &raw};
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_load, replies);
    assert_int_equal(rf_load(client, "/proc/self/exe", &options, NULL), 0);
    assert_int_equal(raw.n, 2);
    assert_int_equal(raw.steps.n, 1);
    assert_string_equal(raw.last, "{\"model\":{\"name\":\"m\"},\"x\":1}");
    rig_stop(fake, client);

    raw = (struct raw){.result = -EPIPE};
    client = rig_start(&fake, serve_load, replies);
    assert_int_equal(rf_load(client, "/proc/self/exe", &options, NULL), -EPIPE);
    assert_int_equal(raw.steps.n, 0);
    assert_gone(client);
    rig_stop(fake, client);
}

static void test_load_malformed(void **state)
{
    (void)state;
    static const char *const replies[][2] = {
        {"{\"parameters\":{}}", NULL},
        {"{\"parameters\":{\"model\":1}}", NULL},
        {"{\"parameters\":{\"model\":{\"name\":1}}}", NULL},
        {PROGRESS("-1", "1"), NULL},
        {PROGRESS("1.5", "1"), NULL},
        {PROGRESS("1e99", "1"), NULL},
        {PROGRESS("1", "\"soon\""), NULL},
        {"{\"continues\":true,\"parameters\":{\"progress\":[]}}", NULL},
        {"{\"parameters\":{\"model\":{\"name\":"
         "\"m2345678901234567890123456789012345678901234567890123456789012345678901"
         "234567890123456789012345678901234567890123456789012345678901234567890\"}}}",
         NULL},
    };
    for (size_t i = 0; i < sizeof(replies) / sizeof(replies[0]); i++) {
        struct fake *fake;
        rf_client *client = rig_start(&fake, serve_load, replies[i]);
        assert_int_equal(rf_load(client, "/proc/self/exe", NULL, NULL), -EPROTO);
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* What Load was asked with, as text, and the inode of each descriptor beside it. */
struct asked {
    char text[1024];
    size_t n_fds;
    ino_t inodes[4];
};

static void serve_asked(struct fake *fake, int socket)
{
    struct asked *asked = fake_context(fake);
    int *fds;
    const char *text = fake_request(fake, socket, &fds, &asked->n_fds);
    if (!text || asked->n_fds > 4)
        return;
    snprintf(asked->text, sizeof(asked->text), "%s", text);
    for (size_t i = 0; i < asked->n_fds; i++) {
        struct stat status;
        if (fstat(fds[i], &status) == 0)
            asked->inodes[i] = status.st_ino;
    }
    fake_send(socket, "{\"parameters\":{\"model\":{\"name\":\"m\"}}}", NULL, 0);
}

static void test_load_request(void **state)
{
    (void)state;
    char folder[] = "/tmp/rocmforge-test-XXXXXX", path[128], link[128];
    assert_non_null(mkdtemp(folder));
    static const char *const files[] = {"a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf",
                                        "b.gguf"};
    ino_t inodes[4];
    for (int i = 0; i < 4; i++) { /* three that belong together, and one */
        snprintf(path, sizeof(path), "%s/%s", folder, files[i]);
        int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        struct stat status;
        assert_int_equal(fstat(fd, &status), 0);
        inodes[i] = status.st_ino;
        close(fd);
    }
    const rf_load_options options = {
        .size = sizeof(options), .name = "n\"", .form = "f32", .device = "host", .dequant = "cpu", .no_wait = 1};
    struct fake *fake;
    struct asked asked = {.n_fds = 0};
    rf_client *client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load(client, path, &options, NULL), 0);
    rig_stop(fake, client);
    assert_string_equal(
        asked.text, "{\"method\":\"io.rocmforge.Load\",\"parameters\":{\"fds\":[0],\"name\":\"n\\\"\",\"form\":\"f32\","
                    "\"device\":\"host\",\"dequant\":\"cpu\",\"wait\":false},\"more\":true}");
    assert_int_equal(asked.n_fds, 1);
    assert_int_equal(asked.inodes[0], inodes[3]);

    const rf_load_options more = {.size = sizeof(more),
                                  .form = "f16",
                                  .device = "host",
                                  .pin = 1,
                                  .private_ = 1,
                                  .ttl_seconds = 600,
                                  .deadline_seconds = 1.5};
    client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load(client, path, &more, NULL), 0);
    rig_stop(fake, client);
    assert_string_equal(asked.text, "{\"method\":\"io.rocmforge.Load\",\"parameters\":{\"fds\":[0],\"form\":\"f16\","
                                    "\"device\":\"host\",\"private\":true,\"wait\":true,\"pin\":true,\"ttl\":600,"
                                    "\"deadline\":1.5},\"more\":true}");
    client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load_plan(client, path, &more, NULL), -EPROTO); /* the answer is one to Load */
    rig_stop(fake, client);
    assert_string_equal(asked.text, "{\"method\":\"io.rocmforge.Plan\",\"parameters\":{\"fds\":[0],\"form\":\"f16\","
                                    "\"device\":\"host\",\"private\":true}}");
    /* Of an older caller's options only what it knew is looked at. */
    rf_load_options old = more;
    old.size = offsetof(rf_load_options, pin);
    client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load(client, path, &old, NULL), 0);
    rig_stop(fake, client);
    assert_null(strstr(asked.text, "pin"));
    assert_null(strstr(asked.text, "deadline"));

    snprintf(path, sizeof(path), "%s/a-00001-of-00003.gguf", folder);
    client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load(client, path, NULL, NULL), 0);
    rig_stop(fake, client);
    assert_non_null(strstr(asked.text, "{\"fds\":[0,1,2],\"wait\":true}"));
    assert_int_equal(asked.n_fds, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(asked.inodes[i], inodes[i]);

    snprintf(link, sizeof(link), "%s/my model.gguf", folder);
    assert_int_equal(symlink(path, link), 0);
    client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load(client, link, NULL, NULL), 0);
    rig_stop(fake, client);
    assert_non_null(strstr(asked.text, "\"name\":\"my_model\""));
    unlink(link);

    client = rig_start(&fake, serve_asked, &asked);
    snprintf(link, sizeof(link), "%s/a-00002-of-00003.gguf", folder);
    unlink(link);
    assert_int_equal(rf_load(client, path, NULL, NULL), -ENOENT);
    assert_says(client, "a-00002-of-00003.gguf");
    assert_int_equal(rf_load(client, folder, NULL, NULL), -EINVAL);
    const rf_load_options unset = {.size = 0};
    assert_int_equal(rf_load(client, path, &unset, NULL), -EINVAL);
    static const double deadlines[] = {-1, NAN, INFINITY};
    for (size_t i = 0; i < 3; i++) {
        const rf_load_options late = {.size = sizeof(late), .deadline_seconds = deadlines[i]};
        const rf_attach_options late_attach = {.size = sizeof(late_attach), .deadline_seconds = deadlines[i]};
        rf_model *model;
        assert_int_equal(rf_load(client, path, &late, NULL), -EINVAL);
        assert_int_equal(rf_attach_with(client, "m", &late_attach, &model), -EINVAL);
        assert_says(client, "deadline");
    }
    const rf_load_options endless = {.size = sizeof(endless), .ttl_seconds = UINT64_MAX};
    assert_int_equal(rf_load(client, path, &endless, NULL), -EINVAL);
    snprintf(link, sizeof(link), "%s/pipe", folder);
    assert_int_equal(mkfifo(link, 0600), 0);
    assert_int_equal(rf_load(client, link, NULL, NULL), -EINVAL);
    unlink(link);
    rig_stop(fake, client);
    unlink(path);
    snprintf(link, sizeof(link), "%s/a-00003-of-00003.gguf", folder);
    unlink(link);
    snprintf(link, sizeof(link), "%s/b.gguf", folder);
    unlink(link);
    assert_int_equal(rmdir(folder), 0);
}

/* --- planning --- */

#define PLAN(fields) "{\"parameters\":{\"bytes\":7,\"size\":5,\"available\":9" fields "}}"

static void test_plan(void **state)
{
    (void)state;
    static const struct {
        const char *reply;
        rf_plan plan;
    } cases[] = {
        {PLAN(",\"fits\":true,\"evicts\":[\"a\",\"b\"],\"seconds\":1.5"), {.fits = 1, .evicts = 2, .seconds = 1.5}},
        {PLAN(",\"fits\":true,\"evicts\":[],\"model\":{\"name\":\"m\"}"), {.fits = 1, .there = 1, .seconds = -1}},
        {PLAN(",\"fits\":false,\"evicts\":[],\"seconds\":null,\"model\":null"), {.seconds = -1}},
        {PLAN(",\"fits\":true,\"evicts\":[],\"error\":\"io.rocmforge.NameInUse\""),
         {.fits = 1, .seconds = -1, .error = -EEXIST}},
        {PLAN(",\"fits\":false,\"evicts\":[],\"error\":\"io.rocmforge.Unheard\""), {.seconds = -1, .error = -EPROTO}},
    };
    struct fake *fake;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *replies[] = {cases[i].reply, NULL};
        rf_client *client = rig_start(&fake, serve_load, replies);
        rf_plan plan = {.size = sizeof(plan)};
        assert_int_equal(rf_load_plan(client, "/proc/self/exe", NULL, &plan), 0);
        assert_int_equal(plan.bytes, 7);
        assert_int_equal(plan.file_bytes, 5);
        assert_int_equal(plan.available, 9);
        assert_int_equal(plan.fits, cases[i].plan.fits);
        assert_int_equal(plan.there, cases[i].plan.there);
        assert_int_equal(plan.evicts, cases[i].plan.evicts);
        assert_int_equal(plan.error, cases[i].plan.error);
        assert_true(plan.seconds >= cases[i].plan.seconds && plan.seconds <= cases[i].plan.seconds);
        rig_stop(fake, client);
    }
    static const char *const wrong[] = {
        "{}",
        PLAN(",\"evicts\":[]"),
        PLAN(",\"fits\":1,\"evicts\":[]"),
        PLAN(",\"fits\":true,\"evicts\":{}"),
        PLAN(",\"fits\":true,\"evicts\":[],\"seconds\":\"1\""),
        "{\"parameters\":{\"bytes\":-1,\"size\":5,\"available\":9,\"fits\":true,\"evicts\":[]}}",
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        const char *replies[] = {wrong[i], NULL};
        rf_client *client = rig_start(&fake, serve_load, replies);
        assert_int_equal(rf_load_plan(client, "/proc/self/exe", NULL, NULL), -EPROTO);
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* A caller that was built when rf_plan was shorter gets no more than that. */
static void test_plan_size(void **state)
{
    (void)state;
    static const char *const replies[] = {PLAN(",\"fits\":true,\"evicts\":[]"), NULL};
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_load, replies);
    rf_plan plan = {.size = 0, .seconds = 77};
    assert_int_equal(rf_load_plan(client, "/proc/self/exe", NULL, &plan), -EINVAL);
    plan.size = offsetof(rf_plan, seconds);
    assert_int_equal(rf_load_plan(client, "/proc/self/exe", NULL, &plan), 0);
    assert_int_equal(plan.size, offsetof(rf_plan, seconds));
    assert_int_equal(plan.fits, 1);
    assert_true(plan.seconds > 76);
    rig_stop(fake, client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_load),     RIG_TEST(test_load_malformed), RIG_TEST(test_load_request),
        RIG_TEST(test_load_raw), RIG_TEST(test_plan),           RIG_TEST(test_plan_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
