/* The table of commands, and what happens before and after each. */
#include "client/rfctl/format.h"
#include "client/rfctl/interrupt.h"
#include "client/rfctl/output.h"
#include "client/rfctl/progress.h"
#include "client/rfctl/rfctl.h"
#include "proto/streams.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define ANY_NUMBER (-1) /* of arguments, from one on, which are not looked at here */

static const struct command {
    const char *name;
    const char *usage; /* a word for each argument */
    int arguments;
    unsigned options;
    const char *help; /* one line */
    int (*run)(struct rfctl *ctl);
    unsigned idle; /* options that it takes as every command does, but that change nothing: not in its help */
} commands[] = {
    {"load", "FILE...", ANY_NUMBER,
     OPTION_NAME | OPTION_AS | OPTION_DEVICE | OPTION_DEQUANT | OPTION_NO_WAIT | OPTION_PIN | OPTION_TTL |
         OPTION_PRIVATE | OPTION_PUBLIC | OPTION_REPLACE | OPTION_DEADLINE | OPTION_TRACE | OPTION_WAIT_FOR_MEMORY |
         OPTION_LAYOUT | OPTION_TP,
     "load a model, or join a load of it", command_load, 0},
    {"plan", "FILE...", ANY_NUMBER,
     OPTION_NAME | OPTION_AS | OPTION_DEVICE | OPTION_DEQUANT | OPTION_PRIVATE | OPTION_PUBLIC | OPTION_REPLACE |
         OPTION_LAYOUT | OPTION_TP,
     "tell what loading a file would do", command_plan, 0},
    {"ps", "", 0, 0, "list the models in memory", command_ps, 0},
    {"show", "NAME", 1, OPTION_METADATA, "print a model's metadata, tensors and users", command_show, 0},
    {"inspect", "FILE...", ANY_NUMBER, 0, "print what a model's file has in it; needs no daemon", command_inspect,
     OPTION_SOCKET},
    {"unload", "NAME", 1, OPTION_FORCE | OPTION_DEADLINE, "free a model's memory", command_unload, 0},
    {"pin", "NAME", 1, 0, "keep a model: never evict it, nor unload it when idle", command_pin, 0},
    {"unpin", "NAME", 1, 0, "undo pin: the model may be evicted again", command_unpin, 0},
    {"ttl", "NAME DURATION", 2, 0, "unload a model after this idle time, or 'never'", command_ttl, 0},
    {"cancel", "NAME", 1, OPTION_DEADLINE, "stop a load", command_cancel, 0},
    {"verify", "NAME", 1, OPTION_DEADLINE, "compare a model with its file, bit for bit", command_verify, 0},
    {"dump", "NAME|FILE TENSOR", 2, 0, "write a tensor's bytes to standard output", command_dump, OPTION_JSON},
    {"watch", "", 0, 0, "print every change as it happens", command_watch, 0},
    {"devices", "", 0, 0, "list the devices that models can be on", command_devices, 0},
    {"metrics", "", 0, OPTION_HTTP, "print what Prometheus wants to know", command_metrics, 0},
    {"ping", "", 0, OPTION_COUNT | OPTION_DEADLINE, "test whether the daemon answers, and how fast", command_ping, 0},
    {"version", "", 0, 0, "print the versions of rfctl and of the daemon", command_version, 0},
    {"run", "ENGINE [ARGUMENT]...", ANY_NUMBER, OPTION_NAME | OPTION_DEVICE | OPTION_PIN | OPTION_TTL | OPTION_PRIVATE,
     "run llama.cpp on a model in memory", command_run, OPTION_JSON},
};

