#include "client/rfctl/forms.h"

#include "client/rfctl/memory.h"
#include "client/rfctl/reply.h"

#include <stdlib.h>
#include <string.h>

/* The word of --as for the pattern "*", which every name matches. */
#define ALL "all"

/* The longest text for the column of ps. */
#define SHORT_MAX 24u

void form_words_read(const struct option_list *as, struct form_words *ret)
{
    *ret = (struct form_words){0};
    for (size_t i = 0; i < as->n; i++) {
        const char *word = as->words[i], *equals = strrchr(word, '=');
        if (!equals) {
            ret->form = word;
            continue;
        }
        char *match = need_text("%.*s", (int)(equals - word), word);
        const bool all = strcmp(match, ALL) == 0;
        ret->memory[ret->n_rules] = match;
        ret->rules[ret->n_rules++] = (rf_form_rule){.match = all ? "*" : match, .form = equals + 1};
    }
}

void form_words_clear(struct form_words *words)
{
    for (size_t i = 0; i < words->n_rules; i++)
        free(words->memory[i]);
}

char *form_text(const cJSON *object)
{
    const cJSON *rules = reply_items(object, "forms"), *rule;
    if (reply_text(object, "source")[0]) /* its publisher decided that, and not who asked for a form */
        return need_text("%s", reply_text(object, "source"));
    char *text = need_text("%s", reply_text(object, "form"));
    cJSON_ArrayForEach (rule, rules) {
        const char *match = reply_text(rule, "match");
        const bool all = strcmp(match, "*") == 0;
        /* The rule for all tensors replaces everything before it. */
        char *longer =
            need_text("%s%s%s=%s", all ? "" : text, all ? "" : " ", all ? ALL : match, reply_text(rule, "form"));
        free(text);
        text = longer;
    }
    return text;
}

char *form_short_text(const cJSON *object)
{
    char *text = form_text(object);
    if (strlen(text) <= SHORT_MAX)
        return text;
    free(text);
    return need_text("%s+%d", reply_text(object, "form"), cJSON_GetArraySize(reply_items(object, "forms")));
}
