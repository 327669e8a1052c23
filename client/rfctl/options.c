#include "client/rfctl/options.h"

#include "client/rfctl/duration.h"
#include "client/rfctl/output.h"

#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_MAX 1000000000ul

enum kind { FLAG, TEXT, NUMBER, DURATION, FORMS, PART };

#define PARTS_MAX 1024ul

static const struct {
    const char *name;
    char letter; /* a short form, or 0 */
    enum kind kind;
    unsigned bit;        /* 0: --help and --version, which are looked at before the command */
    size_t offset;       /* of its value in struct options */
    const char *choices; /* of a TEXT: the allowed values, separated by ", "; NULL: any */
    const char *value;   /* the name of its value in the help, after a space */
    const char *help;
} table[] = {
    {"name", 0, TEXT, OPTION_NAME, offsetof(struct options, name), NULL, " NAME",
     "default: the file's or folder's name"},
    {"as", 0, FORMS, OPTION_AS, offsetof(struct options, as), "auto, native, f32, f16, bf16", " FORM",
     "auto, native, f32, f16, bf16; default auto: quantised\ntensors become f16, the others stay as they are. Or\n"
     "PATTERN=FORM, for tensors with such names: *norm*=f32;\ncan be repeated, and the last match holds"},
    {"layout", 0, TEXT, OPTION_LAYOUT, offsetof(struct options, layout), "vllm, hf", " LAYOUT",
     "vllm: what vLLM fuses stands together; hf: the rows of q\nand k in transformers' order; default: as in the file"},
    {"tp", 0, PART, OPTION_TP, offsetof(struct options, tp), NULL, " RANK/SIZE",
     "only the part that one of SIZE processes needs; with\n--layout vllm"},
    {"device", 0, TEXT, OPTION_DEVICE, offsetof(struct options, device), NULL, " DEVICE",
     "host, hip:0, ...; default: a GPU if there is one"},
    {"dequant", 0, TEXT, OPTION_DEQUANT, offsetof(struct options, dequant), "auto, cpu, gpu", " WHERE",
     "auto, cpu, gpu: where blocks are decoded"},
    {"no-wait", 0, FLAG, OPTION_NO_WAIT, offsetof(struct options, no_wait), NULL, "",
     "return as soon as there is memory for it, and do not\nwait until the model is resident"},
    {"wait-for-memory", 0, DURATION, OPTION_WAIT_FOR_MEMORY, offsetof(struct options, wait_for_memory), NULL,
     " DURATION", "if memory is short, wait so long in a queue;\ndefault: do not wait"},
    {"pin", 0, FLAG, OPTION_PIN, offsetof(struct options, pin), NULL, "",
     "never evict it, nor unload it when it is idle"},
    {"ttl", 0, DURATION, OPTION_TTL, offsetof(struct options, ttl), NULL, " DURATION",
     "unload it after this idle time: 90, 90s, 10m, 2h, 1d;\ndefault: never"},
    {"private", 0, FLAG, OPTION_PRIVATE, offsetof(struct options, private), NULL, "",
     "only you see it and can attach to it"},
    {"public", 0, FLAG, OPTION_PUBLIC, offsetof(struct options, public), NULL, "",
     "everybody sees it and can attach to it; default: who\nmay read the file. The file has to be yours"},
    {"replace", 0, FLAG, OPTION_REPLACE, offsetof(struct options, replace), NULL, "",
     "take the name from the model that has it: when the new\none is resident, the old one drains, as NAME#ID"},
    {"force", 0, FLAG, OPTION_FORCE, offsetof(struct options, force), NULL, "",
     "if it is in use: ask its users to detach, let nobody\nelse attach, and free it when all have detached"},
    {"deadline", 0, DURATION, OPTION_DEADLINE, offsetof(struct options, deadline), NULL, " DURATION",
     "give up after this time; default: never (ping: 10s)"},
    {"trace", 0, TEXT, OPTION_TRACE, offsetof(struct options, trace), NULL, " FILE",
     "write what every worker and stream did, and when: a\nChrome trace, which ui.perfetto.dev opens"},
    {"metadata", 0, TEXT, OPTION_METADATA, offsetof(struct options, metadata), NULL, " KEY",
     "print the whole value of this key, and nothing else"},
    {"http", 0, FLAG, OPTION_HTTP, offsetof(struct options, http), NULL, "",
     "answer one request of HTTP on standard input, for\nrocmforge-metrics.socket"},
    {"count", 'c', NUMBER, OPTION_COUNT, offsetof(struct options, count), NULL, " COUNT", "how many times; default 1"},
    {"socket", 0, TEXT, OPTION_SOCKET, offsetof(struct options, socket), NULL, " PATH",
     "where the daemon listens; default: $ROCMFORGE_SOCKET,\nelse /run/rocmforge/io.rocmforge, else\n"
     "$XDG_RUNTIME_DIR/rocmforge/io.rocmforge"},
    {"json", 0, FLAG, OPTION_JSON, offsetof(struct options, json), NULL, "", "print JSON, one line for each reply"},
    {"help", 'h', FLAG, 0, offsetof(struct options, help), NULL, "", "print this help"},
    {"version", 0, FLAG, 0, offsetof(struct options, version), NULL, "", "print the version"},
};

#define N_OPTIONS (sizeof(table) / sizeof(table[0]))

static bool is_choice(const char *choices, const char *word)
{
    size_t size = strlen(word);
    for (const char *at = choices; *at; at += strspn(at, ", ")) {
        size_t length = strcspn(at, ",");
        if (length == size && memcmp(at, word, size) == 0)
            return true;
        at += length;
    }
    return false;
}

