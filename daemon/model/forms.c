#include "daemon/model/forms.h"

#include "daemon/base/json_text.h"
#include "proto/utf8.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The most work for one request: the bytes of all patterns times the bytes of all names. It is some seconds of one
 * worker. */
#define COMPARED_MAX (UINT64_C(1) << 32)

int forms_word_parse(const char *name, enum form *ret)
{
    assert(name);
    if (strcmp(name, "auto") == 0) {
        *ret = FORM_AUTO;
        return 0;
    }
    return form_parse(name, ret);
}

const char *forms_word(enum form form)
{
    return form == FORM_AUTO ? "auto" : form_name(form);
}

const struct forms *forms_plain(enum form form)
{
    static const struct forms plain[] = {
        [FORM_NATIVE] = {.form = FORM_NATIVE}, [FORM_F32] = {.form = FORM_F32},   [FORM_F16] = {.form = FORM_F16},
        [FORM_BF16] = {.form = FORM_BF16},     [FORM_AUTO] = {.form = FORM_AUTO},
    };
    return &plain[form];
}

/* --- patterns --- */

/* Decodes the first character of a text of `size` bytes. Returns how many bytes the character has. */
static size_t character(const char *text, size_t size, uint32_t *ret)
{
    size_t length = utf8_decode(text, size, ret);
    if (length > 0)
        return length;
    *ret = (unsigned char)text[0];
    return 1;
}

/* Reads a set, which begins after its bracket at `at`. *ret: whether the set matches `c`. Returns the text after the
 * set; NULL if the set has no closing bracket. */
static const char *set_match(const char *at, uint32_t c, bool *ret)
{
    bool negated = *at == '!' || *at == '^', found = false;
    at += negated;
    for (bool first = true; *at && (*at != ']' || first); first = false) {
        uint32_t low, high;
        at += *at == '\\' && at[1];
        at += character(at, strlen(at), &low);
        high = low;
        if (at[0] == '-' && at[1] && at[1] != ']') {
            at++;
            at += *at == '\\' && at[1];
            at += character(at, strlen(at), &high);
        }
        found = found || (c >= low && c <= high);
    }
    *ret = found != negated;
    return *at ? at + 1 : NULL;
}

/* Compares one character with the first part of the pattern, which is not a star. Returns the rest of the pattern after
 * this part, or NULL if the part does not match. */
static const char *part_match(const char *pattern, uint32_t c)
{
    if (*pattern == '?')
        return pattern + 1;
    if (*pattern == '[') {
        bool matches = false;
        const char *behind = set_match(pattern + 1, c, &matches);
        if (behind)
            return matches ? behind : NULL;
    }
    pattern += *pattern == '\\' && pattern[1];
    uint32_t own;
    const size_t length = *pattern ? character(pattern, strlen(pattern), &own) : 0;
    return length > 0 && own == c ? pattern + length : NULL;
}

bool forms_match(const char *pattern, const char *name)
{
    /* If the pattern after the last star does not match at this place of the name, it is tried one character later.
     * Earlier stars need not be tried again. */
    const char *star = NULL, *retry = NULL, *end = name + strlen(name);
    while (name < end) {
        if (*pattern == '*') {
            star = ++pattern;
            retry = name;
            continue;
        }
        uint32_t c;
        const size_t length = character(name, (size_t)(end - name), &c);
        const char *behind = part_match(pattern, c);
        if (behind) {
            pattern = behind;
            name += length;
            continue;
        }
        if (!star)
            return false;
        retry += character(retry, (size_t)(end - retry), &c);
        name = retry;
        pattern = star;
    }
    while (*pattern == '*')
        pattern++;
    return *pattern == '\0';
}

bool forms_affordable(const struct forms *forms, const struct model_header *model)
{
    uint64_t patterns = 0, names = 0;
    for (size_t i = 0; i < forms->n_rules; i++)
        patterns += strlen(forms->rules[i].match);
    for (size_t i = 0; i < model->n_tensors && patterns > 0; i++)
        names += strlen(model->tensors[i].name);
    return patterns == 0 || names <= COMPARED_MAX / patterns;
}

/* --- the form of a tensor --- */

static enum form form_asked(const struct forms *forms, const struct header_tensor *tensor)
{
    for (size_t i = forms->n_rules; i-- > 0;)
        if (forms_match(forms->rules[i].match, tensor->name))
            return forms->rules[i].form;
    if (tensor->exempt)
        return FORM_NATIVE;
    /* These are norms and biases. They are small: rounding them saves little memory and costs accuracy. */
    const bool narrows = forms->form == FORM_F16 || forms->form == FORM_BF16;
    if (narrows && tensor->n_dims <= 1 && strcmp(tensor->type->name, form_name(FORM_F32)) == 0)
        return FORM_NATIVE;
    return forms->form;
}

