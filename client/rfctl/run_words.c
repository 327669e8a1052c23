#include "client/rfctl/run_words.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define OPTION_MAX 64u /* a longer word is no option of the table */

/* READ: how the file is read, whichever option says it. Values of it are those of -lm. */
enum meaning {
    MODEL,
    DOWNLOAD,
    ROUTER,
    LAYERS,
    DEVICE,
    SPLIT,
    MAIN_GPU,
    READ,
    MMAP,
    LOCK,
    DRAFT,
    DRAFT_OVERRIDE,
    OVERRIDE,
    EXPERTS,
    CONTEXT,
    FIT,
    TEXT, /* any text, which may look like an option */
    INFORMS,
    MEANINGS
};

struct option {
    const char *name;
    enum meaning meaning;
    const char *value; /* of a flag; NULL: it stands in the next word, or in the variable */
};

static const struct option table[] = {
    {"-m", MODEL, NULL},
    {"--model", MODEL, NULL},
    {"-hf", DOWNLOAD, NULL},
    {"-hfr", DOWNLOAD, NULL},
    {"--hf-repo", DOWNLOAD, NULL},
    {"-mu", DOWNLOAD, NULL},
    {"--model-url", DOWNLOAD, NULL},
    {"-dr", DOWNLOAD, NULL},
    {"--docker-repo", DOWNLOAD, NULL},
    {"--models-dir", ROUTER, NULL},
    {"--models-preset", ROUTER, NULL},
    {"-ngl", LAYERS, NULL},
    {"--gpu-layers", LAYERS, NULL},
    {"--n-gpu-layers", LAYERS, NULL},
    {"-dev", DEVICE, NULL},
    {"--device", DEVICE, NULL},
    {"-sm", SPLIT, NULL},
    {"--split-mode", SPLIT, NULL},
    {"-mg", MAIN_GPU, NULL},
    {"--main-gpu", MAIN_GPU, NULL},
    {"-lm", READ, NULL},
    {"--load-mode", READ, NULL},
    {"-mmp", MMAP, NULL},
    {"--mmap", READ, "mmap"},
    {"--no-mmap", READ, "none"},
    {"-dio", READ, "dio"},
    {"--direct-io", READ, "dio"},
    {"-ndio", READ, "mmap"},
    {"--no-direct-io", READ, "mmap"},
    {"--mlock", LOCK, "1"},
    {"-md", DRAFT, NULL},
    {"--model-draft", DRAFT, NULL},
    {"--spec-draft-model", DRAFT, NULL},
    {"-hfd", DRAFT, NULL},
    {"-hfrd", DRAFT, NULL},
    {"--hf-repo-draft", DRAFT, NULL},
    {"--spec-draft-hf", DRAFT, NULL},
    {"-otd", DRAFT_OVERRIDE, NULL},
    {"--override-tensor-draft", DRAFT_OVERRIDE, NULL},
    {"--spec-draft-override-tensor", DRAFT_OVERRIDE, NULL},
    {"-ot", OVERRIDE, NULL},
    {"--override-tensor", OVERRIDE, NULL},
    {"-cmoe", EXPERTS, "1"},
    {"--cpu-moe", EXPERTS, "1"},
    {"-ncmoe", EXPERTS, NULL},
    {"--n-cpu-moe", EXPERTS, NULL},
    {"-ncffn", EXPERTS, NULL},
    {"--n-cpu-ffn", EXPERTS, NULL},
    {"-c", CONTEXT, NULL},
    {"--ctx-size", CONTEXT, NULL},
    {"-fit", FIT, NULL},
    {"--fit", FIT, NULL},
    {"-p", TEXT, NULL},
    {"--prompt", TEXT, NULL},
    {"-sys", TEXT, NULL},
    {"--system-prompt", TEXT, NULL},
    {"-r", TEXT, NULL},
    {"--reverse-prompt", TEXT, NULL},
    {"--in-prefix", TEXT, NULL},
    {"--in-suffix", TEXT, NULL},
    {"--grammar", TEXT, NULL},
    {"--chat-template", TEXT, NULL},
    {"-a", TEXT, NULL},
    {"--alias", TEXT, NULL},
    {"-h", INFORMS, ""},
    {"--help", INFORMS, ""},
    {"--usage", INFORMS, ""},
    {"--version", INFORMS, ""},
    {"--list-devices", INFORMS, ""},
    {"--completion-bash", INFORMS, ""},
};

