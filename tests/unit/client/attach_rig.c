#include "attach_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

const struct table_tensor good_tensors[N_GOOD] = {
    {.name = "a", .offset = 0, .bytes = 24, .shape = {2, 3}, .n_dims = 2, .type = 0, .form = FORM_F32},
    {.name = "b", .offset = 256, .bytes = 64, .shape = {32}, .n_dims = 1, .type = 2, .form = FORM_F16},
    {.name = "scalar", .offset = 512, .bytes = 2, .n_dims = 0, .type = 30, .form = FORM_BF16},
    {.name = "native", .offset = 768, .bytes = 36, .shape = {2, 32}, .n_dims = 2, .type = 2, .form = FORM_NATIVE},
    {.name = "new", .offset = 1024, .bytes = 5, .shape = {3}, .n_dims = 1, .type = 7777, .form = FORM_NATIVE},
};

void attach_send(const struct attach *attach, int socket)
{
    char bytes[MEMORY];
    for (size_t i = 0; i < MEMORY; i++)
        bytes[i] = (char)i;
    size_t n = attach->memory_size < MEMORY ? attach->memory_size : MEMORY;
    int memory = attach->plain ? open("/proc/self/exe", O_RDONLY | O_CLOEXEC)
                               : fake_memfd(bytes, n, attach->memory_size, attach->memory_seals);
    int table = fake_memfd(attach->table, attach->table_size, attach->table_size, attach->table_seals);
    int header = attach->header
                     ? fake_memfd(attach->header, attach->header_size, attach->header_size, attach->header_seals)
                     : -1;
    const int fds[] = {attach->swapped ? table : memory, attach->swapped ? memory : table, header};
    const char *reply = header >= 0 ? ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), REST ",\"header\":2")
                                    : ATTACH_REPLY(MODEL, ATTACH_DEVICE("host"), REST);
    fake_send(socket, attach->reply ? attach->reply : reply, fds, header >= 0 ? 3 : 2);
    close(memory);
    close(table);
    if (header >= 0)
        close(header);
}

void serve_attach(struct fake *fake, int socket)
{
    struct attach *attach = fake_context(fake);
    const char *text;
    while ((text = fake_request(fake, socket, NULL, NULL))) {
        if (strstr(text, "io.rocmforge.Attach") || strstr(text, "io.rocmforge.Load")) {
            attach_send(attach, socket);
            continue;
        }
        attach->n_detached += strstr(text, "{\"lease\":5}") != NULL;
        fake_send(socket, "{}", NULL, 0);
    }
}

rf_client *attach_start(struct fake **fake, struct attach *attach, void **table)
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

void attach_fails(struct attach *attach, int error, const char *message, unsigned n_detached)
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