enum form forms_of(const struct forms *forms, const struct header_tensor *tensor)
{
    enum form form = form_asked(forms, tensor);
    if (form == FORM_AUTO)
        form = tensor->type->kind == TYPE_QUANTISED ? FORM_F16 : FORM_NATIVE;
    return form;
}

/* --- requests --- */

/* True if every set in the pattern has its closing bracket. */
static bool sets_close(const char *pattern)
{
    while (pattern && *pattern) {
        bool unused;
        if (*pattern == '[')
            pattern = set_match(pattern + 1, 0, &unused);
        else
            pattern += *pattern == '\\' && pattern[1] ? 2 : 1;
    }
    return pattern;
}

/* Finds the pattern and the form of a rule. Sets both to NULL if the rule is not valid. */
static void rule_read(const cJSON *rule, const char **ret_match, const char **ret_form)
{
    const cJSON *match = cJSON_GetObjectItemCaseSensitive(rule, "match");
    const cJSON *form = cJSON_GetObjectItemCaseSensitive(rule, "form");
    const bool good = cJSON_IsObject(rule) && cJSON_GetArraySize(rule) == 2 && cJSON_IsString(match) &&
                      cJSON_IsString(form) && match->valuestring[0] && strlen(match->valuestring) <= FORMS_MATCH_MAX &&
                      sets_close(match->valuestring);
    *ret_match = good ? match->valuestring : NULL;
    *ret_form = good ? form->valuestring : NULL;
}

int forms_new(enum form form, const cJSON *rules, const struct forms **ret)
{
    const size_t n = rules ? (size_t)cJSON_GetArraySize(rules) : 0;
    size_t bytes = 0;
    const cJSON *rule;
    const char *match, *word;
    if (n == 0) {
        *ret = forms_plain(form);
        return 0;
    }
    if (n > FORMS_RULES_MAX)
        return -EINVAL;
    cJSON_ArrayForEach (rule, rules) {
        enum form unused;
        rule_read(rule, &match, &word);
        if (!match || forms_word_parse(word, &unused) < 0)
            return -EINVAL;
        bytes += strlen(match) + 1;
    }
    struct forms *forms = calloc(1, sizeof(*forms) + n * sizeof(*forms->rules) + bytes);
    if (!forms)
        return -ENOMEM;
    struct forms_rule *own = (struct forms_rule *)(forms + 1);
    char *text = (char *)(own + n);
    *forms = (struct forms){.references = 1, .form = form, .n_rules = n, .rules = own};
    cJSON_ArrayForEach (rule, rules) {
        rule_read(rule, &match, &word);
        (void)forms_word_parse(word, &own->form);
        own->match = text;
        text = stpcpy(text, match) + 1;
        own++;
    }
    *ret = forms;
    return 0;
}

cJSON *forms_rules(const struct forms *forms)
{
    cJSON *array = forms->n_rules > 0 ? cJSON_CreateArray() : NULL;
    for (size_t i = 0; i < forms->n_rules; i++) {
        cJSON *rule = cJSON_CreateObject();
        cJSON_AddStringToObject(rule, "match", forms->rules[i].match);
        cJSON_AddStringToObject(rule, "form", forms_word(forms->rules[i].form));
        json_append(array, rule);
    }
    return array;
}

const struct forms *forms_ref(const struct forms *forms)
{
    if (forms->references > 0)
        ((struct forms *)forms)->references++;
    return forms;
}

void forms_unref(const struct forms *forms)
{
    struct forms *counted = (struct forms *)forms;
    if (!forms || forms->references == 0)
        return;
    if (--counted->references == 0)
        free(counted);
}

bool forms_equal(const struct forms *a, const struct forms *b)
{
    bool equal = a->form == b->form && a->n_rules == b->n_rules;
    for (size_t i = 0; i < a->n_rules && equal; i++)
        equal = a->rules[i].form == b->rules[i].form && strcmp(a->rules[i].match, b->rules[i].match) == 0;
    return equal;
}

enum form form_of_type(const struct tensor_type *type)
{
    for (enum form form = FORM_F32; form < FORM_COUNT; form++)
        if (strcmp(type->name, form_name(form)) == 0)
            return form;
    return FORM_NATIVE;
}