/* LLAMA_ARG_NO_MMAP means no whatever its value is; flags of the others may be "0", "off", "false", "disabled". */
static const struct option variables[] = {
    {"LLAMA_ARG_MODEL", MODEL, NULL},
    {"LLAMA_ARG_HF_REPO", DOWNLOAD, NULL},
    {"LLAMA_ARG_MODEL_URL", DOWNLOAD, NULL},
    {"LLAMA_ARG_DOCKER_REPO", DOWNLOAD, NULL},
    {"LLAMA_ARG_MODELS_DIR", ROUTER, NULL},
    {"LLAMA_ARG_MODELS_PRESET", ROUTER, NULL},
    {"LLAMA_ARG_N_GPU_LAYERS", LAYERS, NULL},
    {"LLAMA_ARG_DEVICE", DEVICE, NULL},
    {"LLAMA_ARG_SPLIT_MODE", SPLIT, NULL},
    {"LLAMA_ARG_MAIN_GPU", MAIN_GPU, NULL},
    {"LLAMA_ARG_MMAP", MMAP, NULL},
    {"LLAMA_ARG_NO_MMAP", READ, "none"},
    {"LLAMA_ARG_DIO", READ, "dio"},
    {"LLAMA_ARG_LOAD_MODE", READ, NULL},
    {"LLAMA_ARG_MLOCK", LOCK, "1"},
    {"LLAMA_ARG_MODEL_DRAFT", DRAFT, NULL},
    {"LLAMA_ARG_SPEC_DRAFT_MODEL", DRAFT, NULL},
    {"LLAMA_ARG_HFD_REPO", DRAFT, NULL},
    {"LLAMA_ARG_SPEC_DRAFT_HF_REPO", DRAFT, NULL},
    {"LLAMA_ARG_OVERRIDE_TENSOR", OVERRIDE, NULL},
    {"LLAMA_ARG_CPU_MOE", EXPERTS, "1"},
    {"LLAMA_ARG_N_CPU_MOE", EXPERTS, NULL},
    {"LLAMA_ARG_N_CPU_FFN", EXPERTS, NULL},
    {"LLAMA_ARG_CTX_SIZE", CONTEXT, NULL},
    {"LLAMA_ARG_FIT", FIT, NULL},
};

/* The last word of each meaning. */
struct said {
    const char *name; /* of the option; NULL: it was not said */
    const char *value;
    const char *list; /* the option that has several values, which makes several tests of llama-bench; NULL: none */
};

static bool is_no(const char *value)
{
    return strcmp(value, "0") == 0 || strcasecmp(value, "off") == 0 || strcasecmp(value, "false") == 0 ||
           strcasecmp(value, "disabled") == 0;
}

static void take(struct said said[static MEANINGS], const struct option *option, const char *value)
{
    const enum meaning meaning = option->meaning == MMAP ? READ : option->meaning;
    /* llama-bench also has ranges of numbers, "0-99+33". */
    const bool several =
        said[meaning].name || strchr(value, ',') || (meaning == LAYERS && value[0] && strchr(value + 1, '-'));
    if (option->meaning == MMAP)
        value = is_no(value) ? "none" : "mmap";
    said[meaning].name = option->name;
    said[meaning].value = value;
    if (several)
        said[meaning].list = option->name;
}

static void take_variables(struct said said[static MEANINGS])
{
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        const struct option *option = &variables[i];
        const char *value = getenv(option->name);
        if (!value || !value[0] || (option->value && is_no(value) && strcmp(option->name, "LLAMA_ARG_NO_MMAP") != 0))
            continue;
        take(said, option, option->value ? option->value : value);
    }
}

