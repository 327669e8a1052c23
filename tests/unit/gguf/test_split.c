/* daemon/gguf/split.c: files of a split model are joined if they agree, and refused if not. */
#include "daemon/gguf/split.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define NONE INT64_MIN

enum { U16 = 2, U32 = 4, I32 = 5, STRING = 8, U64 = 10 };

struct writer {
    uint8_t bytes[4096];
    size_t n;
};

static void put(struct writer *writer, const void *bytes, size_t n)
{
    assert_true(writer->n + n <= sizeof(writer->bytes));
    memcpy(writer->bytes + writer->n, bytes, n);
    writer->n += n;
}

static void put_u32(struct writer *writer, uint32_t value)
{
    put(writer, &value, 4);
}

static void put_u64(struct writer *writer, uint64_t value)
{
    put(writer, &value, 8);
}

static void put_string(struct writer *writer, const char *text)
{
    put_u64(writer, strlen(text));
    put(writer, text, strlen(text));
}

/* A file: what it says of its place (NONE: nothing), and its tensors' names, of 32 bytes each. */
struct chunk_part {
    int64_t number, count, total;
    uint32_t type; /* of these numbers */
    const char *tensors[4];
};

static void put_number(struct writer *writer, const char *key, uint32_t type, int64_t value)
{
    put_string(writer, key);
    put_u32(writer, type);
    if (type == STRING)
        put_string(writer, "one");
    else
        put(writer, &value, type == U16 ? 2 : type == U64 ? 8 : 4);
}

static int part_write(const struct chunk_part *part)
{
    struct writer writer = {0};
    uint64_t n_tensors = 0;
    while (n_tensors < 4 && part->tensors[n_tensors])
        n_tensors++;
    put(&writer, "GGUF\3\0\0\0", 8);
    put_u64(&writer, n_tensors);
    put_u64(&writer, (uint64_t)(part->number != NONE) + (part->count != NONE) + (part->total != NONE));
    uint32_t type = part->type ? part->type : U16;
    if (part->number != NONE)
        put_number(&writer, "split.no", type, part->number);
    if (part->count != NONE)
        put_number(&writer, "split.count", type, part->count);
    if (part->total != NONE)
        put_number(&writer, "split.tensors.count", type, part->total);
    for (uint64_t i = 0; i < n_tensors; i++) {
        put_string(&writer, part->tensors[i]);
        put_u32(&writer, 1);
        put_u64(&writer, 8);
        put_u32(&writer, 0); /* f32 */
        put_u64(&writer, i * 32);
    }
    while (writer.n % 32 != 0)
        put(&writer, "", 1);
    for (uint64_t i = 0; i < n_tensors * 32; i++)
        put(&writer, "x", 1);
    int fd = memfd_create("part", MFD_CLOEXEC);
    assert_int_equal(write(fd, writer.bytes, writer.n), writer.n);
    return fd;
}

/* The first bytes of a file whose header is as good as `bytes` long: nothing but a string, of which nothing is there
 * but its length, so that it costs its sender nothing. */
static int sparse_write(int64_t number, int64_t count, uint64_t bytes)
{
    struct writer writer = {0};
    put(&writer, "GGUF\3\0\0\0", 8);
    put_u64(&writer, 0);
    put_u64(&writer, 4);
    put_number(&writer, "split.no", U16, number);
    put_number(&writer, "split.count", U16, count);
    put_number(&writer, "split.tensors.count", U16, 0);
    put_string(&writer, "general.description");
    put_u32(&writer, STRING);
    put_u64(&writer, bytes);
    int fd = memfd_create("sparse", MFD_CLOEXEC);
    assert_int_equal(write(fd, writer.bytes, writer.n), writer.n);
    assert_int_equal(ftruncate(fd, (off_t)(writer.n + bytes)), 0);
    return fd;
}

#define FILES_MAX 253u

