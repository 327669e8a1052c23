/* daemon/keep/description.h: what is written is read again, and nothing else is. */
#include "daemon/keep/description.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define N_TENSORS 3u

/* A model with all that a description has. */
struct rig {
    struct model model;
    struct device device;
    struct source *source;
    struct model_header header;
    struct header_tensor tensors[N_TENSORS];
    struct tensor_place places[N_TENSORS];
    struct plan plan;
    struct model_name names[2];
    uid_t guests[2];
    int fd; /* of its description */
};

static void fill(struct rig *rig)
{
    for (size_t i = 0; i < N_TENSORS; i++) {
        rig->tensors[i] = (struct header_tensor){.offset = 1000 * i, .bytes = 256, .shard = 0};
        rig->places[i] = (struct tensor_place){.offset = 512 * i, .bytes = 256, .padding = i, .form = FORM_F16};
    }
    rig->header = (struct model_header){
        .n_tensors = N_TENSORS, .n_infos = N_TENSORS, .tensors = rig->tensors, .header_bytes = 77, .file_size = 5000};
    rig->plan = (struct plan){.model = &rig->header, .places = rig->places, .arena_bytes = 4096};
    rig->device = (struct device){.id = "hip:1", .kind = "hip", .uuid = "GPU-1", .pci = "", .granule = 4096};
    strcpy(rig->device.name, "a GPU");
    rig->device.total = 9000;
    rig->device.budget = 8000;
    rig->device.link = 7000;
    rig->source->files[0].identity = (struct identity){.dev = 1, .ino = 2, .size = 5000, .mtime_ns = -3, .ctime_ns = 4};
    rig->model = (struct model){.id = 9,
                                .uid = 12,
                                .access = ACCESS_PUBLIC,
                                .pinned = true,
                                .deleted = true,
                                .ttl = -1,
                                .origin = (char *)(uintptr_t) "/m",
                                .source = rig->source,
                                .header = &rig->header,
                                .plan = &rig->plan,
                                .device = &rig->device,
                                .guests = rig->guests,
                                .n_guests = 2,
                                .forms = forms_plain(FORM_AUTO),
                                .n_names = 2};
    memset(rig->model.token, 0xa5, sizeof(rig->model.token));
    rig->guests[0] = 1;
    rig->guests[1] = 4000000000u;
    TAILQ_INIT(&rig->model.names);
    for (size_t i = 0; i < 2; i++) {
        rig->names[i] = (struct model_name){.since = i + 5, .uid = (uid_t)i};
        strcpy(rig->names[i].text, i ? "second" : "first");
        TAILQ_INSERT_TAIL(&rig->model.names, &rig->names[i], link);
    }
}

static int set_up(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    assert_non_null(rig);
    rig->source = calloc(1, sizeof(*rig->source) + sizeof(rig->source->files[0]));
    assert_non_null(rig->source);
    *rig->source = (struct source){.references = 1, .n_files = 1, .link = (char *)(uintptr_t) "/l"};
    rig->source->files[0].path = (char *)(uintptr_t) "/p";
    rig->source->files[0].seen = true;
    fill(rig);
    struct access_entry *entries;
    assert_int_equal(access_facts_new(1, 1, &rig->model.facts, &entries), 0);
    entries[1] = (struct access_entry){.owner = 7, .group = 8, .mode = S_IFDIR | 0750, .acl = true};
    const uint32_t numbers[] = {33};
    rig->fd = description_write(&rig->model, numbers);
    assert_true(rig->fd >= 0);
    *state = rig;
    return 0;
}

static int tear_down(void **state)
{
    struct rig *rig = *state;
    close(rig->fd);
    access_facts_unref(rig->model.facts);
    free(rig->source);
    free(rig);
    return 0;
}

