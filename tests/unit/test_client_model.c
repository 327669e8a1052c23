/* Loading and attaching, against a daemon that answers what it should not. */
#include "client_rig.h"
#include "kernels/types.h"
#include "proto/table.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

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

#define PROGRESS(done, left)                                                                                           \
    "{\"continues\":true,\"parameters\":{\"model\":{\"name\":\"m\"},\"progress\":{\"state\":\"filling\","              \
    "\"done\":" done ",\"total\":10,\"rate\":5,\"left\":" left "}}}"

struct steps {
    unsigned n;
    uint64_t done;
    double left;
    int result;
};

static int step(void *context, const rf_progress *progress)
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
    ino_t inodes[3];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/a-%05d-of-00003.gguf", folder, i + 1);
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
    assert_int_equal(rf_load(client, path, &options, NULL), 0); /* the third: not the name of a whole model */
    rig_stop(fake, client);
    assert_string_equal(asked.text,
                        "{\"method\":\"io.rocmforge.Load\",\"parameters\":{\"fds\":[0],\"form\":\"f32\","
                        "\"device\":\"host\",\"name\":\"n\\\"\",\"dequant\":\"cpu\",\"wait\":false},\"more\":true}");
    assert_int_equal(asked.n_fds, 1);
    assert_int_equal(asked.inodes[0], inodes[2]);

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
                                    "\"device\":\"host\",\"wait\":true,\"pin\":true,\"private\":true,\"ttl\":600,"
                                    "\"deadline\":1.5},\"more\":true}");
    client = rig_start(&fake, serve_asked, &asked);
    assert_int_equal(rf_load_plan(client, path, &more, NULL), -EPROTO); /* the answer is one to Load */
    rig_stop(fake, client);
    assert_string_equal(asked.text, "{\"method\":\"io.rocmforge.Plan\",\"parameters\":{\"fds\":[0],\"form\":\"f16\","
                                    "\"device\":\"host\"}}");
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
    assert_int_equal(rmdir(folder), 0);
}

/* --- attaching --- */

#define MEMORY 4096u

/* How a daemon answers Attach, and how often it is given leases back. */
struct attach {
    const char *reply; /* NULL: a good one */
    const void *table; /* NULL: a good one */
    size_t table_size;
    int table_seals;
    size_t memory_size;
    int memory_seals;
    bool swapped; /* the table comes before the memory */
    bool plain;   /* the memory is no memfd */
    unsigned n_detached;
};

static const struct table_tensor good_tensors[] = {
    {.name = "a", .offset = 0, .bytes = 24, .shape = {2, 3}, .n_dims = 2, .type = 0, .form = FORM_F32},
    {.name = "b", .offset = 256, .bytes = 64, .shape = {32}, .n_dims = 1, .type = 2, .form = FORM_F16},
    {.name = "scalar", .offset = 512, .bytes = 2, .n_dims = 0, .type = 30, .form = FORM_BF16},
    {.name = "native", .offset = 768, .bytes = 36, .shape = {2, 32}, .n_dims = 2, .type = 2, .form = FORM_NATIVE},
    {.name = "new", .offset = 1024, .bytes = 5, .shape = {3}, .n_dims = 1, .type = 7777, .form = FORM_NATIVE},
};
#define N_GOOD (sizeof(good_tensors) / sizeof(good_tensors[0]))

#define ATTACH_DEVICE(kind)                                                                                            \
    "\"device\":{\"id\":\"" kind ":0\",\"kind\":\"" kind "\",\"uuid\":\"u-1\",\"pci\":\"0000:01:00.0\"}"
#define ATTACH_REPLY(model, device, rest) "{\"parameters\":{\"lease\":5,\"model\":" model "," device "," rest "}}"
#define MODEL                             "{\"name\":\"m\",\"id\":3}"
#define REST                              "\"fd\":0,\"handle\":null,\"tensors\":null,\"table\":1"

static void attach_send(const struct attach *attach, int socket)
{
    char bytes[MEMORY];
    for (size_t i = 0; i < MEMORY; i++)
        bytes[i] = (char)i;
    size_t n = attach->memory_size < MEMORY ? attach->memory_size : MEMORY;
    int memory = attach->plain ? open("/proc/self/exe", O_RDONLY | O_CLOEXEC)
                               : fake_memfd(bytes, n, attach->memory_size, attach->memory_seals);
    int table = fake_memfd(attach->table, attach->table_size, attach->table_size, attach->table_seals);
    const int fds[] = {attach->swapped ? table : memory, attach->swapped ? memory : table};
    fake_send(socket, attach->reply ? attach->reply : ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), REST), fds, 2);
    close(memory);
    close(table);
}