#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static void help(const struct command *command)
{
    if (command) {
        printf("Usage: rfctl %s%s%s [OPTION]...\n\n%c%s.\n\n", command->name, command->usage[0] ? " " : "",
               command->usage, command->help[0] - 'a' + 'A', command->help + 1);
        if (strstr(command->usage, "DURATION"))
            printf("DURATION is 90 or 90s, 10m, 2h, 1d, or never; 0: as soon as nobody uses it.\n\n");
    } else {
        printf("Usage: rfctl [OPTION]... COMMAND\nLoads models into memory with rocmforged, and manages them.\n\n");
        for (size_t i = 0; i < N_COMMANDS; i++) {
            int n = printf("  %s %s", commands[i].name, commands[i].usage);
            printf("%*s%s\n", n < 20 ? 21 - n : 1, "", commands[i].help);
        }
        putchar('\n');
    }
    options_help(stdout, command ? (command->options | OPTIONS_OF_ALL) & ~command->idle : OPTIONS_OF_ALL);
    if (!command)
        printf("\n'rfctl COMMAND --help' lists the options of a command.\n"
               "Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon.\n");
}

static int wrong_usage(const struct command *command)
{
    fprintf(stderr, "Try 'rfctl %s%s--help'.\n", command ? command->name : "", command ? " " : "");
    return STATUS_USAGE;
}

/* `rfctl --socket S run --pin ENGINE -m x`: the options of rfctl stand before the engine, and all behind it is the
 * engine's. The word "run" moves to where getopt_long() has a program's name, and all that stood before it moves up. */
static int parse(int argc, char **argv, struct rfctl *ctl, unsigned *ret_given)
{
    int word = options_first_word(argc, argv);
    if (word >= argc || strcmp(argv[word], "run") != 0)
        return options_parse(argc, argv, &ctl->options, ret_given);
    char *name = argv[word];
    memmove(argv + 2, argv + 1, (size_t)(word - 1) * sizeof(*argv));
    argv[1] = argv[0]; /* for messages of getopt_long() */
    int first = 1 + options_parse_before(argc - 1, argv + 1, &ctl->options, ret_given);
    argv[first - 1] = name;
    return first - 1;
}

static int run(int argc, char **argv, struct rfctl *ctl)
{
    unsigned given;
    int first = parse(argc, argv, ctl, &given);
    const char *name = argv[first];
    const struct command *command = name ? find(name) : NULL;
    if (ctl->options.wrong)
        return wrong_usage(command);
    if (name && !command) {
        err_line("there is no command '%s'", name);
        return wrong_usage(NULL);
    }
    if (ctl->options.help) {
        help(command);
        return STATUS_DONE;
    }
    if (ctl->options.version) {
        out_line("rfctl " ROCMFORGE_VERSION);
        return STATUS_DONE;
    }
    if (!command) {
        err_line("a command is missing");
        return wrong_usage(NULL);
    }
    unsigned wrong = given & ~(command->options | OPTIONS_OF_ALL);
    if (wrong) {
        err_line("%s does not take --%s", command->name, option_name(wrong));
        return wrong_usage(command);
    }
    int n = argc - first - 1;
    if (command->arguments == ANY_NUMBER ? n == 0 : n != command->arguments) {
        err_line(command->arguments == 0 ? "%s takes no argument" : "%s takes %s", command->name, command->usage);
        return wrong_usage(command);
    }
    ctl->arguments = argv + first + 1;
    ctl->n_arguments = (size_t)n;
    ctl->replies = ctl->options.json;
    return command->run(ctl);
}

int main(int argc, char **argv)
{
    static char program[] = "rfctl"; /* the name that getopt_long() puts before its messages */
    if (streams_open() < 0)
        return STATUS_REFUSED;
    text_begin();
    signal(SIGPIPE, SIG_IGN);
    interrupt_catch();
    if (argc > 0)
        argv[0] = program;
    struct rfctl ctl = {0};
    int status = run(argc, argv, &ctl);
    progress_erase();
    rf_close(ctl.client);
    int r = out_flush();
    if (r == 0 && close(STDOUT_FILENO) < 0 && errno != EINTR)
        r = -errno;
    if (r < 0 && r != -EPIPE) /* EPIPE: the reader closed the pipe, which needs no message */
        err_line("cannot write: %s", strerror(-r));
    return r < 0 && status == STATUS_DONE ? STATUS_REFUSED : status;
}