/* A form, or one for the names that match a pattern. */
static int add_form(size_t option, const char *argument, struct option_list *list)
{
    const char *equals = strrchr(argument, '=');
    if (equals == argument || !is_choice(table[option].choices, equals ? equals + 1 : argument) ||
        list->n == OPTION_LIST_MAX)
        return -EINVAL;
    list->words[list->n++] = argument;
    return 0;
}

static int set_part(const char *argument, struct option_part *part)
{
    char *slash, *end;
    const unsigned long rank = strtoul(argument, &slash, 10);
    if (argument[0] < '0' || argument[0] > '9' || slash[0] != '/' || slash[1] < '0' || slash[1] > '9')
        return -EINVAL;
    const unsigned long size = strtoul(slash + 1, &end, 10);
    if (*end || size == 0 || size > PARTS_MAX || rank >= size)
        return -EINVAL;
    *part = (struct option_part){(uint32_t)rank, (uint32_t)size};
    return 0;
}

static int set(size_t option, const char *argument, struct options *options)
{
    void *field = (char *)options + table[option].offset;
    switch (table[option].kind) {
    case FLAG:
        *(bool *)field = true;
        return 0;
    case TEXT:
        *(const char **)field = argument;
        return table[option].choices && !is_choice(table[option].choices, argument) ? -EINVAL : 0;
    case FORMS:
        return add_form(option, argument, field);
    case PART:
        return set_part(argument, field);
    case DURATION:
        return duration_parse(argument, field) < 0 || *(uint64_t *)field == 0 ? -EINVAL : 0;
    case NUMBER:
    default: {
        char *end;
        unsigned long value = strtoul(argument, &end, 10);
        if (argument[0] < '0' || argument[0] > '9' || *end || value < 1 || value > COUNT_MAX)
            return -EINVAL;
        *(unsigned long *)field = value;
        return 0;
    }
    }
}

/* Prints which values the option takes, after set() refused one. */
static void tell_values(size_t option, const char *argument)
{
    const char *values = table[option].kind == DURATION ? "a time from 1s on: 90, 90s, 10m, 2h, 1d"
                         : table[option].kind == PART   ? "one of several: 0/2, 1/2"
                                                        : "a number from 1 on";
    bool forms = table[option].kind == FORMS, choice = table[option].kind == TEXT || forms;
    err_line("--%s does not take '%s', but %s%s%s", table[option].name, argument, forms ? "PATTERN=FORM or " : "",
             choice ? "one of " : "", choice ? table[option].choices : values);
}

/* What getopt_long() takes. `letters` begins with `how`, as it has it. */
struct known {
    struct option options[N_OPTIONS + 1];
    char letters[2 * N_OPTIONS + 2];
};

static void known_fill(struct known *known, const char *how)
{
    *known = (struct known){0};
    strcpy(known->letters, how);
    char *letter = known->letters + strlen(how);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        known->options[i] = (struct option){table[i].name, table[i].kind != FLAG, NULL, 256 + (int)i};
        if (table[i].letter) {
            *letter++ = table[i].letter;
            if (table[i].kind != FLAG)
                *letter++ = ':';
        }
    }
}

int options_first_word(int argc, char **argv)
{
    struct known known;
    known_fill(&known, "+");
    opterr = 0;
    while (getopt_long(argc, argv, known.letters, known.options, NULL) >= 0)
        ;
    int first = optind;
    opterr = 1;
    optind = 0; /* begin anew */
    return first;
}

static int parse(int argc, char **argv, const char *how, struct options *ret, unsigned *ret_given)
{
    struct known known;
    known_fill(&known, how);
    struct options options = {0};
    unsigned given = 0;
    for (;;) {
        int found = getopt_long(argc, argv, known.letters, known.options, NULL);
        if (found < 0)
            break;
        size_t i = 0;
        while (i < N_OPTIONS && found != 256 + (int)i && found != table[i].letter)
            i++;
        if (found == '?' || i == N_OPTIONS) /* getopt_long() printed why */
            options.wrong = true;
        else if (set(i, optarg, &options) < 0) {
            tell_values(i, optarg);
            options.wrong = true;
        } else
            given |= table[i].bit;
    }
    *ret = options;
    *ret_given = given;
    return optind;
}

int options_parse(int argc, char **argv, struct options *ret, unsigned *ret_given)
{
    return parse(argc, argv, "", ret, ret_given);
}

int options_parse_before(int argc, char **argv, struct options *ret, unsigned *ret_given)
{
    return parse(argc, argv, "+", ret, ret_given);
}

const char *option_name(unsigned bits)
{
    for (size_t i = 0; i < N_OPTIONS; i++)
        if (table[i].bit & bits)
            return table[i].name;
    return "";
}

void options_help(FILE *stream, unsigned bits)
{
    enum { INDENT = 22 };
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if (table[i].bit && !(table[i].bit & bits))
            continue;
        char short_form[] = "-c, ", line[64];
        short_form[1] = table[i].letter;
        snprintf(line, sizeof(line), "  %s--%s%s", table[i].letter ? short_form : "", table[i].name, table[i].value);
        if (strlen(line) > INDENT) /* the help begins in the next line, in its column */
            fprintf(stream, "%s\n%*s", line, INDENT + 1, "");
        else
            fprintf(stream, "%-*s ", INDENT, line);
        for (const char *at = table[i].help; *at; at++)
            if (*at == '\n')
                fprintf(stream, "\n%*s", INDENT + 1, "");
            else
                putc(*at, stream);
        putc('\n', stream);
    }
}
