/* proto/shards.c: what a file says of its place, and where the other files of its model are. */
#include "proto/gguf_value.h"
#include "proto/shards.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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

enum { U8 = 0, U16 = 2, U32 = 4, I32 = 5, F32 = 6, STRING = 8, ARRAY = 9, U64 = 10, I64 = 11 };

struct writer {
    uint8_t bytes[300000];
    size_t n;
};

static void put(struct writer *w, const void *bytes, size_t n)
{
    assert_true(w->n + n <= sizeof(w->bytes));
    memcpy(w->bytes + w->n, bytes, n);
    w->n += n;
}

static void put_number(struct writer *w, uint64_t value, size_t size)
{
    put(w, &value, size);
}

static void put_string(struct writer *w, const char *text)
{
    put_number(w, strlen(text), 8);
    put(w, text, strlen(text));
}

static void put_key(struct writer *w, const char *key, uint32_t type)
{
    put_string(w, key);
    put_number(w, type, 4);
}

static void put_start(struct writer *w, uint64_t tensors, uint64_t n)
{
    put(w, "GGUF\3\0\0\0", 8);
    put_number(w, tensors, 8);
    put_number(w, n, 8);
}

static void put_header(struct writer *w, uint64_t n)
{
    put_start(w, 0, n);
}

/* A vocabulary that is longer than what is read at once, and an array of arrays. */
static void put_much(struct writer *w)
{
    put_key(w, "tokens", ARRAY);
    put_number(w, STRING, 4);
    put_number(w, 20000, 8);
    for (unsigned i = 0; i < 20000; i++)
        put_string(w, "abc");
    put_key(w, "nested", ARRAY);
    put_number(w, ARRAY, 4);
    put_number(w, 1, 8);
    put_number(w, U16, 4);
    put_number(w, 3, 8);
    put(w, "abcdef", 6);
}

static int peek(const struct writer *w, struct shard_place *ret)
{
    int fd = memfd_create("peek", MFD_CLOEXEC);
    assert_int_equal(write(fd, w->bytes, w->n), (ssize_t)w->n);
    int r = shard_peek(fd, ret);
    close(fd);
    return r;
}

static void what_it_says(void **state)
{
    (void)state;
    struct writer *w = calloc(1, sizeof(*w));
    struct shard_place place;
    put_header(w, 5);
    put_much(w);
    put_key(w, "split.no", U16);
    put_number(w, 3, 2);
    put_key(w, "split.tensors.count", I32);
    put_number(w, 70000, 4);
    put_key(w, "split.count", I64);
    put_number(w, 12, 8);
    assert_int_equal(peek(w, &place), 0);
    assert_true(place.gguf && place.split);
    assert_int_equal(place.number, 3);
    assert_int_equal(place.count, 12);
    assert_int_equal(place.tensors, 70000);
    const size_t whole = w->n;
    for (size_t n = 0; n < whole; n += n < 100 || n + 100 > whole ? 1 : 997) { /* cut short, it says less */
        w->n = n;
        assert_int_equal(peek(w, &place), 0);
        assert_int_equal(place.gguf, n >= 4);
        assert_true(place.count == 0);
    }
    free(w);
}

/* What stands behind the longest header is not looked at, and does not hold up whoever reads a folder. */
static void no_further_than_a_header(void **state)
{
    (void)state;
    struct writer *w = calloc(1, sizeof(*w));
    struct shard_place place;
    int fd = memfd_create("long", MFD_CLOEXEC);
    put_header(w, 3);
    put_key(w, "tokens", ARRAY);
    put_number(w, STRING, 4);
    put_number(w, (uint64_t)1 << 40, 8);
    assert_int_equal(write(fd, w->bytes, w->n), (ssize_t)w->n);
    assert_int_equal(ftruncate(fd, (off_t)1 << 43), 0); /* as many empty strings: reading them all takes hours */
    alarm(60);
    assert_int_equal(shard_peek(fd, &place), 0);
    alarm(0);
    assert_true(place.gguf && !place.split);
    close(fd);

    w->n = 0;
    fd = memfd_create("long", MFD_CLOEXEC);
    put_header(w, 3);
    put_key(w, "bytes", ARRAY);
    put_number(w, U8, 4);
    put_number(w, HEADER_BYTES_MAX, 8);
    assert_int_equal(write(fd, w->bytes, w->n), (ssize_t)w->n);
    assert_int_equal(lseek(fd, HEADER_BYTES_MAX, SEEK_CUR), (off_t)(HEADER_BYTES_MAX + w->n));
    w->n = 0;
    put_key(w, "split.no", U16);
    put_number(w, 0, 2);
    put_key(w, "split.count", U16);
    put_number(w, 2, 2);
    assert_int_equal(write(fd, w->bytes, w->n), (ssize_t)w->n);
    assert_int_equal(shard_peek(fd, &place), 0);
    assert_true(place.gguf && !place.split && place.count == 0);
    close(fd);
    free(w);
}

