/* What the GGUF parser makes of whole files, and of those that are cut short, change, or are too large. */
#include "gguf_rig.h"

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define PAGE 4096u

/* Remembers where each field begins: a file cut inside a field is blamed there. */
static size_t fields[64], n_fields;

static void field(struct file *f)
{
    fields[n_fields++] = f->size;
}

static void build_valid(struct file *f)
{
    n_fields = 0;
    field(f);
    put(f, "GGUF", 4);
    field(f);
    put_u32(f, 3);
    field(f);
    put_u64(f, 2);
    field(f);
    put_u64(f, 3);
    field(f);
    put_string(f, "general.architecture");
    field(f);
    put_u32(f, GGUF_STRING);
    field(f);
    put_string(f, "llama");
    field(f);
    put_string(f, "general.alignment");
    field(f);
    put_u32(f, GGUF_U32);
    field(f);
    put_u32(f, 64);
    field(f);
    put_string(f, "tokens");
    field(f);
    put_u32(f, GGUF_ARRAY);
    field(f);
    put_u32(f, GGUF_STRING);
    field(f);
    put_u64(f, 2);
    field(f);
    put_string(f, "<s>");
    field(f);
    put_string(f, "</s>");
    for (unsigned i = 0; i < 2; i++) {
        field(f);
        put_string(f, i == 0 ? "token_embd.weight" : "output_norm.weight");
        field(f);
        put_u32(f, 2);
        field(f);
        put_u64(f, i == 0 ? 64 : 3);
        field(f);
        put_u64(f, i == 0 ? 2 : 1);
        field(f);
        put_u32(f, i == 0 ? Q4_0 : F32);
        field(f);
        put_u64(f, i == 0 ? 0 : 128);
    }
    field(f);
    put_padding(f, 64);
    put_zeros(f, 128 + 12);
}

static void test_valid(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct header_string string;
    uint64_t number;

    (void)state;
    build_valid(f);
    struct model_header *model = parse(f);
    assert_int_equal(model->version, 3);
    assert_int_equal(model->alignment, 64);
    assert_int_equal(model->data_start, f->size - 140);
    assert_int_equal(model->file_size, f->size);

    assert_int_equal(model->n_kv, 3);
    const struct header_kv *kv = model_header_find(model, "general.architecture");
    assert_ptr_equal(kv, &model->kv[0]);
    assert_int_equal(header_kv_string(kv, &string), 0);
    assert_int_equal(string.size, 5);
    assert_memory_equal(string.bytes, "llama", 5);
    assert_int_equal(header_kv_u64(model_header_find(model, "general.alignment"), &number), 0);
    assert_int_equal(number, 64);
    kv = model_header_find(model, "tokens");
    assert_int_equal(kv->type, GGUF_ARRAY);
    assert_int_equal(kv->element_type, GGUF_STRING);
    assert_int_equal(kv->count, 2);
    assert_int_equal(kv->data_size, 8 + 3 + 8 + 4);
    assert_null(model_header_find(model, "token"));
    assert_null(model_header_find(model, "general.alignment2"));

    assert_int_equal(model->n_tensors, 2);
    const struct header_tensor *tensor = model_header_tensor(model, "token_embd.weight");
    assert_ptr_equal(tensor, &model->tensors[0]);
    assert_string_equal(tensor->type->name, "q4_0");
    assert_int_equal(tensor->n_dims, 2);
    assert_int_equal(tensor->ne[0], 64);
    assert_int_equal(tensor->ne[1], 2);
    assert_int_equal(tensor->ne[2], 1);
    assert_int_equal(tensor->elements, 128);
    assert_int_equal(tensor->bytes, 72);
    assert_int_equal(tensor->offset, model->data_start);
    tensor = model_header_tensor(model, "output_norm.weight");
    assert_int_equal(tensor->offset, model->data_start + 128);
    assert_int_equal(tensor->bytes, 12);
    assert_null(model_header_tensor(model, "output_norm"));
    model_header_free(model);
    model_header_free(NULL);
    free(f);
}

/* Cut anywhere, the file is refused. Inside the header, counts that no longer fit may be blamed before the end is met;
 * else it is the field in which the file ends. */
static void test_truncation(void **state)
{
    struct file *f = calloc(1, sizeof *f);

    (void)state;
    build_valid(f);
    for (size_t size = 0; size < f->size; size++) {
        struct header_fault fault = {0};
        struct model_header *model = NULL;
        size_t cut = 0;

        assert_int_equal(parse_bytes(f->bytes, size, &model, &fault), -EBADMSG);
        assert_null(model);
        assert_non_null(strstr(fault.reason, "the file"));
        for (size_t i = 0; i < n_fields && fields[i] <= size; i++)
            cut = fields[i];
        bool count = strstr(fault.reason, "do not fit") && (fault.offset == 8 || fault.offset == 16);
        bool data = size >= fields[n_fields - 1] && strstr(fault.reason, "the file");
        bool array = strstr(fault.reason, "array of 2 elements") && fault.offset == fields[13];
        if (fault.offset != cut && !count && !data && !array)
            fail_msg("cut at %zu: refused at %llu: %s", size, (unsigned long long)fault.offset, fault.reason);
    }
    free(f);
}

/* The file is shorter than fstat() said: not a fault of the file, but a change of it. */
static void test_shrunk(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct header_fault fault;
    struct model_header *model = NULL;

    (void)state;
    build_valid(f);
    int fd = memfd(f->bytes, 100);
    assert_int_equal(gguf_read(fd, f->size, &model, &fault), -ENODATA);
    close(fd);
    assert_int_equal(gguf_read(-1, f->size, &model, &fault), -EBADF);
    assert_null(model);
    free(f);
}

