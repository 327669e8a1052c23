#include "daemon/model/manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define GRANULE 4096u

static int parse(const char *text, uint64_t bytes, struct manifest_parsed *ret, struct manifest_fault *fault)
{
    return manifest_parse(text, strlen(text), bytes, GRANULE, ret, fault);
}

static void test_placed(void **state)
{
    (void)state;
    struct manifest_parsed parts;
    struct manifest_fault fault;
    assert_int_equal(parse("[{\"name\":\"a\",\"type\":\"f16\",\"shape\":[4,8]},"
                           "{\"name\":\"b\",\"type\":\"f32\",\"shape\":[3],\"offset\":8},"
                           "{\"name\":\"c\",\"type\":\"q4_0\",\"shape\":[2,64],\"strides\":null,\"offset\":null},"
                           "{\"name\":\"b.t\",\"type\":\"f32\",\"shape\":[3,1],\"strides\":[1,9],\"offset\":8},"
                           "{\"name\":\"x\",\"type\":\"f32\",\"shape\":[2,2],\"strides\":[1,2],\"offset\":8}]",
                           0, &parts, &fault),
                     0);
    const uint64_t offsets[] = {256, 8, 512, 8, 8}, bytes[] = {64, 12, 72, 12, 16};
    assert_int_equal(parts.header->n_tensors, 5);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(parts.plan->places[i].offset, offsets[i]);
        assert_int_equal(parts.plan->places[i].bytes, bytes[i]);
        assert_int_equal(parts.header->tensors[i].bytes, bytes[i]);
    }
    assert_int_equal(parts.plan->arena_bytes, GRANULE);
    assert_int_equal(parts.plan->model_bytes, 64 + 16 + 72);
    assert_int_equal(parts.plan->places[0].form, FORM_F16);
    assert_int_equal(parts.plan->places[2].form, FORM_NATIVE);
    assert_int_equal(parts.header->tensors[0].ne[0], 8);
    assert_null(manifest_strides(parts.manifest, 3)); /* its elements lie one behind the other */
    assert_int_equal(manifest_strides(parts.manifest, 4)[1], 2);
    assert_false(manifest_is_view(parts.manifest, 4)); /* the longest one is the owner */
    assert_true(manifest_is_view(parts.manifest, 1) && manifest_is_view(parts.manifest, 3));
    assert_false(manifest_is_view(NULL, 3));
    assert_null(manifest_strides(NULL, 0));
    manifest_parsed_free(&parts);
}

static void test_bounds(void **state)
{
    (void)state;
    struct manifest_parsed parts;
    struct manifest_fault fault;
    const char *last = "[{\"name\":\"a\",\"type\":\"u8\",\"shape\":[4096],\"offset\":4096}]";
    assert_int_equal(parse(last, 8192, &parts, &fault), 0);
    manifest_parsed_free(&parts);
    assert_int_equal(parse(last, 8191, &parts, &fault), -EBADMSG);
    assert_int_equal(fault.tensor, 0);
    assert_int_equal(manifest_parse_none(4097, GRANULE, &parts, &fault), 0);
    assert_int_equal(parts.plan->arena_bytes, 8192);
    assert_int_equal(parts.plan->model_bytes, 0);
    manifest_parsed_free(&parts);
    assert_int_equal(manifest_parse_none(PLAN_ARENA_MAX, GRANULE, &parts, &fault), -EBADMSG);
    assert_int_equal(parse("[]", 0, &parts, &fault), 0);
    assert_int_equal(parts.plan->arena_bytes, GRANULE);
    manifest_parsed_free(&parts);
}

/* What manifest_header() writes, manifest_read_header() reads, with any text in it; and nothing else. */
static void test_header(void **state)
{
    (void)state;
    struct manifest_parsed parts, again;
    struct manifest_fault fault;
    assert_int_equal(parse("[{\"name\":\"a\\\"\\u0001\\u00e9\",\"type\":\"f16\",\"shape\":[2,2],\"strides\":[1,2]},"
                           "{\"name\":\"scalar\",\"type\":\"bool\",\"shape\":[]}]",
                           0, &parts, &fault),
                     0);
    parts.manifest->key = strdup("k\\\"\n");
    parts.manifest->metadata = strdup("{\"m\": \"\xc3\xa9\x1f\"}");
    char *text;
    size_t size;
    assert_int_equal(manifest_header(parts.plan, &text, &size), 0);
    assert_int_equal(manifest_read_header(text, size, GRANULE, &again), 0);
    assert_string_equal(again.manifest->key, parts.manifest->key);
    assert_string_equal(again.manifest->metadata, parts.manifest->metadata);
    assert_string_equal(again.header->tensors[0].name, "a\"\x01\xc3\xa9");
    for (size_t i = 0; i < 2; i++)
        assert_memory_equal(&again.plan->places[i], &parts.plan->places[i], sizeof(struct tensor_place));
    assert_int_equal(manifest_strides(again.manifest, 0)[1], 2);
    manifest_parsed_free(&again);

    assert_int_equal(manifest_read_header(text, size, GRANULE + 1, &again), -EBADMSG);
    assert_int_equal(manifest_read_header(text, size, 0, &again), -EBADMSG);
    assert_int_equal(manifest_read_header(text, size, 257, &again), -EBADMSG); /* the scalar is at 256 */
    for (size_t cut = 0; cut < size; cut++) {
        uint64_t length = cut - 8;
        if (cut >= 8)
            memcpy(text, &length, sizeof(length));
        assert_int_equal(manifest_read_header(text, cut, GRANULE, &again), -EBADMSG);
    }
    free(text);
    manifest_parsed_free(&parts);
}

static int file_of(const char *text, size_t size, int seals)
{
    int fd = memfd_create("text", MFD_ALLOW_SEALING);
    assert_true(fd >= 0 && write(fd, text, size) == (ssize_t)size);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void test_texts(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    int fd = file_of("abc", 3, F_SEAL_WRITE | F_SEAL_SHRINK);
    assert_int_equal(manifest_text_read(fd, 3, &text, &size), 0);
    assert_string_equal(text, "abc");
    free(text);
    assert_int_equal(manifest_text_read(fd, 2, &text, &size), -E2BIG);
    close(fd);
    fd = file_of("abc", 3, F_SEAL_WRITE);
    assert_int_equal(manifest_text_read(fd, 3, &text, &size), -EPERM);
    close(fd);
    fd = open("/dev/zero", O_RDONLY);
    assert_int_equal(manifest_text_read(fd, 3, &text, &size), -EPERM);
    close(fd);
    assert_true(manifest_text_valid("\xc3\xa9", 2, 2));
    assert_false(manifest_text_valid("\xc3\xa9", 2, 1));
    assert_false(manifest_text_valid("\xc3", 1, 9));
    assert_false(manifest_text_valid("a\0b", 3, 9));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placed),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
