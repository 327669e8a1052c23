/* --as: what a model is asked for as, from the command line to the library, and back for people. */
#pragma once

#include "client/rfctl/options.h"
#include "client/rocmforge.h"

#include <cjson/cJSON.h>

struct form_words {
    const char *form; /* NULL: none for all tensors */
    rf_form_rule rules[OPTION_LIST_MAX];
    size_t n_rules;
    char *memory[OPTION_LIST_MAX]; /* of the rules' patterns */
};

/* Reads the options, which are well formed. The caller ends it with form_words_clear(). */
void form_words_read(const struct option_list *as, struct form_words *ret);
void form_words_clear(struct form_words *words);

/* "bf16", "bf16 *norm*=f32": of a model, or of what Plan replies. The caller frees it. */
char *form_text(const cJSON *object);

/* The same for a narrow column: "bf16+3" if it is long. */
char *form_short_text(const cJSON *object);