/* llama.cpp takes "--load_mode" for "--load-mode". */
static const struct option *find(const char *word)
{
    char name[OPTION_MAX];
    if (strlen(word) >= sizeof(name))
        return NULL;
    strcpy(name, word);
    for (char *at = name; strncmp(name, "--", 2) == 0 && *at; at++)
        if (*at == '_')
            *at = '-';
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(name, table[i].name) == 0)
            return &table[i];
    return NULL;
}

static void take_words(struct said said[static MEANINGS], char **words)
{
    for (; *words; words++) {
        const struct option *option = find(*words);
        if (!option || (!option->value && !words[1]))
            continue;
        take(said, option, option->value ? option->value : words[1]);
        words += !option->value;
    }
}

static long number(const struct said *said, long otherwise)
{
    if (!said->name || !said->value[0])
        return otherwise;
    char *end;
    const long n = strtol(said->value, &end, 10);
    return !*end && n >= 0 ? n : otherwise;
}

static void refuse(struct run_words *ret, const char *name, const char *reason)
{
    if (!name || ret->refused)
        return;
    ret->refused = name;
    ret->reason = reason;
}

static bool is_one_of(const struct said *said, const char *const *values)
{
    for (; said->name && *values; values++)
        if (strcmp(said->value, *values) == 0)
            return true;
    return false;
}

static void judge(const struct said said[static MEANINGS], bool bench, struct run_words *ret)
{
    static const char *const cuts[] = {"row", "tensor", NULL}, *const reads[] = {"none", "mlock", "dio", NULL};
    static const enum meaning places[] = {MODEL, LAYERS, DEVICE, SPLIT, MAIN_GPU, READ};
    for (size_t i = 0; bench && i < sizeof(places) / sizeof(places[0]); i++)
        refuse(ret, said[places[i]].list, "llama-bench makes a test for each value: run it once for each");
    refuse(ret, said[DOWNLOAD].name,
           "it names no file that is here: leave it out, and use -m with the file that was downloaded");
    if (!said[MODEL].name)
        refuse(ret, said[ROUTER].name, "the engine would choose a model later, by itself: use -m, once for each model");
    if (is_one_of(&said[SPLIT], cuts))
        refuse(ret, said[SPLIT].name, "it cuts tensors in parts, and resident ones are whole: use -sm none");
    if (said[SPLIT].name && strcmp(said[SPLIT].value, "layer") == 0)
        refuse(ret, said[SPLIT].name, "a resident model is whole on one GPU: leave it out, or use -sm none");
    if (said[DEVICE].name && strchr(said[DEVICE].value, ','))
        refuse(ret, said[DEVICE].name, "a resident model is whole on one GPU: name one device");
    if (is_one_of(&said[READ], reads))
        refuse(ret, said[READ].name, "the engine would read the whole file itself: leave it out");
}

void run_words_read(char **words, bool bench, struct run_words *ret)
{
    struct said said[MEANINGS] = {0};
    if (!bench)
        take_variables(said);
    take_words(said, words);
    *ret = (struct run_words){
        .model = said[MODEL].value,
        .device = said[DEVICE].value,
        .split = said[SPLIT].value,
        .gpu_layers = number(&said[LAYERS], RUN_ALL_LAYERS),
        .main_gpu = number(&said[MAIN_GPU], 0),
        .draft = said[DRAFT].name && !said[DRAFT_OVERRIDE].name,
        .lock = said[LOCK].name || (said[READ].name && strstr(said[READ].value, "mlock")),
        .overrides = said[OVERRIDE].name,
        .informs = said[INFORMS].name,
        .fixed = !bench && number(&said[CONTEXT], 0) > 0 && !said[FIT].name && !said[DRAFT].name,
        .experts = said[EXPERTS].name && !is_no(said[EXPERTS].value) ? said[EXPERTS].name : NULL,
    };
    judge(said, bench, ret);
}