static void what_it_does_not_say(void **state)
{
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t value;
        size_t size;
    } wrong[] = {{F32, 0, 4}, {I32, UINT32_MAX, 4}, {I64, UINT64_MAX, 8}, {STRING, 0, 8}, {99, 0, 4}};
    struct writer *w = calloc(1, sizeof(*w));
    struct shard_place place;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        w->n = 0;
        put_header(w, 1);
        put_key(w, "split.no", wrong[i].type);
        put_number(w, wrong[i].value, wrong[i].size);
        assert_int_equal(peek(w, &place), 0);
        assert_true(place.gguf && !place.split);
    }
    w->n = 0;
    put_header(w, 2); /* one of one */
    put_key(w, "split.no", U16);
    put_number(w, 0, 2);
    put_key(w, "split.count", U16);
    put_number(w, 1, 2);
    assert_int_equal(peek(w, &place), 0);
    assert_false(place.split);
    w->n = 0;
    put(w, "no model at all", 15);
    assert_int_equal(peek(w, &place), 0);
    assert_false(place.gguf || place.split);
    free(w);
}

/* --- files in a folder --- */

static char folder[] = "/tmp/test_shards.XXXXXX";

static int folder_make(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test_shards.XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char paths[4][PATH_MAX];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, PATH_MAX, "%s/%s", folder, name);
    return path;
}

/* What a test puts into a file. count 0: it says nothing of its place. */
struct content {
    unsigned number, count, total;
    unsigned first, end; /* its tensors: of those that the model has, which are named by their number */
    const char *name;    /* the model's, in the metadata; NULL: none */
    uint64_t split_size; /* a number with a key that begins with "split."; 0: none */
};

static void write_content(const char *name, const struct content *content)
{
    struct writer *w = calloc(1, sizeof(*w));
    const bool split = content->count > 0;
    put_start(w, content->end - content->first,
              (split ? 3 : 0) + (content->name ? 1 : 0) + (content->split_size > 0 ? 1 : 0));
    if (content->name) {
        put_key(w, "general.name", STRING);
        put_string(w, content->name);
    }
    if (split) {
        put_key(w, "split.no", U16);
        put_number(w, content->number, 2);
        put_key(w, "split.count", U16);
        put_number(w, content->count, 2);
        put_key(w, "split.tensors.count", I32);
        put_number(w, content->total, 4);
    }
    if (content->split_size > 0) {
        put_key(w, "split.size", U64);
        put_number(w, content->split_size, 8);
    }
    for (unsigned i = content->first; i < content->end; i++) {
        char tensor[16];
        snprintf(tensor, sizeof(tensor), "t%u", i);
        put_string(w, tensor);
        put_number(w, 1, 4);
        put_number(w, 32, 8);
        put_number(w, 0, 4);
        put_number(w, 0, 8);
    }
    int fd = open(path_of(name), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, w->bytes, w->n), (ssize_t)w->n);
    close(fd);
    free(w);
}

/* The tensors stand in the first files, one in each; the last file has the rest. */
static void make_file(const char *name, unsigned number, unsigned count, unsigned tensors)
{
    const unsigned first = number < tensors ? number : tensors;
    const unsigned end = number + 1 == count || first == tensors ? tensors : first + 1;
    write_content(name, &(struct content){.number = number,
                                          .count = count,
                                          .total = tensors,
                                          .first = count > 0 ? first : 0,
                                          .end = count > 0 ? end : 0});
}

