/* Attaching, against a daemon that answers what it should not. */
#include "attach_rig.h"
#include "client/import_host.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

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

struct seen {
    unsigned n;
    size_t n_fds;
    int result;
};

static int see(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    struct seen *seen = context;
    (void)fds;
    assert_non_null(strstr(parameters, "lease"));
    assert_false(continues);
    seen->n++;
    seen->n_fds += n_fds;
    return seen->result;
}

/* The file's name is what the caller has; what is mapped is as after rf_attach(). */
static void test_load_attach(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    struct seen seen = {0};
    rf_load_options options = {.size = sizeof(options), .reply = see, .context = &seen};
    rf_model *model;
    assert_int_equal(rf_load_attach(client, "/proc/self/exe", &options, &model), 0);
    assert_int_equal(rf_model_tensors(model), N_GOOD);
    assert_int_equal(((const char *)rf_model_data(model))[77], 77);
    assert_int_equal(seen.n, 1);
    assert_int_equal(seen.n_fds, 0); /* they are the library's */
    assert_int_equal(rf_detach(model), 0);

    seen.result = 7; /* the lease is given back */
    assert_int_equal(rf_load_attach(client, "/proc/self/exe", &options, &model), 7);
    assert_int_equal(rf_load_attach(client, "/proc/self/exe", NULL, &model), 0);
    options.no_wait = 1;
    assert_int_equal(rf_load_attach(client, "/proc/self/exe", &options, &model), -EINVAL);
    assert_int_equal(rf_load_attach(client, "/nowhere", NULL, &model), -ENOENT);
    options.size = 0;
    assert_int_equal(rf_load_attach(client, "/proc/self/exe", &options, &model), -EINVAL);
    rig_stop(fake, client);
    assert_int_equal(attach.n_detached, 2);
    free(table);
}

/* What is wrong is the answer to the call that was made. */
static void test_load_attach_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *reply, *what;
    } cases[] = {
        {"{}", "the lease"},
        {"{\"parameters\":{\"lease\":5}}", "the model"},
        {ATTACH_REPLY(MODEL, "\"device\":{}", REST), "the device"},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":2,\"table\":1"), "the descriptor of the memory"},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":0"), "the descriptor of the table"},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":1,\"header\":9"),
         "the descriptor of the header"},
        {ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), "\"fd\":0,\"table\":1,\"handle\":1"), "the handle"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct attach attach = {GOOD_ATTACH, .reply = cases[i].reply};
        struct fake *fake;
        void *table;
        rf_client *client = attach_start(&fake, &attach, &table);
        rf_model *model;
        char says[128];
        snprintf(says, sizeof(says), "the daemon's answer to Load is wrong: %s", cases[i].what);
        assert_int_equal(rf_load_attach(client, "/proc/self/exe", NULL, &model), -EPROTO);
        assert_string_equal(rf_error_message(client), says);
        rig_stop(fake, client);
        free(table);
        snprintf(says, sizeof(says), "the daemon's answer to Attach is wrong: %s", cases[i].what);
        struct attach again = {GOOD_ATTACH, .reply = cases[i].reply};
        attach_fails(&again, -EPROTO, says, i == 0 ? 0 : 1);
    }
}

/* The flags that /proc/self/smaps has for what is mapped at `data`, " rd mr dd". */
static void mapping_flags(const void *data, char *flags, int size)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    assert_non_null(file);
    char line[4096];
    bool here = false, found = false;
    while (!found && fgets(line, sizeof(line), file)) {
        unsigned long begin, end;
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            here = (uintptr_t)data >= begin && (uintptr_t)data < end;
        else if (here && strncmp(line, "VmFlags:", 8) == 0)
            found = snprintf(flags, (size_t)size, "%s", line + 8) > 0;
    }
    fclose(file);
    assert_true(found);
}

/* A process that crashes does not write gigabytes of weights into its core. */
static void test_attach_is_not_dumped(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    struct fake *fake;
    void *table;
    char flags[256];
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *model;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    mapping_flags(rf_model_data(model), flags, sizeof(flags));
    assert_non_null(strstr(flags, " rd"));
    assert_non_null(strstr(flags, " dd"));
    rig_stop(fake, client);
    free(table);
}

/* Attaches, and says no to all else. */
static void serve_attach_and_refuse(struct fake *fake, int socket)
{
    const char *text;
    while ((text = fake_request(fake, socket, NULL, NULL))) {
        if (strstr(text, "io.rocmforge.Attach"))
            attach_send(fake_context(fake), socket);
        else
            fake_send(socket, "{\"error\":\"io.rocmforge.ModelBusy\",\"parameters\":{\"name\":\"m\"}}", NULL, 0);
    }
}

static void refuse(rf_client *client)
{
    assert_int_equal(rf_unload(client, "m"), -EBUSY);
    assert_string_equal(rf_error_name(client), "io.rocmforge.ModelBusy");
    assert_string_equal(rf_error_parameters(client), "{\"name\":\"m\"}");
}

static void assert_own_failure(rf_client *client, const char *message)
{
    assert_says(client, message);
    assert_null(rf_error_name(client));
    assert_null(rf_error_parameters(client));
}