/* Says it has a header of 2 GiB, and really has it, in a file without blocks. */
static void test_header_too_large(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    struct header_fault fault;
    struct model_header *model = NULL;

    (void)state;
    put_header(f, 3, 0, 1);
    put_key(f, "key", GGUF_STRING);
    mark(f);
    put_u64(f, UINT64_C(2) << 30);
    int fd = memfd(f->bytes, f->size);
    assert_int_equal(ftruncate(fd, INT64_C(3) << 30), 0);
    assert_int_equal(gguf_read(fd, UINT64_C(3) << 30, &model, &fault), -EBADMSG);
    assert_string_equal(fault.reason, "the header is larger than 128 MiB");
    assert_int_equal(fault.offset, f->fault);
    close(fd);

    assert_int_equal(gguf_read(-1, (UINT64_C(1) << 53) + 1, &model, &fault), -EBADMSG);
    assert_string_equal(fault.reason, "the file is larger than 2^53 bytes");
    free(f);
}

/* As many names as there may be, which a search through all earlier ones would take a minute for. */
static void test_many_names(void **state)
{
    enum { N = HEADER_TENSORS_MAX, INFO = 8 + 7 + 4 + 4 + 8 };
    size_t size = 24 + (size_t)N * INFO;
    size_t aligned = (size + 31) & ~(size_t)31;
    uint8_t *bytes = calloc(1, aligned + 4);
    struct header_fault fault;
    struct model_header *model = NULL;
    char name[16];

    (void)state;
    struct file *head = calloc(1, sizeof *head);
    put_header(head, 3, N, 0);
    memcpy(bytes, head->bytes, 24);
    for (unsigned i = 0; i < N; i++) {
        uint8_t *info = bytes + 24 + (size_t)i * INFO;

        snprintf(name, sizeof name, "t%06x", i);
        info[0] = 7;
        memcpy(info + 8, name, 7);
    }
    assert_int_equal(parse_bytes(bytes, aligned + 4, &model, &fault), 0);
    assert_int_equal(model->n_tensors, N);
    assert_string_equal(model->tensors[N - 1].name, "t00ffff");
    model_header_free(model);
    model = NULL;

    memcpy(bytes + 24 + (size_t)(N - 1) * INFO + 8, "t000000", 7);
    assert_int_equal(parse_bytes(bytes, aligned + 4, &model, &fault), -EBADMSG);
    assert_string_equal(fault.reason, "two tensors are called t000000");
    assert_int_equal(fault.offset, 24 + (size_t)(N - 1) * INFO);
    free(head);
    free(bytes);
}

/* The same, into memory that was there before: more than the file has, and less than the header takes. */
static void test_prepared(void **state)
{
    gguf_prepare();
    gguf_prepare();
    test_valid(state);
    gguf_prepare();
    test_truncation(state);
    gguf_prepare();
    test_many_names(state);
}

/* The header comes out as it went in, though names in it were terminated. */
static void test_header_written(void **state)
{
    struct file *f = calloc(1, sizeof *f);
    static uint8_t written[sizeof f->bytes];

    (void)state;
    put_header(f, 3, 2000, 1);
    put_alignment(f, 32);
    for (unsigned i = 0; i < 2000; i++) {
        char name[80];

        snprintf(name, sizeof name, "%0*u", (int)(5 + i % 60), i);
        put_info(f, name, 1, 1, F32, 0);
    }
    const size_t size = f->size;
    put_padding(f, 32);
    put_zeros(f, 32);
    struct model_header *model = parse(f);
    int fd = memfd("", 0);
    assert_int_equal(model_header_write(model, fd), 0);
    assert_int_equal(pread(fd, written, sizeof written, 0), (ssize_t)size);
    assert_memory_equal(written, f->bytes, size);
    close(fd);
    model_header_free(model);
    free(f);
}

/* What the ledger is told is what was taken: as many entries as there is room for. */
static void test_memory(void **state)
{
    enum { N = 33000, ENTRY = 8 + 7 + 4 + 1 };
    struct header_fault fault = {0};
    struct model_header *model = NULL;
    struct file *head = calloc(1, sizeof *head);
    uint8_t *bytes = calloc(1, 24 + (size_t)N * ENTRY);

    (void)state;
    put_header(head, 3, 0, N);
    memcpy(bytes, head->bytes, head->size);
    for (unsigned i = 0; i < N; i++) {
        struct file *entry = head;

        entry->size = 0;
        char key[16];
        snprintf(key, sizeof key, "k%06u", i);
        put_key(entry, key, GGUF_U8);
        put_u8(entry, 1);
        assert_int_equal(entry->size, ENTRY);
        memcpy(bytes + 24 + (size_t)i * ENTRY, entry->bytes, ENTRY);
    }
    assert_int_equal(parse_bytes(bytes, 24 + (size_t)N * ENTRY, &model, &fault), 0);
    assert_int_equal(model->n_kv, N);
    const size_t taken = malloc_usable_size(model->kv) + malloc_usable_size(model->memory);
    assert_in_range(model_header_memory(model), taken - PAGE, taken + PAGE);
    model_header_free(model);
    free(head);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_valid),      cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_shrunk),     cmocka_unit_test(test_header_too_large),
        cmocka_unit_test(test_many_names), cmocka_unit_test(test_prepared),
        cmocka_unit_test(test_memory),     cmocka_unit_test(test_header_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