/* Closes the descriptors. */
static int read_all(const int *fds, size_t n, struct model_header **ret, struct header_fault *ret_fault,
                    size_t *ret_file)
{
    struct header_file files[FILES_MAX];
    assert_true(n <= FILES_MAX);
    for (size_t i = 0; i < n; i++) {
        struct stat status;
        assert_int_equal(fstat(fds[i], &status), 0);
        files[i] = (struct header_file){fds[i], (uint64_t)status.st_size};
    }
    int r = split_read(files, n, ret, ret_fault, ret_file);
    for (size_t i = 0; i < n; i++)
        close(fds[i]);
    return r;
}

static int read_sparse(const uint64_t *bytes, size_t n, struct header_fault *ret_fault, size_t *ret_file)
{
    int fds[FILES_MAX];
    for (size_t i = 0; i < n; i++)
        fds[i] = sparse_write((int64_t)i, (int64_t)n, bytes[i]);
    struct model_header *model = NULL;
    int r = read_all(fds, n, &model, ret_fault, ret_file);
    model_header_free(model);
    return r;
}

static int read_parts(const struct chunk_part *parts, size_t n, struct model_header **ret,
                      struct header_fault *ret_fault, size_t *ret_file)
{
    int fds[8];
    for (size_t i = 0; i < n; i++)
        fds[i] = part_write(&parts[i]);
    return read_all(fds, n, ret, ret_fault, ret_file);
}

/* Good for three files; what a test changes, it changes in a copy. */
static const struct chunk_part good[3] = {
    {0, 3, 5, 0, {NULL}},
    {1, 3, 5, 0, {"a", "b", "c"}},
    {2, 3, 5, 0, {"d", "e"}},
};

static void joined(void **state)
{
    (void)state;
    struct model_header *model = NULL;
    struct header_fault fault;
    size_t file;
    assert_int_equal(read_parts(good, 3, &model, &fault, &file), 0);
    assert_int_equal(model->n_tensors, 5);
    for (size_t i = 0; i < 5; i++) {
        const char name[] = {(char)('a' + i), '\0'};
        assert_string_equal(model->tensors[i].name, name);
        assert_int_equal(model->tensors[i].shard, i < 3 ? 1 : 2);
        assert_int_equal(model->tensors[i].offset % 32, 0);
        assert_int_equal(model->tensors[i].bytes, 32);
    }
    model_header_free(model);
}

/* Files in another order make the same model: each tensor knows which of them it stands in. */
static void in_any_order(void **state)
{
    (void)state;
    static const unsigned orders[][3] = {{0, 2, 1}, {2, 1, 0}, {1, 2, 0}};
    for (size_t k = 0; k < 3; k++) {
        struct chunk_part parts[3];
        for (size_t i = 0; i < 3; i++)
            parts[i] = good[orders[k][i]];
        struct model_header *model = NULL;
        struct header_fault fault;
        size_t file;
        assert_int_equal(read_parts(parts, 3, &model, &fault, &file), 0);
        for (size_t i = 0; i < 5; i++) {
            const char name[] = {(char)('a' + i), '\0'};
            assert_string_equal(model->tensors[i].name, name);
            assert_int_equal(orders[k][model->tensors[i].shard], i < 3 ? 1 : 2);
        }
        model_header_free(model);
    }
}

static void agrees(const struct chunk_part *parts, size_t n, size_t n_tensors)
{
    struct model_header *model = NULL;
    struct header_fault fault = {0};
    size_t file;
    if (read_parts(parts, n, &model, &fault, &file) != 0)
        fail_msg("refused: %s", fault.reason);
    assert_int_equal(model->n_tensors, n_tensors);
    model_header_free(model);
}

static void other_ways_to_say_it(void **state)
{
    (void)state;
    agrees((struct chunk_part[]){{NONE, NONE, NONE, 0, {"a"}}}, 1, 1);
    agrees((struct chunk_part[]){{0, 0, NONE, 0, {"a"}}}, 1, 1);
    agrees((struct chunk_part[]){{0, 1, 1, 0, {"a"}}}, 1, 1);
    agrees((struct chunk_part[]){{0, 2, 2, U64, {"a"}}, {1, 2, 2, I32, {"b"}}}, 2, 2);
    agrees((struct chunk_part[]){{0, 2, 2, U32, {"a"}}, {1, NONE, NONE, 0, {"b"}}}, 2, 2);
    agrees((struct chunk_part[]){{0, 2, 0, 0, {NULL}}, {1, 2, 0, 0, {NULL}}}, 2, 0);
}

