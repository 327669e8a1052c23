/* What a model is asked for as: one form for all tensors, and forms for those whose names match a pattern.
 *
 * Immutable, counted by whoever keeps it. Counting is for the loop thread; any thread may read. */
#pragma once

#include "daemon/gguf/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

/* A form of the words below: f32, f16 and bf16 stay as they are, quantised tensors become f16, everything else stays
 * native. */
#define FORM_AUTO FORM_COUNT

/* Patterns in one request, and bytes of one. */
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

/* What was asked for by name: "auto" or a form. Returns 0 or -EINVAL. */
int forms_word_parse(const char *name, enum form *ret);
const char *forms_word(enum form form);

/* One form for all tensors. Static. */
const struct forms *forms_plain(enum form form);

/* A form, and rules as they come in a request: an array of {"match": ..., "form": ...}, or NULL. The caller ends it
 * with forms_unref(). -EINVAL: they are none; -ENOMEM. */
int forms_new(enum form form, const struct cJSON *rules, const struct forms **ret);

/* The same rules as such an array, which the caller deletes; NULL if there are none, or memory is short. */
struct cJSON *forms_rules(const struct forms *forms);

/* Keeps it for one more; returns it. */
const struct forms *forms_ref(const struct forms *forms);

/* NULL is fine. */
void forms_unref(const struct forms *forms);

/* They were asked for in the same words. */
bool forms_equal(const struct forms *a, const struct forms *b);

/* The form that a tensor gets, FORM_AUTO resolved: FORM_NATIVE is the file's own bytes. The last rule whose pattern
 * matches the name says; if none does, the form for all, but of f16 and bf16 a tensor of one dimension that is f32 in
 * the file stays so. */
enum form forms_of(const struct forms *forms, const struct gguf_tensor *tensor);

/* A pattern matches a whole name: * is any text, ? one character, [a-z] and [!a-z] one of a set, \ takes the meaning of
 * the next character. Both in UTF-8. Takes at most time for each pair of their characters. */
bool forms_match(const char *pattern, const char *name);

/* Comparing the patterns with all names of the model takes time that a request may ask for. */
bool forms_affordable(const struct forms *forms, const struct gguf *model);