static int open_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Those names, in this order. */
static void check_found(const char *name, bool any, const char *const *names)
{
    struct shard_paths found;
    size_t n = 0;
    int r = shards_find(path_of(name), any, open_file, &found);
    if (r != 0)
        fail_msg("%s: %s", name, strerror(-r));
    for (; names[n]; n++) {
        assert_true(n < found.n);
        char want[PATH_MAX], got[PATH_MAX];
        assert_non_null(realpath(path_of(names[n]), want));
        assert_non_null(realpath(found.paths[n], got));
        assert_string_equal(got, want);
    }
    assert_int_equal(found.n, n);
    shard_paths_free(&found);
}

static void by_names(void **state)
{
    (void)state;
    static const char *const formats[] = {"m-%05u-of-00003.gguf",
                                          "m-%05u-of-00003.GGUF",
                                          "m-%06u-of-000003.gguf",
                                          "m-%03u-of-003.gguf",
                                          "m-%u-of-3",
                                          "a-of-b-%05u-of-00003-f00.gguf"};
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        char names[3][64];
        for (unsigned k = 0; k < 3; k++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            snprintf(names[k], sizeof(names[k]), formats[i], k + 1);
#pragma GCC diagnostic pop
            make_file(names[k], k, 3, 7);
        }
        const char *const all[] = {names[0], names[1], names[2], NULL}, *const second[] = {names[1], NULL};
        check_found(names[0], false, all);
        check_found(names[1], false, second);
        check_found(names[1], true, all);
        for (unsigned k = 0; k < 3; k++)
            unlink(path_of(names[k]));
    }
}

/* Names that say nothing: the files do, also where others lie beside them. */
static void by_content(void **state)
{
    (void)state;
    make_file("sha256-77", 1, 3, 7);
    make_file("sha256-03", 2, 3, 7);
    make_file("sha256-aa", 0, 3, 7);
    make_file("sha256-bb", 0, 2, 7); /* of other models */
    make_file("sha256-cc", 1, 3, 8);
    make_file("sha256-dd", 0, 0, 0);
    const char *const all[] = {"sha256-aa", "sha256-77", "sha256-03", NULL}, *const single[] = {"sha256-dd", NULL};
    check_found("sha256-aa", false, all);
    check_found("sha256-03", true, all);
    check_found("sha256-dd", true, single);
    assert_int_equal(symlink("sha256-aa", path_of("friendly.gguf")), 0);
    check_found("friendly.gguf", false, all);

    struct shard_paths found;
    assert_int_equal(shards_find(path_of("sha256-bb"), false, open_file, &found), -ENOENT);
    shard_paths_free(&found);
    make_file("sha256-ee", 1, 3, 7); /* a second one of that number */
    assert_int_equal(shards_find(path_of("sha256-aa"), false, open_file, &found), -ENOTUNIQ);
    assert_int_equal(found.n, 2);
    assert_string_equal(found.paths[0], path_of("sha256-77"));
    assert_string_equal(found.paths[1], path_of("sha256-ee"));
    shard_paths_free(&found);
    unlink(path_of("sha256-ee"));
    assert_int_equal(link(path_of("sha256-77"), path_of("sha256-ee")), 0); /* another name of the same file */
    check_found("sha256-aa", false, all);
}