static void serve_attach(struct fake *fake, int socket)
{
    struct attach *attach = fake_context(fake);
    const char *text;
    while ((text = fake_request(fake, socket, NULL, NULL))) {
        if (strstr(text, "io.rocmforge.Attach")) {
            attach_send(attach, socket);
            continue;
        }
        attach->n_detached += strstr(text, "{\"lease\":5}") != NULL;
        fake_send(socket, "{}", NULL, 0);
    }
}

/* Fills in what is not said, and starts a daemon. */
static rf_client *attach_start(struct fake **fake, struct attach *attach, void **table)
{
    *table = NULL;
    if (!attach->table) {
        size_t size;
        assert_int_equal(table_build(good_tensors, N_GOOD, MEMORY, table, &size), 0);
        attach->table = *table;
        if (attach->table_size == 0)
            attach->table_size = size;
    }
    return rig_start(fake, serve_attach, attach);
}

#define GOOD_ATTACH .table_seals = SEALS, .memory_seals = SEALS, .memory_size = MEMORY

static void test_attach(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *model;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    assert_string_equal(rf_model_name(model), "m");
    assert_int_equal(rf_model_id(model), 3);
    assert_string_equal(rf_model_device(model), "host:0");
    assert_string_equal(rf_model_device_kind(model), "host");
    assert_string_equal(rf_model_device_uuid(model), "u-1");
    assert_string_equal(rf_model_device_pci(model), "0000:01:00.0");
    assert_int_equal(rf_model_bytes(model), MEMORY);
    assert_int_equal(rf_model_tensors(model), N_GOOD);
    const char *data = rf_model_data(model);
    assert_int_equal(data[77], 77);
    for (size_t i = 0; i < N_GOOD; i++) {
        const struct table_tensor *good = &good_tensors[i];
        rf_tensor tensor, found;
        assert_int_equal(rf_model_tensor(model, i, &tensor), 0);
        assert_int_equal(rf_model_find(model, good->name, &found), 0);
        assert_ptr_equal(found.name, tensor.name);
        assert_ptr_equal(found.data, tensor.data);
        assert_string_equal(tensor.name, good->name);
        assert_string_equal(tensor.form, form_name((enum form)good->form));
        assert_int_equal(tensor.type_id, good->type);
        assert_int_equal(tensor.n_dims, good->n_dims);
        assert_int_equal(tensor.bytes, good->bytes);
        assert_memory_equal(tensor.shape, good->shape, sizeof(tensor.shape));
        assert_ptr_equal(tensor.data, data + good->offset);
    }
    rf_tensor tensor;
    assert_int_equal(rf_model_find(model, "b", &tensor), 0);
    assert_string_equal(tensor.type, "q4_0");
    assert_int_equal(rf_model_find(model, "c", &tensor), -ENOENT);
    assert_says(client, "'c'");
    assert_int_equal(rf_model_tensor(model, N_GOOD, &tensor), -ERANGE);

    char read[MEMORY];
    assert_int_equal(rf_model_read(model, 0, read, MEMORY), 0);
    assert_memory_equal(read, data, MEMORY);
    assert_int_equal(rf_model_read(model, MEMORY, read, 0), 0);
    assert_int_equal(rf_model_read(model, MEMORY, read, 1), -ERANGE);
    assert_int_equal(rf_model_read(model, 1, read, MEMORY), -ERANGE);
    assert_int_equal(rf_model_read(model, UINT64_MAX, read, 1), -ERANGE);
    assert_int_equal(mprotect((void *)data, MEMORY, PROT_READ), 0);

    rf_model *second;
    assert_int_equal(rf_attach(client, "m", &second), 0);
    assert_int_equal(rf_detach(model), 0);
    assert_int_equal(((const char *)rf_model_data(second))[5], 5);
    rig_stop(fake, client); /* detaches the second, by closing */
    assert_int_equal(attach.n_detached, 1);
    free(table);
}

