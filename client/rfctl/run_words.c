#include "client/rfctl/run_words.h"

#include <stdlib.h>
#include <string.h>

enum meaning { MODEL, ELSEWHERE, LAYERS, DEVICE, SPLIT, LOAD_MODE, MMAP, DIRECT, LOCK, DRAFT, OVERRIDE, INFORMS };

static const struct {
    const char *name;
    enum meaning meaning;
    bool value; /* a word follows */
} table[] = {
    {"-m", MODEL, true},
    {"--model", MODEL, true},
    {"-hf", ELSEWHERE, true},
    {"-hfr", ELSEWHERE, true},
    {"--hf-repo", ELSEWHERE, true},
    {"-mu", ELSEWHERE, true},
    {"--model-url", ELSEWHERE, true},
    {"-dr", ELSEWHERE, true},
    {"--docker-repo", ELSEWHERE, true},
    {"--models-dir", ELSEWHERE, true},
    {"--models-preset", ELSEWHERE, true},
    {"-ngl", LAYERS, true},
    {"--gpu-layers", LAYERS, true},
    {"--n-gpu-layers", LAYERS, true},
    {"-dev", DEVICE, true},
    {"--device", DEVICE, true},
    {"-sm", SPLIT, true},
    {"--split-mode", SPLIT, true},
    {"-lm", LOAD_MODE, true},
    {"--load-mode", LOAD_MODE, true},
    {"-mmp", MMAP, true},
    {"--no-mmap", DIRECT, false},
    {"-dio", DIRECT, false},
    {"--direct-io", DIRECT, false},
    {"--mlock", LOCK, false},
    {"-md", DRAFT, true},
    {"--model-draft", DRAFT, true},
    {"--spec-draft-model", DRAFT, true},
    {"-ot", OVERRIDE, true},
    {"--override-tensor", OVERRIDE, true},
    {"-h", INFORMS, false},
    {"--help", INFORMS, false},
    {"--usage", INFORMS, false},
    {"--version", INFORMS, false},
    {"--list-devices", INFORMS, false},
    {"--completion-bash", INFORMS, false},
};

static const struct {
    const char *name;
    enum meaning meaning;
} variables[] = {
    {"LLAMA_ARG_MODEL", MODEL},         {"LLAMA_ARG_HF_REPO", ELSEWHERE},
    {"LLAMA_ARG_MODEL_URL", ELSEWHERE}, {"LLAMA_ARG_N_GPU_LAYERS", LAYERS},
    {"LLAMA_ARG_DEVICE", DEVICE},       {"LLAMA_ARG_SPLIT_MODE", SPLIT},
    {"LLAMA_ARG_LOAD_MODE", LOAD_MODE}, {"LLAMA_ARG_OVERRIDE_TENSOR", OVERRIDE},
    {"LLAMA_ARG_MODEL_DRAFT", DRAFT},
};

static void refuse(struct run_words *ret, const char *name, const char *reason)
{
    ret->refused = name;
    ret->reason = reason;
}

static void take_split(struct run_words *ret, const char *name, const char *value)
{
    ret->split = value;
    if (strcmp(value, "row") == 0 || strcmp(value, "tensor") == 0)
        refuse(ret, name, "it cuts tensors in parts, and resident ones are whole");
}

static void take_load_mode(struct run_words *ret, const char *name, const char *value)
{
    if (strcmp(value, "none") == 0 || strcmp(value, "mlock") == 0 || strcmp(value, "dio") == 0)
        refuse(ret, name, "the engine would read the whole file itself: leave it out");
    ret->lock = strstr(value, "mlock") != NULL;
}

static void take_layers(struct run_words *ret, const char *value)
{
    char *end;
    long n = strtol(value, &end, 10);
    ret->gpu_layers = value[0] && !*end && n >= 0 ? n : RUN_ALL_LAYERS;
}

/* `name`: the option or the variable. */
static void take(struct run_words *ret, enum meaning meaning, const char *name, const char *value)
{
    switch (meaning) {
    case MODEL:
        ret->model = value;
        break;
    case ELSEWHERE:
        ret->elsewhere = name;
        break;
    case LAYERS:
        take_layers(ret, value);
        break;
    case DEVICE:
        ret->device = value;
        break;
    case SPLIT:
        take_split(ret, name, value);
        break;
    case LOAD_MODE:
        take_load_mode(ret, name, value);
        break;
    case MMAP:
        if (strcmp(value, "0") == 0)
            refuse(ret, name, "the engine would read the whole file itself: leave it out");
        break;
    case DIRECT:
        refuse(ret, name, "the engine would read the whole file itself: leave it out");
        break;
    case LOCK:
        ret->lock = true;
        break;
    case DRAFT:
        ret->draft = true;
        break;
    case OVERRIDE:
        ret->overrides = true;
        break;
    case INFORMS:
        ret->informs = true;
        break;
    }
}

void run_words_read(char **words, struct run_words *ret)
{
    *ret = (struct run_words){.gpu_layers = RUN_ALL_LAYERS};
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++) {
        const char *value = getenv(variables[i].name);
        if (value && value[0])
            take(ret, variables[i].meaning, variables[i].name, value);
    }
    for (; *words; words++) {
        size_t i = 0;
        while (i < sizeof(table) / sizeof(table[0]) && strcmp(*words, table[i].name) != 0)
            i++;
        if (i == sizeof(table) / sizeof(table[0]) || (table[i].value && !words[1]))
            continue;
        take(ret, table[i].meaning, table[i].name, table[i].value ? words[1] : "");
        words += table[i].value;
    }
}
