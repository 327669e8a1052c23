#include "proto/table.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define NAME_80 "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_q.lora.a.wt"

static const struct table_tensor tensors[] = {
    {"output.weight", "q6_K", 1024, 500, 8, {16, 32}, 2, 14, 2, TABLE_VIEW, NULL},
    {"blk.10.norm", "f32", 0, 128, 0, {32}, 1, 0, 1, 0, NULL},
    {"blk.1.norm", NULL, 256, 0, 0, {0, 4, 2, 8, 5, 6, 7, 9}, 8, 1, 2, 0, NULL},
    {"scalar", "type65535", 1532, 4, 0, {0}, 0, 65535, 0, 0, NULL},
    {"\xc3\xa9", "longer than there is room", 512, 2, 0, {1}, 1, 30, 3, 0, NULL},
    {NAME_80, "f32", 768, 2, 0, {1}, 1, 30, 3, 0, NULL},
};
enum { n_tensors = sizeof(tensors) / sizeof(tensors[0]), ARENA = 1536 };

static void *build(size_t *ret_size)
{
    void *table = NULL;
    assert_int_equal(table_build(tensors, n_tensors, ARENA, &table, ret_size), 0);
    return table;
}

static int find(const void *table, const char *name)
{
    const struct table_entry *entry;
    return table_find(table, name, &entry);
}

static void test_round_trip(void **state)
{
    (void)state;
    size_t size;
    void *table = build(&size);
    assert_int_equal(table_check(table, size), 0);

    const struct table_header *header = table;
    assert_memory_equal(header->magic, "rftable2", 8);
    assert_int_equal(header->size, size);
    assert_int_equal(header->n_tensors, n_tensors);
    assert_int_equal(header->arena_bytes, ARENA);
    for (size_t i = 0; i < n_tensors; i++) {
        const struct table_entry *entry = table_entry(table, i), *found;
        assert_non_null(entry);
        assert_string_equal(table_name(table, entry), tensors[i].name);
        assert_int_equal(entry->offset, tensors[i].offset);
        assert_int_equal(entry->bytes, tensors[i].bytes);
        assert_int_equal(entry->padding, tensors[i].padding);
        const char *type_name = tensors[i].type_name ? tensors[i].type_name : "";
        assert_int_equal(strncmp(entry->type_name, type_name, TABLE_TYPE_SIZE - 1), 0);
        assert_int_equal(entry->type_name[TABLE_TYPE_SIZE - 1], 0);
        assert_int_equal(entry->n_dims, tensors[i].n_dims);
        assert_memory_equal(entry->shape, tensors[i].shape, sizeof(entry->shape));
        assert_int_equal(entry->type, tensors[i].type);
        assert_int_equal(entry->form, tensors[i].form);
        assert_int_equal(entry->flags, tensors[i].flags);
        assert_int_equal(table_find(table, tensors[i].name, &found), 0);
        assert_ptr_equal(found, entry);
    }
    static const char *const absent[] = {"", "a", "blk.1.nor", "blk.1.normx", "zzz", "\xff"};
    for (size_t i = 0; i < sizeof(absent) / sizeof(absent[0]); i++)
        assert_int_equal(find(table, absent[i]), -ENOENT);
    free(table);
}

static void test_empty(void **state)
{
    (void)state;
    void *table;
    size_t size;
    assert_int_equal(table_build(NULL, 0, 0, &table, &size), 0);
    assert_int_equal(size, sizeof(struct table_header));
    assert_int_equal(table_check(table, size), 0);
    assert_int_equal(find(table, ""), -ENOENT);
    free(table);
}

static void test_many(void **state)
{
    (void)state;
    enum { n = 5000 };
    struct table_tensor *many = calloc(n, sizeof(*many));
    char(*names)[32] = calloc(n, sizeof(*names));
    assert_non_null(many);
    assert_non_null(names);
    for (unsigned i = 0; i < n; i++) {
        snprintf(names[i], sizeof(names[i]), "blk.%u.attn_q.weight", i * 7919 % n);
        many[i] = (struct table_tensor){.name = names[i], .offset = i, .bytes = 1};
    }
    void *table;
    size_t size;
    assert_int_equal(table_build(many, n, n, &table, &size), 0);
    assert_int_equal(table_check(table, size), 0);
    for (unsigned i = 0; i < n; i++) {
        const struct table_entry *entry;
        assert_int_equal(table_find(table, names[i], &entry), 0);
        assert_int_equal(entry->offset, i);
    }
    free(table);
    free(names);
    free(many);
}