/* Nothing is leaked, and the lease is given back, whatever is wrong with the answer. */
static void attach_fails(struct attach *attach, int error, const char *message, unsigned n_detached)
{
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, attach, &table);
    rf_model *model = NULL;
    assert_int_equal(rf_attach(client, "m", &model), error);
    assert_null(model);
    assert_says(client, message);
    if (n_detached)
        assert_int_equal(rig_call(client), 0);
    rig_stop(fake, client);
    assert_int_equal(attach->n_detached, n_detached);
    free(table);
}

static void test_attach_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *reply, *message;
        unsigned n_detached;
    } cases[] = {
        {"{}", "the lease", 0},
        {"{\"parameters\":{\"lease\":-1}}", "the lease", 0},
        {"{\"parameters\":{\"lease\":\"5\"}}", "the lease", 0},
        {"{\"parameters\":{\"lease\":5}}", "the model", 1},
        {ATTACH_REPLY("7", ATTACH_DEVICE("host"), REST), "the model", 1},
        {ATTACH_REPLY("{\"name\":1,\"id\":3}", ATTACH_DEVICE("host"), REST), "the model", 1},
        {ATTACH_REPLY("{\"name\":\"m\",\"id\":0.5}", ATTACH_DEVICE("host"), REST), "the model", 1},
        {ATTACH_REPLY(MODEL, "\"device\":{}", REST), "the device", 1},
        {ATTACH_REPLY(MODEL, "\"device\":\"host\"", REST), "the device", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0"), "there is none", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":null,\"table\":1"), "there is none", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":2,\"table\":1"), "the descriptor of the memory", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":-1,\"table\":1"), "the descriptor of the memory", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":1e15,\"table\":1"), "the descriptor of the memory", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":0"), "the descriptor of the table", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":99"), "the descriptor of the table", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":1,\"handle\":1"), "the handle", 1},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":1,\"handle\":\"a\""), "the handle", 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct attach attach = {GOOD_ATTACH, .reply = cases[i].reply};
        attach_fails(&attach, -EPROTO, cases[i].message, cases[i].n_detached);
    }
}

static void test_attach_memory(void **state)
{
    (void)state;
    static const int missing[] = {F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK};
    for (size_t i = 0; i < 3; i++) {
        struct attach memory = {GOOD_ATTACH}, table = {GOOD_ATTACH};
        memory.memory_seals &= ~missing[i];
        table.table_seals &= ~missing[i];
        attach_fails(&memory, -EPROTO, "the model's memory is not sealed", 1);
        attach_fails(&table, -EPROTO, "it is not sealed", 1);
    }
    struct attach small = {GOOD_ATTACH}, empty = {GOOD_ATTACH}, swapped = {GOOD_ATTACH, .swapped = true},
                  plain = {GOOD_ATTACH, .plain = true};
    small.memory_size = MEMORY - 1;
    empty.memory_size = 0;
    attach_fails(&small, -EPROTO, "smaller than", 1);
    attach_fails(&empty, -EPROTO, "smaller than", 1);
    attach_fails(&swapped, -EPROTO, "what stands in it", 1);
    attach_fails(&plain, -EPROTO, "not sealed", 1);
}

/* A table with one tensor, or a fault in its bytes. */
static void attach_tensor_fails(struct table_tensor tensor, const char *message)
{
    void *table;
    struct attach attach = {GOOD_ATTACH};
    tensor.name = "t";
    assert_int_equal(table_build(&tensor, 1, MEMORY, &table, &attach.table_size), 0);
    attach.table = table;
    attach_fails(&attach, -EPROTO, message, 1);
    free(table);
}

static void test_attach_table(void **state)
{
    (void)state;
    const struct table_tensor good = {.bytes = 24, .shape = {2, 3}, .n_dims = 2, .type = 0, .form = FORM_F32};
    struct table_tensor bad = good;
    bad.offset = 128;
    attach_tensor_fails(bad, "a tensor's place");
    bad = good;
    bad.form = FORM_COUNT;
    attach_tensor_fails(bad, "a tensor's form");
    bad = good;
    bad.bytes = 28;
    attach_tensor_fails(bad, "a tensor's size");
    bad = good;
    bad.bytes = 20;
    attach_tensor_fails(bad, "a tensor's size");
    bad = good;
    bad.shape[0] = 1ull << 62; /* wraps around to what would fit */
    bad.shape[1] = 4;
    bad.bytes = 0;
    attach_tensor_fails(bad, "a tensor's size");
    bad = good;
    bad.shape[1] = UINT64_MAX / 2;
    attach_tensor_fails(bad, "a tensor's size");
    bad = good;
    bad.form = FORM_NATIVE;
    bad.type = 2; /* q4_0 has blocks of 32, and rows here have 3 */
    attach_tensor_fails(bad, "a tensor's size");
    bad = good;
    bad.offset = MEMORY;
    attach_tensor_fails(bad, "what stands in it");

    void *table;
    size_t size;
    assert_int_equal(table_build(good_tensors, N_GOOD, MEMORY, &table, &size), 0);
    for (size_t cut = 0; cut < size; cut += 7) {
        struct attach attach = {GOOD_ATTACH, .table = table, .table_size = cut};
        attach_fails(&attach, -EPROTO, "the daemon's table of tensors is wrong", 1);
    }
    free(table);
}

