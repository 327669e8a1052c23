/* daemon/model/forms.c: patterns, and the form that each tensor gets. */
#include "daemon/model/forms.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *name;
        bool matches;
    } cases[] = {
        {"", "", true},
        {"", "a", false},
        {"*", "", true},
        {"*", "blk.0.attn_norm.weight", true},
        {"**", "a", true},
        {"*norm*", "blk.0.attn_norm.weight", true},
        {"*norm*", "norm", true},
        {"*norm*", "blk.0.attn_q.weight", false},
        {"*norm", "attn_norm.weight", false},
        {"norm*", "attn_norm.weight", false},
        {"blk.*.ffn_*.weight", "blk.11.ffn_down.weight", true},
        {"blk.*.ffn_*.weight", "blk.11.attn_q.weight", false},
        {"blk.?.a", "blk.1.a", true},
        {"blk.?.a", "blk.11.a", false},
        {"blk.?.a", "blk..a", false},
        {"?", "\xc3\xb6", true}, /* one character, not one byte */
        {"?", "", false},
        {"[abc]x", "bx", true},
        {"[abc]x", "dx", false},
        {"[a-c]*", "b", true},
        {"[!a-c]", "b", false},
        {"[^a-c]", "d", true},
        {"[]a]", "]", true},
        {"[!]a]", "]", false},
        {"[a-]", "-", true},
        {"[\\]]", "]", true},
        {"[\xc3\xa0-\xc3\xbf]", "\xc3\xb6", true},
        {"[ab", "[ab", true}, /* never closed: it stands for itself */
        {"[ab", "a", false},
        {"\\*", "*", true},
        {"\\*", "a", false},
        {"a\\", "a\\", true},
        {"*a*b*c", "xaxbxcxc", true},
        {"*a*b*c", "xaxbxcx", false},
        {"a*", "b", false},
        {"A", "a", false},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        if (forms_match(cases[i].pattern, cases[i].name) != cases[i].matches)
            fail_msg("'%s' and '%s'", cases[i].pattern, cases[i].name);
}

/* Many stars take no time beyond that of each pair of characters. */
static void stars(void **state)
{
    (void)state;
    char pattern[FORMS_MATCH_MAX + 1] = "", name[HEADER_NAME_MAX + 1];
    for (size_t i = 0; i + 2 < sizeof(pattern); i += 2)
        memcpy(pattern + i, "*a", 3);
    strcpy(pattern + sizeof(pattern) - 3, "*b");
    memset(name, 'a', HEADER_NAME_MAX);
    name[HEADER_NAME_MAX] = '\0';
    for (int i = 0; i < 20; i++)
        assert_false(forms_match(pattern, name));
}

static struct header_tensor tensor(const char *name, uint32_t type, uint32_t n_dims)
{
    return (struct header_tensor){.name = name, .type = tensor_type_find(type), .n_dims = n_dims};
}

static void one_word(void **state)
{
    (void)state;
    const struct header_tensor quantised = tensor("q", 2, 2), norm = tensor("n", 0, 1), matrix = tensor("m", 0, 2),
                               half = tensor("h", 1, 1), scalar = tensor("s", 0, 0);
    assert_int_equal(forms_of(forms_plain(FORM_AUTO), &quantised), FORM_F16);
    assert_int_equal(forms_of(forms_plain(FORM_AUTO), &matrix), FORM_NATIVE);
    assert_int_equal(forms_of(forms_plain(FORM_NATIVE), &quantised), FORM_NATIVE);
    for (enum form form = FORM_F32; form < FORM_COUNT; form++) {
        const bool narrows = form != FORM_F32;
        assert_int_equal(forms_of(forms_plain(form), &quantised), form);
        assert_int_equal(forms_of(forms_plain(form), &matrix), form);
        assert_int_equal(forms_of(forms_plain(form), &half), form); /* one-dimensional, but no f32 */
        assert_int_equal(forms_of(forms_plain(form), &norm), narrows ? FORM_NATIVE : form);
        assert_int_equal(forms_of(forms_plain(form), &scalar), narrows ? FORM_NATIVE : form);
    }
}

static int forms_from(enum form form, const char *text, const struct forms **ret)
{
    cJSON *rules = text ? cJSON_Parse(text) : NULL;
    assert_true(rules || !text);
    int r = forms_new(form, rules, ret);
    cJSON_Delete(rules);
    return r;
}