#define ENTRY(i, field)                                                                                                \
    (sizeof(struct table_header) + (i) * sizeof(struct table_entry) + offsetof(struct table_entry, field))
#define INDEX(i) (sizeof(struct table_header) + n_tensors * sizeof(struct table_entry) + (i) * sizeof(uint32_t))
#define NAMES    INDEX(n_tensors)

static char *build_changed(size_t at, const void *bytes, size_t n, size_t *ret_size)
{
    char *table = build(ret_size);
    assert_true(at + n <= *ret_size);
    assert_memory_not_equal(table + at, bytes, n);
    memcpy(table + at, bytes, n);
    return table;
}

/* A table whose header does not fit the rest is refused as a whole. */
static void check_refused(size_t at, const void *bytes, size_t n)
{
    size_t size;
    char *table = build_changed(at, bytes, n, &size);
    if (table_check(table, size) != -EBADMSG)
        fail_msg("a table with other bytes at %zu was taken", at);
    free(table);
}

/* What is wrong with one entry is found when that one is asked for; the others can be used. */
static void check_entry_refused(size_t i, size_t at, const void *bytes, size_t n)
{
    size_t size;
    char *table = build_changed(at, bytes, n, &size);
    assert_int_equal(table_check(table, size), 0);
    if (table_entry(table, i) || find(table, tensors[i].name) != -EBADMSG)
        fail_msg("an entry with other bytes at %zu was taken", at);
    for (size_t k = 0; k < n_tensors; k++)
        if (k != i)
            assert_non_null(table_entry(table, k));
    free(table);
}

/* A wrong index hides tensors, and never gives another one. */
static void check_index_refused(uint32_t index, int expected)
{
    size_t size;
    char *table = build_changed(INDEX(1), &index, sizeof(index), &size);
    assert_int_equal(table_check(table, size), 0);
    int worst = 0;
    for (size_t i = 0; i < n_tensors; i++) {
        const struct table_entry *entry;
        int r = table_find(table, tensors[i].name, &entry);
        if (r == 0)
            assert_string_equal(table_name(table, entry), tensors[i].name);
        else
            worst = r;
    }
    assert_int_equal(worst, expected);
    free(table);
}

static void test_refused(void **state)
{
    (void)state;
    static const uint64_t huge[] = {UINT64_MAX, UINT64_MAX / 132 + 1, 1ull << 32, n_tensors + 1, n_tensors - 1, 0};
    check_refused(0, "rftabel2", 8);
    for (size_t i = 0; i < sizeof(huge) / sizeof(huge[0]); i++) {
        check_refused(offsetof(struct table_header, size), &huge[i], 8);
        check_refused(offsetof(struct table_header, n_tensors), &huge[i], 8);
    }
}

static void test_refused_entries(void **state)
{
    (void)state;
    uint64_t arena = ARENA - 1;
    check_entry_refused(3, offsetof(struct table_header, arena_bytes), &arena, 8);
    static const uint64_t offsets[] = {UINT64_MAX, ARENA - 499, ARENA - 507, UINT64_MAX - 511};
    for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++)
        check_entry_refused(0, ENTRY(0, offset), &offsets[i], 8);
    uint64_t bytes = UINT64_MAX - 1000;
    check_entry_refused(0, ENTRY(0, bytes), &bytes, 8);
    check_entry_refused(0, ENTRY(0, padding), &bytes, 8);
    check_entry_refused(0, ENTRY(0, type_name) + TABLE_TYPE_SIZE - 1, "x", 1);
    check_entry_refused(0, ENTRY(0, type_name) + TABLE_TYPE_SIZE - 3, "x", 1);
    size_t size;
    free(build(&size));
    const uint64_t names[] = {0, NAMES - 1, size, UINT64_MAX, 1ull << 40};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        check_entry_refused(1, ENTRY(1, name), &names[i], 8);
        check_refused(ENTRY(0, name), &names[i], 8);
    }
    uint32_t dims = TABLE_DIMS_MAX + 1;
    check_entry_refused(0, ENTRY(0, n_dims), &dims, 4);
    dims = 1; /* and a shape of two */
    check_entry_refused(0, ENTRY(0, n_dims), &dims, 4);
}

static void test_refused_index(void **state)
{
    (void)state;
    check_index_refused(n_tensors, -EBADMSG);
    check_index_refused(UINT32_MAX, -EBADMSG);
    check_index_refused(4, -ENOENT);
}