/* What fails here after the daemon said no is not the daemon's. */
static void test_attach_own_failures(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    void *table;
    assert_int_equal(table_build(good_tensors, N_GOOD, MEMORY, &table, &attach.table_size), 0);
    attach.table = table;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_attach_and_refuse, &attach);
    rf_model *model;
    rf_tensor tensor;
    char byte;
    assert_int_equal(rf_attach(client, "m", &model), 0);
    refuse(client);
    assert_int_equal(rf_model_find(model, "no-such", &tensor), -ENOENT);
    assert_own_failure(client, "'no-such'");
    refuse(client);
    assert_int_equal(rf_model_tensor(model, N_GOOD, &tensor), -ERANGE);
    assert_own_failure(client, "tensors");
    refuse(client);
    assert_int_equal(rf_model_read(model, MEMORY, &byte, 1), -ERANGE);
    assert_own_failure(client, "bytes");
    refuse(client);
    assert_int_equal(rf_load(client, "/no/such/file", NULL, NULL), -ENOENT);
    assert_own_failure(client, "cannot open");
    assert_int_equal(rf_detach(model), -EBUSY); /* and that is the daemon's again */
    assert_string_equal(rf_error_name(client), "io.rocmforge.ModelBusy");
    rig_stop(fake, client);
    free(table);
}

/* A child frees its copies, and the parent's leases are none of its business. */
static int attach_forked(rf_client *client, rf_model *first, rf_model *second)
{
    char byte;
    if (rf_model_read(second, 5, &byte, 1) != 0 || byte != 5 || rig_call(client) != -ENOTSUP ||
        !strstr(rf_error_message(client), "forked") || rf_attach(client, "m", &first) != -ENOTSUP)
        return 1;
    if (rf_detach(first) != 0)
        return 2;
    rf_close(client); /* and the second with it */
    return 0;
}

static void test_attach_fork(void **state)
{
    (void)state;
    struct attach attach = {GOOD_ATTACH};
    struct fake *fake;
    void *table;
    rf_client *client = attach_start(&fake, &attach, &table);
    rf_model *first, *second;
    assert_int_equal(rf_attach(client, "m", &first), 0);
    assert_int_equal(rf_attach(client, "m", &second), 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(attach_forked(client, first, second));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(rig_call(client), 0);
    assert_int_equal(rf_detach(second), 0);
    rig_stop(fake, client);
    assert_int_equal(attach.n_detached, 1);
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
    attach_fails(&swapped, -EPROTO, "its content", 1);
    attach_fails(&plain, -EPROTO, "not sealed", 1);
}

/* A table with one tensor that is wrong: it is refused when it is asked for, and only then. */
static void attach_tensor_fails(struct table_tensor bad, const char *message)
{
    void *table;
    struct attach attach = {GOOD_ATTACH};
    bad.name = "bad";
    const struct table_tensor tensors[] = {{.name = "good", .form = FORM_F32, .bytes = 4}, bad};
    assert_int_equal(table_build(tensors, 2, MEMORY, &table, &attach.table_size), 0);
    attach.table = table;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_attach, &attach);
    rf_model *model;
    rf_tensor tensor = {.name = "as before"};
    assert_int_equal(rf_attach(client, "m", &model), 0);
    assert_int_equal(rf_model_tensor(model, 1, &tensor), -EPROTO);
    assert_says(client, "the daemon's table of tensors is wrong");
    assert_says(client, message);
    assert_int_equal(rf_model_find(model, "bad", &tensor), -EPROTO);
    assert_says(client, message);
    assert_string_equal(tensor.name, "as before");
    assert_int_equal(rf_model_find(model, "good", &tensor), 0);
    assert_string_equal(tensor.name, "good");
    rig_stop(fake, client);
    free(table);
}

static void test_attach_table(void **state)
{
    (void)state;
    const struct table_tensor good = {.bytes = 24, .shape = {2, 3}, .n_dims = 2, .type = 0, .form = FORM_F32};
    struct table_tensor bad = good;
    bad.offset = 130; /* no multiple of an element's bytes */
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
    attach_tensor_fails(bad, "its content");

    void *table;
    size_t size;
    assert_int_equal(table_build(good_tensors, N_GOOD, MEMORY, &table, &size), 0);
    for (size_t cut = 0; cut < size; cut += 7) {
        struct attach attach = {GOOD_ATTACH, .table = table, .table_size = cut};
        attach_fails(&attach, -EPROTO, "the daemon's table of tensors is wrong", 1);
    }
    free(table);
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

/* As destructors do. */
static void test_close_of_nothing(void **state)
{
    (void)state;
    import_host_module.close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_attach),
        RIG_TEST(test_load_attach),
        RIG_TEST(test_load_attach_malformed),
        RIG_TEST(test_attach_fork),
        RIG_TEST(test_attach_malformed),
        RIG_TEST(test_attach_memory),
        RIG_TEST(test_attach_table),
        RIG_TEST(test_attach_death),
        RIG_TEST(test_attach_waits),
        RIG_TEST(test_attach_own_failures),
        RIG_TEST(test_attach_is_not_dumped),
        RIG_TEST(test_close_of_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
