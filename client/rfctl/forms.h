/* The forms that --as asks for: reads them from the command line, and prints the forms of a model. */
#pragma once

#include "client/rfctl/options.h"
#include "client/rocmforge.h"

#include <cjson/cJSON.h>

struct form_words {
    const char *form; /* the form of all tensors; NULL: not given */
    rf_form_rule rules[OPTION_LIST_MAX];
    size_t n_rules;
    char *memory[OPTION_LIST_MAX]; /* the patterns that `rules` point to */
};

/* Reads the words of --as, which options_parse() has checked. The caller calls form_words_clear() afterwards. */
void form_words_read(const struct option_list *as, struct form_words *ret);
void form_words_clear(struct form_words *words);

/* What Load and Plan both take of the command line. The rules are borrowed from the words. */
rf_load_options form_load_options(const struct options *options, const struct form_words *words);

/* The forms in a Model, or in a reply to Plan, and the layout: "bf16", "bf16 *norm*=f32 layout=vllm". The caller frees
 * the text. */
char *form_text(const cJSON *object);

/* The same for a narrow column of a table: "bf16+3" if the text would be long. The caller frees it. */
char *form_short_text(const cJSON *object);