static void refused(const struct chunk_part *parts, size_t n, const char *reason)
{
    struct model_header *model = NULL;
    struct header_fault fault = {0};
    size_t file = SIZE_MAX;
    assert_int_equal(read_parts(parts, n, &model, &fault, &file), -EBADMSG);
    assert_null(model);
    assert_true(file <= n);
    if (!strstr(fault.reason, reason))
        fail_msg("'%s' says nothing of '%s'", fault.reason, reason);
}

static void changed(size_t file, struct chunk_part part, const char *reason)
{
    struct chunk_part parts[3];
    memcpy(parts, good, sizeof(parts));
    parts[file] = part;
    refused(parts, 3, reason);
}

static void that_do_not_agree(void **state)
{
    (void)state;
    refused(good, 2, "3 files");
    refused(good, 1, "all are needed");
    refused(&good[1], 1, "a later one");
    changed(1, good[2], "number 3, as file 2 does");
    changed(1, (struct chunk_part){3, 3, 5, 0, {"a", "b", "c"}}, "number 4, but 3 files");
    changed(0, (struct chunk_part){0, 2, 5, 0, {NULL}}, "2 files");
    changed(0, (struct chunk_part){0, NONE, 5, 0, {NULL}}, "1 files");
    changed(0, (struct chunk_part){NONE, 3, 5, 0, {NULL}}, "split.no");
    changed(1, (struct chunk_part){NONE, 3, 5, 0, {"a", "b", "c"}}, "split.no");
    changed(0, (struct chunk_part){0, 3, 4, 0, {NULL}}, "split.tensors.count");
    changed(0, (struct chunk_part){0, 3, NONE, 0, {NULL}}, "split.tensors.count");
    changed(0, (struct chunk_part){0, 3, 5, STRING, {NULL}}, "split.");
    changed(0, (struct chunk_part){0, 3, -5, I32, {NULL}}, "split.tensors.count");
    changed(2, (struct chunk_part){2, 3, 5, 0, {"d"}}, "4 tensors");
    changed(2, (struct chunk_part){2, 3, 5, 0, {"d", "a"}}, "two files");
    changed(2, (struct chunk_part){2, 3, 5, 0, {"d", "d"}}, "");
}

static void many_names(void **state)
{
    (void)state;
    /* The same name in any two places is found, however the names fall into the table. */
    for (int i = 0; i < 200; i++) {
        char names[4][16];
        struct chunk_part parts[2] = {{0, 2, 4, 0, {names[0], names[1]}}, {1, 2, 4, 0, {names[2], names[3]}}};
        for (int j = 0; j < 4; j++)
            snprintf(names[j], sizeof(names[j]), "t%d", i * 4 + j);
        agrees(parts, 2, 4);
        strcpy(names[2 + i % 2], names[i / 2 % 2]);
        refused(parts, 2, "two files");
    }
}

/* One header's bound is that of all files: they are kept at the same time. */
static void headers_share_one_bound(void **state)
{
    (void)state;
    const uint64_t mib = 1u << 20;
    struct header_fault fault = {0};
    size_t file = SIZE_MAX;
    assert_int_equal(read_sparse((uint64_t[]){60 * mib, 60 * mib, 7 * mib}, 3, &fault, &file), 0);
    assert_int_equal(read_sparse((uint64_t[]){60 * mib, 60 * mib, 8 * mib}, 3, &fault, &file), -EBADMSG);
    assert_int_equal(file, 2);
    assert_non_null(strstr(fault.reason, "takes more than 128 MiB"));
    assert_int_equal(fault.offset, 135); /* of the string's length: behind three numbers and the key */
    assert_int_equal(read_sparse((uint64_t[]){128 * mib, 0}, 2, &fault, &file), -EBADMSG);
    assert_int_equal(file, 0);
    assert_string_equal(fault.reason, "the header is larger than 128 MiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_any_order),      cmocka_unit_test(joined),     cmocka_unit_test(other_ways_to_say_it),
        cmocka_unit_test(that_do_not_agree), cmocka_unit_test(many_names), cmocka_unit_test(headers_share_one_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
