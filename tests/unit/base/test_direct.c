/* daemon/base/direct.c: reads of a real file. Skipped where the kernel or the file system cannot do them. */
#include "daemon/base/direct.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define BYTES (3 * (1u << 20) + 777) /* of the file */
#define MANY  200u                   /* more than are under way at a time */

struct fixture {
    struct direct *direct;
    int fd;
    uint8_t *bytes;
    sem_t done;
};

struct reading {
    struct direct_read read;
    struct fixture *fixture;
};

static void done(struct direct_read *read)
{
    sem_post(&((struct reading *)((char *)read - offsetof(struct reading, read)))->fixture->done);
}

static struct fixture fixture;

static void begin(struct reading *reading, uint64_t offset, size_t size)
{
    reading->fixture = &fixture;
    reading->read = (struct direct_read){
        .fd = fixture.fd,
        .dst = aligned_alloc(DIRECT_ALIGNMENT, size),
        .offset = offset,
        .size = size,
        .done = done,
    };
    assert_non_null(reading->read.dst);
    direct_submit(fixture.direct, &reading->read);
}

static void check(const struct reading *reading)
{
    const struct direct_read *read = &reading->read;
    const size_t left = read->offset < BYTES ? BYTES - read->offset : 0;
    assert_int_equal(read->error, 0);
    assert_int_equal(read->got, read->size < left ? read->size : left);
    assert_memory_equal(read->dst, fixture.bytes + read->offset, read->got);
    free(read->dst);
}

static void await(unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(sem_wait(&fixture.done), 0);
}

static void test_one(void **state)
{
    (void)state;
    static const struct {
        uint64_t offset;
        size_t size;
    } reads[] = {{0, 4096}, {4096, 1u << 20}, {0, 4u << 20}, {3u << 20, 4096}, {4u << 20, 4096}};
    for (size_t i = 0; i < sizeof(reads) / sizeof(reads[0]); i++) {
        struct reading reading;
        begin(&reading, reads[i].offset, reads[i].size);
        await(1);
        check(&reading);
    }
}

static void test_many(void **state)
{
    (void)state;
    struct reading readings[MANY];
    for (unsigned i = 0; i < MANY; i++)
        begin(&readings[i], i % 97 * 4096 * 7, (1 + i % 5) * 65536);
    await(MANY);
    for (unsigned i = 0; i < MANY; i++)
        check(&readings[i]);
}

static void test_errors(void **state)
{
    (void)state;
    struct reading reading = {.fixture = &fixture};
    reading.read = (struct direct_read){.fd = -1, .dst = fixture.bytes, .size = 4096, .done = done};
    direct_submit(fixture.direct, &reading.read);
    await(1);
    assert_int_equal(reading.read.error, -EBADF);
    assert_int_equal(reading.read.got, 0);
    reading.read = (struct direct_read){.fd = fixture.fd, .dst = NULL, .size = 4096, .done = done};
    direct_submit(fixture.direct, &reading.read);
    await(1);
    assert_int_equal(reading.read.error, -EFAULT);
    assert_int_equal(reading.read.got, 0);
    begin(&reading, 0, 4096);
    await(1);
    check(&reading);
}

static int make_file(void)
{
    char path[] = "test_direct.XXXXXX";
    const int fd = mkstemp(path);
    if (fd < 0)
        return -1;
    for (size_t i = 0; i < BYTES; i++)
        fixture.bytes[i] = (uint8_t)(i * 2654435761u >> 24);
    const ssize_t n = write(fd, fixture.bytes, BYTES);
    close(fd);
    fixture.fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    unlink(path);
    return n == (ssize_t)BYTES ? 0 : -1;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    fixture.bytes = malloc(BYTES);
    sem_init(&fixture.done, 0, 0);
    if (!fixture.bytes || make_file() < 0)
        return 1;
    if (fixture.fd < 0) {
        puts("skipped: no O_DIRECT in this folder");
        return 77;
    }
    const int r = direct_new(&fixture.direct);
    if (r < 0) {
        printf("skipped: no io_uring: %s\n", strerror(-r));
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_errors),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    direct_free(fixture.direct);
    close(fixture.fd);
    free(fixture.bytes);
    return failed;
}
