#include "client/rfctl/forms.h"

#include "client/rfctl/memory.h"
#include "client/rfctl/reply.h"

#include <stdio.h>
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

rf_load_options form_load_options(const struct options *options, const struct form_words *words)
{
    return (rf_load_options){
        .size = sizeof(rf_load_options),
        .name = options->name,
        .form = words->form,
        .forms = words->rules,
        .n_forms = words->n_rules,
        .layout = options->layout,
        .tp_rank = options->tp.rank,
        .tp_size = options->tp.size,
        .device = options->device,
        .dequant = options->dequant,
        .private_ = options->private,
        .public_ = options->public,
        .replace = options->replace,
    };
}

/* The text and what the object says of a layout: "bf16 layout=vllm tp=0/2". Takes the text over. */
static char *with_layout(char *text, const cJSON *object)
{
    const char *layout = reply_text(object, "layout");
    const cJSON *tp = reply_items(object, "tp");
    const int groups = cJSON_GetArraySize(reply_items(object, "groups")) + (int)reply_number(object, "groupsLeft", 0);
    char numbers[64] = "", parts[64] = "";
    if (groups > 0)
        snprintf(numbers, sizeof(numbers), " groups=%d", groups);
    if (tp)
        snprintf(parts, sizeof(parts), " tp=%.0f/%.0f", reply_number(tp, "rank", 0), reply_number(tp, "size", 0));
    char *longer = need_text("%s%s%s%s%s", text, layout[0] ? " layout=" : "", layout, numbers, parts);
    free(text);
    return longer;
}

static char *rules_text(const cJSON *object)
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
    const double left = reply_number(object, "formsLeft", 0);
    if (left > 0) {
        char *longer = need_text("%s and %.0f rules", text, left);
        free(text);
        text = longer;
    }
    return text;
}

char *form_text(const cJSON *object)
{
    return with_layout(rules_text(object), object);
}

char *form_short_text(const cJSON *object)
{
    char *text = rules_text(object);
    if (strlen(text) > SHORT_MAX) {
        free(text);
        text = need_text("%s+%d", reply_text(object, "form"), cJSON_GetArraySize(reply_items(object, "forms")));
    }
    return with_layout(text, object);
}
