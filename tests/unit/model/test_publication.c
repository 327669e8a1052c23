/* daemon/model/publication.c: what clients are given of a model, and how much of it. */
#include "daemon/model/publication.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static struct header_kv text(const char *key, const void *value, size_t size)
{
    uint8_t *data = malloc(8 + size);
    assert_non_null(data);
    const uint64_t length = size;
    memcpy(data, &length, 8);
    memcpy(data + 8, value, size);
    return (struct header_kv){.key = {key, strlen(key)},
                              .type = GGUF_STRING,
                              .element_type = GGUF_STRING,
                              .count = 1,
                              .data = data,
                              .data_size = 8 + size};
}

static void as_it_is_laid_out(void **state)
{
    (void)state;
    struct header_tensor tensors[] = {
        {.name = "a \"quoted\" name", .type = tensor_type_find(2), .n_dims = 2, .ne = {64, 3, 1, 1}},
        {.name = "scalar", .type = tensor_type_find(0), .ne = {1, 1, 1, 1}},
    };
    struct tensor_place places[] = {
        {.offset = 0, .bytes = 384, .form = FORM_F16, .convert = FORM_F16},
        {.offset = 512, .bytes = 4, .form = FORM_F32},
    };
    struct model_header model = {.n_tensors = 2, .tensors = tensors};
    const struct plan plan = {.model = &model, .tensors = model.tensors, .places = places, .arena_bytes = 1024};
    struct publication publication;
    struct device_fault fault;
    assert_int_equal(publication_make(&plan, &publication, &fault), 0);
    assert_string_equal(
        publication.tensors,
        "[{\"name\":\"a \\\"quoted\\\" name\",\"type\":\"q4_0\",\"form\":\"f16\",\"shape\":[3,64],"
        "\"offset\":0,\"size\":384},{\"name\":\"scalar\",\"type\":\"f32\",\"form\":\"f32\",\"shape\":[],"
        "\"offset\":512,\"size\":4}]");
    assert_string_equal(publication.metadata, "[]");
    assert_true(publication.bytes >= strlen(publication.tensors) + strlen(publication.metadata));

    struct stat status;
    assert_int_equal(fstat(publication.table_fd, &status), 0);
    assert_int_equal(fcntl(publication.table_fd, F_GET_SEALS),
                     F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    const int fd = publication.table_fd;
    publication_clear(&publication);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    publication_clear(&publication); /* nothing more */
}

static void metadata(void **state)
{
    (void)state;
    struct header_kv kv[] = {text("bytes", "\xff\0x", 3), text("k\xc3\xa9y", "caf\xc3\xa9", 5)};
    struct model_header model = {.n_kv = 2, .kv = kv};
    const struct plan plan = {.model = &model, .tensors = model.tensors, .arena_bytes = 256};
    struct publication publication;
    struct device_fault fault;
    assert_int_equal(publication_make(&plan, &publication, &fault), 0);
    cJSON *array = cJSON_Parse(publication.metadata);
    assert_int_equal(cJSON_GetArraySize(array), 2);
    const cJSON *first = cJSON_GetArrayItem(array, 0), *second = cJSON_GetArrayItem(array, 1);
    assert_string_equal(cJSON_GetObjectItem(first, "value")->valuestring, "\"\xef\xbf\xbd\\u0000x\"");
    assert_string_equal(cJSON_GetObjectItem(second, "key")->valuestring, "k\xc3\xa9y");
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(second, "count")));
    cJSON_Delete(array);
    publication_clear(&publication);
    for (size_t i = 0; i < 2; i++)
        free((void *)(uintptr_t)kv[i].data);
}

/* Whole entries up to the bound, and it is still an array. */
static void a_bound_on_metadata(void **state)
{
    (void)state;
    enum { N = 3000 };
    static char value[4096];
    memset(value, '\1', sizeof(value));
    static struct header_kv kv[N];
    kv[0] = text("key", value, sizeof(value));
    for (size_t i = 1; i < N; i++)
        kv[i] = kv[0];
    struct model_header model = {.n_kv = N, .kv = kv};
    const struct plan plan = {.model = &model, .tensors = model.tensors, .arena_bytes = 256};
    struct publication publication;
    struct device_fault fault;
    assert_int_equal(publication_make(&plan, &publication, &fault), 0);
    const size_t size = strlen(publication.metadata);
    assert_in_range(size, PUBLICATION_METADATA_MAX - (64u << 10), PUBLICATION_METADATA_MAX);
    cJSON *array = cJSON_Parse(publication.metadata);
    assert_in_range(cJSON_GetArraySize(array), 2, N - 1);
    cJSON_Delete(array);
    publication_clear(&publication);
    free((void *)(uintptr_t)kv[0].data);
}

/* publication_make() under this limit fails with this error, of this call. */
static void limited(const struct plan *plan, int what, int error, const char *call)
{
    struct publication publication = {.table_fd = -77};
    struct device_fault fault = {0};
    struct rlimit before;
    assert_int_equal(getrlimit(what, &before), 0);
    assert_int_equal(setrlimit(what, &(struct rlimit){0, before.rlim_max}), 0);
    int r = publication_make(plan, &publication, &fault);
    assert_int_equal(setrlimit(what, &before), 0);
    assert_int_equal(r, -error);
    assert_int_equal(fault.code, error);
    assert_string_equal(fault.call, call);
    assert_int_equal(publication.table_fd, -77);
}

static void the_call_that_failed(void **state)
{
    (void)state;
    struct model_header model = {0};
    const struct plan plan = {.model = &model, .tensors = model.tensors, .arena_bytes = 256};
    signal(SIGXFSZ, SIG_IGN);
    limited(&plan, RLIMIT_NOFILE, EMFILE, "memfd_create");
    limited(&plan, RLIMIT_FSIZE, EFBIG, "write");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_it_is_laid_out),
        cmocka_unit_test(metadata),
        cmocka_unit_test(a_bound_on_metadata),
        cmocka_unit_test(the_call_that_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
