/* The forms that a request asks for: one form for all tensors, and other forms for tensors whose names match a pattern.
 *
 * Immutable, with a reference count. Only the loop thread changes the count; any thread may read. */
#pragma once

#include "daemon/header/model_header.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

/* The form "auto": quantised tensors become f16, all others stay as they are in the file. */
#define FORM_AUTO FORM_COUNT

/* Most patterns in one request, and most bytes of one pattern. */
#define FORMS_RULES_MAX 64u
#define FORMS_MATCH_MAX 255u

struct forms_rule {
    const char *match;
    enum form form; /* or FORM_AUTO */
};

struct forms {
    unsigned references; /* 0: static */
    enum form form;      /* or FORM_AUTO */
    size_t n_rules;
    const struct forms_rule *rules;
};

/* Convert between a form and its name in a request: "auto", or the name of a form. 0, or -EINVAL for an unknown
 * name. */
int forms_word_parse(const char *name, enum form *ret);
const char *forms_word(enum form form);

/* Static forms without rules: one form for all tensors. */
const struct forms *forms_plain(enum form form);

/* Makes forms of one form and the rules of a request: an array of {"match": ..., "form": ...}, or NULL. The caller
 * gives the forms up with forms_unref(). -EINVAL: the rules are not valid; -ENOMEM. */
int forms_new(enum form form, const struct cJSON *rules, const struct forms **ret);

/* The rules as a JSON array like that of forms_new(), which the caller deletes. NULL if there are no rules, or no
 * memory. */
struct cJSON *forms_rules(const struct forms *forms);

/* Adds a reference and returns the forms. */
const struct forms *forms_ref(const struct forms *forms);

/* NULL is fine. */
void forms_unref(const struct forms *forms);

/* Whether the two have the same form and the same rules, word for word. */
bool forms_equal(const struct forms *a, const struct forms *b);

/* The form that a tensor gets; never FORM_AUTO. FORM_NATIVE: the bytes of the file. The last rule whose pattern matches
 * the tensor's name decides. If no pattern matches, the form for all tensors is used, with one exception: if that form
 * is f16 or bf16, a tensor of one dimension that is f32 in the file stays f32. */
enum form forms_of(const struct forms *forms, const struct header_tensor *tensor);

/* Whether the pattern matches the whole name. * matches any text, ? one character, [a-z] one character of the set,
 * [!a-z] one character that is not in the set. After \ the next character has no special meaning. Both are UTF-8. The
 * time is at most proportional to the product of their lengths. */
bool forms_match(const char *pattern, const char *name);

/* Whether the patterns can be compared with all tensor names of the model in the time that one request may take. */
bool forms_affordable(const struct forms *forms, const struct model_header *model);

/* The form that has the same elements as the type; FORM_NATIVE if there is no such form. */
enum form form_of_type(const struct tensor_type *type);