/* Two models in one folder whose files say the same of their places. */
static void two_models(void **state)
{
    (void)state;
    static const unsigned cuts[2][4] = {{0, 1, 3, 7}, {0, 2, 5, 7}};
    static const char *const files[2][4] = {{"5a", "30", "11", NULL}, {"22", "a9", "04", NULL}};
    for (size_t model = 0; model < 2; model++)
        for (unsigned i = 0; i < 3; i++)
            write_content(files[model][i], &(struct content){.number = i,
                                                             .count = 3,
                                                             .total = 7,
                                                             .first = cuts[model][i],
                                                             .end = cuts[model][i + 1],
                                                             .split_size = model * 3 + i + 1});
    for (size_t model = 0; model < 2; model++)
        for (unsigned i = 0; i < 3; i++)
            check_found(files[model][i], true, files[model]);
    /* The same names in the same files: only what else the metadata says can tell. */
    for (size_t model = 0; model < 2; model++)
        for (unsigned i = 0; i < 3; i++)
            write_content(files[model][i], &(struct content){.number = i,
                                                             .count = 3,
                                                             .total = 7,
                                                             .first = cuts[0][i],
                                                             .end = cuts[0][i + 1],
                                                             .name = model ? "one" : "other"});
    for (size_t model = 0; model < 2; model++)
        for (unsigned i = 0; i < 3; i++)
            check_found(files[model][i], true, files[model]);
    struct shard_paths found;
    write_content("11",
                  &(struct content){.number = 2, .count = 3, .total = 7, .first = 3, .end = 7}); /* says nothing */
    check_found("5a", false, files[0]);
    assert_int_equal(shards_find(path_of("22"), false, open_file, &found), -ENOTUNIQ);
    shard_paths_free(&found);
}

/* A header that ends in its tensors belongs to no other files, whatever it says before: whoever reads it tells that. */
static void a_header_that_is_cut_short(void **state)
{
    (void)state;
    make_file("00", 0, 2, 5);
    make_file("11", 0, 2, 5);
    make_file("22", 1, 2, 5);
    const char *const pair[] = {"11", "22", NULL}, *const alone[] = {"00", NULL};
    struct stat status;
    assert_int_equal(stat(path_of("00"), &status), 0);
    assert_int_equal(truncate(path_of("00"), status.st_size - 1), 0);
    check_found("11", false, pair);
    check_found("00", false, alone);
}

/* As many models as make the search long: it ends, and does not guess. */
static void many_models(void **state)
{
    (void)state;
    enum { FILES = 40, MODELS = 4 };
    for (unsigned model = 0; model < MODELS; model++)
        for (unsigned i = 0; i < FILES; i++) {
            char name[16];
            snprintf(name, sizeof(name), "%u-%u", model, i);
            write_content(name,
                          &(struct content){.number = i, .count = FILES, .total = FILES, .first = i, .end = i + 1});
        }
    struct shard_paths found;
    alarm(60);
    assert_int_equal(shards_find(path_of("0-0"), false, open_file, &found), -ENOTUNIQ);
    assert_int_equal(found.n, MODELS);
    shard_paths_free(&found);
    for (unsigned model = 0; model < MODELS; model++) { /* now none fits, and all have to be tried */
        char name[16];
        snprintf(name, sizeof(name), "%u-%u", model, FILES - 1);
        write_content(name,
                      &(struct content){.number = FILES - 1, .count = FILES, .total = FILES, .first = 0, .end = 1});
    }
    const int r = shards_find(path_of("0-0"), false, open_file, &found);
    assert_true(r == -ENOENT || r == -ENOTUNIQ);
    shard_paths_free(&found);
    alarm(0);
}

/* A file that has the right name, and says something else. */
static void name_of_another(void **state)
{
    (void)state;
    const char *const all[] = {"m-00001-of-00003.gguf", "right", "m-00003-of-00003.gguf", NULL};
    const char *const named[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf", NULL};
    const struct content others[] = {
        {.number = 1, .count = 3, .total = 9, .first = 1, .end = 2}, /* of a model with more tensors */
        {.number = 1, .count = 3, .total = 7, .first = 0, .end = 1}, /* that has a name of the first file's */
        {.number = 2, .count = 3, .total = 7, .first = 1, .end = 2}, /* of another number */
        {.count = 0},
    };
    make_file("m-00001-of-00003.gguf", 0, 3, 7);
    make_file("m-00003-of-00003.gguf", 2, 3, 7);
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        make_file("right", 1, 3, 7);
        write_content("m-00002-of-00003.gguf", &others[i]);
        check_found("m-00001-of-00003.gguf", false, all);
        unlink(path_of("right"));
        check_found("m-00001-of-00003.gguf", false, named); /* whoever reads them says what is wrong */
    }
    make_file("right", 1, 3, 7);
    make_file("m-00002-of-00003.gguf", 1, 3, 7);
    check_found("m-00001-of-00003.gguf", false, named);
}