/* A client of another version is told that it is that. */
static void test_other_version(void **state)
{
    (void)state;
    size_t size;
    char *table = build(&size);
    memcpy(table, "rftable1", 8);
    assert_int_equal(table_check(table, size), -EPROTONOSUPPORT);
    free(table);
}

static void test_unterminated(void **state)
{
    (void)state;
    size_t size;
    char *table = build(&size);
    table[size - 1] = 'x';
    assert_int_equal(table_check(table, size), -EBADMSG);
    free(table);
}

/* No beginning of a table is one, even if it says that it is that short. */
static void test_cut(void **state)
{
    (void)state;
    size_t size;
    char *table = build(&size);
    for (size_t n = 0; n < size; n++) {
        char *cut = malloc(n ? n : 1);
        assert_non_null(cut);
        memcpy(cut, table, n);
        assert_int_equal(table_check(cut, n), -EBADMSG);
        if (n >= sizeof(struct table_header))
            ((struct table_header *)cut)->size = n;
        /* Only if it is cut between two names, this is seen no earlier than at the names that are left out. */
        if (table_check(cut, n) == 0 && (n <= NAMES || table[n - 1] != '\0' || table_entry(cut, n_tensors - 1)))
            fail_msg("the first %zu bytes were taken", n);
        free(cut);
    }
    free(table);
}

static void test_misaligned(void **state)
{
    (void)state;
    size_t size;
    char *table = build(&size);
    char *copy = malloc(size + 8);
    assert_non_null(copy);
    memcpy(copy + 4, table, size);
    assert_int_equal(table_check(copy + 4, size), -EBADMSG);
    free(copy);
    free(table);
}

/* Entries with strides, and views: what is written comes back, and what is wrong is refused. */
static void test_strides(void **state)
{
    (void)state;
    static const uint64_t first[] = {1, 8}, second[] = {0};
    const struct table_tensor strided[] = {
        {.name = "a", .bytes = 64, .shape = {8, 4}, .n_dims = 2, .strides = first},
        {.name = "b", .bytes = 64, .shape = {4, 8}, .n_dims = 2, .flags = TABLE_VIEW},
        {.name = "ccc", .bytes = 4, .shape = {4}, .n_dims = 1, .flags = TABLE_VIEW, .strides = second},
    };
    void *table = NULL;
    size_t size;
    assert_int_equal(table_build(strided, 3, 64, &table, &size), 0);
    assert_int_equal(table_check(table, size), 0);
    struct table_entry *entries = (struct table_entry *)(uintptr_t)table_entry(table, 0);
    assert_non_null(entries);
    assert_memory_equal(table_strides(table, &entries[0]), first, sizeof(first));
    assert_null(table_strides(table, table_entry(table, 1)));
    assert_memory_equal(table_strides(table, table_entry(table, 2)), second, sizeof(second));
    assert_int_equal(entries[1].flags, TABLE_VIEW);
    assert_int_equal(entries[2].flags & 0xff, TABLE_VIEW | TABLE_STRIDED);
    const struct table_entry *found;
    assert_int_equal(table_find(table, "ccc", &found), 0);
    assert_ptr_equal(found, &entries[2]);

    const uint32_t wrong[] = {TABLE_STRIDED | 2u << TABLE_STRIDES_SHIFT, 8, 1u << TABLE_STRIDES_SHIFT, ~0u};
    const uint32_t right = entries[0].flags;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        entries[0].flags = wrong[i];
        assert_null(table_entry(table, 0));
    }
    entries[0].flags = right;
    uint64_t *strides = (uint64_t *)(uintptr_t)table_strides(table, &entries[0]);
    strides[0] = (uint64_t)INT64_MAX + 1;
    assert_null(table_entry(table, 0));
    strides[0] = 1;
    strides[2] = 1;
    assert_null(table_entry(table, 0));
    strides[2] = 0;
    assert_non_null(table_entry(table, 0));
    struct table_header *header = table;
    const uint32_t numbers[] = {0, 1, 3, TABLE_STRIDES_MAX + 1, UINT32_MAX};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        header->n_strided = numbers[i];
        assert_int_equal(table_check(table, size), -EBADMSG);
    }
    free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strides),       cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_empty),         cmocka_unit_test(test_many),
        cmocka_unit_test(test_refused),       cmocka_unit_test(test_refused_entries),
        cmocka_unit_test(test_refused_index), cmocka_unit_test(test_other_version),
        cmocka_unit_test(test_unterminated),  cmocka_unit_test(test_cut),
        cmocka_unit_test(test_misaligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