static void rules(void **state)
{
    (void)state;
    const struct forms *forms;
    assert_int_equal(forms_from(FORM_BF16,
                                "[{\"match\":\"*\",\"form\":\"bf16\"},{\"match\":\"*norm*\",\"form\":\"f32\"},"
                                "{\"form\":\"auto\",\"match\":\"token*\"}]",
                                &forms),
                     0);
    const struct header_tensor bias = tensor("q.bias", 0, 1), norm = tensor("attn_norm", 0, 1),
                               embedding = tensor("token_embd", 2, 2), both = tensor("token_norm", 0, 1);
    assert_int_equal(forms_of(forms, &bias), FORM_BF16); /* what is said of it, and no exception */
    assert_int_equal(forms_of(forms, &norm), FORM_F32);
    assert_int_equal(forms_of(forms, &embedding), FORM_F16);
    assert_int_equal(forms_of(forms, &both), FORM_NATIVE); /* the last that matches */

    cJSON *array = forms_rules(forms);
    char *text = cJSON_PrintUnformatted(array);
    assert_string_equal(text, "[{\"match\":\"*\",\"form\":\"bf16\"},{\"match\":\"*norm*\",\"form\":\"f32\"},"
                              "{\"match\":\"token*\",\"form\":\"auto\"}]");
    const struct forms *same, *fewer;
    assert_int_equal(forms_from(FORM_BF16, text, &same), 0);
    assert_int_equal(forms_from(FORM_BF16, "[{\"match\":\"*\",\"form\":\"bf16\"}]", &fewer), 0);
    assert_true(forms_equal(forms, same));
    assert_false(forms_equal(forms, fewer));
    assert_false(forms_equal(fewer, forms));
    assert_false(forms_equal(forms, forms_plain(FORM_BF16)));
    assert_ptr_equal(forms_ref(forms), forms);
    forms_unref(forms);
    assert_int_equal(forms->n_rules, 3);
    forms_unref(forms);
    forms_unref(same);
    forms_unref(fewer);
    cJSON_free(text);
    cJSON_Delete(array);
}

static void refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "[1]",
        "[{}]",
        "[{\"match\":\"a\"}]",
        "[{\"form\":\"f32\"}]",
        "[{\"match\":\"a\",\"form\":\"q4_0\"}]",
        "[{\"match\":\"\",\"form\":\"f32\"}]",
        "[{\"match\":1,\"form\":\"f32\"}]",
        "[{\"match\":\"a\",\"form\":\"f32\",\"more\":1}]",
        "[{\"match\":\"a\",\"form\":\"f32\"},null]",
        "[{\"match\":\"[\",\"form\":\"f32\"}]",
        "[{\"match\":\"a[]\",\"form\":\"f32\"}]",
    };
    const struct forms *forms;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(forms_from(FORM_AUTO, wrong[i], &forms), -EINVAL);
    assert_int_equal(forms_from(FORM_F16, "[]", &forms), 0);
    assert_ptr_equal(forms, forms_plain(FORM_F16));
    assert_int_equal(forms_from(FORM_F16, NULL, &forms), 0);
    assert_ptr_equal(forms, forms_plain(FORM_F16));

    for (size_t n = FORMS_RULES_MAX; n <= FORMS_RULES_MAX + 1; n++) {
        cJSON *array = cJSON_CreateArray();
        for (size_t i = 0; i < n; i++)
            cJSON_AddItemToArray(array, cJSON_Parse("{\"match\":\"a\",\"form\":\"f32\"}"));
        assert_int_equal(forms_new(FORM_AUTO, array, &forms), n > FORMS_RULES_MAX ? -EINVAL : 0);
        if (n <= FORMS_RULES_MAX)
            forms_unref(forms);
        cJSON_Delete(array);
    }
    for (size_t size = FORMS_MATCH_MAX; size <= FORMS_MATCH_MAX + 1; size++) {
        char text[512];
        snprintf(text, sizeof(text), "[{\"match\":\"%0*d\",\"form\":\"f32\"}]", (int)size, 0);
        assert_int_equal(forms_from(FORM_AUTO, text, &forms), size > FORMS_MATCH_MAX ? -EINVAL : 0);
        if (size <= FORMS_MATCH_MAX)
            forms_unref(forms);
    }
}

/* Names and patterns that would take minutes are not compared. */
static void affordable(void **state)
{
    (void)state;
    enum { N = 10000 };
    char *name = malloc(HEADER_NAME_MAX + 1);
    struct header_tensor *tensors = calloc(N, sizeof(*tensors));
    assert_non_null(name);
    assert_non_null(tensors);
    memset(name, 'a', HEADER_NAME_MAX);
    name[HEADER_NAME_MAX] = '\0';
    for (size_t i = 0; i < N; i++)
        tensors[i].name = name;
    const struct model_header model = {.n_tensors = N, .tensors = tensors};
    struct forms_rule many[FORMS_RULES_MAX];
    for (size_t i = 0; i < FORMS_RULES_MAX; i++)
        many[i] = (struct forms_rule){"*a*a*a*a*a*a*a*b", FORM_F32};
    assert_true(forms_affordable(&(struct forms){.form = FORM_F16}, &model));
    assert_true(forms_affordable(&(struct forms){.n_rules = 1, .rules = many}, &model));
    assert_false(forms_affordable(&(struct forms){.n_rules = FORMS_RULES_MAX, .rules = many}, &model));
    free(tensors);
    free(name);
}

static void words(void **state)
{
    (void)state;
    static const char *const names[] = {"auto", "native", "f32", "f16", "bf16"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        enum form form;
        assert_int_equal(forms_word_parse(names[i], &form), 0);
        assert_string_equal(forms_word(form), names[i]);
        assert_int_equal(forms_plain(form)->form, form);
    }
    enum form unused;
    assert_int_equal(forms_word_parse("q4_0", &unused), -EINVAL);
    assert_int_equal(forms_word_parse("", &unused), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns), cmocka_unit_test(stars),      cmocka_unit_test(one_word), cmocka_unit_test(rules),
        cmocka_unit_test(refused),  cmocka_unit_test(affordable), cmocka_unit_test(words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
