#include "gguf_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

void put(struct file *f, const void *bytes, size_t size)
{
    assert_true(f->size + size <= sizeof f->bytes);
    memcpy(f->bytes + f->size, bytes, size);
    f->size += size;
}

void put_u8(struct file *f, uint8_t value)
{
    put(f, &value, 1);
}

void put_u32(struct file *f, uint32_t value)
{
    put(f, &value, 4);
}

void put_u64(struct file *f, uint64_t value)
{
    put(f, &value, 8);
}

void put_bytes(struct file *f, const char *text, size_t size)
{
    put_u64(f, size);
    put(f, text, size);
}

void put_string(struct file *f, const char *text)
{
    put_bytes(f, text, strlen(text));
}

void put_zeros(struct file *f, size_t size)
{
    for (size_t i = 0; i < size; i++)
        put_u8(f, 0);
}

void mark(struct file *f)
{
    f->fault = f->size;
}

void put_header(struct file *f, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    put(f, "GGUF", 4);
    put_u32(f, version);
    put_u64(f, n_tensors);
    put_u64(f, n_kv);
}

void put_key(struct file *f, const char *key, uint32_t type)
{
    put_string(f, key);
    put_u32(f, type);
}

void put_info(struct file *f, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset)
{
    put_string(f, name);
    put_u32(f, 2);
    put_u64(f, ne0);
    put_u64(f, ne1);
    put_u32(f, type);
    put_u64(f, offset);
}

void put_padding(struct file *f, size_t alignment)
{
    while (f->size % alignment != 0)
        put_u8(f, 0);
}

void put_alignment(struct file *f, uint32_t value)
{
    put_key(f, "general.alignment", GGUF_U32);
    put_u32(f, value);
}

int memfd(const void *bytes, size_t size)
{
    int fd = memfd_create("test.gguf", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), (ssize_t)size);
    return fd;
}

int parse_bytes(const void *bytes, size_t size, struct model_header **ret, struct header_fault *ret_fault)
{
    int fd = memfd(bytes, size);
    int error = gguf_read(fd, size, ret, ret_fault);

    close(fd);
    return error;
}

struct model_header *parse(const struct file *f)
{
    struct header_fault fault = {0};
    struct model_header *model = NULL;
    int error = parse_bytes(f->bytes, f->size, &model, &fault);

    if (error)
        fail_msg("refused at %llu: %s", (unsigned long long)fault.offset, fault.reason);
    return model;
}

static void test_row(void **state)
{
    const struct row *row = *state;
    struct file *f = calloc(1, sizeof *f);
    struct header_fault fault = {0};
    struct model_header *model = NULL;

    f->fault = NO_FAULT;
    row->build(f);
    int error = parse_bytes(f->bytes, f->size, &model, &fault);
    if (!row->reason) {
        if (error)
            fail_msg("refused at %llu: %s", (unsigned long long)fault.offset, fault.reason);
        assert_non_null(model);
    } else {
        assert_int_equal(error, -EBADMSG);
        assert_null(model);
        if (!strstr(fault.reason, row->reason))
            fail_msg("the reason is: %s", fault.reason);
        assert_int_equal(fault.offset, f->fault);
    }
    model_header_free(model);
    free(f);
}

void rows_tests(const struct row *rows, size_t n, struct CMUnitTest *ret)
{
    for (size_t i = 0; i < n; i++)
        ret[i] = (struct CMUnitTest){rows[i].name, test_row, NULL, NULL, (void *)&rows[i]};
}