/* --- devices with modules of their own --- */

static void test_no_module(void **state)
{
    (void)state;
    static const char *const kinds[] = {"cuda", "..", "a/b", "", "CUDA", "kindsofverylongnames"};
    assert_int_equal(setenv("ROCMFORGE_MODULE_DIR", ":/nowhere::/nor/here:", 1), 0);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char device[128], reply[512], message[128];
        snprintf(device, sizeof(device), "\"device\":{\"id\":\"x\",\"kind\":\"%s\"}", kinds[i]);
        snprintf(reply, sizeof(reply), "{\"parameters\":{\"lease\":5,\"model\":" MODEL ",%s," REST "}}", device);
        snprintf(message, sizeof(message), "this machine has no module for '%s' devices", kinds[i]);
        struct attach attach = {GOOD_ATTACH, .reply = reply};
        attach_fails(&attach, -ENOTSUP, message, 1);
    }
    assert_int_equal(unsetenv("ROCMFORGE_MODULE_DIR"), 0);
}

/* A file of a module's name that is none. */
static void test_bad_module(void **state)
{
    (void)state;
    char folder[] = "/tmp/rocmforge-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/import-bad.so", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("not an object", file);
    fclose(file);
    assert_int_equal(setenv("ROCMFORGE_MODULE_DIR", folder, 1), 0);
    struct attach attach = {GOOD_ATTACH, .reply = ATTACH_REPLY(MODEL, ATTACH_DEVICE("bad"), REST)};
    attach_fails(&attach, -ENOTSUP, "the module for 'bad' devices cannot be loaded", 1);
    assert_int_equal(unsetenv("ROCMFORGE_MODULE_DIR"), 0);
    unlink(path);
    rmdir(folder);
}

/* import-fake.so lies beside the test program. */
static void use_modules_here(void)
{
    char path[PATH_MAX], folders[PATH_MAX + 16];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    assert_true(n > 0);
    path[n] = '\0';
    snprintf(folders, sizeof(folders), "/nowhere:%s", dirname(path));
    assert_int_equal(setenv("ROCMFORGE_MODULE_DIR", folders, 1), 0);
}

#define HANDLE(text) "\"fd\":null,\"table\":1,\"handle\":\"" text "\""

static void test_module(void **state)
{
    (void)state;
    use_modules_here();
    struct attach attach = {GOOD_ATTACH, .reply = ATTACH_REPLY(MODEL, ATTACH_DEVICE("fake"), HANDLE("eA=="))};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *model, *second;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    assert_int_equal(rf_attach(client, "m", &second), 0);
    rf_tensor tensor;
    assert_int_equal(rf_model_find(model, "b", &tensor), 0);
    assert_int_equal(*(const char *)tensor.data, 'x');
    char byte = 0;
    assert_int_equal(rf_model_read(model, 2, &byte, 1), 0);
    assert_int_equal(byte, 'x');
    assert_int_equal(rf_model_read(model, 1, &byte, 1), -EIO);
    assert_says(client, "fakeMemcpy: no (1)");
    assert_int_equal(rf_detach(model), 0);
    rig_stop(fake, client);
    free(table);

    struct attach bad = {GOOD_ATTACH, .reply = ATTACH_REPLY(MODEL, ATTACH_DEVICE("fake"), HANDLE("eHg="))};
    attach_fails(&bad, -EPROTO, "a handle of 2 bytes", 1);
    struct attach none = {
        GOOD_ATTACH,
        .reply = ATTACH_REPLY(MODEL, "\"device\":{\"id\":\"fake:0\",\"kind\":\"fake\",\"uuid\":null}", HANDLE("eA=="))};
    attach_fails(&none, -ENODEV, "no device", 1);
    assert_int_equal(unsetenv("ROCMFORGE_MODULE_DIR"), 0);
}