/* A link of another name leads to a file whose name does tell. */
static void link_to_the_first(void **state)
{
    (void)state;
    char other[PATH_MAX];
    strcpy(other, path_of("elsewhere"));
    assert_int_equal(mkdir(other, 0700), 0);
    make_file("m-00001-of-00002.gguf", 0, 2, 1);
    make_file("m-00002-of-00002.gguf", 1, 2, 1);
    assert_int_equal(symlink("../m-00001-of-00002.gguf", path_of("elsewhere/link.gguf")), 0);
    const char *const all[] = {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf", NULL};
    check_found("elsewhere/link.gguf", false, all);

    /* A link to a link whose name tells, to files of which each is in another folder. */
    for (unsigned i = 0; i < 2; i++) {
        char name[64], to[80];
        snprintf(name, sizeof(name), "store%u", i);
        assert_int_equal(mkdir(path_of(name), 0700), 0);
        snprintf(name, sizeof(name), "store%u/%04u", i, i);
        make_file(name, i, 2, 5);
        snprintf(to, sizeof(to), "../%s", name);
        snprintf(name, sizeof(name), "elsewhere/s-%05u-of-00002.gguf", i + 1);
        assert_int_equal(symlink(to, path_of(name)), 0);
    }
    assert_int_equal(symlink("elsewhere/s-00001-of-00002.gguf", path_of("friend")), 0);
    assert_int_equal(symlink("friend", path_of("friend2")), 0);
    const char *const stored[] = {"store0/0000", "store1/0001", NULL};
    check_found("friend", false, stored);
    check_found("friend2", false, stored);
    assert_int_equal(rename(path_of("elsewhere/s-00002-of-00002.gguf"), path_of("elsewhere/other")), 0);
    check_found("friend2", false, stored);
}

static void missing(void **state)
{
    (void)state;
    struct shard_paths found;
    make_file("m-00001-of-00003.gguf", 0, 3, 1);
    make_file("m-00003-of-00003.gguf", 2, 3, 1);
    assert_int_equal(shards_find(path_of("m-00001-of-00003.gguf"), false, open_file, &found), -ENOENT);
    assert_int_equal(found.n, 1);
    assert_string_equal(found.paths[0], path_of("m-00002-of-00003.gguf"));
    shard_paths_free(&found);
    unlink(path_of("m-00003-of-00003.gguf"));
    assert_int_equal(shards_find(path_of("m-00001-of-00003.gguf"), false, open_file, &found), -ENOENT);
    assert_int_equal(found.n, 2);
    assert_string_equal(found.paths[1], path_of("m-00003-of-00003.gguf"));
    shard_paths_free(&found);
    assert_int_equal(shards_find(path_of("none.gguf"), false, open_file, &found), -ENOENT);
    shard_paths_free(&found);
    make_file("many-1-of-5000", 0, SHARDS_MAX + 1, 1);
    assert_int_equal(shards_find(path_of("many-1-of-5000"), false, open_file, &found), -E2BIG);
    shard_paths_free(&found);
}

/* A name that promises others, of a file that says nothing: it is alone, unless the others are there. */
static void only_the_name_says(void **state)
{
    (void)state;
    make_file("m-00001-of-00002.gguf", 0, 0, 0);
    const char *const alone[] = {"m-00001-of-00002.gguf", NULL};
    const char *const both[] = {"m-00001-of-00002.gguf", "m-00002-of-00002.gguf", NULL};
    check_found("m-00001-of-00002.gguf", false, alone);
    make_file("m-00002-of-00002.gguf", 1, 2, 0);
    check_found("m-00001-of-00002.gguf", false, both);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_it_says),
        cmocka_unit_test(no_further_than_a_header),
        cmocka_unit_test(what_it_does_not_say),
        cmocka_unit_test_setup_teardown(by_names, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(by_content, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(two_models, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(a_header_that_is_cut_short, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(many_models, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(name_of_another, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(link_to_the_first, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(missing, folder_make, folder_remove),
        cmocka_unit_test_setup_teardown(only_the_name_says, folder_make, folder_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