static void written_and_read(void **state)
{
    struct rig *rig = *state;
    struct description read;
    const char *why = NULL;
    assert_true(description_sealed(rig->fd));
    assert_int_equal(description_read(rig->fd, &read, &why), 0);
    assert_memory_equal(read.token, rig->model.token, sizeof(read.token));
    assert_int_equal(read.id, 9);
    assert_int_equal(read.uid, 12);
    assert_int_equal(read.access, ACCESS_PUBLIC);
    assert_true(read.pinned && !read.changed && read.deleted && read.ttl == -1);
    assert_string_equal(read.origin, "/m");
    assert_string_equal(read.link, "/l");
    assert_string_equal(read.files[0].path, "/p");
    assert_true(read.files[0].seen && !read.files[0].named);
    assert_string_equal(read.device_name, "a GPU");
    assert_int_equal(read.device_total, 9000);
    assert_int_equal(read.device_budget, 8000);
    assert_int_equal(read.device_link, 7000);
    assert_int_equal(read.n_names, 2);
    assert_string_equal(read.names[1].text, "second");
    assert_int_equal(read.names[1].since, 6);
    assert_int_equal(read.n_guests, 2);
    assert_int_equal(read.guests[1], 4000000000u);
    assert_int_equal(read.facts->n_files, 1);
    assert_int_equal(read.facts->entries[1].mode, S_IFDIR | 0750);
    assert_true(forms_equal(read.forms, forms_plain(FORM_AUTO)));
    assert_string_equal(read.device_uuid, "GPU-1");
    assert_string_equal(read.device_pci, "");
    assert_int_equal(read.arena_bytes, 4096);
    assert_int_equal(read.files[0].number, 33);
    assert_memory_equal(&read.files[0].identity, &rig->source->files[0].identity, sizeof(struct identity));
    assert_int_equal(read.n_headers, 1);
    assert_int_equal(read.headers[0].bytes, 77);
    assert_int_equal(read.n_tensors, N_TENSORS);
    assert_memory_equal(&read.tensors[2].place, &rig->places[2], sizeof(struct tensor_place));
    description_clear(&read);
}

static int sealed(const uint8_t *bytes, size_t size)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    return fd;
}

/* Reads bytes as a description. Returns whether that was one. */
static bool reads(const uint8_t *bytes, size_t size)
{
    struct description read;
    const char *why = NULL;
    const int fd = sealed(bytes, size);
    const int r = description_read(fd, &read, &why);
    close(fd);
    if (r == 0)
        description_clear(&read);
    else
        assert_non_null(why);
    return r == 0;
}

/* The description's bytes; the caller frees them. */
static uint8_t *bytes_of(const struct rig *rig, size_t *ret_size)
{
    struct stat status;
    assert_int_equal(fstat(rig->fd, &status), 0);
    uint8_t *bytes = malloc((size_t)status.st_size);
    assert_non_null(bytes);
    assert_int_equal(pread(rig->fd, bytes, (size_t)status.st_size, 0), status.st_size);
    *ret_size = (size_t)status.st_size;
    return bytes;
}

static void no_bit_may_change(void **state)
{
    size_t size = 0;
    uint8_t *bytes = bytes_of(*state, &size);
    assert_true(reads(bytes, size));
    for (size_t bit = 0; bit < 8 * size; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(reads(bytes, size));
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t less = 0; less < size; less++)
        assert_false(reads(bytes, less));
    free(bytes);
}

/* Whoever wrote it: no value leads out of its bounds. What the sanitizers do not like ends the test. */
static void right_checksum_and_wrong_values(void **state)
{
    static const uint64_t values[] = {0, 1, 2, 255, 1u << 20, UINT32_MAX, INT64_MAX, UINT64_MAX};
    size_t size = 0, refused = 0;
    uint8_t *bytes = bytes_of(*state, &size);
    const size_t prologue = 32;
    for (size_t at = prologue; at + 8 <= size; at++)
        for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
            uint8_t before[8];
            memcpy(before, bytes + at, 8);
            memcpy(bytes + at, &values[i], 8);
            const uint64_t checksum = XXH3_64bits(bytes + prologue, size - prologue);
            memcpy(bytes + 24, &checksum, 8);
            refused += !reads(bytes, size);
            memcpy(bytes + at, before, 8);
        }
    assert_true(refused > 0);
    free(bytes);
}

static void not_sealed(void **state)
{
    size_t size = 0;
    uint8_t *bytes = bytes_of(*state, &size);
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(write(fd, bytes, size), size);
    struct description read;
    const char *why = NULL;
    assert_int_equal(description_read(fd, &read, &why), -EPERM);
    assert_int_equal(description_read(-1, &read, &why), -EPERM);
    close(fd);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(written_and_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_bit_may_change, set_up, tear_down),
        cmocka_unit_test_setup_teardown(right_checksum_and_wrong_values, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_sealed, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