/* A model that is being loaded is waited for: what comes before the lease is progress, or wrong. */
struct waiting {
    struct attach attach;
    const char *first;
    char request[256];
};

static void serve_waiting(struct fake *fake, int socket)
{
    struct waiting *waiting = fake_context(fake);
    const char *text = fake_request(fake, socket, NULL, NULL);
    if (!text)
        return;
    snprintf(waiting->request, sizeof(waiting->request), "%s", text);
    fake_send(socket, waiting->first, NULL, 0);
    attach_send(&waiting->attach, socket);
    (void)fake_request(fake, socket, NULL, NULL);
}

static void test_attach_waits(void **state)
{
    (void)state;
    struct waiting waiting = {.attach = {GOOD_ATTACH}, .first = PROGRESS("4", "null")};
    void *table;
    assert_int_equal(table_build(good_tensors, N_GOOD, MEMORY, &table, &waiting.attach.table_size), 0);
    waiting.attach.table = table;
    struct steps steps = {0};
    rf_attach_options options = {.size = sizeof(options), .deadline_seconds = 2.5, .progress = step, .context = &steps};
    struct fake *fake;
    rf_model *model;
    rf_client *client = rig_start(&fake, serve_waiting, &waiting);
    assert_int_equal(rf_attach_with(client, "m", &options, &model), 0);
    assert_int_equal(steps.n, 1);
    assert_int_equal(steps.done, 4);
    assert_int_equal(rf_model_tensors(model), N_GOOD);
    rig_stop(fake, client);
    assert_non_null(strstr(waiting.request, "\"deadline\":2.5},\"more\":true}"));

    steps = (struct steps){.result = 7};
    client = rig_start(&fake, serve_waiting, &waiting);
    assert_int_equal(rf_attach_with(client, "m", &options, &model), 7);
    assert_gone(client);
    rig_stop(fake, client);

    static const char *const wrong[] = {
        "{\"continues\":true}",
        "{\"continues\":true,\"parameters\":{\"lease\":5,\"model\":" MODEL "}}",
        PROGRESS("-4", "1"),
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        waiting.first = wrong[i];
        client = rig_start(&fake, serve_waiting, &waiting);
        assert_int_equal(rf_attach_with(client, "m", &options, &model), -EPROTO);
        assert_gone(client);
        rig_stop(fake, client);
    }

    waiting.first = PROGRESS("4", "1"); /* which nobody asked for */
    client = rig_start(&fake, serve_waiting, &waiting);
    assert_int_equal(rf_attach(client, "m", &model), -EPROTO);
    assert_gone(client);
    options.size = 0;
    assert_int_equal(rf_attach_with(client, "m", &options, &model), -EINVAL);
    rig_stop(fake, client);
    free(table);
}

/* A daemon that dies takes nothing from what is mapped. */
static void serve_attach_and_die(struct fake *fake, int socket)
{
    (void)fake_request(fake, socket, NULL, NULL);
    attach_send(fake_context(fake), socket);
}

static void test_attach_death(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    void *table;
    assert_int_equal(table_build(good_tensors, N_GOOD, MEMORY, &table, &attach.table_size), 0);
    attach.table = table;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_attach_and_die, &attach);
    rf_model *model;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    fake_stop(fake);
    assert_int_equal(((const char *)rf_model_data(model))[9], 9);
    assert_int_equal(rf_detach(model), -ECONNRESET);
    assert_int_equal(rf_attach(client, "m", &model), -ECONNRESET);
    rf_close(client);
    free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_load),
        RIG_TEST(test_load_malformed),
        RIG_TEST(test_load_request),
        RIG_TEST(test_attach),
        RIG_TEST(test_attach_malformed),
        RIG_TEST(test_attach_memory),
        RIG_TEST(test_attach_table),
        RIG_TEST(test_no_module),
        RIG_TEST(test_bad_module),
        RIG_TEST(test_module),
        RIG_TEST(test_attach_death),
        RIG_TEST(test_attach_waits),
        RIG_TEST(test_load_raw),
        RIG_TEST(test_plan),
        RIG_TEST(test_plan_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
